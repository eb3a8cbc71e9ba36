import dataclasses

import cv2
import numpy as np
import pyarrow as pa
import pytest

from deconvnet import proposals, tables
from deconvnet.boxes import iou
from deconvnet.errors import InputError
from deconvnet.settings import EdgeBoxes, Recall


def scene():
    """One bright rectangle [60, 40, 80, 60] on a dark textured ground: (120, 200, 3)."""
    image = np.random.default_rng(0).integers(40, 60, (120, 200, 3)).astype(np.uint8)
    image[40:100, 60:140] = (220, 120, 30)
    return image


@pytest.fixture
def params():
    return EdgeBoxes(edges="gradient", boxes=500, min_box_area=100)


def test_a_step_edge_lies_where_it_is_and_points_across():
    image = np.full((40, 60, 3), 30, np.uint8)
    image[:, 30:] = 200
    edges = proposals.gradient_edges(image)
    direction = proposals.orientation(edges)
    thinned = proposals.thin(edges, direction)
    # a vertical edge between columns 29 and 30; its normal is horizontal: 0 or pi
    assert set(np.flatnonzero(thinned[20])) <= {28, 29, 30, 31}
    assert thinned[20].max() == 1
    across = direction[20, 29]
    assert min(across, np.pi - across) < 0.05
    turned = proposals.orientation(proposals.gradient_edges(np.ascontiguousarray(image.transpose(1, 0, 2))))
    assert abs(turned[29, 20] - np.pi / 2) < 0.05


def test_thin_by_a_loop():
    rng = np.random.default_rng(1)
    edges = cv2.GaussianBlur(rng.random((12, 15)).astype(np.float32), (0, 0), 1)
    direction = rng.choice([0, np.pi / 2], edges.shape).astype(np.float32)  # whole steps need no interpolation
    expected = edges.copy()
    for y in range(12):
        for x in range(15):
            for step in (-2, -1, 1, 2):
                ny, nx = (y, x + step) if direction[y, x] == 0 else (y + step, x)
                if edges[min(max(ny, 0), 11), min(max(nx, 0), 14)] > edges[y, x]:
                    expected[y, x] = 0
    # remap interpolates in steps of 1/32 px: equal but for rounding of near ties
    assert ((proposals.thin(edges, direction) > 0) == (expected > 0)).mean() > 0.99


def test_the_object_is_among_the_first_boxes(params):
    boxes, objectness = proposals.EdgeBoxes(params, None)(scene())
    overlaps = iou(boxes, [[60, 40, 80, 60]])[:, 0]
    assert overlaps[0] == overlaps.max() > 0.75
    assert (np.diff(objectness) <= 0).all()
    assert len(boxes) <= params.boxes


def test_an_image_without_edges_or_of_few_pixels_has_no_boxes(params):
    for shape in ((50, 50, 3), (1, 1, 3), (3, 200, 3)):
        boxes, objectness = proposals.EdgeBoxes(params, None)(np.full(shape, 7, np.uint8))
        assert (boxes.shape, objectness.shape) == ((0, 4), (0,))


def test_a_shard_of_no_images_has_no_boxes(params):
    found = proposals.propose(pa.table({"image_id": pa.array([], pa.string()), "image": pa.array([], pa.binary())}),
                              proposals.EdgeBoxes(params, None))  # fmt: skip
    assert (found.schema, len(found)) == (proposals.SCHEMA, 0)


def test_structured_edges_need_their_model(params, tmp_path):
    structured = dataclasses.replace(params, edges="structured")
    for content in (None, b"", b"not a forest"):
        model = tmp_path / "model.yml.gz"
        if content is not None:
            model.write_bytes(content)
        with pytest.raises(InputError, match=r"model\.yml\.gz: (no edge model|not a structured-forest)"):
            proposals.EdgeBoxes(structured, model)


def recall_world(folder):
    """Two objects; the first is found exactly by box 2, the second by no box of IoU over 0.5."""
    (folder / "dataset").mkdir()
    (folder / "proposals").mkdir()
    row = {"image_id": ["a", "b"], "instance_boxes": [[[0, 0, 10, 10], [50, 50, 2, 2]], [[0, 0, 10, 10]]]}
    row["instance_areas"] = [[100, 4], [100]]
    tables.write(folder / "dataset/val-000.parquet", pa.table(row))
    found = {"image_id": ["a", "a"], "rank": [1, 2], "x": [5, 0], "y": [0, 0], "width": [10, 10], "height": [10, 10],
             "objectness": [0.5, 0.4]}  # fmt: skip
    table = pa.table(found).cast(proposals.SCHEMA)
    tables.write(folder / "proposals/val-000.parquet", table)


def test_recall_by_hand(tmp_path):
    recall_world(tmp_path)
    chosen = Recall("val", min_area=50, boxes=(1, 2, 100), iou=(0.3, 0.9))
    frame = proposals.recall(tmp_path / "dataset", tmp_path / "proposals", chosen)
    # the object of 4 px is not counted; image b has no proposal; box 1 has IoU 1/3 with the object of a
    assert frame.values.tolist() == [[1, 0.3, 0.5, 2], [2, 0.3, 0.5, 2], [100, 0.3, 0.5, 2],
                                     [1, 0.9, 0.0, 2], [2, 0.9, 0.5, 2], [100, 0.9, 0.5, 2]]  # fmt: skip
    with pytest.raises(InputError, match="no object of at least 5000 px in val"):
        proposals.recall(tmp_path / "dataset", tmp_path / "proposals", Recall("val", 5000, (1,), (0.5,)))


@pytest.mark.parametrize("grey", range(0, 256, 51))
def test_a_flat_picture_has_no_edges(grey):
    assert not proposals.gradient_edges(np.full((50, 60, 3), grey, np.uint8)).any()


@pytest.mark.parametrize("height, width", [(1, 1), (3, 7), (15, 200), (200, 15)])
def test_a_tiny_picture_has_no_boxes(params, height, width):
    detector = proposals.EdgeBoxes(params)
    boxes, objectness = detector(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))
    assert boxes.shape == (0, 4)
    assert objectness.shape == (0,)
