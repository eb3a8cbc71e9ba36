import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from deconvnet import crops


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


def test_a_cap_on_copies():
    classes = np.array([1] * 3 + [2] * 50 + [9])
    copies = crops.balance(classes, per_class=20, seed=1, max_copies=4)
    assert copies[:3].tolist() == [4, 4, 4] and copies[-1] == 4  # 12 and 4 examples instead of 20
    enough = slice(3, -1)
    assert (copies[enough] == crops.balance(classes, 20, 1)[enough]).all() and copies[enough].sum() == 20


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
