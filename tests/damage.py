"""Damage to files, for the tests and for tests/fuzz.py: changed bytes, odd members, bombs, what is no plain file."""

import io
import os
import random
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from tests.conftest import SBD, VOC, draw, jpeg, mat, png


def members() -> tuple[dict[str, bytes], dict[str, bytes]]:
    """VOC's with v1, v2 in train and v3 in val, SBD's with s1."""
    voc, sbd = {}, {}
    for seed, image_id in enumerate(["v1", "v2", "v3", "s1"]):
        image, classes, instances = draw(seed)
        if image_id[0] == "v":
            voc[f"{VOC}/JPEGImages/{image_id}.jpg"] = jpeg(image)
            voc[f"{VOC}/SegmentationClass/{image_id}.png"] = png(classes)
            voc[f"{VOC}/SegmentationObject/{image_id}.png"] = png(instances)
        else:
            sbd[f"{SBD}/img/s1.jpg"] = jpeg(image)
            sbd[f"{SBD}/cls/s1.mat"] = mat(GTcls={"Segmentation": classes})
            sbd[f"{SBD}/inst/s1.mat"] = mat(GTinst={"Segmentation": instances, "Categories": np.uint8([[1], [2]])})
    voc[f"{VOC}/ImageSets/Segmentation/train.txt"] = b"v1\nv2\n"
    voc[f"{VOC}/ImageSets/Segmentation/val.txt"] = b"v3\n"
    return voc, sbd | {f"{SBD}/train.txt": b"s1\nv1\n", f"{SBD}/val.txt": b"v3\n"}


def flipped(data: bytes, chance: random.Random) -> bytes:
    data = bytearray(data)
    for _ in range(chance.choice([1, 1, 1, 8])):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(data)


def cut(data: bytes, chance: random.Random) -> bytes:
    return data[: chance.choice([0, 1, chance.randrange(len(data)), len(data) - 1])]


def zeroed(data: bytes, chance: random.Random) -> bytes:
    begin = chance.randrange(len(data))
    return data[:begin] + bytes(min(chance.choice([1, 64, 4096]), len(data) - begin)) + data[begin + 4096 :]


def noise(data: bytes, chance: random.Random) -> bytes:
    return chance.randbytes(min(len(data), 4096))


BYTES = {"flip": flipped, "cut": cut, "zero": zeroed, "noise": noise}
PLACES = ("a folder", "a pipe", "a loop", "nothing")


def place(path: Path, name: str) -> None:
    """Put something that is no plain file where `path` was."""
    path.unlink()
    if name == "a folder":
        path.mkdir()
    elif name == "a pipe":
        os.mkfifo(path)
    elif name == "a loop":
        path.symlink_to(path.name)


def chunk(name: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def giant(width: int = 60_000, height: int = 60_000, kind: int = 3) -> bytes:
    """A PNG of a few bytes that says it is of so many pixels."""

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0))
    palette = chunk(b"PLTE", bytes(768)) if kind == 3 else b""
    return b"\x89PNG\r\n\x1a\n" + head + palette + chunk(b"IDAT", zlib.compress(bytes(100_000))) + chunk(b"IEND", b"")


def saved(image: np.ndarray | Image.Image, kind: str, **more) -> bytes:
    buffer = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(buffer, kind, **more)
    return buffer.getvalue()


def grey4(instances: np.ndarray) -> bytes:
    """A grey PNG of 4 bits, which Pillow reads and does not write."""
    height, width = instances.shape
    rows = b"".join(b"\0" + bytes((row[::2] << 4) | row[1::2]) for row in instances)

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 4, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def bomb() -> bytes:
    """A .mat file of some 300 kB that says it holds 300 MB."""
    deflate = zlib.compressobj(9)
    packed = b"".join(deflate.compress(bytes(1 << 20)) for _ in range(300)) + deflate.flush()
    return mat(x=1)[:128] + struct.pack("<II", 15, len(packed)) + packed
