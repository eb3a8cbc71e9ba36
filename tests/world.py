"""A data set of a few small pictures, for the tests of training."""

import io

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from PIL import Image

from stages import shards
from stages.images import VOID, encode_mask

CPU = torch.device("cpu")


def write_dataset(folder, images, seed=0):
    """One shard of `images` pictures with two objects each, of classes 1 to 3; returns its rows with decoded arrays."""
    random = np.random.default_rng(seed)
    rows = []
    for number in range(images):
        height, width = (int(side) for side in random.integers(50, 90, 2))
        image = random.integers(0, 80, (height, width, 3)).astype(np.uint8)
        classes, instances = np.zeros((2, height, width), np.uint8)
        boxes, kinds = [], [1 + number % 3, 1 + (number + 2) % 3]
        for instance, kind in enumerate(kinds, 1):
            x, y = random.integers(0, width - 26), random.integers(0, height - 26)
            part = np.s_[y : y + 24, x : x + 26]
            image[part] = np.array([(230, 40, 40), (40, 230, 40), (40, 40, 230)])[kind - 1]
            classes[part], instances[part] = kind, instance
            boxes.append([x, y, 26, 24])
        for mask in (classes, instances):
            mask[:2] = VOID
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")  # lossless, so that a test can compare pixels
        rows.append(
            {
                "image_id": f"2012_{number:06d}", "height": height, "width": width, "image": buffer.getvalue(),
                "class_mask": encode_mask(classes), "instance_mask": encode_mask(instances), "instance_boxes": boxes,
                "instance_classes": kinds, "pixels": image, "classes": classes, "instances": instances,
            }
        )  # fmt: skip
    kept = ["image_id", "height", "width", "image", "class_mask", "instance_mask"]
    folder.mkdir(exist_ok=True)
    shards.write(
        folder / "train-000.parquet", pa.Table.from_pylist([{name: row[name] for name in kept} for row in rows])
    )
    return rows


def crop_table(rows):
    """One window an object, half as large again, every third one twice."""
    table = [
        (row["image_id"], int(x) - 6, int(y) - 6, w + 12, h + 12, instance, kind)
        for row in rows
        for instance, ((x, y, w, h), kind) in enumerate(
            zip(row["instance_boxes"], row["instance_classes"], strict=True), 1
        )
    ]
    table = pd.DataFrame(table, columns=["image_id", "x", "y", "side_x", "side_y", "instance", "class_id"])
    return table.assign(copies=1 + (np.arange(len(table)) % 3 == 0))
