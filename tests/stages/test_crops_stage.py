import cv2
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from PIL import Image

from deconvnet import crops, proposals, tables
from deconvnet.errors import InputError
from deconvnet.images import cut_window
from stages import crops as stage
from tests.conftest import draw, jpeg, png


@pytest.fixture
def world(experiment):
    """A data set of two training images and one of val, and proposals: one on each object, one on none."""
    (experiment / "dataset").mkdir()
    (experiment / "proposals").mkdir()
    for split, ids in (("train", ["a", "b"]), ("val", ["c"])):
        rows, boxes = [], []
        for image_id in ids:
            image, classes, instances = draw(ord(image_id))
            row = {
                "image_id": image_id,
                "height": 60,
                "width": 80,
                "image": jpeg(image),
                "class_mask": png(classes),
                "instance_mask": png(instances),
            }
            row |= {"instance_boxes": [[8, 5, 20, 20], [40, 30, 25, 25], [0, 0, 0, 0]], "instance_areas": [400, 625, 0]}
            rows.append(row | {"instance_classes": [1, 2, 1]})
            for rank, box in enumerate([(8, 5, 20, 20), (0, 50, 5, 5), (40, 30, 25, 20)], 1):
                boxes.append((image_id, rank, *box, 1 / rank))
        tables.write(experiment / f"dataset/{split}-000.parquet", pa.Table.from_pylist(rows))
        frame = pd.DataFrame(boxes, columns=proposals.SCHEMA.names)
        tables.write(experiment / f"proposals/{split}-000.parquet", pa.Table.from_pandas(frame, proposals.SCHEMA))
    return experiment


def build(which):
    also = ["--proposals", "proposals"] if which == "stage2" else []
    stage.main(
        [
            which,
            "--dataset",
            "dataset",
            *also,
            "--out",
            "crops.parquet",
            "--balance",
            "balance.csv",
            "--render",
            "sheet.png",
        ]
    )
    return tables.read("crops.parquet").to_pandas()


def test_stage1_is_one_window_an_object(world):
    frame = build("stage1")
    assert list(frame.columns) == ["image_id", "x", "y", "side_x", "side_y", "instance", "class_id", "copies"]
    # boxes 20 and 25 px, x 1.2 = 24 and 30, about the centres (18, 15) and (52.5, 42.5); instance 3 has no pixels;
    # 400 examples a class (demo/params.yaml) over two windows each; val is not trained on
    assert frame.values.tolist() == [
        ["a", 6, 3, 24, 24, 1, 1, 200],
        ["a", 38, 28, 30, 30, 2, 2, 200],
        ["b", 6, 3, 24, 24, 1, 1, 200],
        ["b", 38, 28, 30, 30, 2, 2, 200],
    ]
    balance = pd.read_csv("balance.csv")
    assert balance.values.tolist() == [["one", 2, 2, 2, 400], ["two", 2, 2, 2, 400]]


def test_stage2_is_one_window_a_proposal_on_an_object(world):
    frame = build("stage2")
    # box 3 is 25x20: IoU 0.8 with object 2, side 30 about (52.5, 40); box 2 meets no object
    assert frame[["image_id", "x", "y", "side_x", "instance", "class_id"]].values.tolist() == [
        ["a", 6, 3, 24, 1, 1],
        ["a", 38, 25, 30, 2, 2],
        ["b", 6, 3, 24, 1, 1],
        ["b", 38, 25, 30, 2, 2],
    ]
    assert frame.groupby("class_id")["copies"].sum().tolist() == [4000, 4000]


def test_trainval_aug_adds_val(world):
    text = (world / "params.yaml").read_text()
    (world / "params.yaml").write_text(text.replace("split: trainaug", "split: trainval_aug"))
    assert set(build("stage1")["image_id"]) == {"a", "b", "c"}


def test_tables_are_the_same_bytes_from_run_to_run(world):
    build("stage2")
    first = [(world / name).read_bytes() for name in ("crops.parquet", "balance.csv", "sheet.png")]
    build("stage2")
    assert [(world / name).read_bytes() for name in ("crops.parquet", "balance.csv", "sheet.png")] == first


def test_the_sheet_shows_the_object_centred_and_alone(world):
    frame = build("stage1")
    picture = np.asarray(Image.open("sheet.png"))
    cell = picture[:128, 128:256]  # labels of the first window: object 1, class 1, dark red over the image
    image, classes, instances = draw(ord("a"))
    _, labels = cut_window(image, crops.alone(classes, instances, 1), frame.iloc[0][["x", "y", "side_x", "side_y"]])
    labels = cv2.resize(labels, (128, 128), interpolation=cv2.INTER_NEAREST)
    inside, outside = cell[labels == 1].mean(0), cell[labels == 0].mean(0)
    assert inside[0] > 128
    assert (outside < 40).all()
    assert 0.6 < (labels == 1).mean() < 0.75  # 1 / 1.2 squared


def test_bad_input(world):
    strange = tables.read("proposals/train-000.parquet").to_pandas().assign(image_id="z")
    tables.write("proposals/train-000.parquet", pa.Table.from_pandas(strange, proposals.SCHEMA, preserve_index=False))
    with pytest.raises(
        InputError, match=r"proposals/train-000\.parquet: holds z, which dataset/train-000\.parquet lacks"
    ):
        build("stage2")
    empty = tables.read("proposals/train-000.parquet").slice(0, 0)
    tables.write("proposals/train-000.parquet", empty)
    with pytest.raises(InputError, match="stage2 has no window"):
        build("stage2")
    (world / "proposals/train-000.parquet").unlink()
    with pytest.raises(InputError, match=r"proposals/train-000\.parquet: not a readable parquet file"):
        build("stage2")
    tables.write("dataset/train-000.parquet", tables.read("dataset/train-000.parquet").slice(0, 0))
    with pytest.raises(InputError, match="dataset: no image of trainaug"):
        build("stage1")
    (world / "dataset/train-000.parquet").unlink()
    with pytest.raises(InputError, match="dataset: no shard of trainaug"):
        build("stage1")


def test_an_image_that_fcn_cannot_take_is_named_at_once(world):
    text = (world / "params.yaml").read_text()
    (world / "params.yaml").write_text(text.replace("canvas:\n  - 160\n  - 200", "canvas:\n  - 64\n  - 64"))
    rows = tables.read("dataset/train-000.parquet").to_pylist()
    image, classes, instances = draw(ord("b"), 61, 64)
    smaller = {"height": 61, "width": 64, "image": jpeg(image), "class_mask": png(classes)}
    smaller |= {"instance_mask": png(instances)}
    tables.write("dataset/train-000.parquet", pa.Table.from_pylist([rows[0], rows[1] | smaller]))
    with pytest.raises(InputError) as caught:
        build("stage1")
    # image a is 60x80, b 61x64: 61x80 holds both; val is not trained on
    assert str(caught.value) == (
        "params.yaml: train_fcn.canvas: [64, 64] (height, width) is too small for a, an image of 60x80; [61, 80] would "
        "do for all training images"
    )
    assert not (world / "crops.parquet").exists()
    assert len(build("stage2")) == 4  # stage 2's table does not train FCN-8s
    (world / "params.yaml").write_text(text.replace("canvas:\n  - 160\n  - 200", "canvas:\n  - 61\n  - 80"))
    assert len(build("stage1")) == 4


def test_an_image_without_windows_need_not_fit(world):
    row = tables.read("dataset/train-000.parquet").to_pylist()[0]
    bare = {"image_id": "z", "height": 999, "instance_boxes": [], "instance_areas": [], "instance_classes": []}
    table = pa.Table.from_pylist([row, row | bare], tables.read("dataset/train-000.parquet").schema)
    tables.write("dataset/train-000.parquet", table)
    assert set(build("stage1")["image_id"]) == {"a"}


def test_one_closing_line_says_what_was_made(world, capsys):
    build("stage1")
    assert capsys.readouterr().out == (
        "crops.parquet: 4 windows of 2 classes, 800 examples per epoch, 400 of a class at most\n"
    )
