"""What the benchmarks run on: drawn pictures of about VOC's size, as archives or rows of the data set; commands."""

import gzip
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from shutil import copytree, ignore_patterns

import numpy as np
import yaml

from deconvnet.images import encode_mask
from deconvnet.voc import instances
from demo.world.archives import jpeg, mat, palette_png, write_archive
from demo.world.scenes import scene
from demo.world.shapes import CLASSES

REPOSITORY = Path(__file__).parents[1]
# Of a copy of the repository: what tools keep, and what a run makes.
LEFT_OUT = (".git", ".venv", ".uv", ".*_cache", "__pycache__", ".snakemake", "cache", "tmp", "config.local", "data",
            "dvc.lock", "reports")  # fmt: skip


def params(folder: Path, **changes: dict) -> None:
    """Write the root's parameters with `changes` to sections, gradient edges and the drawn world's classes."""
    values = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    values["root"] = str(REPOSITORY)
    values["dataset"] |= {"classes": list(CLASSES), "counts": {}}
    values["proposals"]["edges"] = "gradient"
    for section, change in changes.items():
        values[section] |= change
    (folder / "params.yaml").write_text(yaml.safe_dump(values))


def repository(folder: Path) -> Path:
    """The project under git, its demo of 4 + 6 + 4 images and four steps per training; returns the demo's folder."""
    copytree(REPOSITORY, folder, ignore=ignore_patterns(*LEFT_OUT))
    path = folder / "demo/params.yaml"
    values = yaml.safe_load(path.read_text())
    values["fetch"]["voc_trainval"] |= {"train": 4, "val": 4}
    values["fetch"]["sbd"] |= {"train": 4, "val": 2, "shared_train": 1, "shared_val": 1}
    values["dataset"] |= {"shard_images": 5, "counts": {}}
    values["training"] |= {"held_out": 0.3, "statistics_passes": 1}
    values["reestimate"]["passes"] = 2
    for section, run in (("pretrain", "run"), ("train", "stage1"), ("train", "stage2"), ("train_fcn", "run")):
        values[section][run] |= {
            "steps": 4,
            "batch_norm_crops": None,
            "drop_at": [],
            "validate_every": 4,
            "checkpoint_minutes": 0,
        }
    path.write_text(yaml.safe_dump(values))
    call("git", "init", "-q", folder=folder)
    return path.parent


def mosaic(number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[int]]:
    """Image (320, 400, 3), class mask, instance mask (320, 400) and instance classes: four of the demo's pictures."""
    scenes = [scene(0, f"2010_{4 * number + index:06d}") for index in range(4)]
    kinds, masks = [], []
    for part in scenes:
        mask = part.instance_mask
        masks.append(np.where((mask > 0) & (mask < 255), mask + len(kinds), mask).astype(np.uint8))
        kinds += part.instance_classes.tolist()
    tiles = zip([part.image for part in scenes], [part.class_mask for part in scenes], masks, strict=True)
    image, class_mask, instance_mask = (np.concatenate([np.concatenate(parts[:2], 1), np.concatenate(parts[2:], 1)])
                                        for parts in zip(*tiles, strict=True))  # fmt: skip
    return image, class_mask, instance_mask, kinds


def row(image_id: str, split: str, image: np.ndarray, class_mask: np.ndarray, instance_mask: np.ndarray) -> dict:
    """A row of the data set (deconvnet.voc.SCHEMA) of up to VOC's 21 classes."""
    height, width = class_mask.shape
    kinds, boxes, areas = instances(class_mask, instance_mask, 21)
    found = {"image_id": image_id, "source": "voc", "split": split, "height": height, "width": width}
    found |= {"image": jpeg(image), "class_mask": encode_mask(class_mask), "instance_mask": encode_mask(instance_mask)}
    return found | {"instance_classes": kinds, "instance_boxes": boxes.tolist(), "instance_areas": areas}


def archives(folder: Path, count: int) -> None:
    """voc.tar with `count` training and 1 val images, sbd.tgz with `count` others, test.tar empty."""
    (folder / "test.tar").touch()
    with open(folder / "voc.tar", "wb") as stream:
        write_archive(stream, _voc_files([f"v{number:04d}" for number in range(count + 1)]))
    with gzip.open(folder / "sbd.tgz", "wb") as stream:
        write_archive(stream, _sbd_files([f"s{number:04d}" for number in range(count)], count + 1))


def _voc_files(ids: list[str]) -> Iterator[tuple[str, bytes]]:
    voc = "VOCdevkit/VOC2012"
    yield f"{voc}/ImageSets/Segmentation/train.txt", "\n".join(ids[1:]).encode()
    yield f"{voc}/ImageSets/Segmentation/val.txt", ids[0].encode()
    for number, image_id in enumerate(ids):
        image, class_mask, instance_mask, _ = mosaic(number)
        yield f"{voc}/JPEGImages/{image_id}.jpg", jpeg(image)
        yield f"{voc}/SegmentationClass/{image_id}.png", palette_png(class_mask)
        yield f"{voc}/SegmentationObject/{image_id}.png", palette_png(instance_mask)


def _sbd_files(ids: list[str], first: int) -> Iterator[tuple[str, bytes]]:
    sbd = "benchmark_RELEASE/dataset"
    yield f"{sbd}/train.txt", "\n".join(ids[1:]).encode()
    yield f"{sbd}/val.txt", ids[0].encode()
    for number, image_id in enumerate(ids, first):
        image, class_mask, instance_mask, kinds = mosaic(number)
        class_mask[class_mask == 255], instance_mask[instance_mask == 255] = 0, 0  # SBD has no void
        yield f"{sbd}/img/{image_id}.jpg", jpeg(image)
        yield f"{sbd}/cls/{image_id}.mat", mat({"GTcls": {"Segmentation": class_mask}})
        objects = {"Segmentation": instance_mask, "Categories": np.array(kinds)[:, None]}
        yield f"{sbd}/inst/{image_id}.mat", mat({"GTinst": objects})


def environment(**more: str) -> dict[str, str]:
    """That of a user who has activated the virtual environment and set nothing else but `more`."""
    kept = {name: value for name, value in os.environ.items() if name != "SNAKEMAKE_PROFILE"}
    path = f"{Path(sys.executable).parent}:{kept['PATH']}"
    return kept | {"PATH": path, "PYTHONPATH": str(REPOSITORY)} | more


def call(*command: str, folder: Path | None = None, **more: str) -> str:
    """What a command printed; `more`: its environment. Ends the benchmark with its words where it fails."""
    done = subprocess.run(
        command, cwd=folder, env=environment(**more), capture_output=True, text=True, check=False
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout


def timed(*command: str) -> float:
    """Seconds of a command."""
    start = time.perf_counter()
    call(*command)
    return time.perf_counter() - start
