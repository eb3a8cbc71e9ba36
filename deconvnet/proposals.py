"""EdgeBoxes object proposals (paper 6.1; Zitnick, Dollar, EdgeBoxes, ECCV 2014), and how many objects they find."""

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pyarrow as pa

from deconvnet import contents, settings, tables
from deconvnet.boxes import iou, proposed
from deconvnet.errors import InputError
from deconvnet.images import decode_image
from deconvnet.progress import progress

SCHEMA = pa.schema(
    {"image_id": pa.string(), "rank": pa.int32()}
    | {name: pa.float32() for name in ("x", "y", "width", "height", "objectness")}
)
FLAT = 1e-3  # Lab gradient that rounding in the conversion to Lab stays below: an image without edges
NARROWEST = 16  # px; OpenCV's structured forests write out of bounds on a shorter side than their inner patch


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
    """The detector: `EdgeBoxes(settings, edge_model)(image)` -> boxes float32 (N, 4), objectness (N,), best first.

    edge_model: file of OpenCV's structured forest, needed for settings.edges "structured" alone. Raises InputError
    where it is absent, empty or something else.
    """

    def __init__(self, chosen: settings.EdgeBoxes, edge_model: str | Path | None = None):
        self.settings = chosen
        self.forest = None
        if chosen.edges == "structured":
            if not edge_model or not Path(edge_model).is_file() or not Path(edge_model).stat().st_size:
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
            alpha=self.settings.alpha,
            beta=self.settings.beta,
            minScore=self.settings.min_score,
            maxBoxes=self.settings.boxes,
            maxAspectRatio=self.settings.max_aspect_ratio,
            minBoxArea=self.settings.min_box_area,
        )
        boxes, objectness = search.getBoundingBoxes(edges, direction)
        if not len(boxes):  # OpenCV then gives None for the scores
            return np.zeros((0, 4), np.float32), np.zeros(0, np.float32)
        return boxes.astype(np.float32), objectness.ravel().astype(np.float32)


def propose(images: pa.Table, detector: EdgeBoxes, name: str = "") -> pa.Table:
    """Data set rows (image_id, image) -> rows of SCHEMA, sorted by image and rank. `name` labels the progress bar."""
    columns = {field.name: [] if field.name == "image_id" else [np.zeros(0, field.type.to_pandas_dtype())]
               for field in SCHEMA}  # fmt: skip
    for row in progress(images.to_pylist(), unit="image", desc=name):
        try:
            image = decode_image(row["image"])
        except ValueError as error:
            raise InputError(f"{row['image_id']}: {error}; run `dvc repro dataset`") from None
        boxes, objectness = detector(image)
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


def recall(dataset: Path, proposals: Path, chosen: settings.Recall) -> pd.DataFrame:
    """Share of the split's objects that the first `boxes` proposals find: columns boxes, iou, recall, objects.

    dataset, proposals: folders of shards. An object is found when a proposal's IoU with its tight box is at least
    `iou`. Raises InputError where there is no object to find.
    """
    found = []
    for shard in sorted(dataset.glob(f"{chosen.split}-*.parquet")):
        rows = tables.read(shard, ["image_id", "instance_boxes", "instance_areas"], contents.LABELLED).to_pylist()
        boxes = proposed(proposals / shard.name)
        for row in rows:
            objects = [
                box
                for box, area in zip(row["instance_boxes"], row["instance_areas"], strict=True)
                if area >= chosen.min_area
            ]
            if objects:
                found.append(
                    best_overlaps(np.array(objects), boxes.get(row["image_id"], np.zeros((0, 4))), chosen.boxes)
                )
    if not found:
        raise InputError(
            f"{dataset}: no object of at least {chosen.min_area} px in {chosen.split}; lower proposals.recall.min_area"
        )
    overlaps = np.concatenate(found)  # (objects, numbers of boxes)
    rows = [
        (number, threshold, float((overlaps[:, index] >= threshold).mean()), len(overlaps))
        for threshold in chosen.iou
        for index, number in enumerate(chosen.boxes)
    ]
    return pd.DataFrame(rows, columns=["boxes", "iou", "recall", "objects"])
