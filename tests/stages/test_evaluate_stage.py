"""The command that evaluates: its reports, and what it says about damaged inputs."""

import json
import re

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import yaml
from sklearn.metrics import accuracy_score, confusion_matrix, jaccard_score

from deconvnet import systems, tables
from deconvnet.errors import InputError
from deconvnet.evaluation import SIZES
from deconvnet.images import VOID, encode_mask
from deconvnet.scores import LABELS_SCHEMA
from deconvnet.scores import SCHEMA as SCORES
from deconvnet.voc import SCHEMA
from experiment.report.numbers import percent
from stages import evaluate
from tests.deconvnet.test_evaluation import random_masks, row_of

SYSTEMS = [*systems.SYSTEMS]


def write(folder, shape=(2, 2), classes=3, order=None, change=None):
    """Data set and systems in `folder`: shards val-000 ... with `shape` images each. Returns the pictures."""
    pictures = [random_masks(seed, (9 + seed, 11), classes) for seed in range(sum(shape))]
    order = list(order or range(len(pictures)))
    for number, size in enumerate(shape):
        chosen, order = order[:size], order[size:]
        rows, labelled = [], {system: [] for system in SYSTEMS}
        for index in chosen:
            truth, numbers, labels = pictures[index]
            same = {"image_id": f"2007_{index:06d}", "height": truth.shape[0], "width": truth.shape[1]}
            masks = {"class_mask": encode_mask(truth), "instance_mask": encode_mask(numbers)}
            rows.append(same | {"source": "voc", "split": "val"} | masks | row_of(truth, numbers, classes))
            for system, mask in zip(SYSTEMS, labels, strict=True):
                grown = [encode_mask(each) for each in labels[:6]] if system == "deconvnet" else []
                extra = {"windows": max(index - 1, 0), "growth": grown} if "crf" not in system else {}
                labelled[system].append({"image_id": same["image_id"], "labels": encode_mask(mask)} | extra)
        if change:
            change(number, rows, labelled)
        tables.write(folder / f"dataset/val-{number:03d}.parquet", pa.Table.from_pylist(rows, SCHEMA))
        for system, table in labelled.items():
            place, schema = ("labels", LABELS_SCHEMA) if "crf" in system else ("scores", SCORES)
            path = folder / place / system / f"val-{number:03d}.parquet"
            tables.write(path, pa.Table.from_pylist(table, schema))
    return pictures


def command(folder, out=None):
    out = out or folder / "out"
    paths = {name: folder / name for name in ("dataset", "scores", "labels")}
    paths |= {"reports": out, "images": out / "images.parquet"}
    evaluate.main([word for name, path in paths.items() for word in (f"--{name}", str(path))])
    return out


def set_params(folder, **values):
    params = yaml.safe_load((folder / "params.yaml").read_text())
    params["evaluate"] = {"split": "val", "sizes": [5, 9], "boundary": [1, 2]} | values
    params["infer"]["splits"] = ["val", "train"]
    (folder / "params.yaml").write_text(yaml.safe_dump(params))


@pytest.fixture
def prepared(experiment):
    set_params(experiment)
    return experiment


def test_the_reports(prepared, capsys):
    pictures = write(prepared)
    out = command(prepared)
    real = np.concatenate([truth.ravel() for truth, _, _ in pictures])
    inside = real != VOID
    said = {
        system: np.concatenate([labels[index].ravel() for _, _, labels in pictures])[inside]
        for index, system in enumerate(SYSTEMS)
    }
    real = real[inside]
    names = ["background", "one", "two"]
    metrics = json.loads((out / "metrics.json").read_text())
    assert [*metrics] == ["images", "images_without_proposals", "objects", *SYSTEMS]
    assert metrics["images"] == 4 and metrics["images_without_proposals"] == 2
    assert [*metrics["objects"]] == ["small", "medium", "large"]
    areas = np.concatenate([row_of(truth, numbers, 3)["instance_areas"] for truth, numbers, _ in pictures])
    assert [*metrics["objects"].values()] == [
        ((areas > 0) & (areas < 5)).sum(), ((areas >= 5) & (areas < 9)).sum(), (areas >= 9).sum()
    ]  # fmt: skip
    reports = {
        name: pd.read_csv(out / f"{name}.csv")
        for name in ("per_class", "confusion", "sizes", "boundary", "growth", "intervals")
    }
    assert {name: [*table] for name, table in reports.items()} == {
        "per_class": ["class", *SYSTEMS],
        "confusion": ["system", "truth", "predicted", "pixels"],
        "sizes": ["system", "small", "medium", "large"],
        "boundary": ["width", *SYSTEMS],
        "growth": ["proposals", "mean_iou", "pixel_accuracy"],
        "intervals": ["system", "minus", "mean_iou", "low", "high"],
    }
    spread = reports["intervals"].set_index(["system", reports["intervals"]["minus"].fillna("")])
    assert (spread["low"] <= spread["high"]).all()
    for (system, other), value in spread["mean_iou"].items():
        expected = metrics[system]["mean_iou"] - (metrics[other]["mean_iou"] if other else 0)
        assert value == pytest.approx(expected, abs=2e-6)
    for system in SYSTEMS:
        ious = jaccard_score(real, said[system], average=None)
        assert [*metrics[system]] == ["mean_iou", "pixel_accuracy", "small", "medium", "large", "boundary"]
        assert metrics[system]["mean_iou"] == round(ious.mean(), 6)
        assert metrics[system]["pixel_accuracy"] == round(accuracy_score(real, said[system]), 6)
        assert reports["per_class"]["class"].tolist() == names
        np.testing.assert_array_equal(reports["per_class"][system], ious.round(6))
        cells = (
            reports["confusion"].query("system == @system").pivot(index="truth", columns="predicted", values="pixels")
        )
        np.testing.assert_array_equal(cells.loc[names, names], confusion_matrix(real, said[system]))
        assert reports["boundary"][system][0] == metrics[system]["boundary"]
        sizes = reports["sizes"].query("system == @system").iloc[0]
        assert all(sizes[name] == metrics[system][name] for name in SIZES)
    headline = json.loads((out / "mean_iou.json").read_text())
    assert headline == {"mean_iou": {system: metrics[system]["mean_iou"] for system in SYSTEMS}}
    assert reports["boundary"]["width"].tolist() == [1, 2]
    assert reports["growth"]["proposals"].tolist() == [1, 5, 10, 25, 50, 100]
    for index, grown in reports["growth"].iterrows():  # they are the first six systems' labels
        assert grown["mean_iou"] == metrics[SYSTEMS[index]]["mean_iou"]
        assert grown["pixel_accuracy"] == metrics[SYSTEMS[index]]["pixel_accuracy"]
    images = tables.read(out / "images.parquet").to_pandas()
    assert len(images) == 4 * len(SYSTEMS)
    for number, (truth, _, labels) in enumerate(pictures):
        inside = truth != VOID
        for system, mask in zip(SYSTEMS, labels, strict=True):
            found = images[(images["image_id"] == f"2007_{number:06d}") & (images["system"] == system)].iloc[0]
            assert found["mean_iou"] == pytest.approx(jaccard_score(truth[inside], mask[inside], average="macro"))
            assert found["pixel_accuracy"] == pytest.approx(accuracy_score(truth[inside], mask[inside]))
    printed = capsys.readouterr().out
    ours = metrics["edeconvnet_crf"]
    low, high = (percent(spread[end]["edeconvnet_crf", ""]) for end in ("low", "high"))
    closing = (
        f"EDeconvNet+CRF {percent(ours['mean_iou'])} % mean IoU, 95 % interval over images {low} to {high}, on 4 "
        "images of val, of which 2 have no proposal"
    )
    row, last = printed.splitlines()[-2:]
    assert last == closing
    assert row.split() == ["EDeconvNet+CRF", *(percent(value) for value in ours.values())]


def test_reports_do_not_depend_on_shards_or_order(prepared):
    write(prepared / "a", (2, 3))
    write(prepared / "b", (1, 4), order=[3, 0, 4, 2, 1])
    first, second = command(prepared / "a"), command(prepared / "b")
    for path in [*first.glob("*.csv"), *first.glob("*.json")]:
        assert path.read_bytes() == (second / path.name).read_bytes(), path.name
    again = command(prepared / "a", prepared / "again")
    assert (again / "images.parquet").read_bytes() == (first / "images.parquet").read_bytes()
    assert len(list(first.iterdir())) == 9


def test_what_the_truth_lacks_is_empty_or_null(prepared):
    def only_background(number, rows, labelled):
        for row in rows:
            empty = np.zeros((row["height"], row["width"]), np.uint8)
            row |= {"class_mask": encode_mask(empty), "instance_mask": encode_mask(empty)} | row_of(empty, empty, 3)
        all_void = np.full((rows[0]["height"], rows[0]["width"]), VOID, np.uint8)
        rows[0] |= {"class_mask": encode_mask(all_void), "instance_mask": encode_mask(all_void)}

    pictures = write(prepared, change=only_background)
    out = command(prepared)
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["objects"] == {"small": 0, "medium": 0, "large": 0}
    of_one = metrics["deconvnet"]
    assert of_one["mean_iou"] == of_one["pixel_accuracy"] > 0  # background alone
    assert of_one["small"] is of_one["medium"] is of_one["large"] is of_one["boundary"] is None
    rows = (out / "per_class.csv").read_text().splitlines()
    assert rows[2:4] == ["one" + "," * len(SYSTEMS), "two" + "," * len(SYSTEMS)]
    images = tables.read(out / "images.parquet")
    share, said = (pictures[1][2][0] == 0).mean(), len(np.unique(pictures[1][2][0]))
    assert images["mean_iou"][len(SYSTEMS)].as_py() == pytest.approx(share / said)  # others are predicted: 0 each
    assert images["mean_iou"].null_count == images["pixel_accuracy"].null_count == 2 * len(SYSTEMS)


def test_other_splits_do_not_matter(prepared):
    write(prepared)
    (prepared / "scores/fcn8s/test-000.parquet").write_bytes(b"")
    (prepared / "dataset/train-000.parquet").write_bytes(b"")
    command(prepared)


def mended(name, **values):
    """A change to the first image of shard 0: of the data set's row, or of a system's."""

    def change(number, rows, labelled):
        if number == 0:
            (rows if name == "dataset" else labelled[name])[0].update(values)

    return change


def without_images(number, rows, labelled):
    rows.clear()
    for table in labelled.values():
        table.clear()


SIX = [encode_mask(np.zeros((9, 11), np.uint8))] * 6


@pytest.mark.parametrize(
    "change, message",
    [
        (mended("fcn8s", labels=encode_mask(np.zeros((11, 9), np.uint8))),
         "scores/fcn8s/val-000.parquet: 2007_000000: labels: has 9x11 px, but the class mask 11x9; run"),
        (mended("deconvnet_crf", labels=encode_mask(np.full((9, 11), 3, np.uint8))),
         "labels/deconvnet_crf/val-000.parquet: 2007_000000: labels: id 3 is not allowed; allowed: 0 to 2; run"),
        (mended("stage1", labels=encode_mask(np.full((9, 11), VOID, np.uint8))), "id 255 is not allowed"),
        (mended("stage1", labels=None), "scores/stage1/val-000.parquet: labels: 1 of 2 values are missing (null)"),
        (mended("deconvnet", growth=SIX[:5]), "labels after 5 numbers of proposals, but infer.growth has 6; run"),
        (mended("deconvnet", growth=[*SIX[:5], b"no"]), "2007_000000: labels: does not decode"),
        (mended("edeconvnet", image_id="other"), "scores/edeconvnet/val-000.parquet: 2 images that are not the 2 of"),
        (mended("dataset", class_mask=b"\x89PNG"),
         "dataset/val-000.parquet: 2007_000000: class mask: does not decode"),
        (mended("dataset", class_mask=encode_mask(np.full((9, 11), 3, np.uint8))),
         "class mask: id 3 is not allowed; allowed: 0 to 2 and 255; run"),
        (mended("dataset", instance_mask=encode_mask(np.zeros((2, 2), np.uint8))),
         "instance mask: has 2x2 px, but the class mask 11x9"),
        (without_images, "dataset: no image in the shards of val; run"),
    ],
)  # fmt: skip
def test_bad_rows(prepared, change, message):
    write(prepared, change=change)
    fails(prepared, message)


def fails(folder, message):
    with pytest.raises(InputError, match=re.escape(message)) as raised:
        command(folder)
    assert "\n" not in str(raised.value)
    assert not (folder / "out").exists()


@pytest.mark.parametrize("folder", ["scores/stage1", "labels/fcn8s_crf"])
def test_bad_shards(prepared, folder):
    write(prepared)
    shard = prepared / folder / "val-001.parquet"
    extra = shard.with_name("val-002.parquet")
    extra.write_bytes(shard.read_bytes())
    fails(prepared, f"{folder}/val-002.parquet: not a shard of ")
    extra.unlink()
    shard.unlink()
    fails(prepared, f"{folder}/val-001.parquet: missing shard; ")
    shard.write_bytes(b"PAR1")
    fails(prepared, f"{folder}/val-001.parquet: not a readable parquet file")
    for path in shard.parent.iterdir():
        path.unlink()
    shard.parent.rmdir()
    fails(prepared, f"{folder}/val-000.parquet: missing shard; ")


def test_a_split_without_shards(prepared):
    write(prepared)
    set_params(prepared, split="train")
    fails(prepared, "dataset: no shard of train; ")


@pytest.mark.parametrize(
    "values, message",
    [
        ({"sizes": [9, 5]}, "evaluate.sizes: [9, 5] is not allowed; allowed: a list, each: a whole number from 1"),
        ({"sizes": [5]}, "evaluate.sizes: [5] is not allowed"),
        ({"sizes": [5, 5]}, "evaluate.sizes: [5, 5] is not allowed"),
        ({"boundary": []}, "evaluate.boundary: [] is not allowed; allowed: a list, each: a whole number from 1"),
        ({"boundary": [2, 1]}, "evaluate.boundary: [2, 1] is not allowed"),
        ({"boundary": [0, 1]}, "evaluate.boundary[0]: 0 is not allowed; allowed: a whole number from 1 to 10000"),
        ({"split": "test"}, 'evaluate.split: \'test\' is not allowed; allowed: "train", "val"'),
    ],
)
def test_bad_parameters(prepared, values, message):
    set_params(prepared, **values)
    fails(prepared, message)
