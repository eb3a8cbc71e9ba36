"""How many operations training takes, and how many this machine can do."""

import copy
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def flops_per_crop(net: nn.Module, size: tuple[int, int]) -> float:
    """Floating-point operations of a forward and backward pass of one crop of `size`, counted without computing."""
    ghost = copy.deepcopy(net).to("meta").train()
    with FlopCounterMode(display=False) as counter:
        ghost(torch.empty(2, 3, *size, device="meta")).sum().backward()  # 2: batch norm needs more than one value
    return counter.get_total_flops() / 2


def peak_flops(device: torch.device, precision: str) -> float:
    """Operations per second of a large matrix product on `device`, measured here and now."""
    side = 8192 if device.type == "cuda" else 2048
    matrix = torch.randn(side, side, device=device, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    return 2 * side**3 / fastest(lambda: matrix @ matrix, device, 4)


def fastest(work: Callable[[], object], device: torch.device, times: int) -> float:
    """Seconds of `work` on `device`, the least of so many runs."""
    seconds = []
    for _ in range(times):
        begin = clock()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(clock() - begin)
    return min(seconds)


def clock() -> float:
    """Seconds, to time work on this machine by. A single thread has its own clock, on which neighbours do not count."""
    alone = torch.get_num_threads() == 1 and not torch.cuda.is_available()
    return time.thread_time() if alone else time.perf_counter()
