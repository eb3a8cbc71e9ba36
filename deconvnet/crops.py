"""Training windows of stage 1 and stage 2 (paper 4.2, 6.1).

Stage 1: a window around every annotated object, its tight box with context. Stage 2: one around every proposal that
overlaps an object enough. Classes are balanced by repetition: each class that occurs gets `per_class` examples per
epoch, its windows repeated where they are few (`max_copies` times at most, if that is set), a sample of them where
they are many.

A window is a row of a table, never an image file: 2.7 million loose crops would be 40 GB and hours of hashing.
"""

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pyarrow as pa

from deconvnet import contents, tables
from deconvnet.boxes import inside, iou, proposed, windows
from deconvnet.errors import InputError
from deconvnet.images import VOID, colour, contact_sheet, cut_window, decode_row
from deconvnet.progress import progress

SCHEMA = pa.schema(
    {"image_id": pa.string()}
    | {name: pa.int32() for name in ("x", "y", "side_x", "side_y", "instance", "class_id", "copies")}
)
# The data set's splits that training may use, by the name in settings.Crops.split.
SPLITS = {"trainaug": ("train",), "trainval_aug": ("train", "val")}


def alone(class_mask: np.ndarray, instance_mask: np.ndarray, instance: int) -> np.ndarray:
    """Stage 1's labels (H, W): one object keeps its class, void stays void, all else is background."""
    return np.where((instance_mask == instance) | (class_mask == VOID), class_mask, 0).astype(np.uint8)


def balance(class_ids: np.ndarray, per_class: int, seed: int, max_copies: int | None = None) -> np.ndarray:
    """Copies int32 (N,) of each window, so that every class in `class_ids` (N,) has exactly `per_class` examples.

    Windows of a class differ by at most one copy; which ones get the odd copy is drawn with the seed. max_copies: of a
    window at most, even if its class then has fewer examples; a single object a thousand times is learned by heart.
    """
    copies = np.zeros(len(class_ids), np.int32)
    for class_id in np.unique(class_ids):
        members = np.flatnonzero(class_ids == class_id)
        wanted = per_class if max_copies is None else min(per_class, max_copies * len(members))
        every, odd = divmod(wanted, len(members))
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


def find_windows(
    dataset: Path,
    split: str,
    context: float | str,
    square: bool,
    proposals: Path | None = None,
    min_iou: float = 0.5,
    classes: int = VOID,
) -> tuple[pd.DataFrame, np.ndarray]:
    """All windows of a stage, SCHEMA without `copies`, and the class of every object, int32 (M,).

    dataset, proposals: folders of shards; split: a key of SPLITS. Without `proposals` a window around every object
    (stage 1), with them around every proposal whose IoU with an object is at least `min_iou` (stage 2). context
    "whole": without proposals, the whole image once for each class in it, so that classes can be balanced; `instance`
    is the first object of the class. Reads shard by shard: memory holds one shard of proposals and the windows found.
    Raises InputError for an object of another class than 1 to `classes` - 1, and for shards without any image.
    """
    paths = _shards(dataset, split)
    columns = {name: [] for name in SCHEMA.names if name != "copies"}
    seen = []
    proposals = None if context == "whole" else proposals
    labelled = contents.LABELLED.within(instance_classes=(0, classes - 1))
    bar = progress(paths, unit="shard", desc="windows of proposals" if proposals else "windows of objects")
    for path in bar:
        bar.set_postfix_str(path.stem, refresh=False)
        rows = tables.read(path, ["image_id", "height", "width", *contents.OBJECTS], labelled).to_pylist()
        if proposals:
            boxes_of = proposed(proposals / path.name)
            if strange := boxes_of.keys() - {row["image_id"] for row in rows}:
                raise InputError(
                    f"{proposals / path.name}: holds {min(strange)}, which {path} lacks; run `dvc repro proposals`"
                )
        for row in rows:
            present = np.flatnonzero(row["instance_areas"])
            objects = np.array(row["instance_boxes"], np.int32).reshape(-1, 4)[present]
            if not inside(objects, row["height"], row["width"]):
                raise InputError(f"{path}: {row['image_id']}: an object's box lies beyond the image; run `dvc repro`")
            kinds = np.array(row["instance_classes"], np.int32)[present]
            seen.append(kinds)
            boxes, of = objects, np.arange(len(objects))
            if proposals:
                candidates = boxes_of.get(row["image_id"], np.zeros((0, 4), np.float32))
                kept, of = matches(candidates, objects, min_iou)
                boxes = candidates[kept]
            if context == "whole":
                of = np.unique(kinds, return_index=True)[1]
            found = windows(boxes, context, square, (row["height"], row["width"]))
            found = np.broadcast_to(found, (len(of), 4))
            for name, values in zip(("x", "y", "side_x", "side_y"), found.T, strict=True):
                columns[name].append(values)
            columns["instance"].append(present[of].astype(np.int32) + 1)
            columns["class_id"].append(kinds[of])
            columns["image_id"].append(np.full(len(of), row["image_id"], object))
    if not seen:
        raise InputError(f"{dataset}: no image of {split}; run `dvc repro dataset`")
    return pd.DataFrame({name: np.concatenate(parts) for name, parts in columns.items()}), np.concatenate(seen)


def sizes(dataset: Path, split: str) -> pd.DataFrame:
    """`image_id`, `height` and `width` (px) of every image of a key of SPLITS."""
    return pd.concat(
        [
            tables.read(path, ["image_id", "height", "width"], contents.DATASET).to_pandas()
            for path in _shards(dataset, split)
        ]
    )


def _shards(dataset: Path, split: str) -> list[Path]:
    paths = sorted(path for name in SPLITS[split] for path in dataset.glob(f"{name}-*.parquet"))
    if not paths:
        raise InputError(f"{dataset}: no shard of {split}; run `dvc repro dataset`")
    return paths


def count_by_class(frame: pd.DataFrame, object_classes: np.ndarray, names: tuple[str, ...]) -> pd.DataFrame:
    """A row per class: `class`, annotated `objects`, `windows` found, those `used`, `examples`. No background."""
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


def render(
    dataset: Path, frame: pd.DataFrame, one_object: bool, columns: int = 6, rows: int = 8, size: int = 128
) -> np.ndarray:
    """A picture uint8 (H, W, 3) of windows spread evenly over the classes, each as the network sees it: image | labels.

    one_object: labels as in stage 1, the window's own object alone. Void is VOC's cream colour. The image shows faintly
    through the labels, so that a shift would show.
    """
    order = frame.sort_values("class_id", kind="stable")
    chosen = order.iloc[np.linspace(0, len(order) - 1, min(columns * rows, len(order))).astype(int)]
    pictures = {}
    for path in sorted(dataset.glob("*.parquet")):
        ids = tables.read(path, ["image_id"], contents.DATASET)["image_id"].to_pylist()
        wanted = [index for index, image_id in enumerate(ids) if image_id in set(chosen["image_id"])]
        if wanted:
            read = tables.read(path, [*contents.PICTURE], contents.DATASET)
            pictures |= {row["image_id"]: row for row in read.take(wanted).to_pylist()}
    cells = []
    for window in chosen.itertuples():
        row = pictures[window.image_id]
        image, labels, instances = decode_row(row)
        if one_object:
            labels = alone(labels, instances, window.instance)
        crop, labels = cut_window(image, labels, (window.x, window.y, window.side_x, window.side_y))
        crop = cv2.resize(crop, (size, size), interpolation=cv2.INTER_LINEAR)
        labels = cv2.resize(labels, (size, size), interpolation=cv2.INTER_NEAREST)
        cells.append(np.concatenate([crop, (colour(labels) * 0.75 + crop * 0.25).astype(np.uint8)], 1))
    return contact_sheet(cells, columns)
