import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st

from deconvnet import boxes

BOX = st.tuples(st.integers(-20, 20), st.integers(-20, 20), st.integers(1, 30), st.integers(1, 30))
BOXES = st.lists(BOX, min_size=1, max_size=6).map(lambda rows: np.array(rows, np.float32))


def corners(rows):
    return torch.from_numpy(np.concatenate([rows[:, :2], rows[:, :2] + rows[:, 2:]], 1))


@given(BOXES, BOXES)
def test_iou_is_torchvisions(a, b):
    expected = torchvision.ops.box_iou(corners(a), corners(b)).numpy()
    np.testing.assert_allclose(boxes.iou(a, b), expected, rtol=1e-5)


def test_iou_by_hand():
    # 10x10 boxes, shifted by 5: 50 px shared of 150
    np.testing.assert_allclose(
        boxes.iou([[0, 0, 10, 10]], [[5, 0, 10, 10], [10, 0, 4, 4], [0, 0, 0, 0]]), [[1 / 3, 0, 0]]
    )


@pytest.mark.parametrize(
    ("box", "square", "window"),
    [
        ((10, 20, 50, 100), True, (-25, 10, 120, 120)),  # longer side 100 x 1.2, about the centre (35, 70)
        ((10, 20, 50, 100), False, (5, 10, 60, 120)),
        ((0, 0, 1, 1), True, (0, 0, 1, 1)),
        ((95, 0, 10, 10), True, (94, -1, 12, 12)),  # may end beyond an image 100 px wide, and begin before it
    ],
)
def test_windows_by_hand(box, square, window):
    assert boxes.windows([box], 1.2, square).tolist() == [list(window)]


@given(BOXES, st.sampled_from([1.0, 1.2, 2.0]), st.booleans())
def test_windows_hold_their_boxes(rows, context, square):
    found = boxes.windows(rows, context, square)
    assert (found[:, :2] <= rows[:, :2] + 0.5).all()
    assert (found[:, :2] + found[:, 2:] >= rows[:, :2] + rows[:, 2:] - 0.5).all()
    assert not square or (found[:, 2] == found[:, 3]).all()
    assert boxes.windows(np.zeros((0, 4)), context, square).shape == (0, 4)
