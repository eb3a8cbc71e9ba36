"""Evaluation: values worked out by hand, scikit-learn's, brute-force distances, and what damaged inputs say."""

import json
import re

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, confusion_matrix, jaccard_score

from stages import evaluate, shards
from stages.cli import InputError
from stages.dataset import SCHEMA, instances
from stages.images import VOID, encode_mask
from stages.scores import LABELS_SCHEMA
from stages.scores import SCHEMA as SCORES

SYSTEMS = ["stage1", "fcn8s", "deconvnet", "edeconvnet", "fcn8s_crf", "deconvnet_crf", "edeconvnet_crf"]
PARAMS = evaluate.Params("val", (5, 9), (1, 2))


def picture(text: str) -> np.ndarray:
    """Rows of digits -> uint8 (H, W); `#` is void."""
    return np.array([[VOID if cell == "#" else int(cell) for cell in row] for row in text.split()], np.uint8)


def row_of(class_mask, instance_mask, classes):
    kinds, boxes, areas = instances(class_mask, instance_mask, classes)
    return {"instance_classes": kinds.tolist(), "instance_boxes": boxes.tolist(), "instance_areas": areas.tolist()}


def counted(class_mask, labels, instance_mask=None, classes=3, params=PARAMS, growth=()):
    if instance_mask is None:
        instance_mask = np.where(class_mask == VOID, VOID, 0).astype(np.uint8)
    row = row_of(class_mask, instance_mask, classes)
    return evaluate.count(row, class_mask, instance_mask, labels, list(growth), classes, params)


def random_masks(seed, shape=(9, 11), classes=3):
    """Class mask of a few rectangles and void, instance mask, and labels of seven systems."""
    random = np.random.default_rng(seed)
    truth, numbers = np.zeros((2, *shape), np.uint8)
    for number in range(1, 4):
        y, x = random.integers(0, shape[0] - 3), random.integers(0, shape[1] - 3)
        part = np.s_[y : y + 2 + number, x : x + 2 + number]
        truth[part], numbers[part] = random.integers(1, classes), number
    void = random.random(shape) < 0.1
    for number in range(1, 4):
        void.ravel()[np.flatnonzero(numbers == number)[:1]] = False  # no object is all void
    truth[void] = numbers[void] = VOID
    labels = [
        np.where(random.random(shape) < 0.7, np.where(void, 0, truth), random.integers(0, classes, shape))
        for _ in SYSTEMS
    ]
    return truth, numbers, [each.astype(np.uint8) for each in labels]


# ---- classes


def test_values_worked_out_by_hand():
    truth = picture("0011 0012 002#")
    said = picture("0111 0010 0221")
    # background: truth 6, said 5 of the 11 that count, both 4; one: 3, 4, both 3; two: 2, 2, both 1
    matrix = counted(truth, [said]).confusion.sum(1)[0]
    assert matrix.tolist() == [[4, 1, 1], [0, 3, 0], [1, 0, 1]]
    np.testing.assert_allclose(evaluate.ious(matrix), [4 / 7, 3 / 4, 1 / 3])
    assert evaluate.mean(evaluate.ious(matrix)) == pytest.approx((4 / 7 + 3 / 4 + 1 / 3) / 3)
    assert evaluate.accuracy(matrix) == pytest.approx(8 / 11)


def test_a_class_that_the_truth_lacks_has_no_iou_but_its_pixels_are_errors():
    matrix = counted(picture("0011"), [picture("0021")]).confusion.sum(1)[0]
    np.testing.assert_array_equal(evaluate.ious(matrix), [1, 0.5, np.nan])
    assert evaluate.mean(evaluate.ious(matrix)) == 0.75
    np.testing.assert_array_equal(evaluate.ious(matrix, predicted=True), [1, 0.5, 0])
    assert np.isnan(evaluate.mean(evaluate.ious(np.zeros((3, 3), int))))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), images=st.integers(1, 4), classes=st.integers(2, 30))
def test_sums_of_images_are_what_scikit_learn_finds_in_all_pixels_at_once(seed, images, classes):
    pictures = [random_masks(seed + number, (8, 9 + number), classes) for number in range(images)]
    total = sum(
        counted(truth, labels, numbers, classes).confusion.sum(1) for truth, numbers, labels in pictures
    )  # (S, C, C)
    truth = np.concatenate([truth.ravel() for truth, _, _ in pictures])
    for system in range(len(SYSTEMS)):
        said = np.concatenate([labels[system].ravel() for _, _, labels in pictures])[truth != VOID]
        real = truth[truth != VOID]
        np.testing.assert_array_equal(total[system], confusion_matrix(real, said, labels=range(classes)))
        present = np.unique(real)
        ious = evaluate.ious(total[system])
        np.testing.assert_allclose(ious[present], jaccard_score(real, said, labels=present, average=None))
        assert np.isnan(np.delete(ious, present)).all()
        assert evaluate.mean(ious) == pytest.approx(jaccard_score(real, said, labels=present, average="macro"))
        assert evaluate.accuracy(total[system]) == pytest.approx(accuracy_score(real, said))


def test_as_many_classes_as_a_mask_can_hold():
    truth = np.arange(256, dtype=np.uint8).reshape(16, 16)
    said = np.where(truth == VOID, 0, truth).astype(np.uint8)
    matrix = counted(truth, [said], classes=VOID).confusion.sum(1)[0]
    np.testing.assert_array_equal(matrix, np.eye(VOID))


# ---- sizes


TWINS = """000000000000
           0#0000000000
           001111000000
           001111000000
           000000000000
           222222220000"""  # two objects of class 1 side by side, 4 px each; one of class 2, 8 px
TWINS_SAID = """000000000000
                011010000000
                000111000000
                001111000000
                000000000000
                222220020001"""


@pytest.mark.parametrize("sizes, places", [((5, 9), (0, 1)), ((4, 8), (1, 2)), ((9, 20), (0, 0))])
def test_sizes_worked_out_by_hand(sizes, places):
    truth, said = picture(TWINS), picture(TWINS_SAID)
    numbers = np.where(truth == 2, 3, truth)
    numbers[2:4, 4:6] = 2
    counts = counted(truth, [said], numbers.astype(np.uint8), params=evaluate.Params("val", sizes, (1,)))
    expected = np.zeros((2, 3, 3), int)
    # Left twin, rows 1 to 4, columns 1 to 4: 3 of its 4 px; 2 px too many, at (1, 2) and (1, 4): void at (1, 1) and
    # the right twin do not count. Right twin, columns 3 to 6: 4 of 4; (1, 4) too many. So 3 + 4 of 6 + 5.
    expected[:, places[0], 1] = 7, 11
    expected[:, places[1], 2] = 6, 8
    np.testing.assert_array_equal(counts.overlap[0], expected)
    assert counts.objects.tolist() == np.bincount([places[0]] * 2 + [places[1]], minlength=3).tolist()
    values = evaluate.by_size(counts.overlap)[0]
    by_hand = [7 / 11, 6 / 8] if places[0] != places[1] else [(7 / 11 + 6 / 8) / 2]
    np.testing.assert_allclose(values[sorted(set(places))], by_hand)
    assert np.isnan(np.delete(values, places)).all()


def test_void_inside_an_object_does_not_count():
    truth, numbers = picture("1#0# 1100"), picture("1102 1100")  # the second object is all void
    row = {"instance_classes": [1, 1], "instance_boxes": [[0, 0, 2, 2], [3, 0, 1, 1]], "instance_areas": [4, 1]}
    said = [np.ones_like(truth)]
    counts = evaluate.count(row, truth, numbers, said, [], 3, PARAMS)
    assert counts.objects.tolist() == [1, 0, 0]
    assert counts.overlap[0, :, 0, 1].tolist() == [3, 5]  # of its window, columns 0 to 2: two px too many
    assert counts.overlap.sum() == 8


def test_sizes_add_pixels_up_before_dividing():
    overlaps = np.zeros((1, 2, 3, 3), int)
    for seed in range(3):
        truth, numbers, labels = random_masks(seed)
        overlaps += counted(truth, labels[:1], numbers).overlap
    value = evaluate.by_size(overlaps)[0, 2]
    inner, union = overlaps[0, :, 2]
    assert value == pytest.approx(np.mean([inner[kind] / union[kind] for kind in (1, 2) if union[kind]]))


# ---- boundaries


def distances(truth):
    """Distance of each pixel to the nearest that has a 4-neighbour of another label, by trying all pairs."""
    height, width = truth.shape
    edge = [
        (y, x)
        for y in range(height)
        for x in range(width)
        if any(
            0 <= y + dy < height and 0 <= x + dx < width and truth[y + dy, x + dx] != truth[y, x]
            for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0))
        )
    ]
    found = np.full(truth.shape, np.inf)
    for y in range(height):
        for x in range(width):
            found[y, x] = min((np.hypot(y - b, x - a) for b, a in edge), default=np.inf)
    return found


@pytest.mark.parametrize("seed", range(6))
def test_boundary_bands_are_those_of_a_brute_force_search(seed):
    truth = np.zeros((23, 31), np.uint8)
    random = np.random.default_rng(seed)
    y, x = random.integers(0, 18, 2)
    truth[y : y + 6, x : x + 5] = 1
    if seed % 2:
        truth[y, x : x + 5] = VOID  # a rim
    if seed == 5:
        truth[:] = 2  # nowhere a boundary
    said = random.integers(0, 3, truth.shape).astype(np.uint8)
    widths = (1, 2, 3, 5, 8)
    confusion = counted(truth, [said], params=evaluate.Params("val", (5, 9), widths)).confusion
    assert confusion.sum() == (truth != VOID).sum()
    away = distances(truth)
    for width, found in zip(widths, confusion[0].cumsum(0), strict=False):
        near = (away <= width) & (truth != VOID)
        expected = np.zeros((3, 3), int)
        np.add.at(expected, (truth[near], said[near]), 1)
        np.testing.assert_array_equal(found, expected)
    for value, found in zip(evaluate.by_width(confusion)[0], confusion[0].cumsum(0), strict=False):
        np.testing.assert_equal(value, evaluate.mean(evaluate.ious(found)))


def test_void_is_a_label_so_that_bands_begin_at_its_rim():
    truth = picture("0000###1111")
    confusion = counted(truth, [np.zeros_like(truth)]).confusion[0]
    # rims at columns 3 and 7, a width of 1 adds 2 and 8, of 2 adds 1 and 9
    assert confusion.cumsum(0)[:, :2, 0].tolist() == [[2, 2], [3, 3], [4, 4]]


# ---- the command


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
        shards.write(folder / f"dataset/val-{number:03d}.parquet", pa.Table.from_pylist(rows, SCHEMA))
        for system, table in labelled.items():
            place, schema = ("labels", LABELS_SCHEMA) if "crf" in system else ("scores", SCORES)
            path = folder / place / system / f"val-{number:03d}.parquet"
            shards.write(path, pa.Table.from_pylist(table, schema))
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
    tables = {
        name: pd.read_csv(out / f"{name}.csv") for name in ("per_class", "confusion", "sizes", "boundary", "growth")
    }
    assert {name: [*table] for name, table in tables.items()} == {
        "per_class": ["class", *SYSTEMS],
        "confusion": ["system", "truth", "predicted", "pixels"],
        "sizes": ["system", "small", "medium", "large"],
        "boundary": ["width", *SYSTEMS],
        "growth": ["proposals", "mean_iou", "pixel_accuracy"],
    }
    for system in SYSTEMS:
        ious = jaccard_score(real, said[system], average=None)
        assert [*metrics[system]] == ["mean_iou", "pixel_accuracy", "small", "medium", "large", "boundary"]
        assert metrics[system]["mean_iou"] == round(ious.mean(), 4)
        assert metrics[system]["pixel_accuracy"] == round(accuracy_score(real, said[system]), 4)
        assert tables["per_class"]["class"].tolist() == names
        np.testing.assert_array_equal(tables["per_class"][system], ious.round(4))
        cells = (
            tables["confusion"].query("system == @system").pivot(index="truth", columns="predicted", values="pixels")
        )
        np.testing.assert_array_equal(cells.loc[names, names], confusion_matrix(real, said[system]))
        assert tables["boundary"][system][0] == metrics[system]["boundary"]
        sizes = tables["sizes"].query("system == @system").iloc[0]
        assert all(sizes[name] == metrics[system][name] for name in evaluate.SIZES)
    headline = json.loads((out / "mean_iou.json").read_text())
    assert headline == {"mean_iou": {system: metrics[system]["mean_iou"] for system in SYSTEMS}}
    assert tables["boundary"]["width"].tolist() == [1, 2]
    assert tables["growth"]["proposals"].tolist() == [1, 5, 10, 25, 50, 100]
    for index, grown in tables["growth"].iterrows():  # they are the first six systems' labels
        assert grown["mean_iou"] == metrics[SYSTEMS[index]]["mean_iou"]
        assert grown["pixel_accuracy"] == metrics[SYSTEMS[index]]["pixel_accuracy"]
    images = shards.read(out / "images.parquet").to_pandas()
    assert len(images) == 4 * len(SYSTEMS)
    for number, (truth, _, labels) in enumerate(pictures):
        inside = truth != VOID
        for system, mask in zip(SYSTEMS, labels, strict=True):
            found = images[(images["image_id"] == f"2007_{number:06d}") & (images["system"] == system)].iloc[0]
            assert found["mean_iou"] == pytest.approx(jaccard_score(truth[inside], mask[inside], average="macro"))
            assert found["pixel_accuracy"] == pytest.approx(accuracy_score(truth[inside], mask[inside]))
    printed = capsys.readouterr().out
    assert "images without a proposal, all background for DeconvNet: 2\n" in printed
    name, *values = printed.splitlines()[-1].split()
    assert name == "edeconvnet_crf" and all(re.fullmatch(r"\d+\.\d", value) for value in values)
    wanted = [100 * value for value in metrics[name].values()]
    assert [float(value) for value in values] == pytest.approx(wanted, abs=0.0551)  # both are rounded


def test_reports_do_not_depend_on_shards_or_order(prepared):
    write(prepared / "a", (2, 3))
    write(prepared / "b", (1, 4), order=[3, 0, 4, 2, 1])
    first, second = command(prepared / "a"), command(prepared / "b")
    for path in [*first.glob("*.csv"), *first.glob("*.json")]:
        assert path.read_bytes() == (second / path.name).read_bytes(), path.name
    again = command(prepared / "a", prepared / "again")
    assert (again / "images.parquet").read_bytes() == (first / "images.parquet").read_bytes()
    assert len(list(first.iterdir())) == 8


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
    images = shards.read(out / "images.parquet")
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
        (mended("stage1", labels=None), "scores/stage1/val-000.parquet: 2007_000000: labels: does not decode"),
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
        ({"sizes": [9, 5]}, "evaluate: sizes: [9, 5] is not allowed; allowed: two areas in px, ascending"),
        ({"sizes": [5]}, "evaluate: sizes: [5] is not allowed"),
        ({"sizes": [5, 5]}, "evaluate: sizes: [5, 5] is not allowed"),
        ({"boundary": []}, "evaluate: boundary: [] is not allowed; allowed: widths in px, ascending"),
        ({"boundary": [2, 1]}, "evaluate: boundary: [2, 1] is not allowed"),
        ({"boundary": [0, 1]}, "evaluate.boundary[0]: 0 is not allowed; allowed: a whole number 1 or more"),
        ({"split": "test"}, 'evaluate.split: \'test\' is not allowed; allowed: "train", "val"'),
    ],
)
def test_bad_parameters(prepared, values, message):
    set_params(prepared, **values)
    fails(prepared, message)
