import cv2
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from conftest import draw, jpeg, png
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from stages import crops, proposals, shards
from stages.cli import InputError
from stages.config import load


@given(
    st.integers(0, 999),
    st.lists(st.integers(-15, 25), min_size=2, max_size=2),
    st.lists(st.integers(1, 30), min_size=2, max_size=2),
)
def test_cut_pads_and_never_clips_by_a_loop(seed, corner, sides):
    rng = np.random.default_rng(seed)
    image, labels = rng.integers(1, 256, (12, 17, 3)).astype(np.uint8), rng.integers(0, 21, (12, 17)).astype(np.uint8)
    crop, crop_labels = crops.cut(image, labels, (*corner, *sides))
    assert crop_labels.shape == (sides[1], sides[0])
    for v in range(sides[1]):
        for u in range(sides[0]):
            y, x = corner[1] + v, corner[0] + u
            inside = 0 <= y < 12 and 0 <= x < 17
            assert crop_labels[v, u] == (labels[y, x] if inside else 255)
            assert crop[v, u].tolist() == (image[y, x].tolist() if inside else [0, 0, 0])


def test_alone_keeps_the_object_and_void():
    classes = np.array([[0, 5, 5, 255, 7]], np.uint8)
    instances = np.array([[0, 1, 2, 255, 3]], np.uint8)
    assert crops.alone(classes, instances, 1).tolist() == [[0, 5, 0, 255, 0]]
    assert crops.alone(classes, instances, 3).tolist() == [[0, 0, 0, 255, 7]]


@given(st.lists(st.sampled_from([1, 2, 9]), min_size=1, max_size=40), st.integers(1, 25))
def test_every_class_gets_its_examples_and_windows_of_a_class_differ_by_one(classes, per_class):
    classes = np.array(classes)
    copies = crops.balance(classes, per_class, seed=1)
    for class_id in np.unique(classes):
        own = copies[classes == class_id]
        assert own.sum() == per_class
        assert own.max() - own.min() <= 1
    np.testing.assert_array_equal(crops.balance(classes, per_class, seed=1), copies)


def test_seeds_draw_other_windows():
    classes = np.ones(1000, int)
    assert (crops.balance(classes, 500, 1) != crops.balance(classes, 500, 2)).any()


def test_matches_by_hand():
    objects = np.array([[0, 0, 10, 10], [20, 0, 10, 10]], np.float32)
    boxes = np.array([[0, 0, 10, 5], [0, 0, 10, 4], [21, 0, 10, 10], [5, 0, 20, 10]], np.float32)
    # IoU with the best object: 0.5 (counts), 0.4, 0.82, 1/5
    kept, of = crops.matches(boxes, objects, 0.5)
    assert (kept.tolist(), of.tolist()) == ([0, 2], [0, 1])
    assert len(crops.matches(boxes, objects[:0], 0.5)[0]) == len(crops.matches(boxes[:0], objects, 0.5)[0]) == 0


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
                "image": jpeg(image),
                "class_mask": png(classes),
                "instance_mask": png(instances),
            }
            row |= {"instance_boxes": [[8, 5, 20, 20], [40, 30, 25, 25], [0, 0, 0, 0]], "instance_areas": [400, 625, 0]}
            rows.append(row | {"instance_classes": [1, 2, 1]})
            for rank, box in enumerate([(8, 5, 20, 20), (0, 50, 5, 5), (40, 30, 25, 20)], 1):
                boxes.append((image_id, rank, *box, 1 / rank))
        shards.write(experiment / f"dataset/{split}-000.parquet", pa.Table.from_pylist(rows))
        frame = pd.DataFrame(boxes, columns=proposals.SCHEMA.names)
        shards.write(experiment / f"proposals/{split}-000.parquet", pa.Table.from_pandas(frame, proposals.SCHEMA))
    return experiment


def build(stage):
    also = ["--proposals", "proposals"] if stage == "stage2" else []
    crops.main(
        [
            stage,
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
    return shards.read("crops.parquet").to_pandas()


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
    _, labels = crops.cut(image, crops.alone(classes, instances, 1), frame.iloc[0][["x", "y", "side_x", "side_y"]])
    labels = cv2.resize(labels, (128, 128), interpolation=cv2.INTER_NEAREST)
    inside, outside = cell[labels == 1].mean(0), cell[labels == 0].mean(0)
    assert inside[0] > 128
    assert (outside < 40).all()
    assert 0.6 < (labels == 1).mean() < 0.75  # 1 / 1.2 squared


def test_bad_input(world):
    strange = shards.read("proposals/train-000.parquet").to_pandas().assign(image_id="z")
    shards.write("proposals/train-000.parquet", pa.Table.from_pandas(strange, proposals.SCHEMA, preserve_index=False))
    with pytest.raises(
        InputError, match=r"proposals/train-000\.parquet: holds z, which dataset/train-000\.parquet lacks"
    ):
        build("stage2")
    empty = shards.read("proposals/train-000.parquet").slice(0, 0)
    shards.write("proposals/train-000.parquet", empty)
    with pytest.raises(InputError, match="stage2 has no window"):
        build("stage2")
    (world / "proposals/train-000.parquet").unlink()
    with pytest.raises(InputError, match=r"proposals/train-000\.parquet: not a readable parquet file"):
        build("stage2")
    (world / "dataset/train-000.parquet").unlink()
    with pytest.raises(InputError, match="dataset: no shard of trainaug"):
        build("stage1")


def test_params_sections(experiment):
    assert load(crops.Params, "crops").context == 1.2
