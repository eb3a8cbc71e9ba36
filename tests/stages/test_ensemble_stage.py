"""The command that combines two shards of scores."""

import numpy as np
import pyarrow as pa
import pytest
import yaml

from deconvnet import scores
from deconvnet import tables as parquet
from deconvnet.errors import InputError
from stages import ensemble


@pytest.fixture
def tables(experiment):
    parquet.write("data/dataset/val-000.parquet", pa.table({"image_id": ["a", "b"], "height": [8, 8], "width": [9, 9]}))
    rng = np.random.default_rng(0)
    maps = {}
    for member in ("deconvnet", "fcn8s"):
        maps[member] = rng.normal(0, 3, (2, 3, 8, 9)).astype(np.float32)
        rows = [{"image_id": name} | scores.encode(found) for name, found in zip("ab", maps[member], strict=True)]
        parquet.write(f"data/scores/{member}/val-000.parquet", pa.Table.from_pylist(rows, scores.SCHEMA))
    return maps


def call():
    members = [f"data/scores/{member}/val-000.parquet" for member in ("deconvnet", "fcn8s")]
    ensemble.main(["--dataset", "data/dataset/val-000.parquet", "--members", *members, "--out", "out.parquet"])
    return parquet.read("out.parquet").to_pylist()


def test_the_table_has_the_mean_of_both_members(tables):
    for row, a, b in zip(call(), tables["deconvnet"], tables["fcn8s"], strict=True):
        mean = (np.exp(a) / np.exp(a).sum(0) + np.exp(b) / np.exp(b).sum(0)) / 2
        np.testing.assert_allclose(scores.softmax(scores.decode(row, 3)), mean, atol=0.02)


def test_members_of_other_sizes_are_refused(tables):
    rows = [{"image_id": name} | scores.encode(np.zeros((3, 5, 5), np.float32)) for name in "ab"]
    parquet.write("data/scores/fcn8s/val-000.parquet", pa.Table.from_pylist(rows, scores.SCHEMA))
    with pytest.raises(InputError, match="fcn8s/val-000.parquet: a: of 5x5 px, but the image has 9x8; run `dvc repro`"):
        call()


def test_a_product_too_large_to_keep_is_refused(tables, experiment):
    params = yaml.safe_load((experiment / "params.yaml").read_text())
    params["ensemble"]["method"] = "product"
    (experiment / "params.yaml").write_text(yaml.safe_dump(params))
    for member in ("deconvnet", "fcn8s"):
        rows = [{"image_id": name} | scores.encode(np.full((3, 8, 9), 300, np.float32)) for name in "ab"]
        parquet.write(f"data/scores/{member}/val-000.parquet", pa.Table.from_pylist(rows, scores.SCHEMA))
    with pytest.raises(InputError, match="out.parquet: a: a score of 90000 is beyond .*; set ensemble.method to mean"):
        call()
