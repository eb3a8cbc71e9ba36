"""The kernels in C++ for CPUs: `cpu.cpp`, compiled when it is first wanted, on one thread each.

Two cores are best used by two threads with kernels of one thread each (deconvnet/training/lanes.py), so more would gain
nothing. Where there is no compiler, PyTorch's own operations do the same, more slowly.
"""

import ctypes
import functools
import hashlib
import os
import platform
import subprocess
import threading
from pathlib import Path

import torch
from torch import Tensor

SOURCE = Path(__file__).with_suffix(".cpp")
COMMAND = ("c++", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-std=c++17", "-shared", "-fPIC")
_TYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


_lock = threading.Lock()


def library() -> ctypes.CDLL | None:
    """The compiled kernels, from the user's cache if they lie there; None where they cannot be compiled or loaded."""
    with _lock:  # lanes ask at once
        return _library()


@functools.cache
def _library() -> ctypes.CDLL | None:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "deconvnet")
    text = SOURCE.read_bytes() + " ".join(COMMAND).encode() + _processor().encode()
    path = cache / f"kernels-{hashlib.sha256(text).hexdigest()[:16]}.so"
    try:
        if not path.exists():
            cache.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(f".{os.getpid()}")
            subprocess.run([*COMMAND, SOURCE, "-o", temporary], check=True, capture_output=True)
            os.replace(temporary, path)  # whole, whoever else compiles it at the same time
        return ctypes.CDLL(str(path))
    except (OSError, RuntimeError, subprocess.CalledProcessError):
        return None


def _processor() -> str:
    """What this machine's processor can do: a home folder may be shared by machines of several kinds."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())


def _call(name: str, first: Tensor, *arguments: Tensor | int | float) -> None:
    function = getattr(library(), f"{name}_{_TYPES[first.dtype]}")
    function(*(
        ctypes.c_void_p(value.data_ptr()) if isinstance(value, Tensor)
        else ctypes.c_int64(value) if isinstance(value, int) else ctypes.c_float(value)
        for value in (first, *arguments)
    ))  # fmt: skip


def batch_norm_relu(x: Tensor, weight: Tensor, bias: Tensor, eps: float, crops: int) -> tuple[Tensor, Tensor]:
    images, channels, height, width = x.shape
    groups = images // crops
    y, statistics = torch.empty_like(x), x.new_empty((groups, 2, channels), dtype=torch.float32)
    _call("batch_norm_relu", x, weight, bias, eps, groups, crops * height * width, channels, y, statistics)
    return y, statistics


def batch_norm_relu_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, bias: Tensor, statistics: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    out, weight_gradient, bias_gradient = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)
    groups, channels = len(statistics), x.shape[1]
    _call(
        "batch_norm_relu_backward", gradient, x, weight, bias, statistics, groups, x.numel() // groups // channels,
        channels, out, weight_gradient, bias_gradient,
    )  # fmt: skip
    return out, weight_gradient, bias_gradient


def pool(x: Tensor) -> tuple[Tensor, Tensor]:
    images, channels, height, width = x.shape
    y = x.new_empty((images, height // 2, width // 2, channels)).permute(0, 3, 1, 2)
    switches = torch.empty_like(y, dtype=torch.uint8)
    _call("pool", x, images * height // 2, width // 2, channels, y, switches)
    return y, switches


def place(x: Tensor, switches: Tensor) -> Tensor:
    images, channels, height, width = x.shape
    y = x.new_empty((images, 2 * height, 2 * width, channels)).permute(0, 3, 1, 2)
    _call("place", x, switches, images * height, width, channels, y)
    return y


def pick(x: Tensor, switches: Tensor) -> Tensor:
    images, channels, height, width = switches.shape
    y = torch.empty_like(switches, dtype=x.dtype)
    _call("pick", x, switches, images * height, width, channels, y)
    return y


def crop_losses(logits: Tensor, labels: Tensor) -> Tensor:
    images, classes, height, width = logits.shape
    losses = logits.new_empty(images, dtype=torch.float32)
    _call("crop_losses", logits, labels, images, height * width, classes, losses)
    return losses


def crop_losses_backward(logits: Tensor, labels: Tensor, factors: Tensor) -> Tensor:
    images, classes, height, width = logits.shape
    out = torch.empty_like(logits)
    _call("crop_losses_backward", logits, labels, factors, images, height * width, classes, out)
    return out
