import numpy as np
import pyarrow as pa
import pytest

from deconvnet import contents, crops, proposals, scores, tables, voc
from deconvnet.errors import InputError
from stages import evaluate

ROW = {"image_id": "a", "instance_classes": [1, 2], "instance_boxes": [[0, 0, 9, 9], [1, 1, 2, 2]],
       "instance_areas": [81, 4]}  # fmt: skip
SCHEMA = pa.schema([voc.SCHEMA.field(name) for name in ROW])
BOX = {"image_id": "a", "rank": 1, "x": 1.0, "y": 2.0, "width": 3.0, "height": 4.0, "objectness": 0.5}


def plain(kind):
    return pa.list_(plain(kind[0])) if isinstance(kind, list) else kind


@pytest.mark.parametrize(
    ("kind", "schema"),
    [(contents.DATASET, voc.SCHEMA), (contents.PROPOSALS, proposals.SCHEMA), (contents.CROPS, crops.SCHEMA),
     (contents.SCORES, scores.SCHEMA), (contents.LABELS, scores.LABELS_SCHEMA), (contents.IMAGES, evaluate.SCHEMA)],
)  # fmt: skip
def test_what_is_read_is_what_is_written(kind, schema):
    assert {name: plain(own) for name, own in kind.types.items()} == {field.name: field.type for field in schema}
    assert set(kind.ranges) | set(kind.optional) | set(kind.alike) <= set(kind.types)


def refusal(folder, rows, schema, kind, columns=None):
    tables.write(folder / "t", pa.Table.from_pylist(rows, schema))
    with pytest.raises(InputError) as error:
        tables.read(folder / "t", columns or schema.names, kind)
    assert str(error.value).startswith(f"{folder / 't'}: ")
    return str(error.value).removeprefix(f"{folder / 't'}: ")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"image_id": None}, "image_id: 1 of 2 values are missing"),
        ({"image_id": "b"}, "image_id: 'b' is there twice"),
        ({"image_id": "../b"}, "image_id: '../b' is no name of an image"),
        ({"image_id": "b\n"}, r"image_id: 'b\n' is no name of an image"),
        ({"image_id": ""}, "image_id: '' is no name of an image"),
        ({"instance_classes": None}, "instance_classes: 1 of 2 values are missing"),
        ({"instance_classes": [1, None]}, "instance_classes: a value in a list is missing"),
        ({"instance_classes": [1, 200]}, "instance_classes: holds 1 to 200; allowed: 0 to 2"),
        ({"instance_classes": [1]}, "instance_classes, instance_boxes, instance_areas: of different lengths"),
        ({"instance_boxes": [[0, 0, 9], [0, 0, 9, 9]]}, "instance_boxes: of {3, 4} numbers"),
        ({"instance_boxes": [[-5, 0, 9, 9], [0, 0, 9, 9]]}, "instance_boxes: holds -5 to 9; allowed: 0 to 65500"),
    ],
)
def test_rows_that_no_data_set_has(tmp_path, change, said):
    kind = contents.LABELLED.within(instance_classes=(0, 2))
    assert refusal(tmp_path, [ROW | {"image_id": "b"}, ROW | change], SCHEMA, kind).startswith(said)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -1.0, 1e9])
def test_boxes_that_no_image_has(tmp_path, value):
    assert refusal(tmp_path, [BOX, BOX | {"x": value}], proposals.SCHEMA, contents.PROPOSALS).startswith("x: holds ")


def test_types_and_columns(tmp_path):
    wide = pa.schema([("image_id", pa.large_string()), ("rank", pa.int64()), *list(proposals.SCHEMA)[2:]])
    tables.write(tmp_path / "t", pa.Table.from_pylist([BOX], wide).append_column("more", pa.array([1])))
    assert tables.read(tmp_path / "t", None, contents.PROPOSALS).schema == proposals.SCHEMA
    text = pa.schema([*proposals.SCHEMA][:-1] + [("objectness", pa.string())])
    said = refusal(tmp_path, [BOX | {"objectness": "1"}], text, contents.PROPOSALS)
    assert said.startswith("objectness: holds string, not float")
    tables.write(tmp_path / "t", pa.Table.from_pylist([BOX], wide).drop_columns(["x"]))
    with pytest.raises(InputError, match="t: not a readable parquet file .lacks the column x"):
        tables.read(tmp_path / "t", None, contents.PROPOSALS)


def test_a_table_that_holds_far_more_than_its_size(tmp_path, monkeypatch):
    tables.write(tmp_path / "t", pa.table({"x": np.zeros(4 << 20, np.uint8)}))
    assert len(tables.read(tmp_path / "t")) == 4 << 20
    monkeypatch.setattr(tables, "BOMB", 2)  # of a MiB at least
    with pytest.raises(InputError, match="holds far more than its size"):
        tables.read(tmp_path / "t")
