"""The lanes of a device: copies of a net that compute side by side. A GPU is one lane, a CPU's cores are one each.

Where the kernels of one net run on all cores, each of them waits for its slowest core: a second busy process slows such
a training to a tenth. Lanes wait for each other once a step; a busy neighbour then takes its fair share, and no more.
"""

import contextlib
import copy
import ctypes
import functools
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from deconvnet.nets.layers import BatchNormReLU


def lanes(device: torch.device, parts: int) -> int:
    """How many lanes `device` has where work comes in `parts` parts: as many as cores, if they divide evenly."""
    cores = torch.get_num_threads() if device.type == "cpu" else 1
    return max(number for number in range(1, cores + 1) if parts % number == 0)


class Lane:
    """A copy of a net for one thread. It shares the net's buffers and float32 values, and has its own gradients.

    values: the net's parameters for arithmetic: in bf16 those of convolutions are copies that `Lanes.refresh` renews.
    """

    def __init__(self, net: nn.Module, values: list[Tensor]):
        memo = {id(buffer): buffer for buffer in net.buffers()}
        self.parameters = [
            nn.Parameter(value, own.requires_grad) for value, own in zip(values, net.parameters(), strict=True)
        ]
        memo |= {id(own): mine for own, mine in zip(net.parameters(), self.parameters, strict=True)}
        self.net = copy.deepcopy(net, memo)

    def gradients(self) -> list[Tensor | None]:
        """The gradients since the last call, in the order of the net's parameters; None for one without."""
        found = [parameter.grad for parameter in self.parameters]
        for parameter in self.parameters:
            parameter.grad = None
        return found


class Lanes:
    """As many lanes as `device` has cores for, among which `parts` parts of the work divide evenly.

    precision: "bf16" or "float32".
    """

    def __init__(self, net: nn.Module, precision: str, device: torch.device, parts: int):
        if device.type == "cpu":
            _keep_memory()
        # TF32 is no float32
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "bf16"
        count, cores = lanes(device, parts), torch.get_num_threads()
        self.masters = list(net.parameters())
        norms = {id(parameter) for module in net.modules() if isinstance(module, BatchNormReLU)
                 for parameter in module.parameters()}  # fmt: skip
        self.short = [precision == "bf16" and id(parameter) not in norms for parameter in self.masters]
        values = [
            parameter.detach().to(torch.bfloat16) if short else parameter.detach()
            for parameter, short in zip(self.masters, self.short, strict=True)
        ]
        self.copies = [value for value, short in zip(values, self.short, strict=True) if short]
        self.lanes = [Lane(net, [value.detach() for value in values]) for _ in range(count)]
        self.pool = None
        if device.type == "cpu":
            torch.set_num_threads(cores // count)  # of this thread, and of those to come
            if count > 1:
                self.pool = ThreadPoolExecutor(count - 1)

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the net's values after a change of them."""
        if self.copies:
            masters = [value.detach() for value, short in zip(self.masters, self.short, strict=True) if short]
            torch._foreach_copy_(self.copies, masters)

    def train(self, mode: bool = True) -> None:
        """Put every lane into training or evaluation mode."""
        for lane in self.lanes:
            lane.net.train(mode)

    def map(self, work: Callable, items: Iterable) -> list:
        """[work(lane, item), ...]: item i on lane i % lanes, in its thread, one after the other."""
        items = list(items)
        grad = torch.is_grad_enabled()

        def walk(number: int) -> list:
            with torch.set_grad_enabled(grad):  # a thread starts with gradients
                return [work(self.lanes[number], item) for item in items[number :: len(self.lanes)]]

        others = [self.pool.submit(walk, number) for number in range(1, len(self.lanes))] if self.pool else []
        try:
            first = walk(0)
        finally:
            rest = [other.result() for other in others]
        parts = [first, *rest]
        return [parts[index % len(parts)][index // len(parts)] for index in range(len(items))]


@functools.cache
def _keep_memory() -> None:
    """Let glibc keep what is freed: a step frees and wants the same, and new pages cost 5 to 8 % of its time."""
    mmap_threshold, trim_threshold = -3, -1
    with contextlib.suppress(OSError, AttributeError):  # other C libraries
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_threshold, 1 << 30)
        mallopt(trim_threshold, (1 << 31) - 1)
