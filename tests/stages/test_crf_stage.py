"""The command that refines a shard."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from deconvnet import scores
from deconvnet import tables as parquet
from deconvnet.errors import InputError
from deconvnet.images import decode_mask
from stages import crf
from tests.conftest import jpeg
from tests.deconvnet.test_crf import two_halves


@pytest.fixture
def tables(experiment):
    images, rows = [], []
    for number in range(3):
        image, maps = two_halves(number)
        images.append(jpeg(image))
        rows.append({"image_id": f"p{number}"} | scores.encode(maps))
    names = [row["image_id"] for row in rows]
    parquet.write(
        "data/dataset/val-000.parquet",
        pa.table({"image_id": names, "image": images, "height": 3 * [24], "width": 3 * [32]}),
    )
    parquet.write("data/scores/fcn8s/val-000.parquet", pa.Table.from_pylist(rows, scores.SCHEMA))
    return rows


def call(processes):
    crf.main(["--dataset", "data/dataset/val-000.parquet", "--scores", "data/scores/fcn8s/val-000.parquet",
              "--out", "out.parquet", "--processes", str(processes)])  # fmt: skip
    return parquet.read("out.parquet").to_pylist()


def test_processes_change_nothing(tables):
    one = call(1)
    assert [row["image_id"] for row in one] == ["p0", "p1", "p2"]
    before = Path("out.parquet").read_bytes()
    call(2)
    assert Path("out.parquet").read_bytes() == before
    assert (decode_mask(one[0]["labels"])[:, 16:] == 1).mean() > 0.99


@pytest.mark.parametrize("processes", [1, 2])
def test_scores_of_another_size_than_the_image_are_refused(tables, processes):
    tables[1] |= scores.encode(np.zeros((3, 24, 30), np.float32))
    parquet.write("data/scores/fcn8s/val-000.parquet", pa.Table.from_pylist(tables, scores.SCHEMA))
    with pytest.raises(InputError, match="p1: of 30x24 px, but the image has 32x24"):
        call(processes)
    assert not Path("out.parquet").exists()
