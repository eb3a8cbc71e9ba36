"""DeconvNet on whole images is a configuration: the same DAG from crops to the report."""

import json

import yaml

from deconvnet import tables
from deconvnet.nets import files
from tests.pipeline import clone, repro


def test_whole_images_from_crops_to_the_report(built, tmp_path):
    world = clone(built, tmp_path / "repository")
    params = yaml.safe_load((world / "params.yaml").read_text())
    params["crops"]["context"] = "whole"
    params["pretrain"]["size"]["input_size"] = [64, 96]
    params["pretrain"]["resized"] = params["train"]["resized"] = [72, 108]
    (world / "params.yaml").write_text(yaml.safe_dump(params))
    repro(world)
    assert files.read(world / "data/models/fcn8s.pt")["spec"]["size"]["input_size"] == [64, 96]
    shards = [tables.read(path).to_pylist() for path in sorted((world / "data/scores/deconvnet").glob("*.parquet"))]
    assert {row["windows"] for rows in shards for row in rows} == {1}
    assert json.loads((world / "reports/metrics.json").read_text())["deconvnet"]["mean_iou"] > 0
    assert "1 proposal" in (world / "reports/index.html").read_text()
