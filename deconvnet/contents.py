"""What the tables between stages must hold, checked as they are read (`tables.read(path, columns, contents.CROPS)`).

A table may come from a remote cache, another version or anybody's disk. Types, nulls, ranges and names are looked at
here once, column by column, so that nothing behind it has to.
"""

import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from deconvnet.errors import InputError

NAME = r"[^/\\\x00-\x1f\x7f]{1,200}"  # of an image: it becomes the name of a file
SIDE = 1, 65_500  # px, of a JPEG
PLACE = 0, 65_500  # px
FAR = -1_000_000, 1_000_000  # px, of a window, which may begin before its image
COUNT = 0, 2**31 - 1
REMEDY = "`chmod u+w`, `touch` and remove it, then `dvc pull` or `dvc repro`"


@dataclass(frozen=True)
class Kind:
    """What the rows of a table must be.

    types: by column; lists as [type]. ranges: of numbers, both ends included, in lists too. optional: columns that may
    hold null. unique: no image_id occurs twice. alike: columns of lists that are of one length in each row.
    """

    types: dict[str, object]
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    optional: tuple[str, ...] = ()
    unique: bool = False
    alike: tuple[str, ...] = ()

    def within(self, **ranges: tuple[float, float]) -> "Kind":
        """The same with other ranges."""
        return dataclasses.replace(self, ranges=self.ranges | ranges)

    def needing(self, *columns: str) -> "Kind":
        """The same with no null in these columns."""
        return dataclasses.replace(self, optional=tuple(name for name in self.optional if name not in columns))

    def check(self, table: pa.Table, path: str | Path) -> pa.Table:
        """The table in the types wanted, without other columns. Raises InputError for what it may not hold.

        Whole numbers may be of any width that their values fit.
        """
        names, arrays = [name for name in self.types if name in table.column_names], []
        for name in names:
            try:
                column = table[name]  # KeyError: there twice
                arrays.append(_checked(column, self.types[name], self.ranges.get(name), name in self.optional))
            except (KeyError, ValueError, pa.ArrowException) as error:
                raise InputError(f"{path}: {name}: {' '.join(str(error).split())}; {REMEDY}") from None
        table = pa.table(arrays, names)
        if "image_id" in names:
            _check_names(path, table["image_id"], self.unique)
        lists = [pc.list_value_length(table[name]).combine_chunks() for name in self.alike if name in names]
        if any(other != lists[0] for other in lists[1:]):
            raise InputError(f"{path}: {', '.join(self.alike)}: of different lengths in a row; {REMEDY}")
        if "instance_boxes" in names:
            lengths = set(pc.unique(pc.list_value_length(pc.list_flatten(table["instance_boxes"]))).to_pylist())
            if lengths - {4}:
                raise InputError(f"{path}: instance_boxes: of {lengths} numbers; allowed: 4 each; {REMEDY}")
        return table


INT, FLOAT, TEXT, BYTES = pa.int32(), pa.float32(), pa.string(), pa.binary()
PICTURE = ("image_id", "height", "width", "image", "class_mask", "instance_mask")
OBJECTS = ("instance_classes", "instance_boxes", "instance_areas")
DATASET = Kind(
    {"image_id": TEXT, "height": INT, "width": INT, "image": BYTES, "class_mask": BYTES, "instance_mask": BYTES,
     "instance_classes": [INT], "instance_boxes": [[INT]], "instance_areas": [INT], "source": TEXT, "split": TEXT},
    {"height": SIDE, "width": SIDE, "instance_classes": (0, 254), "instance_boxes": PLACE, "instance_areas": COUNT},
    optional=("class_mask", "instance_mask", *OBJECTS), unique=True, alike=OBJECTS,
)  # fmt: skip
LABELLED = DATASET.needing("class_mask", "instance_mask", *OBJECTS)
PROPOSALS = Kind(
    {"image_id": TEXT, "rank": INT, "x": FLOAT, "y": FLOAT, "width": FLOAT, "height": FLOAT, "objectness": FLOAT},
    {"rank": (1, COUNT[1]), "x": PLACE, "y": PLACE, "width": PLACE, "height": PLACE, "objectness": (-1e30, 1e30)},
)
CROPS = Kind(
    {"image_id": TEXT} | dict.fromkeys(("x", "y", "side_x", "side_y", "instance", "class_id", "copies"), INT),
    {"x": FAR, "y": FAR, "side_x": (1, FAR[1]), "side_y": (1, FAR[1]), "instance": (0, 254), "class_id": (0, 254),
     "copies": (1, COUNT[1])},
)  # fmt: skip
LABELS = Kind({"image_id": TEXT, "labels": BYTES}, unique=True)
SCORES = Kind(
    {"image_id": TEXT, "height": INT, "width": INT, "windows": INT, "labels": BYTES, "growth": [BYTES], "best": BYTES,
     "drops": BYTES, "deepest": FLOAT},
    {"height": SIDE, "width": SIDE, "windows": COUNT, "deepest": (0, 3e38)},
    optional=("windows", "growth"), unique=True,
)  # fmt: skip
IMAGES = Kind(
    {"image_id": TEXT, "system": TEXT, "mean_iou": FLOAT, "pixel_accuracy": FLOAT, "right": [INT], "true": [INT],
     "predicted": [INT]},
    {"mean_iou": (0, 1), "pixel_accuracy": (0, 1), "right": COUNT, "true": COUNT, "predicted": COUNT},
    optional=("mean_iou", "pixel_accuracy"), alike=("right", "true", "predicted"),
)  # fmt: skip


def crops(classes: int) -> Kind:
    """A crop table of a data set of so many classes."""
    return CROPS.within(class_id=(0, classes - 1))


def _checked(column: pa.ChunkedArray, wanted, span: tuple[float, float] | None, optional: bool) -> pa.ChunkedArray:
    """The column in the type wanted. Raises ValueError for another type, for null and for what is out of range."""
    if column.null_count and not optional:
        raise ValueError(f"{column.null_count} of {len(column)} values are missing (null)")
    target = _type(wanted)
    if not _alike(column.type, target):
        raise ValueError(f"holds {column.type}, not {target}")
    column = column.cast(target)
    values = column
    while pa.types.is_list(values.type):
        values = pc.list_flatten(values)
        if values.null_count:
            raise ValueError("a value in a list is missing (null)")
    if span and len(values):
        if pa.types.is_floating(values.type) and pc.all(pc.is_finite(values)).as_py() is False:
            raise ValueError("holds nan or infinity")
        ends = pc.min_max(values).as_py()
        if ends["min"] is not None and not span[0] <= ends["min"] <= ends["max"] <= span[1]:
            raise ValueError(f"holds {ends['min']:g} to {ends['max']:g}; allowed: {span[0]:g} to {span[1]:g}")
    return column


def _type(wanted) -> pa.DataType:
    return pa.list_(_type(wanted[0])) if isinstance(wanted, list) else wanted


def _alike(found: pa.DataType, wanted: pa.DataType) -> bool:
    kinds = pa.types
    if kinds.is_list(wanted):
        return (kinds.is_list(found) or kinds.is_large_list(found)) and _alike(found.value_type, wanted.value_type)
    if kinds.is_null(found):
        return True
    if kinds.is_integer(wanted):
        return kinds.is_integer(found)
    if kinds.is_floating(wanted):
        return kinds.is_floating(found) or kinds.is_integer(found)
    if kinds.is_string(wanted):
        return kinds.is_string(found) or kinds.is_large_string(found)
    return kinds.is_binary(found) or kinds.is_large_binary(found)


def _check_names(path: str | Path, ids: pa.ChunkedArray, unique: bool) -> None:
    distinct = pc.unique(ids)
    for name in distinct.to_pylist():
        if not re.fullmatch(NAME, name) or name in (".", ".."):
            raise InputError(f"{path}: image_id: {name!r} is no name of an image; {REMEDY}")
    if unique and len(distinct) != len(ids):
        twice = ids.value_counts().filter(pc.greater(ids.value_counts().field("counts"), 1))[0]["values"]
        raise InputError(f"{path}: image_id: {twice.as_py()!r} is there twice; {REMEDY}")
