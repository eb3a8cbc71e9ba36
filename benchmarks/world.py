"""What the benchmarks run on: pictures of about VOC's size, mosaics of the demo's, as VOC and SBD archives."""

import io
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import yaml

from stages import shapes

REPOSITORY = Path(__file__).parents[1]


def params(folder: Path, **changes: dict) -> None:
    """Write the root's parameters with `changes` to sections, gradient edges and the shapes' classes."""
    values = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    values["root"] = str(REPOSITORY)
    values["dataset"] |= {"classes": list(shapes.CLASSES), "counts": {}}
    values["proposals"]["edges"] = "gradient"
    for section, change in changes.items():
        values[section] |= change
    (folder / "params.yaml").write_text(yaml.safe_dump(values))


def mosaic(number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[int]]:
    """Image (320, 400, 3), class mask, instance mask (320, 400) and instance classes: four of the demo's pictures."""
    scenes = [shapes.scene(0, f"2010_{4 * number + index:06d}") for index in range(4)]
    kinds, instances = [], []
    for scene in scenes:
        mask = scene.instance_mask
        instances.append(np.where((mask > 0) & (mask < 255), mask + len(kinds), mask).astype(np.uint8))
        kinds += scene.instance_classes.tolist()
    tiles = zip([scene.image for scene in scenes], [scene.class_mask for scene in scenes], instances, strict=True)
    image, classes, instances = (np.concatenate([np.concatenate(parts[:2], 1), np.concatenate(parts[2:], 1)])
                                 for parts in zip(*tiles, strict=True))  # fmt: skip
    return image, classes, instances, kinds


def archives(folder: Path, count: int) -> None:
    """voc.tar with `count` training and 1 val images, sbd.tgz with `count` others, test.tar empty."""
    (folder / "test.tar").touch()
    voc, sbd = "VOCdevkit/VOC2012", "benchmark_RELEASE/dataset"
    with tarfile.open(folder / "voc.tar", "w") as archive:
        ids = [f"v{number:04d}" for number in range(count + 1)]
        for number, image_id in enumerate(ids):
            image, classes, instances, _ = mosaic(number)
            _add(archive, f"{voc}/JPEGImages/{image_id}.jpg", shapes.jpeg(image))
            _add(archive, f"{voc}/SegmentationClass/{image_id}.png", shapes.palette_png(classes))
            _add(archive, f"{voc}/SegmentationObject/{image_id}.png", shapes.palette_png(instances))
        _add(archive, f"{voc}/ImageSets/Segmentation/train.txt", "\n".join(ids[1:]).encode())
        _add(archive, f"{voc}/ImageSets/Segmentation/val.txt", ids[0].encode())
    with tarfile.open(folder / "sbd.tgz", "w:gz") as archive:
        ids = [f"s{number:04d}" for number in range(count)]
        for number, image_id in enumerate(ids, count + 1):
            image, classes, instances, kinds = mosaic(number)
            gone = set(range(1, len(kinds) + 1)) - set(np.unique(instances))
            assert not gone, gone
            classes[classes == 255], instances[instances == 255] = 0, 0  # SBD has no void
            _add(archive, f"{sbd}/img/{image_id}.jpg", shapes.jpeg(image))
            _add(archive, f"{sbd}/cls/{image_id}.mat", shapes.mat({"GTcls": {"Segmentation": classes}}))
            inst = {"Segmentation": instances, "Categories": np.array(kinds)[:, None]}
            _add(archive, f"{sbd}/inst/{image_id}.mat", shapes.mat({"GTinst": inst}))
        _add(archive, f"{sbd}/train.txt", "\n".join(ids[1:]).encode())
        _add(archive, f"{sbd}/val.txt", ids[0].encode())


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def timed(*command: str) -> float:
    """Seconds of a command, its output thrown away."""
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return time.perf_counter() - start
