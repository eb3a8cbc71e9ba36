"""What of a picture a classification network's answer depends on.

    gradient           vanilla backpropagation of a class's score to the pixels (Simonyan et al., ICLR workshop 2014)
    guided             guided backpropagation: positive gradients alone, where a ReLU was active (Springenberg et al.,
                       ICLR workshop 2015)
    deconvnet          the deconvnet of Zeiler and Fergus (ECCV 2014), which DeconvNet's unpooling comes from: positive
                       signals alone, wherever a ReLU was active, unpooled by the switches
    grad_cam           Grad-CAM: the maps of the last convolution, weighted by their mean gradients (Selvaraju et al.,
                       ICCV 2017)
    guided_grad_cam    guided backpropagation times Grad-CAM

Captum computes all but `deconvnet`, for any classification network. `project` is our own, of our own unpooling: unlike
Captum's `Deconvolution`, which equals it from a class's score, it also starts from a single unit of any layer.
"""

import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deconvnet.errors import InputError
from deconvnet.kernels import max_pool, unpool
from deconvnet.nets import files
from deconvnet.nets.folding import fold
from deconvnet.nets.vgg import BLOCKS, Classifier
from deconvnet.nets.weights import load_encoder, read_vgg16
from deconvnet.settings import Size

METHODS = ("gradient", "guided", "deconvnet", "grad_cam", "guided_grad_cam")
IMAGENET = 1000  # classes


def attribute(method: str, net: nn.Module, layer: nn.Module, images: Tensor, target: int) -> Tensor:
    """One of the methods above but `deconvnet`, for the class `target`, by Captum.

    net: a classification network, images float32 (B, 3, H, W) -> (B, classes), whose ReLUs are modules, not in place
    (`ready` sees to that). layer: its last convolution with its ReLU, for Grad-CAM. Returns (B, 3, H, W), for grad_cam
    (B, 1, H, W) of at least 0, enlarged bilinearly. Raises InputError without Captum.
    """
    try:
        from captum import attr
    except ImportError as error:
        raise InputError(f"{method} needs Captum ({error}); `pip install 'deconvnet[captum]'`") from None
    images = images.detach().clone().requires_grad_()
    if method == "gradient":
        return attr.Saliency(net).attribute(images, target, abs=False).detach()
    if method == "guided":
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Setting backward hooks on ReLU")
            return attr.GuidedBackprop(net).attribute(images, target).detach()
    if method == "grad_cam":
        maps = attr.LayerGradCam(net, layer).attribute(images, target, relu_attributions=True)
        return F.interpolate(maps, images.shape[2:], mode="bilinear").detach()
    if method == "guided_grad_cam":
        return attribute("guided", net, layer, images, target) * attribute("grad_cam", net, layer, images, target)
    raise ValueError(f"{method}: not computed by Captum")


@torch.no_grad()
def project(net: Classifier, images: Tensor, layer: str, channel: int | None = None) -> tuple[Tensor, int]:
    """Send a unit back to the pixels through the deconvnet of Zeiler and Fergus.

    net: as `ready` leaves it. images: float32 (1, 3, S, S). layer: "score", for a class, or a convolution ("conv5_3"),
    where the largest activation of a channel is sent back and everything else left out. channel: the class or channel;
    None: the one with the largest activation. Returns (1, 3, S, S), signed, and the channel.

    Each layer of the way back: what is below 0 is cut off, then the transposed convolution with the same weights, then
    unpooling by the switches. That of the class score equals Captum's `Deconvolution`.
    """
    encoder, maps, switches = net.encoder, {}, {}
    x = encoder.normalise(images)
    for number, block in enumerate(BLOCKS, 1):
        for index in range(1, len(block) + 1):
            name = f"conv{number}_{index}"
            x = maps[name] = getattr(encoder, name)(x)  # (1, C, H, W)
        x, switches[number] = max_pool(x)  # (1, C, H/2, W/2)
    maps["fc6"] = encoder.fc6(x)
    maps["fc7"] = encoder.fc7(maps["fc6"])
    maps["score"] = net.score(maps["fc7"])  # (1, classes, 1, 1)
    largest = maps[layer].amax((0, 2, 3))  # (C,)
    channel = int(largest.argmax()) if channel is None else channel
    signal = torch.zeros_like(maps[layer])
    place = divmod(int(maps[layer][0, channel].argmax()), signal.shape[3])
    signal[0, channel, *place] = 1 if layer == "score" else largest[channel]
    way = list(maps)
    for name in reversed(way[: way.index(layer) + 1]):
        conv = net.score if name == "score" else getattr(encoder, name).conv
        signal = F.conv_transpose2d(signal.clamp(min=0), conv.weight, padding=conv.padding)
        if name == "fc6":
            signal = unpool(signal, switches[5])
        elif name.endswith("_1") and name != "conv1_1":
            signal = unpool(signal, switches[int(name[4]) - 1])
    return signal / encoder.std[:, None, None], channel


def ready(net: nn.Module) -> nn.Module:
    """A classification network for the functions above, in place: in evaluation, its ReLUs modules, not in place."""
    net = (fold(net) if isinstance(net, Classifier) else net).eval().requires_grad_(False)
    for module in net.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    return net


def load_classifier(path: str | Path) -> tuple[Classifier, list[str], list[str]]:
    """A classification network, its class names, and the layers that the file lacks: those are random, of one seed.

    path: the model file of an encoder that `pretrain` trained, or a VGG-16 in torchvision's names: torchvision's own,
    its IMAGENET1K_FEATURES (without fc6, fc7 and score), or jcjohnson's conversion of Caffe's (without score). Raises
    InputError for a file that is neither.
    """
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # said better by `read_vgg16`
        saved = {}
    if isinstance(saved, dict) and "spec" in saved:
        net, about = files.load(path)
        if not isinstance(net, Classifier):
            raise InputError(f"{path}: a net of kind {net.spec['kind']}; --classifier wants an encoder or a VGG-16")
        return ready(net), list(about.get("classes") or _names(net.spec["classes"])), []
    convention = "caffe_bgr" if isinstance(saved, dict) and _holds(saved, "classifier.1") else "imagenet1k_v1"
    found = read_vgg16(path, Size(), convention)
    if "fc6.conv.weight" not in found:
        convention = "imagenet1k_features"
    whole = _holds(saved, "classifier.6") and saved["classifier.6.weight"].shape[1:] == (Size().fc_width,)
    classes = len(saved["classifier.6.weight"]) if whole else IMAGENET
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Classifier(Size(), classes, eps=None)
    missing = load_encoder(net.encoder, found, eps=None)
    net.encoder.set_convention(convention)
    if whole:
        net.score.weight.data.copy_(saved["classifier.6.weight"][:, :, None, None])
        net.score.bias.data.copy_(saved["classifier.6.bias"])
    return ready(net), _names(classes), missing if whole else [*missing, "score"]


def _holds(state: dict, layer: str) -> bool:
    tensors = [state.get(f"{layer}.{kind}") for kind in ("weight", "bias")]
    return all(isinstance(tensor, Tensor) and bool(torch.isfinite(tensor).all()) for tensor in tensors)


def _names(classes: int) -> list[str]:
    """ImageNet's, where torchvision is installed; otherwise numbers."""
    if classes == IMAGENET:
        try:
            from torchvision.models import VGG16_Weights

            return VGG16_Weights.IMAGENET1K_V1.meta["categories"]
        except ImportError:
            pass
    return [f"class {number}" for number in range(classes)]
