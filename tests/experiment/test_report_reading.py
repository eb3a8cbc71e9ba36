"""What the page takes for a report."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from deconvnet.errors import InputError
from experiment.report import reading
from stages.report import EVALUATED

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


@pytest.mark.parametrize(
    ("name", "line", "column"),
    [
        ("confusion.csv", "fcn8s,ball,ball", "pixels"),
        ("per_class.csv", "ball", "edeconvnet"),
        ("sizes.csv", "deconvnet", "small"),
        ("boundary.csv", "1", "stage1"),
        ("intervals.csv", "fcn8s,", "mean_iou"),
        ("intervals.csv", "deconvnet,fcn8s", "mean_iou"),
        ("metrics.json", "fcn8s", "mean_iou"),
        ("metrics.json", "edeconvnet", "pixel_accuracy"),
        ("metrics.json", "edeconvnet", "boundary"),
    ],
)
def test_one_other_digit_is_seen(tmp_path, name, line, column):
    classes = yaml.safe_load((DEMO.parent / "params.yaml").read_text())["dataset"]["classes"]

    def agree():
        found = {Path(each).stem: reading.report(tmp_path / each, "evaluate") for each in EVALUATED}
        reading.check_agreement(found, classes)

    for each in EVALUATED:
        shutil.copy(DEMO / each, tmp_path)
    agree()
    if name.endswith(".json"):
        found = json.loads((tmp_path / name).read_text())
        found[line][column] = round(found[line][column] + 0.001, 6)
        (tmp_path / name).write_text(json.dumps(found))
    else:
        header, *rows = (tmp_path / name).read_text().splitlines()
        at = next(at for at, row in enumerate(rows) if row.startswith(f"{line},"))
        cells = rows[at].split(",")
        place = header.split(",").index(column)
        cells[place] = (
            str(int(cells[place]) + 1000) if name == "confusion.csv" else f"{float(cells[place]) + 0.001:.6f}"
        )
        rows[at] = ",".join(cells)
        (tmp_path / name).write_text("\n".join([header, *rows]) + "\n")
    with pytest.raises(ValueError, match="not what the other reports say"):
        agree()


@pytest.mark.parametrize("data", [b"\xff\xfe\x00", b"", b"\x00" * 99, "Größe".encode("latin-1")])
def test_bytes_that_are_no_report(tmp_path, data):
    for name in ("sizes.csv", "metrics.json"):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match="not as it was written"):
            reading.report(tmp_path / name, "evaluate")
