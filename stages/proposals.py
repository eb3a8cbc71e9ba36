"""Data set shards -> EdgeBoxes object proposals, about 2,000 an image (paper 6.1; Zitnick, Dollar, ECCV 2014).

A row of data/proposals/{split}-NNN.parquet: `image_id` · `rank` 1 for the best · `x`, `y`, `width`, `height` px ·
`objectness`. Rows are sorted by image and rank.
"""

import argparse
import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import cv2
import numpy as np
import pandas as pd
import pyarrow as pa

from stages import shards
from stages.boxes import by_image, iou
from stages.cli import InputError, progress, run, whole
from stages.config import Range, load
from stages.images import decode_image

SCHEMA = pa.schema(
    {"image_id": pa.string(), "rank": pa.int32()}
    | {name: pa.float32() for name in ("x", "y", "width", "height", "objectness")}
)


FLAT = 1e-3  # Lab gradient below which an image has no edges but its conversion's rounding
NARROWEST = 16  # px; OpenCV's structured forests write out of bounds where a side is shorter than their inner patch


@dataclass(frozen=True)
class Recall:
    split: Literal["train", "val"]  # the split whose objects are looked for
    min_area: Annotated[int, Range(1)]  # px; smaller objects are not counted
    boxes: list[Annotated[int, Range(1)]]  # numbers of boxes an image
    iou: list[Annotated[float, Range(0, 1)]]  # overlaps that count as found


@dataclass(frozen=True)
class Params:
    edges: Literal["structured", "gradient"]  # structured forest (needs fetch.edge_model) or Lab gradients
    boxes: Annotated[int, Range(1)]  # at most, an image
    alpha: Annotated[float, Range(0, 1)]  # step of the sliding windows, as IoU
    beta: Annotated[float, Range(0, 1)]  # threshold of non-maximum suppression, as IoU
    min_score: Annotated[float, Range(0)]
    min_box_area: Annotated[int, Range(1)]  # px
    max_aspect_ratio: Annotated[float, Range(1)]
    recall: Recall


def gradient_edges(image: np.ndarray) -> np.ndarray:
    """Edge strength without a learned model: uint8 (H, W, 3) RGB -> float32 (H, W) in 0..1.

    Gradient magnitude in Lab, summed over Gaussian scales of 1, 2 and 4 px; the strongest hundredth is 1.
    """
    lab = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    strength = np.zeros(image.shape[:2], np.float32)
    for sigma in (1, 2, 4):
        smooth = cv2.GaussianBlur(lab, (0, 0), sigma)
        dx, dy = cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1)  # (H, W, 3)
        strength += np.sqrt((dx * dx + dy * dy).sum(-1))
    top = np.percentile(strength, 99)
    if top < FLAT:
        return np.zeros_like(strength)
    return np.minimum(strength / top, 1).astype(np.float32)


def orientation(edges: np.ndarray) -> np.ndarray:
    """Direction across each edge, radians in 0..pi, float32 (H, W), from second derivatives as in Dollar's toolbox."""
    smooth = cv2.GaussianBlur(edges, (0, 0), 2)
    dx, dy = cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1)
    dxx, dxy = cv2.Sobel(dx, cv2.CV_32F, 1, 0), cv2.Sobel(dx, cv2.CV_32F, 0, 1)
    dyy = cv2.Sobel(dy, cv2.CV_32F, 0, 1)
    slope = np.where(dxy > 0, -dyy, dyy) / (dxx + 1e-5)  # no sign(-dxy): it is 0 on an exactly level edge
    return np.mod(np.arctan(slope), np.pi).astype(np.float32)


def thin(edges: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Edges (H, W) where none within 2 px across the edge is stronger, 0 elsewhere: non-maximum suppression."""
    height, width = edges.shape
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    dx, dy = np.cos(direction), np.sin(direction)
    keep = np.ones(edges.shape, bool)
    for step in (-2, -1, 1, 2):
        keep &= edges >= cv2.remap(
            edges, x + step * dx, y + step * dy, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
    return np.where(keep, edges, 0).astype(np.float32)


class EdgeBoxes:
    """The detector of one configuration: `detector(image)` -> boxes float32 (N, 4) and objectness (N,), best first."""

    def __init__(self, params: Params, edge_model: Path):
        self.params = params
        self.forest = None
        if params.edges == "structured":
            if not edge_model.is_file() or not edge_model.stat().st_size:
                raise InputError(
                    f"{edge_model}: no edge model, but proposals.edges is structured; give fetch.edge_model an address "
                    "in params.yaml, or set proposals.edges to gradient"
                )
            try:
                self.forest = cv2.ximgproc.createStructuredEdgeDetection(str(edge_model))
            except cv2.error as error:
                raise InputError(f"{edge_model}: not a structured-forest model ({error.err}); fetch it again") from None

    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """image: uint8 (H, W, 3) RGB. A tiny image and one without edges have no boxes: (0, 4), (0,)."""
        if min(image.shape[:2]) < NARROWEST:
            return np.zeros((0, 4), np.float32), np.zeros(0, np.float32)
        if self.forest:
            edges = self.forest.detectEdges(image.astype(np.float32) / 255)
            direction = self.forest.computeOrientation(edges)
            edges = self.forest.edgesNms(edges, direction)
        else:
            edges = gradient_edges(image)
            direction = orientation(edges)
            edges = thin(edges, direction)
        search = cv2.ximgproc.createEdgeBoxes(
            alpha=self.params.alpha,
            beta=self.params.beta,
            minScore=self.params.min_score,
            maxBoxes=self.params.boxes,
            maxAspectRatio=self.params.max_aspect_ratio,
            minBoxArea=self.params.min_box_area,
        )
        boxes, objectness = search.getBoundingBoxes(edges, direction)
        if not len(boxes):  # OpenCV then gives None for the scores
            return np.zeros((0, 4), np.float32), np.zeros(0, np.float32)
        return boxes.astype(np.float32), objectness.ravel().astype(np.float32)


def fingerprint(dataset: Path, edge_model: Path, params: Params) -> str:
    """What a shard of proposals is made from; how recall is measured is no part of it."""
    own = {name: value for name, value in dataclasses.asdict(params).items() if name != "recall"}
    model = shards.file_hash(edge_model) if params.edges == "structured" else ""
    return shards.fingerprint(__file__, own, shards.footer(dataset)["content"], model)


def propose(images: pa.Table, detector: EdgeBoxes, name: str = "") -> pa.Table:
    """Data set rows (image_id, image) -> rows of SCHEMA. `name` stands before the progress bar."""
    columns = {name: [] for name in SCHEMA.names}
    for row in progress(images.to_pylist(), unit="image", desc=name):
        boxes, objectness = detector(decode_image(row["image"]))
        columns["image_id"] += [row["image_id"]] * len(boxes)
        columns["rank"].append(np.arange(1, len(boxes) + 1, dtype=np.int32))
        for index, name in enumerate(("x", "y", "width", "height")):
            columns[name].append(boxes[:, index])
        columns["objectness"].append(objectness)
    arrays = [pa.array(values if name == "image_id" else np.concatenate(values)) for name, values in columns.items()]
    return pa.Table.from_arrays(arrays, schema=SCHEMA)


def best_overlaps(objects: np.ndarray, boxes: np.ndarray, numbers: list[int]) -> np.ndarray:
    """Largest IoU of each object (M, 4) with the first n of the boxes (N, 4), for each n in `numbers` -> (M, n's)."""
    running = np.maximum.accumulate(
        np.pad(iou(objects, boxes), ((0, 0), (1, 0))), axis=1
    )  # (M, N + 1); no box, no overlap
    return running[:, np.minimum(numbers, len(boxes))]


def recall(dataset: Path, proposals: Path, params: Recall) -> pd.DataFrame:
    """Share of the split's objects that the first `boxes` proposals find: columns boxes, iou, recall, objects.

    An object is found when a proposal's IoU with its tight box is at least `iou`. Raises InputError where there is
    no object to find.
    """
    found = []
    for shard in sorted(dataset.glob(f"{params.split}-*.parquet")):
        rows = shards.read(shard, ["image_id", "instance_boxes", "instance_areas"]).to_pylist()
        boxes = by_image(shards.read(proposals / shard.name))
        for row in rows:
            objects = [
                box
                for box, area in zip(row["instance_boxes"], row["instance_areas"], strict=True)
                if area >= params.min_area
            ]
            if objects:
                found.append(
                    best_overlaps(np.array(objects), boxes.get(row["image_id"], np.zeros((0, 4))), params.boxes)
                )
    if not found:
        raise InputError(
            f"{dataset}: no object of at least {params.min_area} px in {params.split}; lower proposals.recall.min_area"
        )
    overlaps = np.concatenate(found)  # (objects, numbers of boxes)
    rows = [
        (number, threshold, float((overlaps[:, index] >= threshold).mean()), len(overlaps))
        for threshold in params.iou
        for index, number in enumerate(params.boxes)
    ]
    return pd.DataFrame(rows, columns=["boxes", "iou", "recall", "objects"])


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m stages.proposals", description=__doc__.splitlines()[0])
    actions = parser.add_subparsers(dest="action", required=True)
    shard = actions.add_parser("shard", help="proposals of one shard of the data set")
    shard.add_argument("--dataset", type=Path, required=True, help="shard of the data set")
    shard.add_argument(
        "--edge-model", type=Path, required=True, help="structured-forest model; not read for gradient edges"
    )
    shard.add_argument("--out", type=Path, required=True, help="shard of proposals")
    summary = actions.add_parser("recall", help="how many objects the proposals of all shards find")
    summary.add_argument("--dataset", type=Path, required=True, help="folder of the data set's shards")
    summary.add_argument("--proposals", type=Path, required=True, help="folder of the proposals' shards")
    summary.add_argument("--metrics", type=Path, required=True, help="JSON to write")
    summary.add_argument("--plot", type=Path, required=True, help="CSV to write")
    options = parser.parse_args(arguments)
    params = load(Params, "proposals")
    if options.action == "shard":
        cv2.setNumThreads(1)  # the shards share the cores; one thread each wastes none
        detector = EdgeBoxes(params, options.edge_model)
        rows = shards.read(options.dataset, ["image_id", "image"])
        mark = fingerprint(options.dataset, options.edge_model, params)  # now: the code may be edited while it runs
        shards.write(options.out, propose(rows, detector, options.dataset.stem), mark)
        return
    frame = recall(options.dataset, options.proposals, params.recall)
    table = frame.pivot(index="boxes", columns="iou", values="recall").round(4)
    with whole(options.metrics) as file:  # DVC's tables have a column for every number in it
        file.write_text(json.dumps({"recall": table.iloc[-1].add_prefix("iou_").to_dict()}, indent=2) + "\n")
    with whole(options.plot) as file:
        table.add_prefix("recall_iou_").to_csv(file)
    print(f"{frame['objects'].iloc[0]} objects of {params.recall.split}, and the share that the best boxes find:")
    print(table.rename_axis(columns="IoU").to_string())


if __name__ == "__main__":
    run(main)
