"""How many operations training takes, and how many this machine can do."""

import copy
import time

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
    times = []
    for _ in range(4):
        begin = time.perf_counter()
        matrix @ matrix
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return 2 * side**3 / min(times)
