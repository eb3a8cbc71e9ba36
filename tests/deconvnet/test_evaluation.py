"""Counts and IoUs: values worked out by hand, scikit-learn's, brute-force distances."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, confusion_matrix, jaccard_score

from deconvnet import evaluation, metrics
from deconvnet.images import VOID
from deconvnet.settings import Evaluation
from deconvnet.systems import SYSTEMS
from deconvnet.voc import instances

PARAMS = Evaluation("val", (5, 9), (1, 2))


def picture(text: str) -> np.ndarray:
    """Rows of digits -> uint8 (H, W); `#` is void."""
    return np.array([[VOID if cell == "#" else int(cell) for cell in row] for row in text.split()], np.uint8)


def row_of(class_mask, instance_mask, classes):
    kinds, boxes, areas = instances(class_mask, instance_mask, classes)
    return {"instance_classes": kinds.tolist(), "instance_boxes": boxes.tolist(), "instance_areas": areas.tolist()}


def counted(class_mask, labels, instance_mask=None, classes=3, params=PARAMS, growth=()):
    if instance_mask is None:  # of no object
        instance_mask = np.where(class_mask == VOID, VOID, 0).astype(np.uint8)
        row = {"instance_classes": [], "instance_boxes": [], "instance_areas": []}
    else:
        row = row_of(class_mask, instance_mask, classes)
    return evaluation.count(row, class_mask, instance_mask, labels, list(growth), classes, params)


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
    np.testing.assert_allclose(metrics.ious(matrix), [4 / 7, 3 / 4, 1 / 3])
    assert metrics.mean(metrics.ious(matrix)) == pytest.approx((4 / 7 + 3 / 4 + 1 / 3) / 3)
    assert metrics.accuracy(matrix) == pytest.approx(8 / 11)


def test_a_class_that_the_truth_lacks_has_no_iou_but_its_pixels_are_errors():
    matrix = counted(picture("0011"), [picture("0021")]).confusion.sum(1)[0]
    np.testing.assert_array_equal(metrics.ious(matrix), [1, 0.5, np.nan])
    assert metrics.mean(metrics.ious(matrix)) == 0.75
    np.testing.assert_array_equal(metrics.ious(matrix, predicted=True), [1, 0.5, 0])
    assert np.isnan(metrics.mean(metrics.ious(np.zeros((3, 3), int))))


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
        ious = metrics.ious(total[system])
        np.testing.assert_allclose(ious[present], jaccard_score(real, said, labels=present, average=None))
        assert np.isnan(np.delete(ious, present)).all()
        assert metrics.mean(ious) == pytest.approx(jaccard_score(real, said, labels=present, average="macro"))
        assert metrics.accuracy(total[system]) == pytest.approx(accuracy_score(real, said))


@given(seed=st.integers(0, 2**32 - 1), classes=st.integers(2, 255))
def test_the_plain_confusion_is_scikit_learns(seed, classes):
    truth, _, labels = random_masks(seed, classes=classes)
    inside = truth != VOID
    expected = confusion_matrix(truth[inside], labels[0][inside], labels=range(classes))
    np.testing.assert_array_equal(metrics.confusion(truth, labels[0], classes), expected)


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
    counts = counted(truth, [said], numbers.astype(np.uint8), params=Evaluation("val", sizes, (1,)))
    expected = np.zeros((2, 3, 3), int)
    # Left twin, rows 1 to 4, columns 1 to 4: 3 of its 4 px; 2 px too many, at (1, 2) and (1, 4): void at (1, 1) and
    # the right twin do not count. Right twin, columns 3 to 6: 4 of 4; (1, 4) too many. So 3 + 4 of 6 + 5.
    expected[:, places[0], 1] = 7, 11
    expected[:, places[1], 2] = 6, 8
    np.testing.assert_array_equal(counts.overlap[0], expected)
    assert counts.objects.tolist() == np.bincount([places[0]] * 2 + [places[1]], minlength=3).tolist()
    values = evaluation.by_size(counts.overlap)[0]
    by_hand = [7 / 11, 6 / 8] if places[0] != places[1] else [(7 / 11 + 6 / 8) / 2]
    np.testing.assert_allclose(values[sorted(set(places))], by_hand)
    assert np.isnan(np.delete(values, places)).all()


def test_void_inside_an_object_does_not_count():
    truth, numbers = picture("1#0# 1100"), picture("1102 1100")  # the second object is all void
    row = {"instance_classes": [1, 1], "instance_boxes": [[0, 0, 2, 2], [3, 0, 1, 1]], "instance_areas": [4, 1]}
    said = [np.ones_like(truth)]
    counts = evaluation.count(row, truth, numbers, said, [], 3, PARAMS)
    assert counts.objects.tolist() == [1, 0, 0]
    assert counts.overlap[0, :, 0, 1].tolist() == [3, 5]  # of its window, columns 0 to 2: two px too many
    assert counts.overlap.sum() == 8


def test_sizes_add_pixels_up_before_dividing():
    overlaps = np.zeros((1, 2, 3, 3), int)
    for seed in range(3):
        truth, numbers, labels = random_masks(seed)
        overlaps += counted(truth, labels[:1], numbers).overlap
    value = evaluation.by_size(overlaps)[0, 2]
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
    confusion = counted(truth, [said], params=Evaluation("val", (5, 9), widths)).confusion
    assert confusion.sum() == (truth != VOID).sum()
    away = distances(truth)
    for width, found in zip(widths, confusion[0].cumsum(0), strict=False):
        near = (away <= width) & (truth != VOID)
        expected = np.zeros((3, 3), int)
        np.add.at(expected, (truth[near], said[near]), 1)
        np.testing.assert_array_equal(found, expected)
    for value, found in zip(evaluation.by_width(confusion)[0], confusion[0].cumsum(0), strict=False):
        np.testing.assert_equal(value, metrics.mean(metrics.ious(found)))


def test_void_is_a_label_so_that_bands_begin_at_its_rim():
    truth = picture("0000###1111")
    confusion = counted(truth, [np.zeros_like(truth)]).confusion[0]
    # rims at columns 3 and 7, a width of 1 adds 2 and 8, of 2 adds 1 and 9
    assert confusion.cumsum(0)[:, :2, 0].tolist() == [[2, 2], [3, 3], [4, 4]]
