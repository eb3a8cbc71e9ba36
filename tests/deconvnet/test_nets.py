"""Networks: the published sizes, torchvision's VGG-16, unpooling, model files."""

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from deconvnet import nets
from deconvnet.errors import InputError
from deconvnet.nets import files
from deconvnet.nets.deconvnet import DeconvNet
from deconvnet.nets.fcn import FCN, bilinear
from deconvnet.nets.folding import fold
from deconvnet.nets.layers import BatchNormReLU, Dropout, FcConv, FcDeconv, set_seeds
from deconvnet.nets.vgg import BLOCKS, CONVENTIONS, VGG16, Classifier
from deconvnet.nets.weights import NAMES, encoder_state, load_encoder, read_vgg16
from deconvnet.settings import Size

PAPER = Size(64, 4096, 224)
TINY = Size(4, 16, 64)


def parameters(net):
    return sum(parameter.numel() for parameter in net.parameters())


def test_deconvnet_has_the_papers_parameters():
    with torch.device("meta"):
        net = DeconvNet(PAPER, 21, 1e-9)
    norms = [module for module in net.modules() if isinstance(module, BatchNormReLU)]
    biases = sum(len(norm.weight) for norm in norms)  # the release has them, without effect
    assert parameters(net) == 251_805_653 - biases and biases == 16_704
    assert sum(map(parameters, norms)) == 33_408
    with torch.device("meta"):
        assert parameters(VGG16(PAPER, None)) == 134_260_544
    assert net.to("meta")(torch.empty(2, 3, 224, 224, device="meta")).shape == (2, 21, 224, 224)


@pytest.mark.parametrize("stride", [8, 16, 32])
@pytest.mark.parametrize("height, width", [(500, 375), (333, 500), (64, 97)])
def test_fcn_scores_every_pixel(stride, height, width):
    with torch.device("meta"):
        net = FCN(PAPER, 21, None, stride)
    assert abs(parameters(net) - 134.5e6) < 0.5e6
    assert net.eval()(torch.empty(1, 3, height, width, device="meta")).shape == (1, 21, height, width)


SIZES = pytest.mark.parametrize(
    "size",
    [TINY, Size(4, 16, 96), Size(4, 16, 224), Size(4, 16, (64, 224))],
    ids=["kernel 2", "kernel 3", "kernel 7", "kernel 2x7"],
)


@SIZES
@pytest.mark.parametrize("stride, part", [(32, 0), (16, 0), (16, 1), (8, 0), (8, 1), (8, 2)])
def test_fcn_scores_lie_where_the_image_is(size, stride, part):
    """A net that averages shows a bright square where it is, by the scores of fc7, of pool4 and of pool3 alone."""
    net = FCN(size, 1, None, stride, skip_scales=(1.0, 1.0)).eval()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if "upsampling" not in name:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0 / parameter[0].numel())
        for index, score in enumerate((net.score_fc7, *net.score_pools)):
            score.weight.mul_(index == part)
        net.encoder.mean.zero_()
        image = torch.zeros(1, 3, 320, 320)
        image[:, :, 96:160, 160:224] = 255
        scores = net(image)[0, 0]
    mass = scores / scores.sum()
    place = torch.arange(320) + 0.5
    # max pooling draws the centre up to half a cell of this map to one side
    cell = {0: 32, 1: 16, 2: 8}[part]
    assert abs(float((mass.sum(1) * place).sum()) - 128) <= cell / 2
    assert abs(float((mass.sum(0) * place).sum()) - 192) <= cell / 2


@SIZES
@pytest.mark.parametrize("height, width", [(500, 375), (160, 200), (123, 181)])
def test_fcn_scores_reach_every_border(size, height, width):
    """Scores of 1 everywhere; pool3's and pool4's cover the image, fc7's fade by less than half towards a border."""
    net = FCN(size, 1, None, 8, skip_scales=(1.0, 1.0)).eval()
    for part, least in enumerate((0.5, 0.999, 0.999)):
        with torch.no_grad():
            for index, score in enumerate((net.score_fc7, *net.score_pools)):
                score.weight.zero_()
                score.bias.fill_(float(index == part))
            scores = net(torch.zeros(1, 3, height, width))[0, 0]
        middle = scores[height // 2, width // 2]
        edges = torch.stack([scores[0, width // 2], scores[-1, width // 2], scores[height // 2, 0],
                             scores[height // 2, -1]])  # fmt: skip
        torch.testing.assert_close(middle, torch.tensor(1.0))
        assert edges.min() >= least


def caffe_fcn8s(net, image):
    """FCN-8s layer by layer as voc-fcn8s-atonce's net.py lists it (F), on one image (1, 3, H, W)."""
    state = net.state_dict()

    def conv(x, name, padding=0):
        return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], padding=padding)

    x, pools = image.float() - state["encoder.mean"][:, None, None], []
    for block, count in enumerate((2, 2, 3, 3, 3), 1):
        for index in range(1, count + 1):
            first = block == index == 1
            x = F.relu(conv(x, f"encoder.conv{block}_{index}.conv", padding=100 if first else 1))
        # kernel 2, stride 2, output ceil((size - 2) / 2) + 1: the last window is cut off at the border
        x = F.pad(x, [0, x.shape[3] % 2, 0, x.shape[2] % 2], value=-torch.inf)
        x = x.unfold(2, 2, 2).unfold(3, 2, 2).amax((4, 5))
        pools.append(x)
    x = F.relu(conv(x, "encoder.fc6.conv"))
    x = F.relu(conv(x, "encoder.fc7.conv"))
    upscore2 = F.conv_transpose2d(conv(x, "score_fc7"), state["upsamplings.0.weight"], stride=2)
    score_pool4 = conv(pools[3] * 0.01, "score_pools.0")
    height, width = upscore2.shape[2:]
    fuse_pool4 = upscore2 + score_pool4[:, :, 5 : 5 + height, 5 : 5 + width]
    upscore_pool4 = F.conv_transpose2d(fuse_pool4, state["upsamplings.1.weight"], stride=2)
    score_pool3 = conv(pools[2] * 0.0001, "score_pools.1")
    height, width = upscore_pool4.shape[2:]
    fuse_pool3 = upscore_pool4 + score_pool3[:, :, 9 : 9 + height, 9 : 9 + width]
    ramp = 1 - (torch.arange(16) - 7.5).abs() / 8
    weight = (ramp[:, None] * ramp).expand(net.spec["classes"], 1, 16, 16)
    upscore8 = F.conv_transpose2d(fuse_pool3, weight, stride=8, groups=net.spec["classes"])
    return upscore8[:, :, 31 : 31 + image.shape[2], 31 : 31 + image.shape[3]]


@pytest.mark.parametrize("height, width", [(375, 500), (500, 333), (500, 500)])
def test_fcn_equals_caffes(height, width):
    torch.manual_seed(0)
    net = FCN(Size(4, 16, 224), 5, None).eval()
    net.encoder.set_convention("imagenet1k_features")
    with torch.no_grad():
        for score in (net.score_fc7, *net.score_pools):
            nn.init.normal_(score.weight)
            nn.init.normal_(score.bias)
        net.score_pools[0].weight *= 1e2  # so that every branch weighs as much as the others
        net.score_pools[1].weight *= 1e4
        image = torch.randint(0, 256, (1, 3, height, width))
        expected, found = caffe_fcn8s(net, image), net(image)
    assert expected.shape == found.shape == (1, 5, height, width)
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-5


def test_bilinear_filter_interpolates():
    ramp = torch.arange(6.0).expand(1, 1, 6, 6)
    up = F.conv_transpose2d(ramp, bilinear(4)[None, None], stride=4)[0, 0, 12, 8:20]
    torch.testing.assert_close(up.diff(), torch.full((11,), 0.25))


def test_fc_deconv_is_a_transposed_convolution():
    layer = FcDeconv(6, 4, 7)
    x = torch.randn(3, 6, 1, 1)
    torch.testing.assert_close(layer(x), F.conv_transpose2d(x, layer.weight, layer.bias))


@pytest.mark.parametrize("side", [7, 9])
def test_fc_conv_is_a_convolution(side):
    layer = FcConv(4, 6, 7).to(memory_format=torch.channels_last)
    x = torch.randn(3, 4, side, side).contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(layer(x), F.conv2d(x, layer.weight, layer.bias))


def test_dropout_of_a_crop_depends_on_its_seed_alone():
    net = nn.ModuleList([Dropout(0.25), Dropout(0.25)])
    x = torch.ones(4, 50, 3, 3)
    set_seeds(net, [5, 6, 7, 5])
    first, second = net[0](x), net[1](x)
    assert torch.equal(first[0], first[3]) and not torch.equal(first[0], first[1]) and not torch.equal(first, second)
    assert first.unique().tolist() == pytest.approx([0, 4 / 3])
    assert float((first == 0).float().mean()) == pytest.approx(0.25, abs=0.05)
    set_seeds(net, [7])
    assert torch.equal(net[0](x[:1])[0], first[2])
    assert torch.equal(net.eval()[0](x), x)


def test_batch_norm_over_groups_is_the_release_accumulation():
    layer = BatchNormReLU(4)
    layer.crops = 2
    x = torch.randn(6, 4, 3, 3)
    torch.testing.assert_close(layer(x), torch.cat([nn.BatchNorm2d(4)(part) for part in x.split(2)]).relu())
    layer.crops = None
    torch.testing.assert_close(layer(x), nn.BatchNorm2d(4)(x).relu())
    assert torch.equal(layer.running_mean, torch.zeros(4)) and torch.equal(layer.running_var, torch.ones(4))


@pytest.fixture(scope="module")
def vgg16():
    torch.manual_seed(0)
    return torchvision.models.vgg16(num_classes=2).eval()


def published(state, convention):
    """A state dict of torchvision's as the file of another convention has it."""
    if convention != "caffe_bgr":
        return state
    # jcjohnson's vgg16-00b39a1b.pth, converted from Caffe, is fed with blue, green, red
    renamed = {
        name.replace("classifier.0", "classifier.1").replace("classifier.3", "classifier.4"): tensor
        for name, tensor in state.items()
        if "classifier.6" not in name
    }
    return renamed | {"features.0.weight": state["features.0.weight"].flip(1)}


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_activations_equal_torchvision(vgg16, convention, tmp_path):
    """The same image through the published preprocessing and net, and through ours: equal up to fc7."""
    torch.save(published(vgg16.state_dict(), convention), tmp_path / "vgg16.pth")
    encoder = VGG16(PAPER, eps=None).eval()
    assert load_encoder(encoder, read_vgg16(tmp_path / "vgg16.pth", PAPER, convention), eps=None) == []
    encoder.set_convention(convention)
    picture = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (224, 224, 3), np.uint8), (0, 0), 3)
    image = torch.from_numpy(picture).permute(2, 0, 1)[None]
    with torch.no_grad():
        if convention == "caffe_bgr":
            bgr = torch.from_numpy(picture[..., ::-1] - np.array([103.939, 116.779, 123.68], np.float32))
            first = nn.Conv2d(3, 64, 3, padding=1)
            first.load_state_dict({"weight": vgg16.features[0].weight.flip(1), "bias": vgg16.features[0].bias})
            expected = vgg16.features[1:](first(bgr.permute(2, 0, 1)[None]))
        else:
            weights = getattr(torchvision.models.VGG16_Weights, convention.upper())
            expected = vgg16.features(weights.transforms(crop_size=224, resize_size=224)(image))
        pool5 = encoder.pools(encoder.normalise(image))[-1][0]
        torch.testing.assert_close(pool5, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
        fc7 = encoder.fc7(encoder.fc6(pool5)).flatten(1)
        expected = vgg16.classifier[:5](expected.flatten(1))
        torch.testing.assert_close(fc7, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_partial_and_narrow_files(vgg16, tmp_path):
    state = vgg16.state_dict()
    state = {name: tensor for name, tensor in state.items() if not name.startswith("features.28")}
    state["classifier.0.weight"] = torch.full_like(state["classifier.0.weight"], torch.nan)
    torch.save(state, tmp_path / "part.pth")
    encoder = VGG16(PAPER, eps=None)
    assert load_encoder(encoder, read_vgg16(tmp_path / "part.pth", PAPER, "imagenet1k_v1"), eps=None) == [
        "conv5_3",
        "fc6",
    ]
    assert torch.equal(encoder.conv1_1.conv.weight, state["features.0.weight"])
    assert read_vgg16(tmp_path / "part.pth", TINY, "imagenet1k_v1") == {}


def test_folding_batch_norm_keeps_the_function():
    torch.manual_seed(0)
    with_norm, without = VGG16(TINY, 1e-3).eval(), VGG16(TINY, None).eval()
    for module in with_norm.modules():
        if isinstance(module, BatchNormReLU):
            for tensor in (module.weight, module.running_var):
                torch.nn.init.uniform_(tensor, 0.5, 2)
            torch.nn.init.normal_(module.running_mean)
    assert load_encoder(without, with_norm.state_dict(), eps=1e-3) == []
    image = torch.randint(0, 256, (2, 3, 64, 64))
    for (expected, _), (found, _) in zip(
        *(net.pools(net.normalise(image)) for net in (with_norm, without)), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "content, message", [(b"junk", "not a PyTorch state dict"), ({"a": torch.zeros(1)}, "holds no layer")]
)
def test_wrong_vgg16_file(content, message, tmp_path):
    path = tmp_path / "vgg16.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(InputError, match=message):
        read_vgg16(path, PAPER, "imagenet1k_v1")
    with pytest.raises(InputError, match="pre-train from scratch"):
        read_vgg16(tmp_path / "absent.pth", PAPER, "caffe_bgr")


@pytest.mark.parametrize(
    "net", [DeconvNet(TINY, 5, 1e-5), FCN(TINY, 5, None), Classifier(TINY, 5, None)], ids=lambda net: net.spec["kind"]
)
def test_model_file_round_trip(net, tmp_path):
    files.save(tmp_path / "a.pt", net.spec, net.state_dict(), {"code": "x"})
    files.save(tmp_path / "b.pt", net.spec, net.state_dict(), {"code": "x"})
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()
    loaded, about = files.load(tmp_path / "a.pt")
    image = torch.randint(0, 256, (1, 3, 64, 64))
    assert torch.equal(loaded(image), net.eval()(image)) and about == {"code": "x"} and not loaded.training


def test_the_encoder_of_a_net():
    net = DeconvNet(TINY, 5, 1e-5)
    state = encoder_state(net.state_dict())
    assert state.keys() == net.encoder.state_dict().keys()
    assert state["conv1_1.conv.weight"] is not None and "score.weight" not in state


def test_model_of_other_classes_names_the_layers():
    with pytest.raises(
        InputError,
        match=r"stage1.pt: of another network or class count: score.weight 21x4x1x1 \(the net wants 5x4x1x1\)",
    ):
        files.load_state(DeconvNet(TINY, 5, 1e-5), DeconvNet(TINY, 21, 1e-5).state_dict(), "stage1.pt")
    with pytest.raises(InputError, match="and [0-9]+ more"):
        files.load_state(DeconvNet(TINY, 5, None), DeconvNet(TINY, 5, 1e-5).state_dict(), "stage1.pt")


def test_torchvision_names_are_torchvisions(vgg16):
    assert {f"{names[0]}.weight" for names in NAMES.values()} == {
        name for name, tensor in vgg16.state_dict().items() if name.endswith("weight") and tensor.shape[0] != 2
    }


@pytest.mark.parametrize("stride", [8, 16, 32])
@pytest.mark.parametrize("height, width", [(160, 200), (97, 64), (33, 131)])
def test_last_upsampling_is_the_transposed_convolution_of_the_release(stride, height, width):
    """Wherever the image is, though a transposed convolution fades out at a map's edge and interpolation does not."""
    net = FCN(TINY, 3, None, stride).eval()
    maps = []
    interpolate = F.interpolate

    def watch(x, **more):
        maps.append(x)
        return interpolate(x, **more)

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        for layer in (net.score_fc7, *net.score_pools):
            nn.init.normal_(layer.weight)
        patch.setattr("deconvnet.nets.fcn.F.interpolate", watch)
        found = net(torch.randint(0, 256, (2, 3, height, width)))
    filters = bilinear(stride).expand(3, 1, -1, -1)
    expected = F.conv_transpose2d(maps[0], filters, stride=stride, groups=3)[:, :, 31 : 31 + height, 31 : 31 + width]
    inner = slice(stride // 32, None)  # FCN-32s's first row and column lie half a pixel outside of its cells' centres
    torch.testing.assert_close(found[:, :, inner, inner], expected[:, :, inner, inner])


def test_a_decoder_by_hes_rule():
    net = DeconvNet(Size(16, 64, 64), 4, 1e-5)
    before = {name: value.clone() for name, value in net.named_parameters()}
    torch.manual_seed(0)
    net.start_by_he()
    for name, value in net.named_parameters():
        if name.startswith("deconv") and name.endswith("conv.weight"):
            assert float(value.detach().std()) == pytest.approx((2 / value[0].numel()) ** 0.5, rel=0.1), name
        elif not name.startswith("fc6_deconv"):
            assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("unpooling", ["switches", "bilinear", "transposed"])
def test_what_takes_the_place_of_unpooling(unpooling, tmp_path):
    """Against the decoder written out, with PyTorch's own functions."""
    torch.manual_seed(1)
    net = DeconvNet(TINY, 5, 1e-5, unpooling)
    for name, value in net.named_buffers():
        if "running" in name:
            value.data = value + torch.rand_like(value)
    net.eval()
    images = torch.randint(0, 256, (2, 3, 64, 64))

    def layer(x, name):
        own = getattr(net, name)
        conv = own.conv
        if name.startswith("deconv") and unpooling == "transposed" and name.endswith("_1"):
            x = F.conv_transpose2d(x, conv.weight, stride=2, padding=1)
        else:
            x = F.conv2d(x, conv.weight, padding=1)
        norm = own.norm
        x = F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=1e-5)
        return F.relu(x)

    with torch.no_grad():
        x, switches = net.encoder.normalise(images), {}
        for number, block in enumerate(BLOCKS, 1):
            for index in range(1, len(block) + 1):
                x = getattr(net.encoder, f"conv{number}_{index}")(x)
            x, switches[number] = F.max_pool2d(x, 2, return_indices=True)
        x = net.fc6_deconv(net.encoder.fc7(net.encoder.fc6(x)))
        for number, layers in ((5, 3), (4, 3), (3, 3), (2, 2), (1, 2)):
            if unpooling == "switches":
                x = F.max_unpool2d(x, switches[number], 2)
            elif unpooling == "bilinear":
                x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            for index in range(1, layers + 1):
                x = layer(x, f"deconv{number}_{index}")
        expected = net.score(x)
        torch.testing.assert_close(net(images), expected, rtol=1e-3, atol=1e-4)

        files.save(tmp_path / "net.pt", net.spec, net.state_dict(), {})
        loaded, _ = files.load(tmp_path / "net.pt")
        assert torch.equal(loaded(images), net(images))
        torch.testing.assert_close(fold(loaded)(images), expected, rtol=1e-3, atol=1e-4)


def test_a_model_file_of_before_has_switches():
    spec = {key: value for key, value in DeconvNet(TINY, 5, 1e-5).spec.items() if key != "unpooling"}
    assert nets.build(spec).spec["unpooling"] == "switches"
