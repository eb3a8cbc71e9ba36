"""Boxes drawn at random lie in the image and within EdgeBoxes' bounds."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deconvnet import random_boxes
from deconvnet.proposals import SCHEMA
from deconvnet.settings import EdgeBoxes


@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 2000), st.floats(1, 5), st.integers(0, 9))
def test_boxes_lie_in_the_image(height, width, area, ratio, seed):
    chosen = EdgeBoxes(boxes=20, min_box_area=area, max_aspect_ratio=ratio)
    boxes = random_boxes.draw(height, width, chosen, np.random.default_rng(seed))
    assert boxes.shape == (20, 4) and boxes.dtype == np.float32
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 0] + boxes[:, 2] <= width + 1e-3).all() and (boxes[:, 1] + boxes[:, 3] <= height + 1e-3).all()
    assert (boxes[:, 2:] > 0).all()


def test_areas_and_ratios_are_spread_evenly():
    chosen = EdgeBoxes(boxes=5000, min_box_area=100, max_aspect_ratio=3.0)
    boxes = random_boxes.draw(1000, 1000, chosen, np.random.default_rng(1)).astype(float)
    area, ratio = boxes[:, 2] * boxes[:, 3], boxes[:, 2] / boxes[:, 3]
    assert area.min() >= 99.9
    whole = (boxes[:, 2:] < 999).all(1)  # those that were not cut
    assert 0.9 < whole.mean() < 1 and (np.abs(np.log(ratio[whole])) <= np.log(3.001)).all()
    assert np.mean(area < 1e4) == pytest.approx(0.5, abs=0.03)  # the geometric mean of the bounds
    assert np.mean(ratio < 1) == pytest.approx(0.5, abs=0.03)


def test_a_table_of_proposals():
    images = pa.table({"image_id": ["a", "b"], "height": [30, 50], "width": [40, 60]})
    chosen = EdgeBoxes(boxes=7, min_box_area=50)
    table = random_boxes.propose(images, chosen, 5)
    assert table.schema == SCHEMA and len(table) == 14
    assert table["rank"].to_pylist() == [*range(1, 8)] * 2
    assert table.equals(random_boxes.propose(images, chosen, 5)) and not table.equals(
        random_boxes.propose(images, chosen, 6)
    )
    assert random_boxes.propose(images[:0], chosen, 5).schema == SCHEMA
