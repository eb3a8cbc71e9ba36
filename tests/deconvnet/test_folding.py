"""Batch norm folded into convolutions: the same nets to rounding."""

import pytest
import torch
from torch import nn

from deconvnet import nets
from deconvnet.inference.models import load_net, ready
from deconvnet.nets import files
from deconvnet.nets.folding import fold
from deconvnet.nets.layers import BatchNormReLU, Layer, batch_norms
from tests.deconvnet.test_inference import CPU, make_net


def trained(kind: str) -> nn.Module:
    """A net whose batch norms, and whose last layers, are as far from their start as training takes them."""
    net = make_net(kind)
    for norm in batch_norms(net).values():
        nn.init.uniform_(norm.weight, 0.5, 2)
        nn.init.normal_(norm.bias)
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.1, 4)
    return net


@pytest.mark.parametrize("kind", ["deconvnet", "fcn", "classifier"])
def test_a_folded_net_computes_the_same(kind):
    net = trained(kind).double()  # so that what differs is the folding
    images = torch.rand(2, 3, 64, 64).double() * 255
    net.encoder.normalise = lambda x, mean=net.encoder.mean, std=net.encoder.std: (
        (x - mean[:, None, None]) / std[:, None, None]
    )
    with torch.no_grad():
        wanted = net(images)
        found = fold(net)(images)
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
        assert wanted.std() > 1e-3
        torch.testing.assert_close(fold(net)(images), found, rtol=0, atol=0)  # again: nothing
    assert not batch_norms(net) and net.spec["eps"] is None
    nets.build(net.spec).load_state_dict(net.state_dict())  # it is a net of its spec


def test_folding_by_hand():
    layer = Layer(nn.Conv2d(1, 1, 1), eps=1.0).eval()
    assert isinstance(layer.norm, BatchNormReLU)
    with torch.no_grad():
        layer.conv.weight.fill_(3.0)
        for tensor, value in (("weight", 4.0), ("bias", 7.0), ("running_mean", 2.0), ("running_var", 3.0)):
            getattr(layer.norm, tensor).fill_(value)
    net = nn.Sequential(layer)
    net.spec = {"eps": 1.0}
    fold(net)
    assert layer.conv.weight.item() == 6  # 3 x 4 / sqrt(3 + 1)
    assert layer.conv.bias.item() == 3  # -2 x 2 + 7
    assert layer(torch.full((1, 1, 1, 1), -4.0)).item() == 0  # ReLU is still there


def test_a_net_for_inference_is_folded_and_its_convolutions_rounded_once(tmp_path):
    net = trained("deconvnet")
    files.save(tmp_path / "net.pt", net.spec, net.state_dict(), {"classes": ["a", "b", "c"]})
    loaded, about = load_net(tmp_path / "net.pt", CPU, "float32")
    assert about == {"classes": ["a", "b", "c"]} and not batch_norms(loaded)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    images = torch.rand(2, 3, 64, 64) * 255
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), net(images), rtol=1e-3, atol=1e-3)
        short = ready(trained("deconvnet"), CPU, "bf16")
        assert {parameter.dtype for parameter in short.parameters()} == {torch.bfloat16}
        with torch.autocast("cpu", torch.bfloat16):
            autocast = loaded(images)
        # it rounds the same, but for FcDeconv's bias, which stays in float32 there
        torch.testing.assert_close(short(images), autocast, rtol=0.02, atol=0.002)
