"""The kernels against PyTorch's own operations, forwards and backwards."""

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from deconvnet import kernels
from deconvnet.images import VOID
from deconvnet.kernels import cpu, plain
from tests.world import ROOT

TYPES = [torch.float32, torch.bfloat16]
CLOSE = {torch.float32: {"rtol": 1e-5, "atol": 2e-5}, torch.bfloat16: {"rtol": 2e-2, "atol": 2e-2}}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def maps(*shape, dtype=torch.float32, seed=0):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return values.to(dtype).contiguous(memory_format=torch.channels_last)


def test_there_is_a_compiler_here():
    """Else the tests below would compare PyTorch with itself."""
    assert cpu.library() is not None and kernels.usable(maps(2, 3, 4, 4))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    "shape, crops", [((8, 16, 6, 6), 4), ((4, 5, 3, 7), 2), ((6, 300, 1, 1), 6), ((2, 64, 9, 9), 1)]
)
def test_batch_norm_and_relu(shape, crops, dtype):
    """Against batch norm in float64 over each group, with a mean that is large beside the deviation."""
    x = (maps(*shape) * 0.5 + 20).to(dtype).requires_grad_()
    weight, bias = torch.rand(shape[1]).add(0.5).requires_grad_(), torch.randn(shape[1]).requires_grad_()
    up = maps(*shape, seed=1).to(dtype)
    y = kernels.batch_norm_relu(x, weight, bias, 1e-9, crops)
    assert y.dtype == dtype and y.is_contiguous(memory_format=torch.channels_last)
    found = torch.autograd.grad(y, (x, weight, bias), up)
    precise = [value.detach().double().requires_grad_() for value in (x, weight, bias)]
    wanted = plain.batch_norm_relu(*precise, 1e-9, crops)
    expected = torch.autograd.grad(wanted, precise, up.double())
    loose = {"rtol": 1e-3, "atol": 1e-3} if dtype == torch.float32 else {"rtol": 5e-2, "atol": 6e-2}
    for mine, true in zip((y, *found), (wanted, *expected), strict=True):
        torch.testing.assert_close(
            mine.double(), true, rtol=loose["rtol"], atol=loose["atol"] * float(true.detach().abs().max())
        )


def test_batch_norm_by_hand():
    """Channel 0 has 1 and 3 in the first group: mean 2, variance 1; the second group's 5 and 5 have variance 0."""
    x = torch.tensor([1.0, 3.0, 5.0, 5.0]).view(4, 1, 1, 1).contiguous(memory_format=torch.channels_last)
    y = kernels.batch_norm_relu(x, torch.tensor([2.0]), torch.tensor([0.5]), 1e-9, 2)
    torch.testing.assert_close(y.flatten(), torch.tensor([0.0, 2.5, 0.5, 0.5]))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(2, 16, 8, 6), (1, 5, 4, 4), (3, 40, 2, 2)])
def test_pooling_and_unpooling(shape, dtype):
    """Equal to torch's pair, ties included, forwards and backwards."""
    x = maps(*shape, dtype=dtype).mul(2).round().requires_grad_()  # integers: many are equal
    copy = x.detach().clone().requires_grad_()
    up = maps(*shape, dtype=dtype, seed=1)
    pooled, switches = kernels.max_pool(x)
    theirs, indices = F.max_pool2d(copy, 2, return_indices=True)
    assert torch.equal(pooled, theirs) and switches.dtype == torch.uint8
    out, expected = kernels.unpool(pooled * 3, switches), F.max_unpool2d(theirs * 3, indices, 2)
    assert torch.equal(out, expected) and out.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(*(torch.autograd.grad(y, leaf, up)[0] for y, leaf in ((out, x), (expected, copy))))


def test_pooling_of_odd_maps_and_of_nan():
    x = maps(2, 4, 7, 5)
    pooled, switches = kernels.max_pool(x)
    assert torch.equal(pooled, F.max_pool2d(x, 2)) and kernels.unpool(pooled, switches).shape[2:] == (6, 4)
    x = maps(1, 16, 2, 2)
    x[0, :, 1, 0] = torch.nan
    pooled, switches = kernels.max_pool(x)
    assert pooled.isnan().all() and (switches == 2).all()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("classes, height, width", [(11, 8, 8), (21, 5, 13), (2, 1, 70)])
def test_softmax_loss(classes, height, width, dtype):
    """Against cross entropy in float64: the mean over groups of each group's mean over pixels that are not void."""
    logits = (maps(6, classes, height, width) * 5).to(dtype).requires_grad_()
    labels = torch.randint(0, classes, (6, height, width), dtype=torch.uint8)
    labels[labels == 1] = VOID
    labels[4:] = VOID  # the last group has none
    strided = torch.stack([labels] * 4, 3)[..., 3]  # as `cut` returns them
    loss = kernels.softmax_loss(logits, strided, 2)
    precise = logits.detach().double().requires_grad_()
    parts = [F.cross_entropy(precise[i : i + 2], labels[i : i + 2].long(), ignore_index=VOID) for i in (0, 2)]
    expected = sum(parts) / 3
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    mine, theirs = torch.autograd.grad(loss * 2, logits)[0], torch.autograd.grad(expected * 2, precise)[0]
    torch.testing.assert_close(mine.double(), theirs, rtol=1e-5 if dtype == torch.float32 else 8e-3, atol=1e-7)
    assert not mine[4:].any()


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(-200, 200, width=32), min_size=3, max_size=3), st.integers(0, 2))
def test_loss_of_any_logits(values, label):
    logits = torch.tensor(values).view(1, 3, 1, 1)
    labels = torch.full((1, 1, 1), label, dtype=torch.uint8)
    expected = F.cross_entropy(logits.double(), labels.long())
    torch.testing.assert_close(kernels.softmax_loss(logits, labels).double(), expected, rtol=1e-5, atol=2e-6)


def test_nan_stays():
    """What is not finite must reach the loss, which stops the training."""
    x = maps(2, 16, 2, 2)
    x[0, 3, 1, 1] = torch.nan
    y = kernels.batch_norm_relu(x, torch.ones(16), torch.zeros(16), 1e-5, 2)
    assert y[:, 3].isnan().all() and not y[:, 4].isnan().any()
    logits = maps(2, 3, 4, 4)
    logits[1, 2, 0, 0] = torch.nan
    losses = kernels.crop_losses(logits, torch.zeros(2, 4, 4, dtype=torch.uint8))
    assert losses[0].isfinite() and losses[1].isnan()


def test_triton_kernels_in_its_interpreter():
    """Equal to the C++ ones. Triton asks for the variable as it is imported, so this takes a process of its own."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "tests/deconvnet/interpreted.py"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout == "equal\n", done.stderr


def test_shapes_on_the_meta_device():
    x = torch.empty(4, 16, 8, 8, device="meta").to(memory_format=torch.channels_last).requires_grad_()
    y = kernels.batch_norm_relu(x, torch.ones(16, device="meta"), torch.ones(16, device="meta"), 1e-5, 2)
    pooled, switches = kernels.max_pool(y)
    out = kernels.unpool(pooled, switches)
    labels = torch.empty(4, 8, 8, dtype=torch.uint8, device="meta")
    kernels.softmax_loss(out, labels, 2).backward()
    assert pooled.shape == switches.shape == (4, 16, 4, 4) and out.shape == y.shape == x.grad.shape == x.shape


def test_without_a_compiler_pytorch_does_it(tmp_path, monkeypatch):
    monkeypatch.setattr(cpu, "COMMAND", ("no-such-compiler",))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cpu._library.cache_clear()
    try:
        assert cpu.library() is None and not kernels.usable(maps(2, 3, 4, 4)) and not os.listdir(tmp_path / "deconvnet")
        y = kernels.batch_norm_relu(maps(2, 3, 4, 4), torch.ones(3), torch.zeros(3), 1e-5, None)
        assert y.min() == 0 and y.isfinite().all()
    finally:
        cpu._library.cache_clear()
