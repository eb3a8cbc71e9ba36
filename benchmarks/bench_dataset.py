"""Archives to shards, against merely reading the archives and decoding every image and mask once, on one core.

CPU seconds count every thread's work, so the stage gets nothing for using all cores; wall seconds show that it does.
"""

import io
import resource
import statistics
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import scipy.io
from PIL import Image

from benchmarks import world


def merely_read(folder: Path) -> None:
    for archive_name in ("voc.tar", "sbd.tgz"):
        with tarfile.open(folder / archive_name, "r|*") as archive:
            for member in archive:
                data = archive.extractfile(member).read()
                if member.name.endswith((".jpg", ".png")):
                    np.asarray(Image.open(io.BytesIO(data)))
                elif member.name.endswith(".mat"):
                    scipy.io.loadmat(io.BytesIO(data))


def cpu_and_wall(who: int, work) -> np.ndarray:
    before, start = resource.getrusage(who), time.perf_counter()
    work()
    after = resource.getrusage(who)
    return np.array([after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, time.perf_counter() - start])


def main(folder: Path, count: int = 300) -> None:
    world.params(folder)
    world.archives(folder, count)
    stage = [sys.executable, "-m", "stages.dataset", "--input", "voc.tar", "--sbd", "sbd.tgz", "--test", "test.tar"]
    plain, ours = [], []
    for _ in range(5):
        # all that the stage imports sooner or later: what start-up costs is no matter of the archives' size
        imports = [sys.executable, "-c", "import stages.dataset, pandas, scipy.io, yaml"]
        startup = cpu_and_wall(resource.RUSAGE_CHILDREN, lambda: world.timed(*imports))  # noqa: B023
        plain.append(cpu_and_wall(resource.RUSAGE_SELF, lambda: merely_read(folder)))
        ours.append(cpu_and_wall(resource.RUSAGE_CHILDREN, lambda: world.timed(*stage, "--out", "out")) - startup)
    for index, unit in enumerate(("CPU", "wall")):
        a, b = (statistics.median(times[index] for times in each) for each in (plain, ours))
        wanted = " (at most 1.2 is wanted)" if unit == "wall" else ""
        print(f"{2 * count + 1} images, {unit} seconds: merely read {a:.2f}, stage {b:.2f} = x{b / a:.2f}{wanted}")
