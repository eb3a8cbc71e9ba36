"""How long a device takes for a census: the common GPUs by their data sheets, this machine by measuring it.

A GPU's operator takes as long as its arithmetic or its memory traffic, whichever is longer, and a launch. What part of
the data sheet's rates a kernel reaches is assumed (`EFFICIENCY`), so these times are predictions. On a CPU no such rule
holds, so every operator is timed in a few small training steps, and one of another size takes in proportion.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from deconvnet.census import Call, Census, Recorder
from deconvnet.settings import Run
from deconvnet.steps import one_thread, training_step
from deconvnet.training.flops import fastest, peak_flops

# Of a GPU's peak rates, reached by a large operator. Assumed, not measured.
EFFICIENCY = {"convolution": 0.6, "convolution_backward": 0.5, "product": 0.7, "memory": 0.8}
NARROW = 0.3  # of these, where a convolution has fewer than 32 channels on one side: tiles stay half empty
WEIGHT = {"convolution": 1, "convolution_backward": 2}  # its place among the arguments: (out, in, height, width)
LAUNCH = 4e-6  # seconds of a kernel on a GPU beside its work; assumed
ASSUMED = (
    f"of a GPU's peak rates, convolutions are assumed to reach {EFFICIENCY['convolution']:.0%} forward and "
    f"{EFFICIENCY['convolution_backward']:.0%} backward, memory {EFFICIENCY['memory']:.0%}"
)


Samples = dict[tuple[str, torch.dtype | None], list[tuple[Call, float]]]  # calls and their seconds, by operator


@dataclass(frozen=True)
class Device:
    """What a device can do at most, and for a CPU how long operators took on it."""

    name: str
    flops: Mapping[str, float]  # dense operations per second by precision, "bf16" and "float32"
    bandwidth: float  # bytes per second, read and written
    memory: float  # bytes
    launch: float = LAUNCH  # seconds of an operator beside its work
    samples: Samples = dataclasses.field(default_factory=dict)  # empty for a GPU


def _gpu(name: str, bf16: float, float32: float, bandwidth: float, memory: float) -> Device:
    """TFLOP/s, TFLOP/s, GB/s, GB."""
    return Device(name, {"bf16": bf16 * 1e12, "float32": float32 * 1e12}, bandwidth * 1e9, memory * 1e9)


# NVIDIA's data sheets and architecture white papers: bf16 by tensor cores, dense, summed up in float32; float32 without
# TF32. V100 and T4 have no bf16: the rate is fp16's, and PyTorch emulates bf16 there, more slowly.
GPUS = {
    device.name: device
    for device in (
        _gpu("T4 (fp16)", 65, 8.1, 300, 16),
        _gpu("V100 SXM2 (fp16)", 125, 15.7, 900, 32),
        _gpu("RTX 3090", 71, 35.6, 936, 24),
        _gpu("RTX 4090", 165, 82.6, 1008, 24),
        _gpu("L4", 121, 30.3, 300, 24),
        _gpu("A100 SXM 40 GB", 312, 19.5, 1555, 40),
        _gpu("A100 SXM 80 GB", 312, 19.5, 2039, 80),
        _gpu("H100 SXM", 989, 67, 3350, 80),
        _gpu("H200 SXM", 989, 67, 4800, 141),
        _gpu("B200", 2250, 75, 8000, 180),
    )
}


def predict(census: Census, device: Device) -> float:
    """Seconds of the census's calls, one after the other."""
    return sum(number * _seconds(call, device) for call, number in census.calls.items())


def _seconds(call: Call, device: Device) -> float:
    # Under 100 kB a call's time is its start's, which says nothing of a call of another size.
    near = [
        (sample, seconds) for sample, seconds in device.samples.get((call.operator, call.dtype), ())
        if sample.bytes > 1e5 or call.bytes < 10 * sample.bytes
    ]  # fmt: skip
    if near:
        sample, seconds = min(near, key=lambda item: _distance(item[0], call))
        return device.launch + seconds * (call.flops / sample.flops if sample.flops else call.bytes / sample.bytes)
    seconds = (call.bytes + call.rereads) / (device.bandwidth * EFFICIENCY["memory"])
    if call.flops:
        rate = device.flops["bf16" if call.dtype == torch.bfloat16 else "float32"]
        rate *= EFFICIENCY.get(call.operator, EFFICIENCY["product"])
        if call.operator in WEIGHT and min(call.shapes[WEIGHT[call.operator]][:2]) < 32:
            rate *= NARROW
        seconds = max(seconds, call.flops / rate)
    return seconds + device.launch * call.kernels


def _distance(one: Call, other: Call) -> float:
    """How far two calls of one operator are apart: factors between their sizes, as logarithms."""
    pairs = [(one.bytes, other.bytes)]
    if one.flops:
        pairs = [pair for shapes in zip(one.shapes, other.shapes, strict=False) for pair in zip(*shapes, strict=False)]
    return sum(abs(math.log((a + 1) / (b + 1))) for a, b in pairs)  # 1: a size may be 0


@functools.cache
def measure(device: torch.device, precisions: tuple[str, ...] = ("bf16",)) -> Device:
    """This machine's device: its rates, and on a CPU its operators' times. Takes some seconds, once per process.

    A GPU's kernels are not timed: its efficiencies stay assumed.
    """
    flops = {precision: peak_flops(device, precision) for precision in precisions}
    bandwidth, launch = _bandwidth(device), _launch(device)
    if device.type == "cuda":
        return Device(str(device), flops, bandwidth, torch.cuda.get_device_properties(device).total_memory, launch)
    return Device(str(device), flops, bandwidth, 0, launch, _samples(precisions))


def _bandwidth(device: torch.device) -> float:
    source = torch.ones((1 << 30 if device.type == "cuda" else 1 << 26), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / fastest(lambda: target.copy_(source), device, 5)


def _launch(device: torch.device) -> float:
    tiny = torch.zeros(8, device=device)
    return fastest(lambda: [tiny.add_(1) for _ in range(100)], device, 10) / 100


def _samples(precisions: tuple[str, ...]) -> Samples:
    """Seconds of the calls of small training steps in one lane, of narrow and wide layers; the fastest of three."""
    samples: Samples = {}
    for precision in precisions:
        for width, side, batch in ((16, 64, 16), (64, 64, 2)):
            size = {"width": width, "fc_width": 16 * width, "input_size": side}
            spec = {"kind": "deconvnet", "size": size, "classes": 8, "eps": 1e-5}
            run = Run(batch=batch, micro_batch=batch, batch_norm_crops=None, precision=precision)
            gradients, update, resident = training_step(run, spec, (side, side), "cpu")
            rounds = []
            for _ in range(3):
                with one_thread(), Recorder("cpu", resident) as recorder:
                    gradients()
                    update()
                rounds.append(recorder.calls)
            for same in zip(*rounds, strict=True):
                call = same[0][0]
                samples.setdefault((call.operator, call.dtype), []).append((call, min(t for _, t in same)))
    return samples
