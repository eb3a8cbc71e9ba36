"""What the page takes for a report."""

from pathlib import Path

import pytest

from deconvnet.errors import InputError
from experiment.report import reading

DEMO = Path(__file__).parents[2] / "demo/reports"


TAKEN = [path.name for path in sorted(DEMO.iterdir()) if path.stem in reading.COLUMNS and path.suffix == ".csv"]


@pytest.mark.parametrize("name", [*TAKEN, "metrics.json"])
def test_the_demo_s_are_taken(name):
    assert len(reading.report(DEMO / name, "evaluate"))


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        ("sizes.csv", "system", "systen", "columns systen, small, medium, large, not system"),
        ("sizes.csv", "fcn8s,0.", "fcn8s,7.", "small: "),
        ("sizes.csv", "fcn8s,0.", "fcn8s,x", "Unable to parse"),
        ("sizes.csv", "fcn8s,", "fcn9s,", "system: see fcn"),
        ("confusion.csv", "stage1,background,background,", "stage1,background,background,-", "pixels: -"),
        ("confusion.csv", "stage1,background,ball,", "stage1,background,background,", "a row is there twice"),
        ("boundary.csv", "\n2,", "\n1,", "width: not ascending"),
        ("metrics.json", '"images"', '"pictures"', "'images'"),
        ("metrics.json", "{", "[", "Expecting"),
    ],
)
def test_damage(tmp_path, name, old, new, said):
    text = (DEMO / name).read_text()
    assert old in text
    (tmp_path / name).write_text(text.replace(old, new, 1))
    with pytest.raises(InputError) as error:
        reading.report(tmp_path / name, "evaluate")
    assert str(error.value).startswith(f"{tmp_path / name}: not as it was written (") and said in str(error.value)


@pytest.mark.parametrize("data", [b"\xff\xfe\x00", b"", b"\x00" * 99, "Größe".encode("latin-1")])
def test_bytes_that_are_no_report(tmp_path, data):
    for name in ("sizes.csv", "metrics.json"):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match="not as it was written"):
            reading.report(tmp_path / name, "evaluate")
