"""VOC 2012 and SBD archives -> data/dataset/{train,val,test}-NNN.parquet: every image with its masks, nothing unpacked.

Splits (VOC's numbers in brackets): `train` is trainaug, VOC's train list plus every SBD image outside VOC's lists
(10,582); `val` is VOC's val list (1,449); `test` has images only (1,456). train + val is trainval_aug (12,031). SBD's
own lists overlap VOC's val: those images are VOC's here, so that no image is both trained on and evaluated. Where
both annotate an image, VOC's annotation, with its void contours, wins.

A row: `image_id` · `height`, `width` px · `image` the archive's JPEG bytes, untouched · `class_mask` PNG, 0..C-1, 255
void · `instance_mask` PNG, 0 none, 1..n, 255 void · `instance_classes` list of n, 0 where a number has no pixels ·
`instance_boxes` list of n tight [x, y, width, height] px, half-open · `instance_areas` list of n, px · `source`
voc|sbd · `split`. Masks are null in `test`.

Rows are sorted by split and id, so the shards' bytes do not depend on the archives' order. The folder appears whole;
after a kill the same command continues with the shards that are missing.
"""

import argparse
import functools
import gzip
import io
import os
import shutil
import tarfile
import tempfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Annotated

import cv2
import numpy as np
import pyarrow as pa
import scipy.io
import scipy.ndimage

from stages import shards
from stages.cli import InputError, progress, run, whole
from stages.config import Range, load
from stages.images import VOID, decode_mask, decoded_size, encode_mask

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
AGAIN = "delete the file and run `dvc repro` to fetch it again"


@dataclass(frozen=True)
class Params:
    classes: list[str]  # names by class id; 0 is the background
    shard_images: Annotated[int, Range(1)]  # images in a shard: the unit of fan-out, resumption and transfer
    counts: dict[str, Annotated[int, Range(0)]] = field(default_factory=dict)  # images expected, by the names below

    def __post_init__(self):
        if not 2 <= len(self.classes) <= VOID or len(set(self.classes)) != len(self.classes):
            raise ValueError(
                f"classes: {len(self.classes)} names are not allowed; allowed: 2 to {VOID} different names"
            )
        if unknown := set(self.counts) - set(COUNTS):
            raise ValueError(f"counts: {', '.join(sorted(unknown))}: unknown key; allowed: {', '.join(COUNTS)}")


# What `counts` may name -> the (split, source) pairs it adds up.
COUNTS = {
    "voc_train": [("train", "voc")],
    "val": [("val", "voc")],
    "trainaug": [("train", "voc"), ("train", "sbd")],
    "trainval_aug": [("train", "voc"), ("train", "sbd"), ("val", "voc")],
    "test": [("test", "voc")],
}


class Archive:
    """A tar or tar.gz whose members are read by name, at random, by any thread, without unpacking.

    A gzip stream has no random access: it is decompressed once into an anonymous temporary file (its directory
    entry is gone before the first byte is written), still as one tar. No name inside an archive ever becomes a path.
    """

    def __init__(self, path: Path):
        self.path = path
        self.members: dict[tuple[str, str], tuple[int, int]] = {}  # (folder, name) -> offset, size
        try:
            self._file = open(path, "rb")
            if self._file.read(2) == b"\x1f\x8b":
                self._file = self._decompressed()
            self._index()
        except (EOFError, zlib.error, gzip.BadGzipFile, tarfile.TarError) as error:
            raise InputError(f"{path}: truncated or no tar archive ({error}); {AGAIN}") from None
        except FileNotFoundError:
            raise InputError(f"{path}: no such file; run `dvc repro` to fetch it") from None

    def _decompressed(self):
        self._file.seek(0)
        spool = tempfile.TemporaryFile(dir=self.path.parent)
        with gzip.open(self._file) as stream:
            shutil.copyfileobj(stream, spool, 1 << 20)
        return spool

    def _index(self) -> None:
        self._file.seek(0)
        end = 0
        with tarfile.open(fileobj=self._file, mode="r:") as tar:
            for member in tar:
                name = PurePosixPath(member.name)
                if name.is_absolute() or ".." in name.parts:
                    raise InputError(
                        f"{self.path}: holds the name {member.name!r}, as no VOC or SBD archive does; {AGAIN}"
                    )
                end = member.offset_data + member.size
                if member.isfile():
                    self.members[name.parent.name, name.name] = member.offset_data, member.size
        # A tar ends in a zero block. Without it the cut fell between two members, which tarfile takes for the end.
        if os.pread(self._file.fileno(), 512, -(-end // 512) * 512) != bytes(512):
            raise tarfile.ReadError("the end-of-archive mark is missing")

    def read(self, folder: str, name: str, why: str) -> bytes:
        """Bytes of the member .../folder/name. Raises InputError, with `why` it is needed, where there is none."""
        if (folder, name) not in self.members:
            raise InputError(f"{self.path}: {folder}/{name} is missing, but {why}; {AGAIN}")
        offset, size = self.members[folder, name]
        return os.pread(self._file.fileno(), size, offset)

    def ids(self, folder: str, split: str) -> list[str]:
        """The ids of a split list, sorted. Raises InputError for a missing, empty or repeating list."""
        name = f"{split}.txt"
        ids = self.read(folder, name, "it lists the split").decode().split()
        if not ids or len(set(ids)) != len(ids):
            wrong = "names an image twice" if ids else "is empty"
            raise InputError(f"{self.path}: {folder}/{name} {wrong}; {AGAIN}")
        return sorted(ids)


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
        raise InputError(f"{voc.path}: {min(both)} is in train.txt and in val.txt; {AGAIN}")
    taken = {source.image_id for source in sources}
    if test:
        sources += [Source(test, image_id, "voc", "test") for image_id in test.ids("Segmentation", "test")]
        taken |= {source.image_id for source in sources}
    if sbd:
        ids = {*sbd.ids("dataset", "train"), *sbd.ids("dataset", "val")} - taken
        sources += [Source(sbd, image_id, "sbd", "train") for image_id in ids]
    return sorted(sources, key=lambda source: (source.split, source.image_id))


def read_row(source: Source, classes: int) -> dict:
    """One row of the data set, checked: the image decodes, masks have its size, values are in range, masks agree."""
    archive, image_id = source.archive, source.image_id
    name, why = f"{image_id}.jpg", f"{image_id} is listed in {source.split}"
    image = archive.read("img" if source.source == "sbd" else "JPEGImages", name, why)
    try:
        height, width = decoded_size(image)
    except ValueError as error:
        raise InputError(f"{archive.path}: {name} {error}; {AGAIN}") from None
    row = dict.fromkeys(SCHEMA.names) | {"image_id": image_id, "height": height, "width": width, "image": image}
    row |= {"source": source.source, "split": source.split}
    if source.split == "test":
        return row
    if source.source == "sbd":
        masks, categories = _sbd_masks(archive, image_id, why)
        encoded = [encode_mask(mask) for mask in masks]
    else:
        names = [(folder, f"{image_id}.png") for folder in ("SegmentationClass", "SegmentationObject")]
        encoded = [archive.read(*name, why) for name in names]  # VOC's own bytes, untouched
        masks, categories = [_decode(archive, *name, data) for name, data in zip(names, encoded, strict=True)], None
    for mask, kind in zip(masks, ("class", "instance"), strict=True):
        if mask.shape != (height, width):
            sizes = f"{mask.shape[1]}x{mask.shape[0]} px, its image {width}x{height}"
            raise InputError(f"{archive.path}: {image_id}: the {kind} mask has {sizes}; {AGAIN}")
    try:
        kinds, boxes, areas = instances(*masks, classes, categories)
    except ValueError as error:
        raise InputError(f"{archive.path}: {image_id}: {error}") from None
    row |= {"class_mask": encoded[0], "instance_mask": encoded[1]}
    return row | {"instance_classes": kinds, "instance_boxes": boxes.tolist(), "instance_areas": areas}


def instances(class_mask: np.ndarray, instance_mask: np.ndarray, classes: int, categories: np.ndarray | None = None):
    """Classes (n,), tight boxes (n, 4) and areas (n,) of the instances 1..n, int32.

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
    count = int(numbers.max(initial=0)) if categories is None else len(categories)
    if numbers.max(initial=0) > count:
        raise ValueError(f"instance {numbers.max()} in the instance mask, but only {count} categories")
    found_at = scipy.ndimage.find_objects(instance_mask, count)  # (rows, columns) of each number, as slices
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
        rows, columns = found_at[number - 1]
        boxes[number - 1] = columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start
    return kinds, boxes, joint[1 : count + 1].sum(1)


def _sbd_masks(archive: Archive, image_id: str, why: str) -> tuple[list[np.ndarray], np.ndarray]:
    """SBD's class mask, instance mask (uint8 H x W) and categories (n,) of an image."""
    name = f"{image_id}.mat"
    read = []
    for folder, struct, fields in (
        ("cls", "GTcls", ["Segmentation"]),
        ("inst", "GTinst", ["Segmentation", "Categories"]),
    ):
        data = archive.read(folder, name, why)
        try:
            record = scipy.io.loadmat(io.BytesIO(data), variable_names=[struct])[struct][0, 0]
            values = [np.asarray(record[field]) for field in fields]
            if any(value.dtype.kind not in "uif" for value in values):
                raise TypeError("no numbers")
        except Exception as error:  # scipy raises what the damage happens to hit
            needed = " and ".join(f"{struct}.{field}" for field in fields)
            raise InputError(f"{archive.path}: {folder}/{name} does not hold {needed} ({error!r}); {AGAIN}") from None
        if values[0].ndim != 2 or values[0].max(initial=0) > VOID:
            raise InputError(
                f"{archive.path}: {folder}/{name}: {struct}.Segmentation is no mask of 0 to {VOID}; {AGAIN}"
            )
        read += [values[0].astype(np.uint8), *values[1:]]
    return read[:2], read[2].ravel()


def _decode(archive: Archive, folder: str, name: str, data: bytes) -> np.ndarray:
    try:
        return decode_mask(data)
    except ValueError as error:
        raise InputError(f"{archive.path}: {folder}/{name} {error}; {AGAIN}") from None


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m stages.dataset", description=__doc__.splitlines()[0])
    parser.add_argument("--voc", type=Path, required=True, help="VOC 2012 trainval, a tar")
    parser.add_argument("--sbd", type=Path, required=True, help="SBD, a tar.gz; an empty file: VOC alone")
    parser.add_argument("--test", type=Path, required=True, help="VOC 2012 test, a tar; an empty file: none")
    parser.add_argument("--out", type=Path, required=True, help="folder of the shards")
    options = parser.parse_args(arguments)
    params = load(Params, "dataset")

    def opened(path: Path) -> Archive | None:
        return Archive(path) if not path.is_file() or path.stat().st_size else None

    voc = opened(options.voc)
    if not voc:
        raise InputError(f"{options.voc}: empty; give fetch.voc_trainval an address in params.yaml")
    sources = find(voc, opened(options.sbd), opened(options.test))
    sizes = {
        pair: sum((source.split, source.source) == pair for source in sources)
        for pair in COUNTS["trainval_aug"] + COUNTS["test"]
    }
    for name, expected in params.counts.items():
        if (got := sum(sizes[pair] for pair in COUNTS[name])) != expected:
            raise InputError(
                f"{options.voc}, {options.sbd}: {name} has {got} images, but dataset.counts.{name} in params.yaml is "
                f"{expected}; correct the number or the archives"
            )
    mark = shards.fingerprint(__file__, params, *map(shards.file_hash, (options.voc, options.sbd, options.test)))
    planned = plan(sources, params.shard_images)
    read = functools.partial(read_row, classes=len(params.classes))
    print(
        "dataset:",
        ", ".join(f"{count} {split} images of {source}" for (split, source), count in sizes.items() if count),
        flush=True,
    )
    with (
        whole(options.out, continues=mark) as out,
        ThreadPoolExecutor(os.cpu_count()) as pool,
        progress(total=len(sources), unit="image") as bar,
    ):
        out.mkdir(exist_ok=True)
        whole_ones = {name for name in planned if shards.footer(out / name)}
        for path in out.iterdir():
            if path.name not in whole_ones:
                path.unlink()
        if whole_ones:
            print(f"dataset: {len(whole_ones)} of {len(planned)} shards are there since a kill", flush=True)
        written = None
        for name, members in planned.items():
            if name in whole_ones:
                bar.update(len(members))
                continue
            rows = []
            for row in pool.map(read, members):
                rows.append(row)
                bar.update()
            if written:
                written.result()  # one shard is written while the next is read: two in memory, no more
            written = pool.submit(write, out / name, rows)
        if written:
            written.result()
        if {path.name for path in out.iterdir()} != set(planned):
            raise InputError(f"{options.out}: another process is making it, too; wait for its end, then run again")


def plan(sources: list[Source], images: int) -> dict[str, list[Source]]:
    """The shards: file name -> what is in it, at most `images`, the shards of a split of even sizes."""
    planned = {}
    for split in ("train", "val", "test"):
        members = [source for source in sources if source.split == split]
        count = -(-len(members) // images)
        for number in range(count):
            start, end = (len(members) * edge // count for edge in (number, number + 1))
            planned[f"{split}-{number:03d}.parquet"] = members[start:end]
    return planned


def write(path: Path, rows: list[dict]) -> None:
    shards.write(path, pa.Table.from_pylist(rows, SCHEMA))


if __name__ == "__main__":
    run(main)
