"""The page of every image: what is an error, what is in the files, which numbers the page has."""

import io
import json
import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from deconvnet.errors import InputError
from deconvnet.images import PALETTE, VOID, decode_mask, encode_mask
from deconvnet.systems import SYSTEMS
from experiment.report import browser
from experiment.report.pictures import LINE
from tests.conftest import jpeg

CLASSES = ["background", "one", "</script><b>two", "three"]
TRUTH = np.array([[0, 0, 1, 1, VOID], [0, 2, 2, 1, VOID]], np.uint8)
LABELS = np.array([[0, 3, 0, 1, 0], [0, 2, 1, 1, 3]], np.uint8)  # invented at (0, 1), missed (0, 2), confused (1, 2)


def test_errors_by_kind():
    missed, invented, confused = (number for number, _ in browser.ERRORS.values())
    expected = [[0, invented, missed, 0, 0], [0, 0, confused, 0, 0]]
    assert browser.errors(TRUTH, LABELS).tolist() == expected  # void is no error


def row(name="2007_000033", truth=TRUTH, labels=LABELS) -> dict:
    height, width = truth.shape
    image = np.full((height, width, 3), (200, 100, 50), np.uint8)
    known = {"image_id": name, "height": height, "width": width, "image": jpeg(image), "class_mask": encode_mask(truth)}
    return known | {"labels": {key: encode_mask(labels if key == "fcn8s" else truth % VOID) for key in SYSTEMS}}


def test_the_panels_of_an_image():
    photo, stack = browser.pictures(row())
    np.testing.assert_allclose(np.asarray(Image.open(io.BytesIO(photo))), np.broadcast_to((200, 100, 50), (2, 5, 3)),
                               atol=4)  # fmt: skip
    numbers = decode_mask(stack)
    assert numbers.shape == (2 * len(browser.PANELS), 5)
    panels = dict(zip(browser.PANELS, numbers.reshape(-1, 2, 5), strict=True))
    truth = TRUTH.copy()
    truth[0, 1] = truth[0, 2] = truth[1, 0] = truth[1, 2] = browser.BORDER  # before another region, not before void
    np.testing.assert_array_equal(panels["truth"], truth)
    np.testing.assert_array_equal(panels["errors fcn8s"], browser.errors(TRUTH, LABELS))
    assert panels["labels fcn8s"][1, 4] == 3 and not panels["errors deconvnet"].any()
    shown = np.asarray(Image.open(io.BytesIO(stack)).convert("RGBA"))
    assert shown[0, 0, 3] == 0 and shown[0, 3].tolist() == [*PALETTE[1], 255] and shown[0, 2].tolist() == [*LINE, 255]


def test_a_large_image_is_shrunk():
    truth = np.zeros((400, 2 * browser.LONGEST), np.uint8)
    photo, stack = browser.pictures(row(truth=truth, labels=truth))
    assert Image.open(io.BytesIO(photo)).size == (browser.LONGEST, 200)
    assert Image.open(io.BytesIO(stack)).size == (browser.LONGEST, 200 * len(browser.PANELS))


def table(*names: str) -> pd.DataFrame:
    """The evaluation's rows of LABELS, counted by hand, for every system; the second image is all void."""
    rows = []
    for name in names:
        for key in SYSTEMS:
            void = name != names[0]
            right, true, predicted = ([2, 2, 1, 0], [3, 3, 2, 0], [3, 3, 1, 1]) if not void else ([0] * 4,) * 3
            rows.append((name, key, None if void else 0.40945, right, true, predicted))
    return pd.DataFrame(rows, columns=["image_id", "system", "mean_iou", "right", "true", "predicted"])


def test_the_numbers_of_an_image():
    images = table("a", "b")
    images.at[0, "predicted"] = [3, 4, 0, 1]  # stage 1 does not find class 2
    images.at[0, "right"] = [2, 2, 0, 0]
    found = browser.numbers(images)
    assert found["a"] == ([0, 1, 2], [[40.9, 0, 50.0, 1, 40.0, 2, None, 3, 0.0]]
                          + [[40.9, 0, 50.0, 1, 50.0, 2, 50.0, 3, 0.0]] * (len(SYSTEMS) - 1))  # fmt: skip
    assert found["b"] == ([], [[None]] * len(SYSTEMS))


def test_the_folder(tmp_path):
    rows = [row("a"), row("b & <i>")]
    size = browser.write(tmp_path / "one", rows, table("a", "b & <i>"), CLASSES, threads=2)
    browser.write(tmp_path / "other", rows, table("a", "b & <i>"), CLASSES, threads=1)
    files = {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()}
    assert set(files) == {"index.html", "a.jpg", "a.png", "b & <i>.jpg", "b & <i>.png"}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "other").iterdir()}  # the same bytes, always
    assert size == sum(map(len, files.values()))
    page = files["index.html"].decode()
    known = re.search(r'<script id="data" type="application/json">(.*?)</script>', page).group(1)
    known = json.loads(known)
    assert "<b>two" not in page and known["classes"] == CLASSES
    assert [image[:4] for image in known["images"]] == [["a", 5, 2, [0, 1, 2]], ["b & <i>", 5, 2, []]]
    assert known["systems"] == [system.name for system in SYSTEMS.values()]
    assert not re.search(r'(src|href)="(?!\.\./index\.html|data:,)', page)  # no host, no other file


def test_a_folder_is_written_whole_or_not_at_all(tmp_path):
    browser.write(tmp_path / "images", [row("a")], table("a"), CLASSES, threads=1)
    before = {path.name for path in (tmp_path / "images").iterdir()}
    with pytest.raises(InputError, match="unknown: in the data set, but not evaluated"):
        browser.write(tmp_path / "images", [row("a"), row("unknown")], table("a"), CLASSES, threads=1)
    assert {path.name for path in (tmp_path / "images").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["images"]
