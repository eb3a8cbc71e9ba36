"""What a training needs, counted before anything is computed: memory of the device, disk, operations, time.

Every operator of its step is counted without values (`deconvnet.census`), so the paper's net of 252 M parameters takes
seconds, on any machine. What the libraries take beside it is not counted (`UNCOUNTED`).
"""

import dataclasses
import math

import torch

from deconvnet import nets
from deconvnet.census import Census
from deconvnet.roofline import Device, predict
from deconvnet.settings import Run
from deconvnet.steps import inference_census, training_census
from deconvnet.training.lanes import lanes
from deconvnet.training.statistics import CROPS

CHECKPOINTS = 36  # bytes per parameter on disk at most: 3 checkpoints (one is being written), 3 files of best weights
KEPT = (
    12  # bytes per parameter on disk after the end: the last checkpoint without momentum, the best weights, the model
)
UNCOUNTED = 1.5e9  # bytes; CUDA's context and cuDNN's workspace take about so much; a guess


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a training needs in all, on `devices` devices of `micro_batch` crops at once."""

    parameters: int
    steps: int
    crops: int
    micro_batch: int
    devices: int
    step: Census  # of one device
    forward: Census  # of a micro-batch, in validations
    forwards: float  # of them in all validations
    lanes: int  # of a device, which share its work
    disk_bytes: int  # while it runs

    @property
    def flops(self) -> float:
        """Of all devices."""
        return self.steps * self.devices * self.step.flops + self.forwards * self.forward.flops

    @property
    def device_bytes(self) -> int:
        """Memory of each device, without UNCOUNTED."""
        return max(self.step.peak, self.forward.peak)

    def seconds(self, device: Device) -> float:
        """Predicted, on devices of this kind; what passes between them is left out."""
        validations = self.forwards / self.devices * predict(self.forward, device)
        return (self.steps * predict(self.step, device) + validations) / self.lanes

    def rate(self, device: Device) -> float:
        """Predicted crops per second of all devices, validations left out."""
        return self.crops / self.steps / predict(self.step, device) * self.lanes


def parameters(spec: dict) -> int:
    """The number of trained values of the net of a model file's `spec`."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in nets.build(spec).parameters())


def count(run: Run, spec: dict, size: tuple[int, int], device: str, devices: int = 1) -> Cost:
    """What a training run of the net of `spec` on crops of `size`, height and width in px, needs.

    run: with the micro-batch of one device. device: "cuda" or "cpu", this machine's; no GPU need be there.
    """
    groups = run.micro_batch // (run.batch_norm_crops or run.micro_batch)
    number = parameters(spec)
    validations = math.ceil(run.steps / run.validate_every) if run.held_out else 0
    passes = run.statistics_passes * CROPS if spec["eps"] is not None else 0
    return Cost(
        parameters=number, steps=run.steps, crops=run.steps * run.batch, micro_batch=run.micro_batch, devices=devices,
        step=training_census(dataclasses.replace(run, batch=run.batch // devices), spec, size),
        forward=inference_census(spec, size, run.micro_batch, run.precision),
        forwards=validations * (run.held_out_crops + passes) / run.micro_batch,
        lanes=lanes(torch.device(device), groups), disk_bytes=(CHECKPOINTS + 4) * number,
    )  # fmt: skip


def in_words(census: Census, crops: int) -> str:
    """A census of `crops` crops in one line, by crop what grows with them."""
    waits = sum(census.waits.values())
    return (
        f"{operations(census.flops / crops)}, {gigabytes(census.bytes / crops)} moved "
        f"({gigabytes((census.bytes + census.rereads) / crops)} with rereads) a crop; {census.kernels:,} kernels, "
        f"{census.copies} copies to the device, {waits} waits of the host; {gigabytes(census.peak)} live"
    )


def gigabytes(number: float) -> str:
    """Bytes in words: 7.4 GB, 35 MB."""
    if number < 0.95e9:
        return f"{math.ceil(number / 1e6)} MB"
    return f"{number / 1e9:.1f} GB" if number < 99.5e9 else f"{number / 1e9:,.0f} GB"


def operations(flops: float) -> str:
    """Operations in words: 0.26 EFLOP, 31 PFLOP, 12 TFLOP, 0.1 GFLOP."""
    for unit, size in (("EFLOP", 1e18), ("PFLOP", 1e15), ("TFLOP", 1e12), ("GFLOP", 1e9)):
        if flops >= 0.1 * size or unit == "GFLOP":
            return f"{flops / size:.2g} {unit}" if flops < 10 * size else f"{flops / size:,.0f} {unit}"


def duration(span: float) -> str:
    """Seconds in words: 40 s, 12 min, 3.5 h, 21 days."""
    if span < 90:
        return f"{max(span, 1):.0f} s"
    if span < 90 * 60:
        return f"{span / 60:.0f} min"
    return f"{span / 3600:.1f} h" if span < 48 * 3600 else f"{span / 86400:,.0f} days"
