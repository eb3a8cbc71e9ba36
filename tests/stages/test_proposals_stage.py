import dataclasses
import json

import numpy as np
import pyarrow as pa
import pytest
import yaml

from deconvnet import tables
from deconvnet.boxes import by_image
from deconvnet.errors import InputError
from deconvnet.proposals import SCHEMA
from experiment import params as parameters
from stages import proposals
from tests.conftest import draw, jpeg


def scene():
    """One bright rectangle [60, 40, 80, 60] on a dark textured ground: (120, 200, 3)."""
    image = np.random.default_rng(0).integers(40, 60, (120, 200, 3)).astype(np.uint8)
    image[40:100, 60:140] = (220, 120, 30)
    return image


def test_recall(experiment, capsys):
    """Two objects; the first is found exactly by box 2, the second by no box of IoU over 0.5."""
    (experiment / "dataset").mkdir()
    (experiment / "proposals").mkdir()
    row = {"image_id": ["a", "b"], "instance_boxes": [[[0, 0, 10, 10], [50, 50, 2, 2]], [[0, 0, 10, 10]]]}
    row["instance_areas"] = [[100, 4], [100]]
    tables.write(experiment / "dataset/val-000.parquet", pa.table(row))
    found = {"image_id": ["a", "a"], "rank": [1, 2], "x": [5, 0], "y": [0, 0], "width": [10, 10], "height": [10, 10],
             "objectness": [0.5, 0.4]}  # fmt: skip
    table = pa.table(found).cast(SCHEMA)
    tables.write(experiment / "proposals/val-000.parquet", table)
    values = yaml.safe_load((experiment / "params.yaml").read_text())
    values["proposals"]["recall"] = {"split": "val", "min_area": 50, "boxes": [2, 100, 1], "iou": [0.9, 0.3]}
    (experiment / "params.yaml").write_text(yaml.safe_dump(values))
    command = "recall --dataset dataset --proposals proposals --metrics metrics.json --plot plot.csv"
    proposals.main(command.split())
    assert (experiment / "plot.csv").read_text().split() == [
        "boxes,recall_iou_0.3,recall_iou_0.9", "1,0.5,0.0", "2,0.5,0.5", "100,0.5,0.5"
    ]  # fmt: skip
    assert json.loads((experiment / "metrics.json").read_text()) == {"recall": {"iou_0.3": 0.5, "iou_0.9": 0.5}}
    assert capsys.readouterr().out == (
        "plot.csv: the best 100 proposals per image find 50.0% at IoU 0.3, 50.0% at IoU 0.9 of val's 2 objects\n"
    )


def test_shard(experiment):
    images = pa.table(
        {"image_id": ["a", "b", "c"], "image": [jpeg(scene()), jpeg(np.zeros((40, 40, 3), np.uint8)), jpeg(draw(1)[0])]}
    )
    tables.write(experiment / "val-000.parquet", images)
    command = ["shard", "--dataset", "val-000.parquet", "--edge-model", "none", "--out"]
    proposals.main([*command, "one.parquet"])
    proposals.main([*command, "two.parquet"])
    assert (experiment / "one.parquet").read_bytes() == (experiment / "two.parquet").read_bytes()
    table = tables.read(experiment / "one.parquet")
    boxes = by_image(table)
    assert set(boxes) == {"a", "c"}, "the black image has no edges"
    ranks = table.to_pandas().groupby("image_id")["rank"].agg(list)
    assert all(rank == list(range(1, len(rank) + 1)) for rank in ranks)
    params = parameters.load().proposals
    wanted = proposals.fingerprint(experiment / "val-000.parquet", experiment / "none", params)
    assert tables.footer(experiment / "one.parquet")["fingerprint"] == wanted
    recall = dataclasses.replace(params.recall, min_area=9)
    for change, same in (({"recall": recall}, True), ({"beta": 0.7}, False)):
        changed = dataclasses.replace(params, **change)
        assert (proposals.fingerprint(experiment / "val-000.parquet", experiment / "none", changed) == wanted) is same
    with pytest.raises(InputError, match="absent.parquet: missing or damaged"):
        proposals.fingerprint(experiment / "absent.parquet", experiment / "none", params)


def test_only_structured_edges_depend_on_the_model(experiment):
    tables.write("val-000.parquet", pa.table({"image_id": ["a"]}))
    gradient = parameters.load().proposals
    structured = dataclasses.replace(gradient, edges="structured")
    found = []
    for content in (b"one", b"two"):
        (experiment / "model").write_bytes(content)
        marks = [proposals.fingerprint(experiment / "val-000.parquet", experiment / "model", chosen)
                 for chosen in (gradient, structured)]  # fmt: skip
        found.append(marks)
    assert found[0][0] == found[1][0]
    assert found[0][1] != found[1][1]
