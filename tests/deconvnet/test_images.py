import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from deconvnet import images
from tests.conftest import draw, jpeg


def test_palette_is_vocs():
    # the first entries and the last, as VOC's development kit prints them
    known = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 4: (0, 0, 128), 8: (64, 0, 0), 15: (192, 128, 128),
             20: (0, 64, 128), 255: (224, 224, 192)}  # fmt: skip
    assert {number: tuple(images.PALETTE[number]) for number in known} == known


def test_masks_survive(tmp_path):
    mask = np.random.default_rng(0).integers(0, 256, (31, 17)).astype(np.uint8)
    data = images.encode_mask(mask)
    np.testing.assert_array_equal(images.decode_mask(data), mask)
    # a viewer shows VOC's colours
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")), images.colour(mask))


def test_images_are_rgb_in_the_stored_orientation():
    image = np.zeros((8, 16, 3), np.uint8)
    image[:, :, 0] = 200  # red
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[274] = 6  # "turn right by 90 degrees", which masks know nothing of
    Image.fromarray(image).save(buffer, "JPEG", quality=95, exif=exif)
    decoded = images.decode_image(buffer.getvalue())
    assert decoded.shape == (8, 16, 3)
    assert abs(decoded.astype(int) - image).max() < 6
    grey = io.BytesIO()
    Image.fromarray(image[..., 0]).save(grey, "JPEG")
    assert images.decode_image(grey.getvalue()).shape == (8, 16, 3)


@pytest.mark.parametrize("keep", [0, 10, 300, -300])
def test_damaged_images_fail(keep):
    with pytest.raises(ValueError, match="does not decode"):
        images.decode_image(jpeg(draw(0)[0])[:keep])


def test_contact_sheet():
    pictures = [np.full((2, 3, 3), value, np.uint8) for value in (10, 20, 30)]
    sheet = images.contact_sheet(pictures, columns=2, gap=1)
    assert sheet[..., 0].tolist() == [
        [10, 10, 10, 255, 20, 20, 20],
        [10, 10, 10, 255, 20, 20, 20],
        [255] * 7,
        [30, 30, 30, 255, 255, 255, 255],
        [30, 30, 30, 255, 255, 255, 255],
    ]


@given(
    st.integers(0, 999),
    st.lists(st.integers(-15, 25), min_size=2, max_size=2),
    st.lists(st.integers(1, 30), min_size=2, max_size=2),
)
def test_a_window_pads_and_never_clips_by_a_loop(seed, corner, sides):
    rng = np.random.default_rng(seed)
    image, labels = rng.integers(1, 256, (12, 17, 3)).astype(np.uint8), rng.integers(0, 21, (12, 17)).astype(np.uint8)
    crop, crop_labels = images.cut_window(image, labels, (*corner, *sides))
    assert crop_labels.shape == (sides[1], sides[0])
    for v in range(sides[1]):
        for u in range(sides[0]):
            y, x = corner[1] + v, corner[0] + u
            inside = 0 <= y < 12 and 0 <= x < 17
            assert crop_labels[v, u] == (labels[y, x] if inside else 255)
            assert crop[v, u].tolist() == (image[y, x].tolist() if inside else [0, 0, 0])
