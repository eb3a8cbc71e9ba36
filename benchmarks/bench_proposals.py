"""EdgeBoxes stage, against bare OpenCV calls on the same images, and on 2 cores against 1."""

import io
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from benchmarks import world


def bare(shards: list[Path]) -> None:
    """The calls that a script would make, on one thread, results thrown away."""
    cv2.setNumThreads(1)
    for shard in shards:
        for data in pq.read_table(shard, columns=["image"])["image"].to_pylist():
            image = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
            lab = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
            edges = np.zeros(image.shape[:2], np.float32)
            for sigma in (1, 2, 4):
                smooth = cv2.GaussianBlur(lab, (0, 0), sigma)
                dx, dy = cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1)
                edges += np.sqrt((dx * dx + dy * dy).sum(-1))
            edges = np.minimum(edges / np.percentile(edges, 99), 1).astype(np.float32)
            smooth = cv2.GaussianBlur(edges, (0, 0), 2)
            dx, dy = cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1)
            dxx, dxy, dyy = cv2.Sobel(dx, -1, 1, 0), cv2.Sobel(dx, -1, 0, 1), cv2.Sobel(dy, -1, 0, 1)
            angle = np.mod(np.arctan(np.where(dxy > 0, -dyy, dyy) / (dxx + 1e-5)), np.pi).astype(np.float32)
            x, y = np.meshgrid(np.arange(edges.shape[1], dtype=np.float32), np.arange(edges.shape[0], dtype=np.float32))
            thinned = edges.copy()
            for step in (-2, -1, 1, 2):
                other = cv2.remap(edges, x + step * np.cos(angle), y + step * np.sin(angle), cv2.INTER_LINEAR, None,
                                  cv2.BORDER_REPLICATE)  # fmt: skip
                thinned[edges < other] = 0
            search = cv2.ximgproc.createEdgeBoxes(maxBoxes=2000, alpha=0.65, beta=0.75, minScore=0.01)
            search.getBoundingBoxes(thinned, angle)


def main(folder: Path, count: int = 200) -> None:
    world.params(folder, dataset={"shard_images": 50})
    world.archives(folder, count)
    dataset = folder / "data/dataset"
    world.timed(sys.executable, "-m", "stages.dataset", "--input", "voc.tar", "--sbd", "sbd.tgz", "--test", "test.tar",
                "--out", str(dataset))  # fmt: skip
    shards = sorted(dataset.glob("*.parquet"))[:3]
    start = time.perf_counter()
    bare(shards)
    plain = time.perf_counter() - start
    stage = [sys.executable, "-m", "stages.proposals", "shard", "--edge-model", "none"]
    startup = world.timed(*stage, "--help")
    one = 0.0
    for shard in shards:
        one += world.timed(*stage, "--dataset", str(shard), "--out", f"{shard.name}") - startup
    print(f"{len(shards) * 50} images of 400x320: bare OpenCV {plain:.1f} s; stage on 1 core {one:.1f} s "
          f"= x{one / plain:.2f} (at most 1.1 is wanted)")  # fmt: skip
    (folder / "data/weights").mkdir()
    (folder / "data/weights/edge_model.yml.gz").touch()
    snakemake = ["snakemake", "--snakefile", f"{world.REPOSITORY}/workflow/Snakefile", "--config", "stage=proposals"]
    seconds = []
    for cores in ("1", "2"):
        for path in (folder / "data").glob("proposals/*"):
            path.unlink()
        seconds.append(world.timed(*snakemake, "--cores", cores))
    print(f"snakemake, {2 * count + 1} images: 1 core {seconds[0]:.1f} s, 2 cores {seconds[1]:.1f} s: "
          f"{seconds[0] / seconds[1]:.2f} times faster (at least 1.8 is wanted)")  # fmt: skip
