"""Weights out of a .caffemodel file, without Caffe.

Such a file is one protobuf message, of which the weights need ten fields; so the wire format is read here, in place of
a dependency on protobuf and of Caffe's own description of its messages:

    NetParameter       layers 2 (V1, until 2015), layer 100
    layer (V1)         name 4, blobs 6
    layer              name 1, blobs 7
    BlobProto          data 5 (float32), double_data 8, shape 7 (its dim: 1), before that num 1 .. width 4
"""

import math
import mmap
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from deconvnet.errors import InputError

LAYERS = {2: (4, 6), 100: (1, 7)}  # field of a layer: its fields of name and blobs
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types; 3 and 4, groups, are not in Caffe's messages


def read_caffemodel(path: str | Path) -> dict[str, list[np.ndarray]]:
    """The blobs of every layer that has any, by the layer's name, in the file's order.

    Arrays are float32 or float64, of the shapes of the file, and lie in the file itself as long as they are used
    (mapped, not copied). Raises InputError for a file that is missing, empty, cut, or no such message.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: {'not a file' if path.exists() else 'no such file'}; name a .caffemodel")
    layers = {}
    try:
        with open(path, "rb") as file:
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        for number, kind, layer in _fields(data):
            if number in LAYERS and kind == BYTES:
                name, blobs = _layer(layer, *LAYERS[number])
                if blobs and name in layers:
                    raise ValueError(f"two layers of the name {name[:60]!r}")
                if blobs:
                    layers[name] = blobs
    except ValueError as error:  # also mmap's, for an empty file
        raise InputError(f"{path}: not a whole .caffemodel: {error}; get it again") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; name a .caffemodel") from None
    return layers


def _layer(data: memoryview, name_field: int, blobs_field: int) -> tuple[str, list[np.ndarray]]:
    name, blobs = "", []
    for number, kind, value in _fields(data):
        if number == name_field and kind == BYTES:
            name = bytes(value).decode(errors="replace")
        elif number == blobs_field and kind == BYTES:
            blobs.append(value)
    return name, [_blob(blob, name) for blob in blobs]


def _blob(data: memoryview, layer: str) -> np.ndarray:
    shape, old, parts = None, {}, []
    for number, kind, value in _fields(data):
        if number == 7 and kind == BYTES:
            shape = [dim for field, wire, dims in _fields(value) if field == 1 for dim in _varints(wire, dims)]
        elif number in (1, 2, 3, 4) and kind == VARINT:
            old[number] = value
        elif number in (5, 8):  # packed: one field of all values; else one for each
            parts.append((number, value))
    if shape is None:
        shape = [old.get(number, 0) for number in (1, 2, 3, 4)]
    doubles = any(number == 8 for number, _ in parts)
    joined = parts[0][1] if len(parts) == 1 else b"".join(value for _, value in parts)
    size = 8 if doubles else 4
    if len(joined) != size * math.prod(shape):
        held, said = len(joined) / size, "x".join(map(str, shape[:8]))
        raise ValueError(f"a blob of layer {layer[:60]!r} holds {held:g} numbers, but its shape is {said}")
    return np.frombuffer(joined, "<f8" if doubles else "<f4").reshape(shape)


def _fields(data: memoryview) -> Iterator[tuple[int, int, int | memoryview]]:
    """Number, wire type and value of each field of a message: an int for a varint, otherwise the bytes."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        number, kind = key >> 3, key & 7
        if kind == VARINT:
            value, position = _varint(data, position)
            yield number, kind, value
            continue
        if kind == BYTES:
            length, position = _varint(data, position)
        elif kind in (FIXED32, FIXED64):
            length = 4 if kind == FIXED32 else 8
        else:
            raise ValueError("no protobuf message")
        if position + length > len(data):
            raise ValueError("it ends in the middle of a field")
        yield number, kind, data[position : position + length]
        position += length


def _varints(kind: int, value: int | memoryview) -> Iterator[int]:
    """The numbers of a repeated integer field, packed or one by one."""
    if kind == VARINT:
        yield value
        return
    position = 0
    while position < len(value):
        number, position = _varint(value, position)
        yield number


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    """A number in groups of 7 bits, the lowest first, and the position after it."""
    number = 0
    for shift in range(0, 70, 7):
        if position == len(data):
            raise ValueError("it ends in the middle of a number")
        number |= (data[position] & 0x7F) << shift
        position += 1
        if data[position - 1] < 0x80:
            return number, position
    raise ValueError("no protobuf message")
