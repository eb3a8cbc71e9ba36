"""Boxes drawn at random, the control for what object proposals are worth (claim (e))."""

import math

import numpy as np
import pyarrow as pa

from deconvnet.proposals import SCHEMA
from deconvnet.settings import EdgeBoxes


def draw(height: int, width: int, chosen: EdgeBoxes, random: np.random.Generator) -> np.ndarray:
    """`chosen.boxes` boxes in an image of so many px: float32 (N, 4), left, top, width, height.

    The logarithms of area and aspect ratio are uniform within EdgeBoxes' own bounds; a side longer than the image's is
    cut to it. The place is uniform.
    """
    count, least = chosen.boxes, min(chosen.min_box_area, height * width)
    area = np.exp(random.uniform(math.log(least), math.log(height * width), count))
    ratio = np.exp(random.uniform(-1, 1, count) * math.log(chosen.max_aspect_ratio))
    sides = np.minimum(np.stack([np.sqrt(area * ratio), np.sqrt(area / ratio)], 1), [width, height])
    place = random.uniform(size=(count, 2)) * ([width, height] - sides)
    return np.concatenate([place, sides], 1).astype(np.float32)


def propose(images: pa.Table, chosen: EdgeBoxes, seed: int) -> pa.Table:
    """Data set rows (image_id, height, width) -> proposals of SCHEMA, in no order that means anything."""
    tables = []
    for number, row in enumerate(images.to_pylist()):
        boxes = draw(row["height"], row["width"], chosen, np.random.default_rng([seed, number]))
        ranks = np.arange(1, len(boxes) + 1, dtype=np.int32)
        columns = [[row["image_id"]] * len(boxes), ranks, *boxes.T, np.zeros(len(boxes), np.float32)]
        tables.append(pa.Table.from_arrays([pa.array(column) for column in columns], schema=SCHEMA))
    return pa.concat_tables(tables) if tables else SCHEMA.empty_table()
