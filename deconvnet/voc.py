"""PASCAL VOC 2012 and SBD: what their archives hold, as checked rows.

Splits (VOC's numbers in brackets): `train` is trainaug, VOC's train list plus every SBD image outside VOC's lists
(10,582); `val` is VOC's val list (1,449); `test` has images only (1,456). train + val is trainval_aug (12,031). SBD's
own lists overlap VOC's val: those images are VOC's here, so that no image is both trained on and evaluated. Where
both annotate an image, VOC's annotation, with its void contours, wins.

A row: `image_id` · `height`, `width` px · `image` the archive's JPEG bytes, untouched · `class_mask` PNG, 0..C-1, 255
void · `instance_mask` PNG, 0 none, 1..n, 255 void · `instance_classes` list of n, 0 where a number has no pixels ·
`instance_boxes` list of n tight [x, y, width, height] px, half-open · `instance_areas` list of n, px · `source`
voc|sbd|folders · `split`. Masks are null in `test`.

Any tar in VOC's layout can be read: JPEGImages/ID.jpg, SegmentationClass/ID.png, SegmentationObject/ID.png and
ImageSets/Segmentation/{train,val}.txt.
"""

import io
import struct
import zlib
from collections import Counter
from dataclasses import dataclass

import cv2
import numpy as np
import pyarrow as pa

from deconvnet.archives import REMEDY, Archive
from deconvnet.errors import InputError
from deconvnet.images import VOID, decode_mask, decoded_size, encode_mask

SCHEMA = pa.schema(
    {
        "image_id": pa.string(),
        "height": pa.int32(),
        "width": pa.int32(),
        "image": pa.binary(),
        "class_mask": pa.binary(),
        "instance_mask": pa.binary(),
        "instance_classes": pa.list_(pa.int32()),
        "instance_boxes": pa.list_(pa.list_(pa.int32())),
        "instance_areas": pa.list_(pa.int32()),
        "source": pa.string(),
        "split": pa.string(),
    }
)
STRAY = 25  # px of a class that no instance needs to have
MOST, DEFLATE = 1 << 27, 1032  # bytes of what a .mat file holds; the most that deflate shrinks anything
MASKS = {
    "SegmentationClass": "a class mask is a palette or grey PNG: 0 background, 1, 2, ... the classes, 255 void",
    "SegmentationObject": "an instance mask is a palette or grey PNG: 0 background, 1, 2, ... the objects, 255 void",
}
# What settings.Dataset.counts may name -> the (split, source) pairs that it adds up.
COUNTS = {
    "voc_train": [("train", "voc")],
    "val": [("val", "voc"), ("val", "folders")],
    "trainaug": [("train", "voc"), ("train", "sbd"), ("train", "folders")],
    "trainval_aug": [(split, source) for split in ("train", "val") for source in ("voc", "sbd", "folders")],
    "test": [("test", "voc")],
}


@dataclass(frozen=True)
class Source:
    """One image to read: where it is and what it is for."""

    archive: Archive
    image_id: str
    source: str
    split: str


def find(voc: Archive, sbd: Archive | None, test: Archive | None) -> list[Source]:
    """All images of the data set, sorted by split and id. No id occurs twice."""
    lists = {split: voc.ids("Segmentation", split) for split in ("train", "val")}
    sources = [Source(voc, image_id, "voc", split) for split, ids in lists.items() for image_id in ids]
    if both := set(lists["train"]) & set(lists["val"]):
        raise InputError(f"{voc.path}: {min(both)} is in train.txt and in val.txt; {REMEDY}")
    taken = {source.image_id for source in sources}
    if test:
        sources += [Source(test, image_id, "voc", "test") for image_id in test.ids("Segmentation", "test")]
        taken |= {source.image_id for source in sources}
    if sbd:
        ids = {*sbd.ids("dataset", "train"), *sbd.ids("dataset", "val")} - taken
        sources += [Source(sbd, image_id, "sbd", "train") for image_id in ids]
    return sorted(sources, key=lambda source: (source.split, source.image_id))


def count_images(sources: list[Source]) -> dict[str, int]:
    """Images by the names that settings.Dataset.counts may have."""
    found = Counter((source.split, source.source) for source in sources)
    return {name: sum(found[pair] for pair in pairs) for name, pairs in COUNTS.items()}


def read_row(source: Source, classes: int) -> dict:
    """One row of the data set, checked: the image decodes, masks have its size, values are in range, masks agree."""
    archive, image_id = source.archive, source.image_id
    name, why = f"{image_id}.jpg", f"{image_id} is listed in {source.split}"
    folder, remedy = "img" if source.source == "sbd" else "JPEGImages", REMEDY
    if (folder, f"{image_id}.png") in archive:
        remedy = f"there is {folder}/{image_id}.png, but pictures must be JPEG files named .jpg: convert them"
    image = archive.read(folder, name, why, remedy)
    try:
        height, width = decoded_size(image)
    except ValueError as error:
        raise InputError(f"{archive.path}: {name} {error}; {REMEDY}") from None
    row = dict.fromkeys(SCHEMA.names) | {"image_id": image_id, "height": height, "width": width, "image": image}
    row |= {"source": source.source, "split": source.split}
    if source.split == "test":
        return row
    if source.source == "sbd":
        masks, categories = _sbd_masks(archive, image_id, why)
        encoded = [encode_mask(mask) for mask in masks]
    else:
        names = [(folder, f"{image_id}.png") for folder in MASKS]
        encoded = [archive.read(*name, why, f"{MASKS[name[0]]}; {REMEDY}") for name in names]  # VOC's bytes, untouched
        masks, categories = [_decode(archive, *name, data) for name, data in zip(names, encoded, strict=True)], None
    for mask, kind in zip(masks, ("class", "instance"), strict=True):
        if mask.shape != (height, width):
            sizes = f"{mask.shape[1]}x{mask.shape[0]} px, its image {width}x{height}"
            raise InputError(f"{archive.path}: {image_id}: the {kind} mask has {sizes}; {REMEDY}")
    try:
        kinds, boxes, areas = instances(*masks, classes, categories)
    except ValueError as error:
        raise InputError(f"{archive.path}: {image_id}: {error}; correct the masks or dataset.classes") from None
    row |= {"class_mask": encoded[0], "instance_mask": encoded[1]}
    return row | {"instance_classes": kinds, "instance_boxes": boxes.tolist(), "instance_areas": areas}


def instances(class_mask: np.ndarray, instance_mask: np.ndarray, classes: int, categories: np.ndarray | None = None):
    """Classes (n,), tight boxes (n, 4) and areas (n,) in px of the instances 1..n, int32, from masks uint8 (H, W).

    Without `categories` (n,), an instance's class is the class of most of its pixels. Raises ValueError for a class
    outside 0..classes-1, 255, and for an instance most of whose pixels are background, of several classes or of
    another class than its category. A few stray pixels are allowed: VOC's own masks have them.
    """
    joint = cv2.calcHist([instance_mask, class_mask], [0, 1], None, [256, 256], [0, 256, 0, 256]).astype(np.int32)
    found = np.flatnonzero(joint.sum(0))
    if len(wrong := found[(found >= classes) & (found != VOID)]):
        raise ValueError(
            f"class id {wrong[0]} in the class mask; allowed: 0 to {classes - 1} (dataset.classes) and {VOID}"
        )
    numbers = np.flatnonzero(joint[1:VOID].sum(1)) + 1
    for kind in found[(found > 0) & (found != VOID)]:
        if joint[0, kind] >= STRAY and not joint[1:VOID, kind].any():
            raise ValueError(f"class {kind} has {joint[0, kind]} px in the class mask, none in the instance mask")
    count = int(numbers.max(initial=0)) if categories is None else len(categories)
    if categories is None and count > 2 * len(numbers) + 2:
        raise ValueError(
            f"instance {count} in an instance mask of {len(numbers)}: class and instance masks may have changed "
            "places; number the objects 1, 2, ..."
        )
    if numbers.max(initial=0) > count:
        raise ValueError(f"instance {numbers.max()} in the instance mask, but only {count} categories")
    kinds = np.zeros(count, np.int32) if categories is None else np.asarray(categories, np.int32)
    for number in numbers:
        inside = joint[number, :VOID]  # void pixels say nothing
        best = int(inside.argmax())
        if best == 0 or 2 * inside[best] <= inside.sum() or categories is not None and kinds[number - 1] != best:
            said = f", its category is {kinds[number - 1]}" if categories is not None else ""
            raise ValueError(
                f"instance {number} contradicts the class mask: most of its {inside.sum()} px are class {best}{said}"
            )
        kinds[number - 1] = best
    boxes = np.zeros((count, 4), np.int32)
    for number in numbers:
        boxes[number - 1] = cv2.boundingRect((instance_mask == number).view(np.uint8))
    return kinds, boxes, joint[1 : count + 1].sum(1)


def _sbd_masks(archive: Archive, image_id: str, why: str) -> tuple[list[np.ndarray], np.ndarray]:
    """SBD's class mask, instance mask (uint8 H x W) and categories (n,) of an image."""
    import scipy.io  # here: nothing else needs it

    name = f"{image_id}.mat"
    read = []
    for folder, variable, fields in (
        ("cls", "GTcls", ["Segmentation"]),
        ("inst", "GTinst", ["Segmentation", "Categories"]),
    ):
        data = archive.read(folder, name, why)
        try:
            check_mat(data)
            record = scipy.io.loadmat(io.BytesIO(data), variable_names=[variable])[variable][0, 0]
            values = [np.asarray(record[field]) for field in fields]
            if any(value.dtype.kind not in "uif" for value in values):
                raise TypeError("no numbers")
        except Exception as error:  # scipy raises what the damage happens to hit
            needed = " and ".join(f"{variable}.{field}" for field in fields)
            raise InputError(f"{archive.path}: {folder}/{name} does not hold {needed} ({error!r}); {REMEDY}") from None
        whole = [_bytes(value) for value in values]
        if values[0].ndim != 2 or any(value is None for value in whole):
            raise InputError(
                f"{archive.path}: {folder}/{name}: {variable}.Segmentation is no mask of 0 to {VOID}, or a category is "
                f"none of these whole numbers; {REMEDY}"
            )
        read += whole
    return read[:2], read[2].ravel()


def _bytes(values: np.ndarray) -> np.ndarray | None:
    """The values as uint8, None where that changes one: nan, fractions, below 0 or above 255."""
    with np.errstate(invalid="ignore"):
        cast = values.astype(np.uint8)
    return cast if np.array_equal(cast, values) else None


def check_mat(data: bytes) -> None:
    """Raise ValueError for a .mat file (version 5) whose compressed parts hold more than MOST bytes."""
    if DEFLATE * len(data) <= MOST:
        return
    place = 128  # bytes of the header
    order = "<" if data[126:128] == b"IM" else ">"
    while place + 8 <= len(data):
        kind, size = struct.unpack_from(f"{order}II", data, place)
        if kind == 15:  # miCOMPRESSED
            stream = zlib.decompressobj()
            left = data[place + 8 : place + 8 + size]
            total = 0
            while left and total <= MOST:
                total += len(stream.decompress(left, 1 << 20))
                left = stream.unconsumed_tail
            if total > MOST:
                raise ValueError(f"holds more than {MOST:,} bytes")
        place += 8 + size


def _decode(archive: Archive, folder: str, name: str, data: bytes) -> np.ndarray:
    try:
        return decode_mask(data)
    except ValueError as error:
        raise InputError(f"{archive.path}: {folder}/{name} {error}; {REMEDY}") from None


def plan(sources: list[Source], images: int) -> dict[str, list[Source]]:
    """The shards: file name -> what is in it, at most `images` each. The shards of a split are of even sizes."""
    planned = {}
    for split in ("train", "val", "test"):
        members = [source for source in sources if source.split == split]
        count = -(-len(members) // images)
        for number in range(count):
            start, end = (len(members) * edge // count for edge in (number, number + 1))
            planned[f"{split}-{number:03d}.parquet"] = members[start:end]
    return planned
