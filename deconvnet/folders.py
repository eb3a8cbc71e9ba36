"""Images and masks in folders of one's own, as rows of the data set (deconvnet/voc.py says what a row holds).

An image and its mask have one name: images/cat 1.jpg, masks/cat 1.png. A mask is an index or palette picture, whose
numbers become classes by `label_table`. An object mask (optional) numbers the objects: 0 none, and in one of 8 bits
255 void; without it, and of a class of which an image has no object there, an object is what hangs together of one
class, of at least LEAST px. Lists name the images of
each split, one a line, with or without their suffix.

An image's bytes are kept where they are a JPEG or PNG that decodes to its pixels as they are; anything else becomes a
PNG without loss: other formats, 16 bits, transparent parts (on white), pictures that EXIF turns (upright, as their
masks are, unless the masks have the unturned size), and pictures that are reduced.
"""

import functools
import hashlib
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import cv2
import numpy as np
from PIL import Image

from deconvnet.errors import InputError
from deconvnet.images import VOID, decoded_size, encode_mask
from deconvnet.inference.photos import decode_photo, shrink
from deconvnet.voc import SCHEMA, STRAY, instances

LEAST = 10  # px; a smaller part of a class keeps its labels, but is no object
MOST = VOID - 1  # objects of an image: a mask's numbers end there
MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".gif")  # formats that keep numbers
NEEDED = "a mask is a palette or grey PNG (BMP, TIFF, GIF) whose numbers are classes"
ORIENTATION = 0x0112  # EXIF
TURNS = {5: np.transpose, 6: lambda mask: np.rot90(mask, -1), 7: lambda mask: np.rot90(mask, 2).T, 8: np.rot90}


@dataclass(frozen=True)
class File:
    """A file, and the sha256 that it had when it was listed: empty where it was not."""

    path: Path
    sha256: str = ""

    def read(self) -> bytes:
        """Its bytes. Raises InputError where it is gone or has changed since."""
        try:
            data = self.path.read_bytes()
        except OSError as error:
            raise InputError(f"{self.path}: {error.strerror}; `dvc repro` sees what is there now") from None
        if self.sha256 and hashlib.sha256(data).hexdigest() != self.sha256:
            raise InputError(f"{self.path}: changed since `dvc repro` began; run it again")
        return data


@dataclass(frozen=True)
class Source:
    """One image to read, what it is for, and its masks."""

    image_id: str
    split: str
    image: File
    mask: File
    objects: File | None
    source: str = "folders"


def find(
    images: Iterable[File], masks: Iterable[File], objects: Iterable[File] | None, lists: Mapping[str, Sequence[str]]
) -> list[Source]:
    """The images that `lists` name by split, with their masks, sorted by split and id. Raises InputError.

    objects: None where there are no object masks.
    """
    if both := set(lists["train"]) & set(lists["val"]):
        raise InputError(f"{min(both)}: is in both lists, train and val; an image is trained on or evaluated, not both")
    pictures = _by_name(images, picture_suffixes())
    kinds = [_by_name(files, MASK_SUFFIXES) for files in (masks, objects or ())]
    places = [_folder(files) for files in (images, masks, objects or ())]
    wanted = {"images": (pictures, places[0]), "masks": (kinds[0], places[1])}
    if objects is not None:
        wanted["objects"] = (kinds[1], places[2])
    for role, (files, place) in wanted.items():
        names = [name for split in lists.values() for name in split if not files.get(name)]
        if names:
            raise InputError(_missing(role, place, sorted(names), sum(map(len, lists.values()))))
        names = [name for split in lists.values() for name in split if len(files[name]) > 1]
        if names:
            twins = " and ".join(file.path.name for file in files[min(names)])
            raise InputError(f"{place}: {twins} have one name: which is it? Remove or rename one of them")
    sources = [
        Source(name, split, pictures[name][0], kinds[0][name][0], kinds[1][name][0] if objects is not None else None)
        for split, names in lists.items()
        for name in names
    ]
    return sorted(sources, key=lambda source: (source.split, source.image_id))


def _missing(role: str, place: Path, names: list[str], count: int) -> str:
    """What to say of images that have no picture or no mask."""
    name = names[0]
    alike = sorted(path.name for path in place.glob(f"*{re.sub(r'[][*?]', '?', name)}*"))[:1]
    instead = f" (there is {alike[0]})" if alike else ""
    if role == "images":
        return (
            f"{place}: no picture {name}{instead} for {len(names)} of {count} listed names; add it or correct the list"
        )
    return (
        f"{place}: no {name}.png{instead} for {len(names)} of {count} images; {NEEDED}, and has its image's name: "
        "rename or add them, or list the images that have one"
    )


def _folder(files: Iterable[File]) -> Path:
    return next((file.path.parent for file in files), Path("."))


def _by_name(files: Iterable[File], suffixes: Iterable[str]) -> dict[str, list[File]]:
    found: dict[str, list[File]] = {}
    for file in files:
        if file.path.suffix.lower() in suffixes:
            found.setdefault(file.path.stem, []).append(file)
    return found


@functools.cache
def picture_suffixes() -> frozenset[str]:
    """Suffixes of the formats that Pillow reads."""
    known = Image.registered_extensions()
    return frozenset(suffix for suffix, name in known.items() if name in Image.OPEN and name not in ("PDF", "MPEG"))


def read_list(file: File) -> list[str]:
    """Names of images, one a line, as ids: without folders and suffix. Raises InputError."""
    try:
        lines = file.read().decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise InputError(f"{file.path}: not UTF-8 text; one name of an image a line") from None
    names = [PurePosixPath(line.strip()) for line in lines if line.strip()]
    ids = [name.stem if name.suffix.lower() in picture_suffixes() else name.name for name in names]
    if not ids or len(set(ids)) != len(ids):
        twice = next((name for name in ids if ids.count(name) > 1), None)
        raise InputError(f"{file.path}: {f'names {twice} twice' if twice else 'is empty'}; one name of an image a line")
    return ids


def label_table(classes: Sequence[str], labels: Mapping[str, Sequence[int | str]]) -> np.ndarray:
    """int16 (65536,): the class id of each number of a mask, 255 void, -1 not allowed.

    Without `labels`, a number is a class's place in `classes`. With them: the numbers of each class and of `void`;
    `others` among these is every number that none names. 255 is void unless it is named.
    """
    table = np.full(1 << 16, -1, np.int16)
    table[VOID] = VOID
    if not labels:
        table[: len(classes)] = np.arange(len(classes))
    for name, numbers in labels.items():
        if "others" in numbers:
            table[table == -1] = VOID if name == "void" else classes.index(name)
    for name, numbers in labels.items():
        table[[number for number in numbers if number != "others"]] = VOID if name == "void" else classes.index(name)
    return table


def read_row(source: Source, classes: Sequence[str], labels: Mapping[str, Sequence[int | str]], longest: int | None):
    """One row of the data set, checked, as `voc.SCHEMA` has it.

    longest: px; a larger image is reduced so far by averaging, its masks to their nearest pixels. Raises InputError
    with the file and what is wrong with it.
    """
    try:
        data, size, turn = _read_image(source.image.read())
    except ValueError as error:
        raise InputError(f"{source.image.path}: {error}; replace it, or take it off the list") from None
    numbers = _read_mask(source.mask, size, turn)[0]
    class_mask = label_table(classes, labels)[numbers]
    if (class_mask < 0).any():
        number = numbers[class_mask < 0].min()
        allowed = "dataset.labels" if labels else f"0 to {len(classes) - 1} (dataset.classes) and {VOID}"
        raise InputError(
            f"{source.mask.path}: holds {number}, which is no class; allowed: {allowed}. Correct the mask, or say in "
            "dataset.labels what it is, such as [0, others] for background"
        )
    class_mask = class_mask.astype(np.uint8)
    objects = None
    if source.objects:
        objects, bits = _read_mask(source.objects, size, turn)
        objects = np.where(objects == VOID, 0, objects) if bits == 8 else objects
    if longest and max(size) > longest:
        picture = shrink(decode_photo(data), longest)
        data, size = _png(picture), picture.shape[:2]
        class_mask, objects = (
            None if mask is None else cv2.resize(mask, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
            for mask in (class_mask, objects)
        )
    try:
        instance_mask = components(class_mask) if objects is None else renumbered(objects, class_mask, bool(labels))
        kinds, boxes, areas = instances(class_mask, instance_mask, len(classes))
    except ValueError as error:
        raise InputError(f"{(source.objects or source.mask).path}: {error}; correct it") from None
    row = {"image_id": source.image_id, "height": size[0], "width": size[1], "image": data}
    row |= {"class_mask": encode_mask(class_mask), "instance_mask": encode_mask(instance_mask)}
    row |= {"instance_classes": kinds, "instance_boxes": boxes.tolist(), "instance_areas": areas}
    return dict.fromkeys(SCHEMA.names) | row | {"source": source.source, "split": source.split}


def components(class_mask: np.ndarray) -> np.ndarray:
    """uint8 (H, W) instance mask: the parts of each class that hang together, also by corners, the largest MOST.

    Parts of less than LEAST px are none, but a class of STRAY px or more has its largest at least.
    """
    found = []  # whether it is its class's largest, area, class, part
    parts = {}
    for kind in np.unique(class_mask[(class_mask > 0) & (class_mask < VOID)]):
        count, parts[kind], statistics, _ = cv2.connectedComponentsWithStats((class_mask == kind).astype(np.uint8))
        areas = statistics[:, cv2.CC_STAT_AREA]
        largest = 1 + int(areas[1:].argmax()) if areas[1:].sum() >= STRAY else 0
        kept = [part for part in range(1, count) if areas[part] >= LEAST or part == largest]
        found += [(part == largest, int(areas[part]), int(kind), part) for part in kept]
    mask = np.where(class_mask == VOID, VOID, 0).astype(np.uint8)
    kept = sorted(each[2:] for each in sorted(found, reverse=True)[:MOST])
    for number, (kind, part) in enumerate(kept, 1):
        mask[parts[kind] == part] = number
    return mask


def renumbered(objects: np.ndarray, class_mask: np.ndarray, mapped: bool) -> np.ndarray:
    """uint8 (H, W) instance mask: the numbers of `objects`, uint16 (H, W), as 1, 2, ..., void where the class is.

    Of a class without an object, the connected parts. mapped: objects of classes that became background or void are
    left out. Raises ValueError for an object on the background otherwise, for one of several classes, and for more
    than MOST objects.
    """
    mask = np.where(class_mask == VOID, VOID, 0).astype(np.uint8)
    number, seen = 0, set()
    for value in np.unique(objects[(objects > 0) & (class_mask < VOID)]):
        inside = (objects == value) & (class_mask < VOID)
        counts = np.bincount(class_mask[inside], minlength=VOID)
        best = int(counts.argmax())
        if best == 0 and mapped:
            continue
        if best == 0 or 2 * counts[best] <= counts.sum():
            where = "the background" if best == 0 else "several classes"
            raise ValueError(f"object {value}: most of its {counts.sum()} px are of {where} in the class mask")
        number += 1
        seen.add(best)
        mask[inside] = min(number, MOST)
    rest = components(np.where(np.isin(class_mask, [*seen]), 0, class_mask))
    more = (rest > 0) & (rest < VOID)
    if (count := number + int(rest[more].max(initial=0))) > MOST:
        raise ValueError(f"{count} objects in one image; allowed: {MOST}, which a mask of 8 bits can number")
    mask[more] = rest[more] + number
    return mask


def _read_image(data: bytes) -> tuple[bytes, tuple[int, int], int]:
    """JPEG or PNG bytes that decode upright, their height and width, and how EXIF had the picture turned (1: not)."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            turn = image.getexif().get(ORIENTATION, 1)
            plain = image.format in ("JPEG", "PNG") and image.mode in ("RGB", "L") and not image.has_transparency_data
    except Exception as error:  # Pillow's decoders fail in many ways
        raise ValueError(f"is no picture that Pillow reads ({' '.join(str(error).split())[:200]})") from None
    turn = turn if turn in range(2, 9) else 1
    if plain and turn == 1:
        return data, decoded_size(data), 1
    picture = decode_photo(data)
    return _png(picture), picture.shape[:2], turn


def _png(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def _read_mask(file: File, size: tuple[int, int], turn: int) -> tuple[np.ndarray, int]:
    """A mask's numbers, uint16 (H, W), turned as its image was, and its bits (8 or 16). Raises InputError."""

    def wrong(reason: str) -> InputError:
        return InputError(f"{file.path}: {reason}; {NEEDED}")

    data = file.read()
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            kind, mode, mask = image.format, image.mode, np.asarray(image)
    except Exception as error:  # Pillow's decoders fail in many ways
        raise wrong(f"does not decode ({' '.join(str(error).split())[:200]})") from None
    if kind not in ("PNG", "BMP", "TIFF", "GIF"):
        raise wrong(f"is a {kind}, which does not keep numbers" if kind in ("JPEG", "WEBP") else f"is a {kind}")
    if mode not in ("P", "L", "1") and not mode.startswith("I"):
        raise wrong(f"has colours (mode {mode}), not numbers")
    if mask.min(initial=0) < 0 or mask.max(initial=0) >= 1 << 16:
        raise wrong("holds numbers outside of 0 to 65535")
    mask = mask.astype(np.uint16)
    if kind == "PNG" and mode == "L" and data[24] in (2, 4):  # Pillow stretches greys of 2 and 4 bits to 0..255
        mask //= VOID // (2 ** data[24] - 1)
    if turn in TURNS and mask.shape == size[::-1] and size[0] != size[1]:  # drawn on the picture as it is stored
        mask = np.ascontiguousarray(TURNS[turn](mask))
    if mask.shape != tuple(size):
        raise InputError(
            f"{file.path}: {mask.shape[1]}x{mask.shape[0]} px, its image {size[1]}x{size[0]}; a mask has its image's "
            "size: correct one of them, or take it off the list"
        )
    return mask, 16 if mode.startswith("I") else 8
