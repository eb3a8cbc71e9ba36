"""The device that inference runs on, and its arithmetic."""

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

_locks = []  # files that stay open, and locked, as long as the process lives


def own_device() -> torch.device:
    """Claim a free GPU through a file lock; share one if all are taken; the CPU if there is none.

    Jobs that run on one machine at once are not told which GPU is theirs (snakemake#281), so each locks one until it
    ends.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    for number in range(torch.cuda.device_count()):
        lock = open(Path(tempfile.gettempdir(), f"deconvnet-{os.getuid()}-gpu-{number}.lock"), "w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        _locks.append(lock)
        return torch.device("cuda", number)
    return torch.device("cuda", os.getpid() % torch.cuda.device_count())


def upload(array: np.ndarray, device: torch.device) -> Tensor:
    """A copy of `array` on `device`; a GPU fetches it by itself while this process goes on."""
    copy = torch.tensor(array)
    return copy.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else copy


@contextlib.contextmanager
def arithmetic(device: torch.device, precision: str) -> Iterator[None]:
    """Compute with `precision` inside: "bf16" by autocast; "float32" in full, without a GPU's shortened TF32."""
    switches = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [switch.allow_tf32 for switch in switches]
    for switch in switches:
        switch.allow_tf32 = precision != "float32"
    try:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.allow_tf32 = value
