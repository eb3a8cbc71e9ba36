"""DeconvNet and its solvers against the release, layer by layer and number by number."""

import pytest
import torch
from torch import nn

from deconvnet import kernels
from deconvnet.nets import deconvnet
from deconvnet.nets.deconvnet import DeconvNet
from deconvnet.nets.layers import BatchNormReLU
from deconvnet.settings import FcnTraining, Run, Size, Training
from deconvnet.training.devices import Worker
from deconvnet.training.optimiser import Optimiser

# name, kernel, stride, padding, output channels, output size, batch norm and ReLU, parameters without batch norm's
LAYERS = """
conv1_1     3 1 1   64 224 yes      1792
conv1_2     3 1 1   64 224 yes     36928
pool1       2 2 0   64 112 no          0
conv2_1     3 1 1  128 112 yes     73856
conv2_2     3 1 1  128 112 yes    147584
pool2       2 2 0  128  56 no          0
conv3_1     3 1 1  256  56 yes    295168
conv3_2     3 1 1  256  56 yes    590080
conv3_3     3 1 1  256  56 yes    590080
pool3       2 2 0  256  28 no          0
conv4_1     3 1 1  512  28 yes   1180160
conv4_2     3 1 1  512  28 yes   2359808
conv4_3     3 1 1  512  28 yes   2359808
pool4       2 2 0  512  14 no          0
conv5_1     3 1 1  512  14 yes   2359808
conv5_2     3 1 1  512  14 yes   2359808
conv5_3     3 1 1  512  14 yes   2359808
pool5       2 2 0  512   7 no          0
fc6         7 1 0 4096   1 yes 102764544
fc7         1 1 0 4096   1 yes  16781312
fc6_deconv  7 1 0  512   7 yes 102760960
unpool5     2 2 0  512  14 no          0
deconv5_1   3 1 1  512  14 yes   2359808
deconv5_2   3 1 1  512  14 yes   2359808
deconv5_3   3 1 1  512  14 yes   2359808
unpool4     2 2 0  512  28 no          0
deconv4_1   3 1 1  512  28 yes   2359808
deconv4_2   3 1 1  512  28 yes   2359808
deconv4_3   3 1 1  256  28 yes   1179904
unpool3     2 2 0  256  56 no          0
deconv3_1   3 1 1  256  56 yes    590080
deconv3_2   3 1 1  256  56 yes    590080
deconv3_3   3 1 1  128  56 yes    295040
unpool2     2 2 0  128 112 no          0
deconv2_1   3 1 1  128 112 yes    147584
deconv2_2   3 1 1   64 112 yes     73792
unpool1     2 2 0   64 224 no          0
deconv1_1   3 1 1   64 224 yes     36928
deconv1_2   3 1 1   64 224 yes     36928
score       1 1 0   21 224 no       1365
"""


def traced(net, monkeypatch):
    """The rows of LAYERS as the net computes them, in the order of computing."""
    rows = []

    def parameters(module):
        return sum(parameter.numel() for parameter in module.parameters())

    def watch(name, layer):
        conv = getattr(layer, "conv", layer)

        def after(_, inputs, output):
            normed = isinstance(getattr(layer, "norm", None), BatchNormReLU)
            relu = bool((output.min() >= 0).item()) if layer is not conv else False
            assert normed == relu == (layer is not conv)
            rows.append([name, conv.kernel_size[0], conv.stride[0], conv.padding[0], output.shape[1], output.shape[2],
                         "yes" if normed else "no", parameters(conv) + normed * conv.out_channels])  # fmt: skip

        layer.register_forward_hook(after)

    for name, module in net.named_modules():
        short = name.removeprefix("encoder.")
        if "." not in short and (hasattr(module, "conv") or isinstance(module, nn.Conv2d)):
            watch(short, module)

    def counted(function, name):
        def call(x, *rest):
            output = function(x, *rest)
            values = output[0] if isinstance(output, tuple) else output
            number = 1 + sum(row[0].startswith(name) for row in rows)
            factor = max(values.shape[2], x.shape[2]) // min(values.shape[2], x.shape[2])
            number = 6 - number if name == "unpool" else number
            rows.append([f"{name}{number}", factor, factor, 0, values.shape[1], values.shape[2], "no", 0])
            return output

        return call

    monkeypatch.setattr(kernels, "max_pool", counted(kernels.max_pool, "pool"))
    monkeypatch.setattr(deconvnet, "unpool", counted(kernels.unpool, "unpool"))
    with torch.no_grad():
        net(torch.randint(0, 256, (2, 3, net.encoder.size.input_size, net.encoder.size.input_size)))
    return rows


def test_every_layer_is_the_releases(monkeypatch):
    """Traced on a net of width 2 and fc width 16, whose channels are the paper's times 2 / 64 and 16 / 4096."""
    rows = traced(DeconvNet(Size(2, 16, 224), 21, 1e-9), monkeypatch)
    expected = [line.split() for line in LAYERS.split("\n") if line]
    assert len(rows) == len(expected) == 40
    with torch.device("meta"):
        paper = DeconvNet(Size(), 21, 1e-9)
    layers = dict(paper.named_modules())
    total = 0
    for found, (name, *numbers, size, normed, parameters) in zip(rows, expected, strict=True):
        kernel, stride, padding, channels = map(int, numbers)
        narrow = {4096: 16, 21: 21}.get(channels, channels * 2 // 64)
        assert found[:7] == [name, kernel, stride, padding, narrow, int(size), normed]
        layer = layers.get(f"encoder.{name}", layers.get(name))
        conv = getattr(layer, "conv", layer)
        count = sum(parameter.numel() for parameter in conv.parameters()) if conv is not None else 0
        count += channels * (normed == "yes")  # the release's bias, which batch norm takes off again: we have none
        assert count == int(parameters), name
        if conv is not None:
            assert conv.out_channels == channels, name
        total += count + (2 * channels if normed == "yes" else 0)
    assert total == sum(parameter.numel() for parameter in paper.parameters()) + 16_704 == 251_805_653


def test_initial_values_are_the_releases():
    net = DeconvNet(Size(64, 64, 64), 21, 1e-9)
    for name, module in net.named_modules():
        if isinstance(module, BatchNormReLU):
            assert module.eps == 1e-9 and (module.weight == 1).all() and (module.bias == 0.001).all(), name
        elif isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            assert module.bias is None or (module.bias == 0).all(), name
            if not name.startswith("encoder."):
                assert float(module.weight.detach().std()) == pytest.approx(0.01, rel=0.05), name


# The release's solvers, and FCN's (learning rate, momentum, batch, decay as published).
SOLVERS = {
    "stage1": dict(lr=0.01, momentum=0.9, steps=20_000, drop_at=(9_000, 18_000), drop=0.1, batch=64, weight_decay=5e-4,
                   batch_norm_crops=8),
    "stage2": dict(lr=0.01, momentum=0.9, steps=40_000, drop_at=(10_000, 20_000, 30_000), drop=0.1, batch=64,
                   weight_decay=5e-4, batch_norm_crops=8),
    "fcn": dict(lr=1e-4, momentum=0.9, batch=20, weight_decay=5e-4, drop_at=()),
}  # fmt: skip


@pytest.mark.parametrize("name", SOLVERS)
def test_the_solver_is_the_releases(name):
    run = {"stage1": Training().stage1, "stage2": Training().stage2, "fcn": FcnTraining().run}[name]
    assert {key: getattr(run, key) for key in SOLVERS[name]} == SOLVERS[name]


def test_rates_and_decay_of_every_parameter():
    """prototxt: convolution weight lr 1 decay 1, bias lr 2 decay 0; batch norm's scale and shift lr 1 decay 1."""
    net = DeconvNet(Size(2, 8, 64), 5, 1e-9)
    rules = {}
    for group in Optimiser(net, Run(), Worker(torch.device("cpu"))).sgd.param_groups:
        begin = group["params"][0].data_ptr()
        rules[range(begin, begin + 4 * group["params"][0].numel())] = (group["lr_scale"], group["weight_decay"])
    for name, parameter in net.named_parameters():
        bias = name.endswith(("conv.bias", "score.bias"))
        found = [rule for memory, rule in rules.items() if parameter.data_ptr() in memory]
        assert found == [(2, 0) if bias else (1, 5e-4)], name
    assert sum(map(len, rules)) == 4 * sum(parameter.numel() for parameter in net.parameters())
