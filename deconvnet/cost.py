"""What a training needs, counted before anything is computed: memory of the device, disk, operations, time.

Nets are built without values (PyTorch's meta device and fake tensors), so the paper's net of 252 M parameters is
counted in seconds, on any machine. Counted are weights, gradients, momentum and all that the forward pass saves for the
backward pass; what the libraries take beside it is not (`UNCOUNTED`).
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterator

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from deconvnet import nets
from deconvnet.kernels import softmax_loss as pixel_loss
from deconvnet.nets.layers import set_batch_norm_crops
from deconvnet.settings import Run
from deconvnet.training.flops import flops_per_crop, peak_flops
from deconvnet.training.statistics import CROPS

WEIGHTS = 12  # bytes per parameter on the device: float32 weight, gradient, momentum
CHECKPOINTS = 36  # bytes per parameter on disk at most: 3 checkpoints (one is being written), 3 files of best weights
KEPT = (
    12  # bytes per parameter on disk after the end: the last checkpoint without momentum, the best weights, the model
)
UNCOUNTED = 1.5e9  # bytes; CUDA's context, cuDNN's workspace and the largest temporaries take about so much; a guess
# Of the rate of a large matrix product that training reaches. cuda: an assumption. cpu: measured on 2 cores with the
# paper's DeconvNet, 0.33 in bf16 and 0.32 in float32.
SHARE = {"cuda": 0.4, "cpu": 0.33}


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a training needs in all; `device_bytes` is of each device, `micro_batch` crops at once."""

    parameters: int
    steps: int
    crops: int
    micro_batch: int
    flops: float
    saved_bytes: int  # by the forward pass for the backward pass
    device_bytes: int
    disk_bytes: int  # while it runs


def empty_net(spec: dict) -> nn.Module:
    """The net of a model file's `spec`, without values."""
    with torch.device("meta"):
        return nets.build(spec)


def parameters(spec: dict) -> int:
    """The number of trained values of the net of `spec`."""
    return sum(parameter.numel() for parameter in empty_net(spec).parameters())


def forward_flops(spec: dict, size: tuple[int, int]) -> float:
    """Floating-point operations of a forward pass of one crop of `size`, height and width in px."""
    net = empty_net(spec).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(torch.empty(1, 3, *size, device="meta"))
    return float(counter.get_total_flops())


def saved_bytes(
    spec: dict, size: tuple[int, int], crops: int, precision: str, device: str, batch_norm_crops: int | None = None
) -> int:
    """Bytes that a forward pass with loss of `crops` crops of `size` saves for the backward pass.

    device: type of the device, "cuda" or "cpu"; none need be there. A storage that several operations save counts once,
    weights and buffers do not, their copies in bf16 do.
    """
    saved = {}  # the tensors too, so that no storage is freed and another takes its address
    with FakeTensorMode():
        with torch.device(device):
            net = nets.build(spec).train()
            images = torch.empty(crops, 3, *size)
            labels = torch.zeros(crops, *(() if spec["kind"] == "classifier" else size), dtype=torch.uint8)
        set_batch_norm_crops(net, batch_norm_crops)
        own = {tensor.untyped_storage()._cdata for tensor in (*net.parameters(), *net.buffers())}

        def keep(tensor):
            saved[tensor.untyped_storage()._cdata] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            with _autocast(device, precision):
                logits = net(images)
            loss = pixel_loss(logits, labels, batch_norm_crops)
        assert loss.requires_grad
        return sum(tensor.untyped_storage().nbytes() for key, tensor in saved.items() if key not in own)


@contextlib.contextmanager
def _autocast(device: str, precision: str) -> Iterator[None]:
    """`torch.autocast`, which does nothing for CUDA where there is no GPU; fake tensors need none."""
    before = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    torch.set_autocast_enabled(device, precision == "bf16")
    torch.set_autocast_dtype(device, torch.bfloat16)
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()
        torch.set_autocast_enabled(device, before[0])
        torch.set_autocast_dtype(device, before[1])


def count(run: Run, spec: dict, size: tuple[int, int], device: str) -> Cost:
    """What a training run of the net of `spec` on crops of `size` needs.

    run: with the micro-batch of one device. device: "cuda" or "cpu".
    """
    number = parameters(spec)
    saved = saved_bytes(spec, size, run.micro_batch, run.precision, device, run.batch_norm_crops)
    validations = math.ceil(run.steps / run.validate_every) if run.held_out else 0
    passes = run.statistics_passes * CROPS if spec["eps"] is not None else 0
    flops = run.steps * run.batch * flops_per_crop(empty_net(spec), size)
    flops += validations * (run.held_out_crops + passes) * forward_flops(spec, size)
    return Cost(
        parameters=number, steps=run.steps, crops=run.steps * run.batch, micro_batch=run.micro_batch, flops=flops,
        saved_bytes=saved, device_bytes=WEIGHTS * number + saved, disk_bytes=(CHECKPOINTS + 4) * number,
    )  # fmt: skip


def seconds(flops: float, device: torch.device, rate: float, devices: int = 1) -> float:
    """How long `flops` operations take on `devices` devices that multiply matrices at `rate` operations per second."""
    return flops / (rate * SHARE[device.type] * devices)


def needs(
    run: Run, net: nn.Module, size: tuple[int, int], device: torch.device, devices: int = 1, rate: float | None = None
) -> str:
    """One line for the start of a training: memory, disk, steps, operations, time.

    run: with the micro-batch of one device. rate: operations per second of a large matrix product on `device`, measured
    if not given.
    """
    cost = count(run, net.spec, size, device.type)
    rate = rate or peak_flops(device, run.precision)
    more = UNCOUNTED if device.type == "cuda" else 0
    return (
        f"needs about {gigabytes(cost.device_bytes + more)} of {device}'s memory beside the images, "
        f"{gigabytes(cost.disk_bytes)} of disk, {cost.steps:,} steps of {run.batch} crops, {operations(cost.flops)}: "
        f"about {duration(seconds(cost.flops, device, rate, devices))} on this machine"
    )


def gigabytes(number: float) -> str:
    """Bytes in words: 7.4 GB, 35 MB."""
    if number < 0.95e9:
        return f"{math.ceil(number / 1e6)} MB"
    return f"{number / 1e9:.1f} GB" if number < 99.5e9 else f"{number / 1e9:,.0f} GB"


def operations(flops: float) -> str:
    """Operations in words: 0.26 EFLOP, 31 PFLOP, 12 TFLOP."""
    for unit, size in (("EFLOP", 1e18), ("PFLOP", 1e15), ("TFLOP", 1e12)):
        if flops >= 0.1 * size or unit == "TFLOP":
            return f"{flops / size:.2g} {unit}" if flops < 10 * size else f"{flops / size:,.0f} {unit}"


def duration(span: float) -> str:
    """Seconds in words: 40 s, 12 min, 3.5 h, 21 days."""
    if span < 90:
        return f"{max(span, 1):.0f} s"
    if span < 90 * 60:
        return f"{span / 60:.0f} min"
    return f"{span / 3600:.1f} h" if span < 48 * 3600 else f"{span / 86400:,.0f} days"
