"""docs/own-data.md: its commands run the whole DAG on images and masks in folders."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from deconvnet import tables
from deconvnet.images import decode_mask
from tests.pipeline import call, commit, git, tiny, write_repository

REPOSITORY = Path(__file__).parents[2]
DOCUMENT = (REPOSITORY / "docs/own-data.md").read_text()


@pytest.fixture
def root(tmp_path):
    root = write_repository(tmp_path / "repository").parent
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(REPOSITORY / name, root)
    commit(root, "a root")
    git(root, "config", "user.name", "test")
    git(root, "config", "user.email", "test@example.org")
    return root


def test_the_documents_commands(root):
    draw, new, run, predict, labels, status = re.findall(r"^```sh\n(.*?)^```$", DOCUMENT, re.M | re.S)
    folder = root

    def run_block(block):
        nonlocal folder
        shell = f"set -o pipefail\n{block}\npwd"
        done = call(folder, "bash", "-eu", "-c", shell, PYTHONPATH=str(root), COLUMNS="200")
        assert done.returncode == 0, block + done.stdout + done.stderr
        *lines, where = done.stdout.splitlines()
        folder = Path(where)
        return "\n".join(lines)

    run_block(draw.replace("folders example", "folders example --images 12"))
    printed = run_block(new)
    assert "10 train and 2 val images of 200x160 px" in printed and "params.yaml: every key is there" in printed
    params = yaml.safe_load((root / "mine/params.yaml").read_text())
    tiny(params)
    params["proposals"]["boxes"], params["proposals"]["recall"]["boxes"] = 50, [10, 50]
    (root / "mine/params.yaml").write_text(yaml.safe_dump(params))

    printed = run_block(run)
    assert "Running stage 'folders@masks'" in printed
    mine = root / "mine"
    rows = [row for path in (mine / "data/dataset").glob("*.parquet") for row in tables.read(path).to_pylist()]
    assert {row["image_id"] for row in rows} == {f"scene {number}" for number in range(1, 13)}
    for row in rows:
        assert row["image"] == (root / f"example/images/{row['image_id']}.jpg").read_bytes()
        mask = np.asarray(Image.open(root / f"example/masks/{row['image_id']}.png"))
        np.testing.assert_array_equal(decode_mask(row["class_mask"]), mask)
    assert {row["image_id"] for row in rows if row["split"] == "val"} == set(
        (mine / "val.txt").read_text().splitlines()
    )
    metrics = json.loads((mine / "reports/metrics.json").read_text())
    assert metrics["images"] == 2 and 0 < metrics["edeconvnet_crf"]["pixel_accuracy"] <= 1
    assert (mine / "reports/index.html").stat().st_size > 10_000
    assert "up to date" in call(mine, "dvc", "status").stdout
    run_block(predict)
    assert Image.open(mine / "predicted/scene 1.png").size == (200, 160)

    assert "round" in run_block(labels)
    assert yaml.safe_load((root / "round/params.yaml").read_text())["dataset"]["labels"]["round"] == [1, 3, 8]
    assert call(root / "round", "dvc", "repro", "dataset", PYTHONPATH=str(root)).returncode == 0

    mask = np.array(Image.open(root / "example/masks/scene 2.png"))
    mask[:4] = 0
    Image.fromarray(mask).save(root / "example/masks/scene 2.png")
    assert re.search(r"folders@masks:\s+changed deps:\s+modified: +\S*example/masks", run_block(status))
    done = call(mine, "dvc", "repro", "dataset")
    assert re.findall(r"Running stage '(.*)'", done.stdout) == ["folders@masks", "dataset"], done.stdout + done.stderr
