"""Every evaluated image in one folder that a browser opens: index.html and two files for each image.

ID.jpg is the image. ID.png holds PANELS below each other: the truth, each system's labels, each system's errors. The
page shows one panel of it at a time, so that an image costs two files and not sixteen.
"""

import io
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from deconvnet.errors import InputError
from deconvnet.files import whole
from deconvnet.images import PALETTE, VOID, decode_image, decode_mask
from deconvnet.metrics import divide
from deconvnet.systems import SYSTEMS
from experiment.report.numbers import points
from experiment.report.page import render
from experiment.report.pictures import LINE, borders, fit

LONGEST = 500  # px, VOC's longer side; larger images are shrunk to it
QUALITY = 50  # of the JPEGs
PANELS = ("truth", *(f"{kind} {key}" for kind in ("labels", "errors") for key in SYSTEMS))
# What an error is -> its number in the PNG's palette and its colour, one of Okabe and Ito's.
ERRORS = {
    "missed: an object labelled background": (252, (86, 180, 233)),
    "invented: background labelled an object": (253, (230, 159, 0)),
    "confused: an object of another class": (254, (240, 110, 190)),
}
BORDER = 251  # the number of a line between regions


def errors(truth: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """uint8 (H, W): the numbers of ERRORS, 0 where the labels (H, W) are right or the truth (H, W) is void."""
    missed, invented, confused = (number for number, _ in ERRORS.values())
    found = np.where(labels == 0, missed, np.where(truth == 0, invented, confused))
    return np.where((labels == truth) | (truth == VOID), 0, found).astype(np.uint8)


def panels(truth: np.ndarray, labels: list[np.ndarray]) -> bytes:
    """A palette PNG of PANELS (H, W) from masks (H, W), those of SYSTEMS in order. Number 0 is transparent."""
    drawn = [np.where(borders(own), np.uint8(BORDER), own) for own in (truth, *labels)]
    stack = np.concatenate([*drawn, *(errors(truth, own) for own in labels)])
    palette = PALETTE.copy()
    palette[BORDER] = LINE
    for number, shade in ERRORS.values():
        palette[number] = shade
    picture, buffer = Image.fromarray(stack), io.BytesIO()
    picture.putpalette(palette.tobytes())
    picture.save(buffer, "PNG", transparency=0, compress_level=9)
    return buffer.getvalue()


def pictures(row: dict) -> tuple[bytes, bytes]:
    """JPEG and PNG of a row of the data set that has `labels` of each system, PNG bytes by key."""
    image = decode_image(row["image"])
    side = min(LONGEST, max(image.shape[:2]))
    buffer = io.BytesIO()
    Image.fromarray(fit(image, side)).save(buffer, "JPEG", quality=QUALITY)
    truth, *labels = (fit(decode_mask(data), side) for data in (row["class_mask"], *map(row["labels"].get, SYSTEMS)))
    return buffer.getvalue(), panels(truth, labels)


def numbers(images: pd.DataFrame) -> dict[str, tuple[list[int], list[list]]]:
    """Of each image id: the classes of its truth, and for each of SYSTEMS [IoU, class, IoU, class, IoU, ...].

    The first IoU is the image's, None where all is void; classes are those in its truth or the labels, with None for
    one that the labels lack (its IoU is 0). IoUs in %.
    """
    right, true, predicted = (np.stack(images[name]) for name in ("right", "true", "predicted"))  # (N, C)
    ious, found = divide(right, true + predicted - right), {}
    order = {key: place for place, key in enumerate(SYSTEMS)}
    for place, row in enumerate(images.itertuples()):
        kinds = np.flatnonzero(np.isfinite(ious[place])).tolist()
        own = [points(row.mean_iou)]
        for kind in kinds:
            own += [kind, points(ious[place, kind]) if predicted[place, kind] else None]
        known = found.setdefault(row.image_id, (np.flatnonzero(true[place]).tolist(), [None] * len(SYSTEMS)))
        known[1][order[row.system]] = own
    return found


def write(folder: Path, rows: Iterable[dict], images: pd.DataFrame, classes: list[str], threads: int) -> int:
    """Write the folder, whole or not at all; return its bytes.

    rows: those of the data set that were evaluated, with `labels` of each system as PNG bytes by key. images: the
    evaluation's table. threads: images that are made at once. Raises InputError for an image that it lacks.
    """
    known, shown, size = numbers(images), [], 0
    with whole(folder) as temporary, ThreadPoolExecutor(threads) as pool:
        temporary.mkdir()
        for row, (photo, stack) in _made(pool, rows):
            name = row["image_id"]
            if name not in known:
                raise InputError(f"{name}: in the data set, but not evaluated; run `dvc repro evaluate`")
            (temporary / f"{name}.jpg").write_bytes(photo)
            (temporary / f"{name}.png").write_bytes(stack)
            shown.append([name, row["width"], row["height"], *known[name]])
            size += len(photo) + len(stack)
        page = render(
            "browser.html", classes=classes, systems=[system.name for system in SYSTEMS.values()], images=shown,
            palette=["#" + bytes(shade).hex() for shade in PALETTE[: len(classes)]],
            errors=[(what, "#" + bytes(shade).hex()) for what, (_, shade) in ERRORS.items()],
        )  # fmt: skip
        (temporary / "index.html").write_text(page, encoding="utf-8")
    return size + len(page.encode())


def _made(pool: ThreadPoolExecutor, rows: Iterable[dict]) -> Iterator[tuple[dict, tuple[bytes, bytes]]]:
    """Each row with its pictures, in order, a few rows in memory at once."""
    waiting = []
    for row in rows:
        waiting.append((row, pool.submit(pictures, row)))
        if len(waiting) > 32:
            row, future = waiting.pop(0)
            yield row, future.result()
    yield from ((row, future.result()) for row, future in waiting)
