"""What this process may use of the machine."""

import os
import shutil
import subprocess


def cores() -> int:
    """Cores that this process may run on: a job's share, where a scheduler grants one."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus() -> int:
    """NVIDIA GPUs that CUDA would show here; 0 without a driver.

    CUDA_VISIBLE_DEVICES counts up to its first negative number, as CUDA reads it. The slices of a card in MIG mode,
    which nvidia-smi lists below it, are not counted: CUDA shows a process one of them at most.
    """
    if not shutil.which("nvidia-smi"):
        return 0
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout.splitlines()
    there = sum(line.startswith("GPU ") for line in listed)
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is None:
        return there
    count = 0
    for name in filter(None, visible.replace(",", " ").split()):
        if name.startswith("-"):
            break
        count += 1
    return min(count, there) if there else 0
