"""A census against hand arithmetic, and against the operators of a real training step."""

import dataclasses
from collections import Counter

import pytest
import torch
from torch import nn

from deconvnet import census as module
from deconvnet import cost, roofline
from deconvnet.census import Call, Census, census
from deconvnet.roofline import GPUS, Device, predict
from deconvnet.settings import Run, Size
from deconvnet.steps import inference_census, one_thread, training_census, training_step
from tests.world import CPU, SIZE


def empty(*shape, **more):
    return torch.empty(*shape, device="meta", **more)


def test_a_convolution_and_its_backward_pass_by_hand():
    """(2, 3, 8, 8) by 4 kernels of 3 x 3, padded; the image wants no gradient."""
    conv, x = nn.Conv2d(3, 4, 3, padding=1, device="meta"), empty(2, 3, 8, 8)
    found = census(lambda: conv(x).sum().backward())
    one = 2 * 9 * 3 * 4 * 2 * 64  # multiply and add; 9 x 3 x 4 weights, 2 x 64 places
    assert found.flops == 2 * one  # forward, and for the weights
    image, weights, bias, out = (4 * n for n in (2 * 3 * 64, 4 * 3 * 9, 4, 2 * 4 * 64))
    parts = found.operators()
    assert parts["convolution"].bytes == image + weights + bias + out
    # the sum's gradient is one number, repeated; it is read for the weights' and once more for the image's gradient
    backward = parts["convolution_backward"]
    assert backward.bytes - (image + weights + weights + bias) in (4, out)
    assert parts["sum"].bytes == out + 4
    assert found.kernels == sum(part.kernels for part in parts.values())
    x.requires_grad_()
    assert census(lambda: conv(x).sum().backward()).flops == 3 * one


def test_views_cost_nothing_and_what_is_overwritten_is_not_read():
    x, y = empty(4, 8), empty(8, 4)
    found = census(lambda: (x.t()[2:].reshape(-1), x.detach(), torch.empty_like(x), x.split(2)))
    assert found.kernels == 1 and found.bytes == 2 * 4 * 24  # a transposed part cannot be a view
    found = census(lambda: y.copy_(x.t()))
    assert (found.kernels, found.bytes) == (1, 2 * 4 * 32)
    assert census(lambda: x.zero_()).bytes == 4 * 32
    assert census(lambda: x.add_(1)).bytes == 2 * 4 * 32  # read and written
    assert census(lambda: x * x).bytes == 2 * 4 * 32  # read once
    rows = empty(1, dtype=torch.int64)
    assert census(lambda: x[rows]).bytes == 8 + 2 * 4 * 8  # a row of four, read and written
    assert census(lambda: torch._fused_sgd_([x], [x + 1], [x.clone()], weight_decay=0, momentum=0.9, lr=1,
                                            dampening=0, nesterov=False, maximize=False, is_first_step=False)
                  ).operators()["_fused_sgd_"].bytes == 4 * 32 * (3 + 2)  # fmt: skip


def test_what_the_host_waits_for():
    x = empty(6, dtype=torch.float32)

    def step():
        if x.sum().item() > 0:
            x.add_(1)
        bool((x > 0).any())
        x[x > 1].mul_(2)
        x.nonzero()
        x.cpu()
        torch.zeros(5).to("meta")
        torch.zeros(5).to("meta", non_blocking=True)
        x.to(torch.bfloat16)  # no copy to or from the host

    found = census(step)
    assert found.waits == {"_local_scalar_dense": 2, "index": 1, "nonzero": 1, "copy to the host": 1,
                           "copy to the device": 1}  # fmt: skip
    assert (found.copies, found.copied) == (2, 40)


def test_work_of_the_host_is_not_the_devices():
    assert not census(lambda: torch.ones(3) + 1).calls


def test_memory_of_a_chain_by_hand():
    """Four blocks of 1,000 bytes: x, then a and b live together; a goes before c comes."""
    x = empty(1000, dtype=torch.uint8)

    def step():
        a = x + 1
        b = a + 1
        del a
        c = b + 1  # x, b, c
        return c

    assert census(step, resident=[x]).peak == 3000
    assert census(lambda: x[:10].view(2, 5), resident=[x]).peak == 1000
    weight = empty(250, requires_grad=True)

    def chain():  # saved: exp's and sigmoid's results; then gradients: of sum, of sigmoid, of exp
        weight.exp().sigmoid().sum().backward()

    # exp and sigmoid saved, with the weight: 3,000; sum and its gradient's one number 8; sigmoid's gradient 1,000
    assert census(chain, resident=[weight]).peak == 4008


def test_operators_of_our_own_start_what_the_table_says(monkeypatch):
    monkeypatch.setitem(module.KERNELS, "add.Tensor", 5)  # no such name: operators are named without overloads
    monkeypatch.setitem(module.KERNELS, "add", 2)
    monkeypatch.setitem(module.REREADS, "add", (0,))
    found = census(lambda: empty(10) + empty(10))
    assert (found.kernels, found.bytes, found.rereads) == (2, 120, 40)


def test_an_operator_of_a_library_is_counted_whole():
    library = torch.library.Library("census_test", "DEF")
    library.define("twice(Tensor x) -> Tensor")
    library.impl("twice", lambda x: torch.empty_like(x), "Meta")
    found = census(lambda: torch.ops.census_test.twice(empty(25)))
    assert [call.operator for call in found.calls] == ["census_test.twice"]
    assert (found.kernels, found.bytes) == (1, 200)


def test_two_in_a_row_add_up():
    one = census(lambda: empty(10) + 1)
    both = one + one * 2
    assert (both.bytes, both.kernels, both.peak) == (3 * one.bytes, 3, one.peak)


SPECS = {
    "classifier": {"kind": "classifier", "size": SIZE, "classes": 4, "eps": 1e-5},
    "deconvnet": {"kind": "deconvnet", "size": SIZE, "classes": 4, "eps": 1e-5},
    "fcn": {"kind": "fcn", "size": SIZE, "classes": 4, "eps": None},
}


@pytest.mark.parametrize("kind", SPECS)
def test_bytes_grow_linearly_with_the_batch(kind):
    side = (SIZE["input_size"],) * 2

    def step(crops):
        return training_census(Run(batch=crops, micro_batch=crops, batch_norm_crops=None), SPECS[kind], side)

    four, eight, twelve = step(4), step(8), step(12)
    # of a small image no more pixels are read than it has
    assert twelve.bytes - eight.bytes == pytest.approx(eight.bytes - four.bytes, rel=5e-3)
    masks = 2 * (12 - 4) * (kind == "fcn")  # of the two dropouts, one for each crop
    assert twelve.flops == 3 * four.flops and twelve.kernels == four.kernels + masks
    assert four.bytes < eight.bytes < 2 * four.bytes  # weights do not grow
    forward = [inference_census(SPECS[kind], side, crops) for crops in (2, 4)]
    assert forward[1].flops == 2 * forward[0].flops and not forward[0].waits


def test_accumulation():
    side, spec = (SIZE["input_size"],) * 2, SPECS["deconvnet"]
    whole = training_census(Run(batch=16, micro_batch=16), spec, side)
    parts = training_census(Run(batch=16, micro_batch=8), spec, side)
    assert parts.flops == whole.flops and parts.peak < whole.peak
    update = parts.operators()["_fused_sgd_"]  # weights, gradients, momentum: read; weights, momentum: written
    assert update.bytes == whole.operators()["_fused_sgd_"].bytes == 5 * 4 * cost.parameters(spec)
    float32 = training_census(Run(batch=16, micro_batch=16, precision="float32"), spec, side)
    assert float32.flops == whole.flops and 1.3 * whole.bytes < float32.bytes < 2.2 * whole.bytes


def test_a_step_of_the_papers_net_within_what_was_set_for_it():
    """Issue 11's targets, at the root's parameters: bytes and kernels of 64 crops at once, and no wait of the host."""
    spec = {"kind": "deconvnet", "size": dataclasses.asdict(Size()), "classes": 21, "eps": 1e-9}
    gradients, _, resident = training_step(Run(steps=1, held_out=0), spec, (224, 224), "meta")
    found = census(gradients, "meta", resident)
    assert found.bytes / 64 < 750e6 and found.kernels <= 350
    assert not found.waits and found.copies == 1


def test_counting_draws_no_random_numbers():
    """A training counts its step when it starts."""
    before = torch.get_rng_state()
    training_census(Run(batch=6, micro_batch=6, batch_norm_crops=None), SPECS["fcn"], (64, 64))
    inference_census(SPECS["fcn"], (64, 64), 3)
    assert torch.equal(torch.get_rng_state(), before)


def test_values_or_not_the_operators_are_the_same():
    """A step that computes calls what the census without values counts."""
    run, size = Run(batch=16, micro_batch=8, steps=1, held_out=0), (SIZE["input_size"],) * 2
    with one_thread():
        gradients, update, resident = training_step(run, SPECS["deconvnet"], size, "cpu")
        gradients()
        real = census(lambda: (gradients(), update()), "cpu", resident)
    found = training_census(run, SPECS["deconvnet"], size)
    assert found.flops == real.flops and found.bytes == pytest.approx(real.bytes, rel=0.02)
    for name in ("convolution", "convolution_backward", "deconvnet.batch_norm_relu_backward", "_fused_sgd_"):
        ours, theirs = found.operators()[name], real.operators()[name]
        assert (ours.kernels, ours.bytes) == (theirs.kernels, theirs.bytes), name


# Rooflines


DEVICE = Device("by hand", {"bf16": 1e12, "float32": 1e11}, bandwidth=1e9, memory=1e9, launch=1e-3)


def call(operator="mm", dtype=torch.bfloat16, flops=0.0, moved=0, rereads=0, kernels=1, shapes=()):
    return Call(operator, shapes, dtype, kernels, flops, moved, rereads)


def seconds(one, device=DEVICE, number=1):
    return predict(Census(Counter({one: number}), Counter(), 0, 0, 0), device)


def test_an_operator_takes_as_long_as_the_slower_of_arithmetic_and_memory(monkeypatch):
    monkeypatch.setattr(roofline, "EFFICIENCY", {"product": 0.5, "convolution": 0.25, "memory": 0.5})
    assert seconds(call(flops=1e12, moved=10)) == pytest.approx(2.001)
    assert seconds(call(flops=1e12, moved=10, dtype=torch.float32)) == pytest.approx(20.001)
    assert seconds(call(flops=1e9, moved=int(1e9), rereads=int(5e8), kernels=2)) == pytest.approx(3.002)
    assert seconds(call("relu", dtype=None, moved=int(1e9)), number=3) == pytest.approx(3 * 2.001)
    wide, narrow = (call("convolution", flops=1e12, shapes=((1, 3, 9, 9), (64, n, 3, 3), (64,))) for n in (64, 3))
    assert seconds(wide) == pytest.approx(4.001)
    assert seconds(narrow) == pytest.approx(4 / roofline.NARROW + 0.001)


def test_a_measured_operator_takes_in_proportion_to_the_nearest():
    small, large = call("relu_", moved=10**6), call("relu_", moved=10**8)
    start = call("add_", moved=12)  # over before it began
    device = Device("measured", DEVICE.flops, 1e9, 1e9, 0.0,
                    {("relu_", torch.bfloat16): [(small, 0.01), (large, 3.0)],
                     ("add_", torch.bfloat16): [(start, 1.0)]})  # fmt: skip
    assert seconds(call("relu_", moved=2 * 10**6), device) == pytest.approx(0.02)
    assert seconds(call("relu_", moved=2 * 10**8), device) == pytest.approx(6.0)
    assert seconds(call("add_", moved=24), device) == pytest.approx(2.0)
    assert seconds(call("add_", moved=8 * 10**8), device) == pytest.approx(1.0)  # by bandwidth: 0.8 of 1 GB/s


def test_this_machine_is_measured():
    machine = roofline.measure(CPU, ("bf16",))
    assert machine.flops["bf16"] > 1e9 and machine.bandwidth > 1e8 and 0 < machine.launch < 1e-3
    side = (SIZE["input_size"],) * 2
    step = training_census(Run(batch=8, micro_batch=8), SPECS["deconvnet"], side)
    covered = sum(1 for one in step.calls if (one.operator, one.dtype) in machine.samples)
    assert covered > 0.8 * len(step.calls)
    assert 0 < predict(step, machine) < 60


def test_faster_devices_are_predicted_to_be_faster():
    spec = {"kind": "deconvnet", "size": {"width": 64, "fc_width": 64, "input_size": 64}, "classes": 21, "eps": 1e-9}
    step = training_census(Run(batch=8, micro_batch=8), spec, (64, 64))
    times = [predict(step, GPUS[name]) for name in ("T4 (fp16)", "A100 SXM 80 GB", "H200 SXM", "B200")]
    assert times == sorted(times, reverse=True)
