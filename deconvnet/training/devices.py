"""The device of this process, and the process group that torchrun's processes form.

Under `torchrun --nproc-per-node N` a batch is spread over N devices (NCCL; gloo on CPUs). Where it does not divide
among N, as many take part as it divides among, and the other processes end at once.
"""

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from deconvnet.pixels import own_memory


@dataclass(frozen=True)
class Worker:
    """One of `world` processes that train together: its device and its number."""

    device: torch.device
    rank: int = 0
    world: int = 1

    def say(self, line: str) -> None:
        """Print a line once, however many processes there are."""
        if self.rank == 0:
            print(line, flush=True)

    def sum(self, tensor: Tensor) -> Tensor:
        """`tensor`, added up in place over all processes."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def from_first(self, tensor: Tensor) -> Tensor:
        """`tensor` as the first process has it, in place."""
        if self.world > 1:
            dist.broadcast(tensor, 0)
        return tensor

    def shared_memory(self, length: int, fill: Callable[[np.ndarray], None]) -> np.ndarray:
        """uint8 (length,), zeros that one process of this machine fills and all of them share."""
        if self.world == 1:
            return own_memory(length, fill)
        name = f"deconvnet-{os.getuid()}-{os.environ['MASTER_PORT']}-{os.environ.get('TORCHELASTIC_RUN_ID', '')}"
        folder = Path("/dev/shm")  # in memory, where there is room
        if not (folder.is_dir() and shutil.disk_usage(folder).free > length):
            folder = Path(tempfile.gettempdir())
        first = int(os.environ.get("LOCAL_RANK", 0)) == 0
        if first:
            fill(np.memmap(folder / name, np.uint8, "w+", shape=(length,)))
        self.wait()
        memory = np.memmap(folder / name, np.uint8, "r+", shape=(length,))
        self.wait()
        if first:
            (folder / name).unlink()  # it goes with the last process that has it
        return memory

    def wait(self) -> None:
        """Wait until every process has come here."""
        if self.world > 1:
            dist.barrier()


def join(usable: Callable[[int], int] = lambda processes: processes) -> Worker | None:
    """Take this process's device, and join the process group if torchrun started several processes.

    usable: how many of a number of processes the work divides among. None for a process beyond them, which is to end.
    """
    processes, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    world = usable(processes)
    if rank >= world:
        return None
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
        torch.backends.cudnn.benchmark = True
    worker = Worker(torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu"), rank, world)
    if world < processes:
        worker.say(f"{world} of {processes} processes have work, the others end: the work divides among no more")
    if world > 1:
        dist.init_process_group("nccl" if cuda else "gloo", rank=rank, world_size=world)
    return worker


def leave() -> None:
    """Take the process group down, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()
