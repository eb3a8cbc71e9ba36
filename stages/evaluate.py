"""Labels of every system and true masks -> IoU by class, by object size, at boundaries, by number of proposals.

Everything comes from pixels counted over the whole split, as VOC does: an IoU is a quotient of two sums, never a mean
of images' or objects' quotients, in which a class's few pixels in one image would weigh as much as its many in another.
Void pixels are never counted. A class that the counted truth lacks has no IoU and no part in a mean; where it is
predicted all the same, that is an error of the class that is there.

Object size. Looked at is an object's box, doubled about its centre and clipped to the image, without void and without
other objects of its class, which a prediction is right to cover. The intersection and the union of the object with what
is predicted as its class are added up per class and size; a size's value is the mean over its classes. Twice the box:
what spills over beside an object counts against it, what is predicted far away does not.

Boundaries. A pixel is on a boundary where one of its four neighbours has another label; void is a label too, so that
bands begin at the rim of VOC's void contours and not in their middle. The band of width w has the pixels at most w px
from one on a boundary, centre to centre.
"""

import argparse
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import cv2
import numpy as np
import pandas as pd
import pyarrow as pa

from stages import scores, shards
from stages.cli import InputError, progress, run, whole
from stages.config import Range, load
from stages.images import VOID, decode_mask

SCORED = ("stage1", "fcn8s", "deconvnet", "edeconvnet")
REFINED = ("fcn8s_crf", "deconvnet_crf", "edeconvnet_crf")
SIZES = ("small", "medium", "large")
CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
SCHEMA = pa.schema(
    {
        "image_id": pa.string(),
        "system": pa.string(),
        "mean_iou": pa.float32(),  # over the classes in the image's truth or prediction; null: all is void
        "pixel_accuracy": pa.float32(),
    }
)


@dataclass(frozen=True)
class Params:
    split: Literal["train", "val"]
    sizes: list[Annotated[int, Range(1)]]  # px, areas from which on an object is medium and large
    boundary: list[Annotated[int, Range(1)]]  # px, widths of the bands; the first is the one in metrics.json

    def __post_init__(self):
        if len(self.sizes) != 2 or self.sizes[0] >= self.sizes[1]:
            raise ValueError(f"sizes: {list(self.sizes)} is not allowed; allowed: two areas in px, ascending")
        if not self.boundary or any(a >= b for a, b in zip(self.boundary, self.boundary[1:], strict=False)):
            raise ValueError(f"boundary: {list(self.boundary)} is not allowed; allowed: widths in px, ascending")


class Object(NamedTuple):
    kind: int  # class
    size: int  # index in SIZES
    window: tuple[slice, slice]  # rows and columns that are looked at
    own: np.ndarray  # bool, of the window's shape: the object
    other: np.ndarray  # bool: where its class would be wrong


class Truth(NamedTuple):
    """An image's truth, prepared once for all systems."""

    key: np.ndarray  # (H, W): (band x classes + class) x classes; void: bands x classes x classes
    objects: list[Object]


class Counts(NamedTuple):
    """Of one or more images, S systems, B widths and C classes; int64.

    Each pixel is in one band: that of the least width that reaches it, or the last, beyond all widths.
    """

    confusion: np.ndarray  # (S, B + 1, C, C) pixels: band, truth, predicted
    overlap: np.ndarray  # (S, 2, 3, C) pixels: intersection and union, size, class
    growth: np.ndarray  # (numbers of proposals, C, C) pixels: truth, predicted
    objects: np.ndarray  # (3,): how many of each size


def bands(class_mask: np.ndarray, widths: list[int]) -> np.ndarray:
    """How many of the ascending `widths` fall short of each pixel's distance to the nearest boundary: uint8 (H, W)."""
    inner = cv2.morphologyEx(class_mask, cv2.MORPH_GRADIENT, CROSS) == 0  # dilated = eroded: all neighbours alike
    # precise: the others only approach the distance; without a boundary it is 65536 or more
    distance = cv2.distanceTransform(inner.view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    band = np.zeros(class_mask.shape, np.uint8)
    for width in widths:
        band += distance > width
    return band


def prepare(row: dict, class_mask: np.ndarray, instance_mask: np.ndarray, classes: int, params: Params) -> Truth:
    """Masks uint8 (H, W) and the data set's row: instance_classes, instance_boxes, instance_areas."""
    void = class_mask == VOID
    outside = (len(params.boundary) + 1) * classes * classes
    key = bands(class_mask, params.boundary).astype(np.min_scalar_type(outside + classes))  # uint16 for VOC: quicker
    key *= classes
    key += class_mask
    key *= classes
    key[void] = outside
    objects = []
    columns = (row[f"instance_{name}"] for name in ("classes", "boxes", "areas"))
    for number, (kind, (x, y, width, height), area) in enumerate(zip(*columns, strict=True), 1):
        aside, above = (width + 1) // 2, (height + 1) // 2
        window = np.s_[max(y - above, 0) : y + height + above, max(x - aside, 0) : x + width + aside]
        own = (instance_mask[window] == number) & ~void[window]
        if not own.any():  # a number without pixels, or with void ones only
            continue
        other = (class_mask[window] != kind) & ~void[window] & ~own
        objects.append(Object(kind, int(np.searchsorted(params.sizes, area, "right")), window, own, other))
    return Truth(key, objects)


def confusion(labels: np.ndarray, key: np.ndarray, classes: int, widths: int) -> np.ndarray:
    """Pixels by band, truth and predicted label, int64 (widths + 1, C, C), of labels uint8 (H, W) and a Truth's key."""
    shape = (widths + 1, classes, classes)
    counted = np.bincount((key + labels).ravel(), minlength=np.prod(shape))[: np.prod(shape)]  # beyond: void
    return counted.reshape(shape)


def overlap(labels: np.ndarray, objects: list[Object], classes: int) -> np.ndarray:
    """Intersections and unions with the objects, added up: int64 (2, 3, C)."""
    total = np.zeros((2, len(SIZES), classes), np.int64)
    for kind, size, window, own, other in objects:
        said = labels[window] == kind
        total[0, size, kind] += np.count_nonzero(said & own)
        total[1, size, kind] += np.count_nonzero(own) + np.count_nonzero(said & other)
    return total


def count(
    row: dict, class_mask: np.ndarray, instance_mask: np.ndarray, labels: list[np.ndarray], growth: list[np.ndarray],
    classes: int, params: Params,
) -> Counts:  # fmt: skip
    """Counts of one image from masks and labels, uint8 (H, W), and the data set's row, of which `prepare` says more."""
    truth = prepare(row, class_mask, instance_mask, classes, params)
    widths = len(params.boundary)
    grown = [confusion(each, truth.key, classes, widths).sum(0) for each in growth]
    return Counts(
        np.stack([confusion(each, truth.key, classes, widths) for each in labels]),
        np.stack([overlap(each, truth.objects, classes) for each in labels]),
        np.array(grown, np.int64).reshape(-1, classes, classes),
        np.bincount([each.size for each in truth.objects], minlength=len(SIZES)),
    )


def ious(matrix: np.ndarray, predicted: bool = False) -> np.ndarray:
    """Confusion (..., truth, predicted) -> IoU of each class (..., C), nan for one that the truth lacks.

    `predicted`: nan only for one that the prediction lacks, too.
    """
    hits, truth = np.diagonal(matrix, axis1=-2, axis2=-1), matrix.sum(-1)
    union = truth + matrix.sum(-2) - hits
    return divide(hits, np.where(predicted | (truth > 0), union, 0))


def accuracy(matrix: np.ndarray) -> np.ndarray:
    """Confusion (..., C, C) -> share of the pixels that are right (...)."""
    return divide(np.trace(matrix, axis1=-2, axis2=-1), matrix.sum((-2, -1)))


def mean(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis of what is not nan; nan where nothing is."""
    return divide(np.nansum(values, -1), np.isfinite(values).sum(-1))


def divide(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """float64 quotients, nan for a divisor of 0."""
    return np.divide(above, below, out=np.full(np.shape(below), np.nan), where=below > 0)


def read_mask(data: bytes, where: str, ids: int, shape: tuple[int, int] | None = None, void: int = 0) -> np.ndarray:
    """PNG -> uint8 (H, W). Raises InputError for another shape and for a value from `ids` on; `void`: 1 allows 255."""
    try:
        mask = decode_mask(data)
    except ValueError as error:
        raise InputError(f"{where}: {error}; run `dvc repro`") from None
    if shape and mask.shape != shape:
        sizes = f"{mask.shape[1]}x{mask.shape[0]} px, but the class mask {shape[1]}x{shape[0]}"
        raise InputError(f"{where}: has {sizes}; run `dvc repro`")
    top = int((mask + np.uint8(void)).max(initial=0)) - void  # with void: 255 becomes 0, and the rest one more
    if top >= ids:
        allowed = f"0 to {ids - 1}" + (" and 255" if void else "")
        raise InputError(f"{where}: id {top} is not allowed; allowed: {allowed}; run `dvc repro`")
    return mask


def shard_names(dataset: Path, folders: dict[str, Path], split: str) -> list[str]:
    """Names of the split's shards. Raises InputError where there are none or a system's folder has others."""
    names = sorted(path.name for path in dataset.glob(f"{split}-*.parquet"))
    if not names:
        raise InputError(f"{dataset}: no shard of {split}; run `dvc repro dataset`, or change evaluate.split")
    for folder in folders.values():
        found = {path.name for path in folder.glob(f"{split}-*.parquet")}
        if missing := sorted(set(names) - found):
            raise InputError(f"{folder / missing[0]}: missing shard; name {split} in infer.splits and run `dvc repro`")
        if extra := sorted(found - set(names)):
            raise InputError(f"{folder / extra[0]}: not a shard of {dataset}; delete it")
    return names


def evaluate(
    dataset: Path, folders: dict[str, Path], classes: int, growth: int, params: Params
) -> tuple[Counts, pa.Table, int]:
    """Counts of the split, a table of SCHEMA, and how many images had no proposal.

    `folders`: each system's shards. `growth`: how many label maps of a growing number of proposals DeconvNet has. One
    shard is in memory at a time, its masks decoded an image a thread.
    """
    names = shard_names(dataset, folders, params.split)
    columns = ["image_id", "class_mask", "instance_mask", "instance_classes", "instance_boxes", "instance_areas"]

    def one(name: str, row: dict, labelled: tuple[dict, ...]) -> Counts:
        where = f"{dataset / name}: {row['image_id']}"
        class_mask = read_mask(row["class_mask"], f"{where}: class mask", classes, void=1)
        instance_mask = read_mask(row["instance_mask"], f"{where}: instance mask", VOID, class_mask.shape, void=1)
        labels, grown = [], []
        for folder, source in zip(folders.values(), labelled, strict=True):
            where = f"{folder / name}: {row['image_id']}: labels"
            labels.append(read_mask(source["labels"], where, classes, class_mask.shape))
            if "growth" in source:
                if len(source["growth"]) != growth:
                    raise InputError(
                        f"{where} after {len(source['growth'])} numbers of proposals, but infer.growth has {growth}; "
                        "run `dvc repro`"
                    )
                grown = [read_mask(data, where, classes, class_mask.shape) for data in source["growth"]]
        return count(row, class_mask, instance_mask, labels, grown, classes, params)

    total, images, without = None, {name: [] for name in SCHEMA.names}, 0
    with ThreadPoolExecutor(os.cpu_count()) as pool, progress(unit="image", desc="evaluate") as bar:
        for name in names:
            rows = shards.read(dataset / name, columns).to_pylist()
            tables = []
            for system, folder in folders.items():
                more = ["windows", "growth"] if system == "deconvnet" else []
                tables.append(scores.read(folder / name, dataset / name, ["image_id", "labels", *more]))
            labelled = list(zip(*tables, strict=True))
            without += sum(source.get("windows") == 0 for sources in labelled for source in sources)
            for row, counts in zip(rows, pool.map(partial(one, name), rows, labelled), strict=True):
                total = counts if total is None else Counts(*map(np.add, total, counts))
                matrices = counts.confusion.sum(1)  # (S, C, C)
                images["image_id"] += [row["image_id"]] * len(folders)
                images["system"] += folders
                images["mean_iou"] += mean(ious(matrices, predicted=True)).tolist()
                images["pixel_accuracy"] += accuracy(matrices).tolist()
                bar.update()
    if total is None:
        raise InputError(f"{dataset}: no image in the shards of {params.split}; run `dvc repro dataset`")
    arrays = [pa.array(images[field.name], field.type, from_pandas=True) for field in SCHEMA]  # nan becomes null
    return total, pa.Table.from_arrays(arrays, schema=SCHEMA), without


def by_width(matrices: np.ndarray) -> np.ndarray:
    """Counts.confusion (S, B + 1, C, C) -> mean IoU in the whole of each band (S, B)."""
    return mean(ious(matrices.cumsum(1)[:, :-1]))


def by_size(overlaps: np.ndarray) -> np.ndarray:
    """Counts.overlap (S, 2, 3, C) -> mean IoU of the objects of each size (S, 3)."""
    return mean(divide(overlaps[:, 0], overlaps[:, 1]))


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m stages.evaluate", description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", type=Path, required=True, help="folder of the data set's shards")
    parser.add_argument("--scores", type=Path, required=True, help=f"folder of {', '.join(SCORED)}")
    parser.add_argument("--labels", type=Path, required=True, help=f"folder of {', '.join(REFINED)}")
    parser.add_argument("--reports", type=Path, required=True, help="folder of the JSON and CSV files to write")
    parser.add_argument("--images", type=Path, required=True, help="table of single images to write")
    options = parser.parse_args(arguments)
    params, classes = load(Params, "evaluate"), load(list[str], "dataset.classes")
    growth = load(list[int], "infer.growth")
    folders = {name: options.scores / name for name in SCORED} | {name: options.labels / name for name in REFINED}
    cv2.setNumThreads(1)  # the images share the cores
    counts, images, without = evaluate(options.dataset, folders, len(classes), len(growth), params)

    matrices = counts.confusion.sum(1)  # (S, C, C)
    per_class = ious(matrices)  # (S, C)
    sizes = pd.DataFrame(by_size(counts.overlap), pd.Index(folders, name="system"), SIZES)
    boundary = pd.DataFrame(by_width(counts.confusion).T, pd.Index(params.boundary, name="width"), list(folders))
    table = pd.DataFrame({"mean_iou": mean(per_class), "pixel_accuracy": accuracy(matrices)}, sizes.index)
    table = table.join(sizes).assign(boundary=boundary.iloc[0])
    grown = pd.DataFrame({"mean_iou": mean(ious(counts.growth)), "pixel_accuracy": accuracy(counts.growth)},
                         pd.Index(growth, name="proposals"))  # fmt: skip
    cells = pd.MultiIndex.from_product([folders, classes, classes], names=["system", "truth", "predicted"])
    reports = {
        "per_class": pd.DataFrame(per_class.T, pd.Index(classes, name="class"), list(folders)),
        "confusion": pd.Series(matrices.ravel(), cells, name="pixels"),
        "sizes": sizes,
        "boundary": boundary,
        "growth": grown,
    }
    for name, report in reports.items():
        with whole(options.reports / f"{name}.csv") as file:
            report.round(4).to_csv(file)
    shards.write(options.images, images)
    objects = dict(zip(SIZES, counts.objects.tolist(), strict=True))
    metrics = {"images": len(images) // len(folders), "images_without_proposals": without, "objects": objects}
    rounded = table.round(4).astype(object).where(table.notna(), None)  # JSON has no nan
    headline = {"mean_iou": rounded["mean_iou"].to_dict()}  # DVC's tables have a column for every number in it
    for name, content in (("metrics", metrics | rounded.to_dict("index")), ("mean_iou", headline)):
        with whole(options.reports / f"{name}.json") as file:
            file.write_text(json.dumps(content, indent=2) + "\n")

    print(f"{metrics['images']} images of {params.split};", ", ".join(f"{n} {size}" for size, n in objects.items()),
          f"objects; boundary: within {params.boundary[0]} px; in %:")  # fmt: skip
    if without:
        print(f"images without a proposal, all background for DeconvNet: {without}")
    print((100 * table.rename_axis(None)).to_string(float_format="%.1f", na_rep="-"))


if __name__ == "__main__":
    run(main)
