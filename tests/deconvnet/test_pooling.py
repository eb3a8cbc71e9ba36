"""Pooling with switches and unpooling, as anybody may call them, with the kernels and without."""

import pytest
import torch
import torch.nn.functional as F

from deconvnet import kernels, max_pool2d, max_unpool2d
from deconvnet.steps import one_thread


@pytest.fixture(params=[True, False], ids=["kernels", "plain"])
def either(request, monkeypatch):
    with one_thread():  # which the kernels need
        if not request.param:
            monkeypatch.setattr(kernels, "usable", lambda x: False)
        else:
            assert kernels.usable(torch.zeros(1, 4, 2, 2).contiguous(memory_format=torch.channels_last))
        yield


@pytest.mark.parametrize("shape", [(2, 3, 8, 6), (1, 5, 7, 9)])
def test_as_pytorch_has_it(either, shape):
    x = torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(0)).float()  # with ties
    values, switches = max_pool2d(x)
    wanted, indices = F.max_pool2d(x[:, :, : shape[2] // 2 * 2, : shape[3] // 2 * 2], 2, return_indices=True)
    assert torch.equal(values, wanted) and switches.dtype == torch.uint8 and switches.max() == 3
    other = torch.rand(wanted.shape) + 1
    assert torch.equal(max_unpool2d(other, switches), F.max_unpool2d(other, indices, 2))


def test_gradients_go_where_the_maxima_are(either):
    x = torch.tensor([[[[1.0, 2.0], [4.0, 3.0]]]], requires_grad=True)
    values, switches = max_pool2d(x)
    (max_unpool2d(values, switches) * torch.tensor([[1.0, 2.0], [5.0, 7.0]])).sum().backward()
    assert x.grad.tolist() == [[[[0, 0], [5, 0]]]]
