"""Data set and proposals -> the tables of training windows of stage 1 and stage 2 (paper 4.2, 6.1).

Stage 1: one window for every annotated object, its tight box with context. Stage 2: one for every proposal that
overlaps an object enough. Classes are balanced by redundancy: each class that occurs gets `per_class` examples,
scarce windows several times, abundant ones sampled.

A row of data/crops/stage{1,2}.parquet: `image_id` · `x`, `y`, `side_x`, `side_y` of the window in px, which may begin
before the image and end beyond it · `instance` the object it was drawn for (stage 1: the only one that keeps its
class) · `class_id` of that object · `copies` how often the window occurs in an epoch.

A window is a row, never an image file: 2.7 million loose crops would be 40 GB and hours of hashing.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import cv2
import numpy as np
import pandas as pd
import pyarrow as pa
from PIL import Image

from stages import shards
from stages.boxes import by_image, iou, windows
from stages.cli import InputError, progress, run, whole
from stages.config import Range, load
from stages.images import VOID, colour, contact_sheet, decode_image, decode_mask

SCHEMA = pa.schema(
    {"image_id": pa.string()}
    | {name: pa.int32() for name in ("x", "y", "side_x", "side_y", "instance", "class_id", "copies")}
)
SPLITS = {"trainaug": ("train",), "trainval_aug": ("train", "val")}


@dataclass(frozen=True)
class Stage:
    per_class: Annotated[int, Range(1)]  # examples of each class


@dataclass(frozen=True)
class ProposalStage(Stage):
    min_iou: Annotated[float, Range(0, 1)]  # of a proposal with an object's tight box


@dataclass(frozen=True)
class Params:
    split: Literal["trainaug", "trainval_aug"]
    context: Annotated[float, Range(1)]  # window side / box side
    square: bool
    seed: Annotated[int, Range(0)]
    stage1: Stage
    stage2: ProposalStage


def cut(image: np.ndarray, labels: np.ndarray, window: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The part of an image (H, W, 3) and its labels (H, W) in a window [x, y, side_x, side_y]: black, void outside."""
    x, y, side_x, side_y = window
    height, width = labels.shape
    (top, bottom), (left, right) = np.clip((y, y + side_y), 0, height), np.clip((x, x + side_x), 0, width)
    inside = slice(top, bottom), slice(left, right)
    at = slice(max(top - y, 0), max(bottom - y, 0)), slice(max(left - x, 0), max(right - x, 0))
    crop, crop_labels = np.zeros((side_y, side_x, 3), np.uint8), np.full((side_y, side_x), VOID, np.uint8)
    crop[at], crop_labels[at] = image[inside], labels[inside]
    return crop, crop_labels


def alone(class_mask: np.ndarray, instance_mask: np.ndarray, instance: int) -> np.ndarray:
    """Stage 1's labels (H, W): one object keeps its class, void stays void, all else is background."""
    return np.where((instance_mask == instance) | (class_mask == VOID), class_mask, 0).astype(np.uint8)


def balance(class_ids: np.ndarray, per_class: int, seed: int) -> np.ndarray:
    """Copies int32 (N,) of each window, so that every class in `class_ids` (N,) has exactly `per_class` examples.

    Windows of a class differ by at most one copy; which ones get the odd copy is drawn with the seed.
    """
    copies = np.zeros(len(class_ids), np.int32)
    for class_id in np.unique(class_ids):
        members = np.flatnonzero(class_ids == class_id)
        every, odd = divmod(per_class, len(members))
        copies[members] = every
        # a generator of its own, so that one class's windows do not move another's
        copies[np.random.default_rng([seed, class_id]).permutation(members)[:odd]] += 1
    return copies


def matches(boxes: np.ndarray, objects: np.ndarray, min_iou: float) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the boxes (N, 4) with an IoU of at least `min_iou` with an object (M, 4), and of those objects."""
    if not len(boxes) or not len(objects):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    overlap = iou(boxes, objects)  # (N, M)
    best = overlap.argmax(1)
    kept = np.flatnonzero(overlap[np.arange(len(boxes)), best] >= min_iou)
    return kept, best[kept]


def gather(dataset: Path, proposals: Path | None, params: Params) -> tuple[pd.DataFrame, np.ndarray]:
    """All windows of a stage, SCHEMA without `copies`, and the class of every object. Stage 2: with `proposals`.

    Reads shard by shard: memory holds one shard of proposals and the windows found.
    """
    paths = sorted(path for split in SPLITS[params.split] for path in dataset.glob(f"{split}-*.parquet"))
    if not paths:
        raise InputError(f"{dataset}: no shard of {params.split}; run `dvc repro dataset`")
    columns = {name: [] for name in SCHEMA.names if name != "copies"}
    classes = []
    for path in progress(paths, unit="shard"):
        rows = shards.read(path, ["image_id", "instance_classes", "instance_boxes", "instance_areas"]).to_pylist()
        if proposals:
            boxes_of = by_image(shards.read(proposals / path.name, ["image_id", "x", "y", "width", "height"]))
            if strange := boxes_of.keys() - {row["image_id"] for row in rows}:
                raise InputError(
                    f"{proposals / path.name}: holds {min(strange)}, which {path} lacks; run `dvc repro proposals`"
                )
        for row in rows:
            present = np.flatnonzero(row["instance_areas"])
            objects = np.array(row["instance_boxes"], np.int32).reshape(-1, 4)[present]
            kinds = np.array(row["instance_classes"], np.int32)[present]
            classes.append(kinds)
            boxes, of = objects, np.arange(len(objects))
            if proposals:
                candidates = boxes_of.get(row["image_id"], np.zeros((0, 4), np.float32))
                kept, of = matches(candidates, objects, params.stage2.min_iou)
                boxes = candidates[kept]
            for name, values in zip(
                ("x", "y", "side_x", "side_y"), windows(boxes, params.context, params.square).T, strict=True
            ):
                columns[name].append(values)
            columns["instance"].append(present[of].astype(np.int32) + 1)
            columns["class_id"].append(kinds[of])
            columns["image_id"].append(np.full(len(of), row["image_id"], object))
    return pd.DataFrame({name: np.concatenate(parts) for name, parts in columns.items()}), np.concatenate(classes)


def summary(frame: pd.DataFrame, object_classes: np.ndarray, names: list[str]) -> pd.DataFrame:
    """A row a class: `class`, annotated `objects`, `windows` found, those `used`, `examples`. No background."""
    count = len(names)
    return pd.DataFrame(
        {
            "class": names,
            "objects": np.bincount(object_classes, minlength=count),
            "windows": np.bincount(frame["class_id"], minlength=count),
            "used": np.bincount(frame["class_id"][frame["copies"] > 0], minlength=count),
            "examples": np.bincount(frame["class_id"], weights=frame["copies"], minlength=count).astype(int),
        }
    )[1:]


def sheet(
    dataset: Path, frame: pd.DataFrame, lone: bool, columns: int = 6, rows: int = 8, size: int = 128
) -> np.ndarray:
    """A picture uint8 (H, W, 3) of windows spread evenly over the classes, each as the network sees it: image | labels.

    Void is VOC's cream colour. Labels lie over the image faintly, so that a shift would show.
    """
    order = frame.sort_values("class_id", kind="stable")
    chosen = order.iloc[np.linspace(0, len(order) - 1, min(columns * rows, len(order))).astype(int)]
    pictures = {}
    for path in sorted(dataset.glob("*.parquet")):
        ids = shards.read(path, ["image_id"])["image_id"].to_pylist()
        wanted = [index for index, image_id in enumerate(ids) if image_id in set(chosen["image_id"])]
        if wanted:
            masks = shards.read(path, ["image_id", "image", "class_mask", "instance_mask"]).take(wanted).to_pylist()
            pictures |= {row["image_id"]: row for row in masks}
    cells = []
    for window in chosen.itertuples():
        row = pictures[window.image_id]
        image, labels = decode_image(row["image"]), decode_mask(row["class_mask"])
        if lone:
            labels = alone(labels, decode_mask(row["instance_mask"]), window.instance)
        crop, labels = cut(image, labels, (window.x, window.y, window.side_x, window.side_y))
        crop = cv2.resize(crop, (size, size), interpolation=cv2.INTER_LINEAR)
        labels = cv2.resize(labels, (size, size), interpolation=cv2.INTER_NEAREST)
        cells.append(np.concatenate([crop, (colour(labels) * 0.75 + crop * 0.25).astype(np.uint8)], 1))
    return contact_sheet(cells, columns)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m stages.crops", description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=("stage1", "stage2"))
    parser.add_argument("--dataset", type=Path, required=True, help="folder of the data set's shards")
    parser.add_argument("--proposals", type=Path, help="folder of the proposals' shards (stage2)")
    parser.add_argument("--out", type=Path, required=True, help="table of windows, parquet")
    parser.add_argument("--balance", type=Path, required=True, help="objects, windows and examples a class, CSV")
    parser.add_argument("--render", type=Path, required=True, help="contact sheet of windows and their labels, PNG")
    options = parser.parse_args(arguments)
    if (options.proposals is None) != (options.stage == "stage1"):
        parser.error("--proposals goes with stage2, and only with it")
    params, names = load(Params, "crops"), load(list[str], "dataset.classes")
    frame, object_classes = gather(options.dataset, options.proposals, params)
    if not len(frame):
        raise InputError(
            f"{options.dataset}: {options.stage} has no window; lower crops.stage2.min_iou or look at the proposals"
        )
    stage = getattr(params, options.stage)
    frame["copies"] = balance(frame["class_id"].to_numpy(), stage.per_class, params.seed)
    balanced = summary(frame, object_classes, names)
    frame = frame[frame["copies"] > 0]
    shards.write(options.out, pa.Table.from_pandas(frame, SCHEMA, preserve_index=False))
    with whole(options.balance) as file:
        balanced.to_csv(file, index=False)
    with whole(options.render) as file:
        Image.fromarray(sheet(options.dataset, frame, options.stage == "stage1")).save(file, "PNG")
    print(balanced.to_string(index=False))
    if len(missing := balanced["class"][balanced["examples"] == 0]):
        print(f"{options.stage}: without a window: {', '.join(missing)}")


if __name__ == "__main__":
    run(main)
