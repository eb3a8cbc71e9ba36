"""What a class's score depends on: each method against its formula, written here or by Captum."""

import sys

import captum.attr
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from deconvnet import explain, nets
from deconvnet.errors import InputError
from deconvnet.explain import attribute, load_classifier, project, ready
from deconvnet.nets import files
from deconvnet.nets.vgg import CONVENTIONS, Classifier
from deconvnet.settings import Size

TINY = Size(4, 16, 64)


class Rule(torch.autograd.Function):
    """A ReLU with another gradient."""

    @staticmethod
    def forward(context, x, guided):
        context.save_for_backward(x)
        context.guided = guided
        return x.clamp(min=0)

    @staticmethod
    def backward(context, gradient):
        (x,) = context.saved_tensors
        positive = gradient.clamp(min=0)
        return positive * (x > 0) if context.guided else positive, None


def classifier():
    torch.manual_seed(0)
    net = Classifier(TINY, 5, eps=1e-5).eval()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.bias.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 2)
        net.score.weight.normal_()
    return net


@pytest.fixture
def images():
    return torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 255


@pytest.fixture
def small():
    """Not one of ours: any network will do. ReLUs in place, as torchvision has them."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3, padding=1),
        nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(6 * 32 * 32, 8), nn.ReLU(inplace=True), nn.Linear(8, 5),
    )  # fmt: skip


def by_rule(net, images, target, guided):
    """The gradient of `small` under one of the rules, layer by layer."""
    images = images.clone().requires_grad_()
    x = images
    for layer in net:
        x = Rule.apply(x, guided) if isinstance(layer, nn.ReLU) else layer(x)
    x[0, target].backward()
    return images.grad


def test_gradients(small, images):
    images = images / 255
    wanted = torch.autograd.functional.jacobian(lambda x: small(x)[0, 3], images)
    guided = by_rule(small, images, 3, guided=True)
    net = ready(small)
    torch.testing.assert_close(attribute("gradient", net, net[4], images, 3), wanted)
    torch.testing.assert_close(attribute("guided", net, net[4], images, 3), guided)
    assert not torch.allclose(wanted, guided)
    torch.testing.assert_close(
        by_rule(small, images, 3, guided=False), captum.attr.Deconvolution(net).attribute(images, 3)
    )


def test_grad_cam(images):
    net = ready(classifier())
    maps = {}
    hook = net.encoder.conv5_3.register_forward_hook(lambda _, inputs, output: maps.update(x=output))
    copy = images.clone().requires_grad_()
    score = net(copy)[0, 2]
    hook.remove()
    (gradients,) = torch.autograd.grad(score, maps["x"])
    weights = gradients.mean((2, 3), keepdim=True)
    small = (weights * maps["x"]).sum(1, keepdim=True).clamp(min=0).detach()
    assert small.shape == (1, 1, 4, 4) and small.max() > 0
    wanted = F.interpolate(small, (64, 64), mode="bilinear")
    found = attribute("grad_cam", net, net.encoder.conv5_3, images, 2)
    torch.testing.assert_close(found, wanted)
    both = captum.attr.GuidedGradCam(net, net.encoder.conv5_3).attribute(images, 2, interpolate_mode="bilinear")
    torch.testing.assert_close(attribute("guided_grad_cam", net, net.encoder.conv5_3, images, 2), both)


def test_the_deconvnet_of_a_class_is_captums(images):
    net = ready(classifier())
    for target in (0, 4):
        wanted = captum.attr.Deconvolution(net).attribute(images.requires_grad_(), target)
        found, channel = project(net, images.detach(), "score", target)
        assert wanted.abs().max() > 0 and channel == target
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))


def test_the_deconvnet_of_a_unit(images):
    net = ready(classifier())
    net.encoder.std.copy_(torch.tensor([1.0, 2, 4]))
    # of the first layer: its kernel, at the place of the largest activation, times that activation
    maps = net.encoder.conv1_1(net.encoder.normalise(images))[0]
    found, channel = project(net, images, "conv1_1")
    assert channel == maps.amax((1, 2)).argmax()
    y, x = divmod(int(maps[channel].argmax()), 64)
    wanted = torch.zeros(1, 3, 66, 66)
    kernel = net.encoder.conv1_1.conv.weight[channel]
    wanted[0, :, y : y + 3, x : x + 3] = maps[channel, y, x] * kernel / net.encoder.std[:, None, None]
    torch.testing.assert_close(found, wanted[:, :, 1:-1, 1:-1])
    # of a deeper one: Captum's, from that unit alone
    for layer in ("conv2_1", "conv3_3", "conv5_3"):
        found, channel = project(net, images, layer)
        part = UpTo(net, layer, channel)
        activations = part(images)[0]
        wanted = captum.attr.Deconvolution(part).attribute(images.clone().requires_grad_(), int(activations.argmax()))
        wanted = wanted.detach() * activations.max()
        assert wanted.abs().max() > 0
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))
        second, other = project(net, images, layer, (channel + 1) % 4)
        assert other == (channel + 1) % 4 and not torch.equal(second, found)


class UpTo(nn.Module):
    """A net's answer at a channel of a layer, flat, for Captum."""

    def __init__(self, net, layer, channel):
        super().__init__()
        self.net, self.channel = net, channel
        getattr(net.encoder, layer).register_forward_hook(self.keep)

    def keep(self, _, inputs, output):
        self.maps = output

    def forward(self, x):
        self.net(x)
        return self.maps[:, self.channel].flatten(1)  # (B, H*W)


def test_ready_changes_no_answer(images):
    net = classifier()
    with torch.no_grad():
        before = net(images)
        torch.testing.assert_close(ready(net)(images), before, rtol=1e-4, atol=1e-4)
    rectifiers = [module for module in net.modules() if isinstance(module, nn.ReLU)]
    assert len(rectifiers) == 15 and not any(module.inplace for module in rectifiers)


def test_without_captum(images, monkeypatch):
    monkeypatch.setitem(sys.modules, "captum", None)
    net = ready(classifier())
    with pytest.raises(InputError, match=r"guided needs Captum .*pip install 'deconvnet\[captum\]'"):
        attribute("guided", net, net.encoder.conv5_3, images, 0)
    project(net, images, "score", 0)  # our own


def narrow_vgg16(classes=7):
    """torchvision's VGG-16, at the width of TINY."""
    torch.manual_seed(0)
    layout = [width if width == "M" else width // 16 for width in torchvision.models.vgg.cfgs["D"]]
    net = torchvision.models.VGG(torchvision.models.vgg.make_layers(layout), init_weights=False).eval()
    net.avgpool = nn.Identity()
    for place, (inputs, outputs) in {0: (32 * 4, 16), 3: (16, 16), 6: (16, classes)}.items():
        net.classifier[place] = nn.Linear(inputs, outputs)
    return net


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(explain, "Size", lambda: TINY)


def test_torchvisions_vgg16(tiny, tmp_path, images):
    vgg = narrow_vgg16()
    torch.save(vgg.state_dict(), tmp_path / "vgg16.pth")
    net, names, missing = load_classifier(tmp_path / "vgg16.pth")
    mean, std = (torch.tensor(values)[:, None, None] for values in CONVENTIONS["imagenet1k_v1"])
    with torch.no_grad():
        torch.testing.assert_close(net(images), vgg((images - mean) / std), rtol=1e-4, atol=1e-5)
    assert missing == [] and names == [f"class {number}" for number in range(7)]
    # and the same gradient, of a network that is torchvision's own
    ready(vgg)
    wanted = attribute("guided", vgg, vgg.features[29], (images - mean) / std, 1) / std
    torch.testing.assert_close(attribute("guided", net, net.encoder.conv5_3, images, 1), wanted, rtol=1e-3, atol=1e-8)


def test_files_without_a_head(tiny, tmp_path):
    state = narrow_vgg16().state_dict()
    features = {name: values if "features" in name else values * torch.nan for name, values in state.items()}
    torch.save(features, tmp_path / "features.pth")
    net, names, missing = load_classifier(tmp_path / "features.pth")
    assert missing == ["fc6", "fc7", "score"] and len(names) == 1000 and names[207] == "golden retriever"
    assert net.encoder.mean.tolist() == list(CONVENTIONS["imagenet1k_features"][0])
    assert torch.equal(net.encoder.conv1_1.conv.weight, state["features.0.weight"])
    again, *_ = load_classifier(tmp_path / "features.pth")
    assert torch.equal(net.score.weight, again.score.weight)  # of one seed
    renamed = {name.replace("classifier.0", "classifier.1").replace("classifier.3", "classifier.4"): values
               for name, values in state.items() if "classifier.6" not in name}  # fmt: skip
    torch.save(renamed, tmp_path / "caffe.pth")
    net, _, missing = load_classifier(tmp_path / "caffe.pth")
    assert missing == ["score"] and torch.equal(net.encoder.conv1_1.conv.weight, state["features.0.weight"].flip(1))


def test_an_encoder_of_ours(tmp_path, images):
    net = classifier()
    files.save(tmp_path / "encoder.pt", net.spec, net.state_dict(), {"classes": list("abcde")})
    loaded, names, missing = load_classifier(tmp_path / "encoder.pt")
    assert names == list("abcde") and missing == []
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), net(images), rtol=1e-4, atol=1e-4)


def test_files_that_are_no_classifier(tmp_path):
    net = nets.build({"kind": "fcn", "size": vars(TINY), "classes": 3, "eps": None})
    files.save(tmp_path / "fcn.pt", net.spec, net.state_dict(), {})
    torch.save({"a": torch.zeros(3)}, tmp_path / "other.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    (tmp_path / "text.pth").write_text("no weights")
    for name in ("fcn.pt", "other.pth", "list.pth", "text.pth", "none.pth"):
        with pytest.raises(InputError, match=name) as raised:
            load_classifier(tmp_path / name)
        assert "\n" not in str(raised.value)
