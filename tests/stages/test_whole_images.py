"""DeconvNet on whole images of any shape: `crops.context: whole` and an input of height and width."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
import yaml

from deconvnet import Predictor, crops, nets, predict, tables
from deconvnet.boxes import windows
from deconvnet.errors import InputError
from deconvnet.images import decode_image
from deconvnet.inference.models import load_net
from deconvnet.inference.windows import select
from deconvnet.nets import files
from deconvnet.proposals import SCHEMA
from deconvnet.scores import decode
from deconvnet.settings import Size
from demo.world import archives
from experiment.params import load
from stages import (
    crf,
    dataset,
    ensemble,
    evaluate,
    fetch,
    infer,
    pretrain,
    proposals,
    reestimate,
    report,
    train,
    train_fcn,
)
from stages import crops as crops_stage
from tests import pipeline
from tests.world import CLASSES, CPU, arguments, equal, reestimation_arguments, weights, write_experiment, write_params

SPEC = {"kind": "deconvnet", "classes": 12, "eps": None}
SHAPE = [64, 96]  # height and width
WHOLE = {"crops": {"context": "whole", "square": True}}


def test_the_shapes_of_a_camvid_net():
    """1 x 3 x 352 x 480 -> 1 x 12 x 352 x 480, the contract of the whole-image variants that are around."""
    size = {"width": 64, "fc_width": 4096, "input_size": [352, 480]}
    with torch.device("meta"):
        net = nets.build(SPEC | {"size": size})
    assert net(torch.empty(1, 3, 352, 480, device="meta")).shape == (1, 12, 352, 480)
    assert net.encoder.fc6.conv.weight.shape == (4096, 512, 11, 15)  # all of pool5: 352 / 32 and 480 / 32
    assert net.fc6_deconv.conv.weight.shape == (4096, 512, 11, 15)
    size |= {"width": 2, "fc_width": 8}
    net = nets.build(SPEC | {"size": size}).eval()
    with torch.no_grad():
        scores = net(torch.randint(0, 256, (1, 3, 352, 480)))
    assert scores.shape == (1, 12, 352, 480) and scores.isfinite().all()


def test_sizes():
    assert Size(4, 8, 64).shape == (64, 64) and Size(4, 8, [64, 96]).fc_kernel == (2, 3)
    for size in (100, [64, 100], [64], [64, 64, 64]):
        with pytest.raises(ValueError, match="input_size: "):
            Size(4, 8, size)


def test_the_window_is_the_image():
    boxes = np.array([[10, 10, 20, 20], [1, 2, 3, 4]])
    assert windows(boxes, "whole", True, (50, 80)).tolist() == [[0, 0, 80, 50]]
    for found in (boxes, boxes[:0]):
        assert select(found, "whole", True, 1000, 50, (50, 80)).tolist() == [[0, 0, 80, 50]]


def test_every_image_once_for_each_class_in_it(tmp_path):
    rows = [
        {"image_id": "a", "height": 50, "width": 80, "instance_classes": [2, 1, 2, 3], "instance_areas": [9, 9, 9, 0],
         "instance_boxes": [[0, 0, 3, 3]] * 4},
        {"image_id": "b", "height": 60, "width": 70, "instance_classes": [], "instance_areas": [],
         "instance_boxes": []},
        {"image_id": "c", "height": 40, "width": 30, "instance_classes": [3], "instance_areas": [9],
         "instance_boxes": [[0, 0, 3, 3]]},
    ]  # fmt: skip
    tables.write(tmp_path / "train-000.parquet", pa.Table.from_pylist(rows))
    frame, classes = crops.find_windows(tmp_path, "trainaug", "whole", True, tmp_path / "no-proposals")
    assert frame.to_numpy().tolist() == [
        ["a", 0, 0, 80, 50, 2, 1], ["a", 0, 0, 80, 50, 1, 2], ["c", 0, 0, 30, 40, 1, 3]
    ]  # fmt: skip
    assert classes.tolist() == [2, 1, 2, 3]  # of the objects that are there


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An experiment on whole images, with an untrained encoder for SHAPE."""
    monkeypatch.chdir(tmp_path)
    write_experiment(tmp_path)
    torch.manual_seed(3)
    size = {"width": 4, "fc_width": 16, "input_size": SHAPE}
    net = nets.build({"kind": "classifier", "size": size, "classes": len(CLASSES), "eps": 1e-5})
    files.save("encoder.pt", net.spec, net.state_dict(), {})
    rows = tables.read("dataset/train-000.parquet", ["image_id", "height", "width"]).to_pylist()
    table = pd.DataFrame({"image_id": [row["image_id"] for row in rows], "x": 0, "y": 0})
    table["side_x"], table["side_y"] = [row["width"] for row in rows], [row["height"] for row in rows]
    table = table.assign(instance=1, class_id=1, copies=1)
    tables.write("crops.parquet", pa.Table.from_pandas(table, preserve_index=False))
    write(WHOLE)
    return tmp_path


def write(changes):
    write_params(Path(), changes | {
        "pretrain": {"size": {"width": 4, "fc_width": 16, "input_size": SHAPE}, "resized": [72, 108]},
        "train": {"resized": [72, 108]}, "infer": {"precision": "float32"},
    })  # fmt: skip


def test_training_to_prediction(folder):
    train.main(["stage1", *arguments("s1")])
    losses = pd.read_csv("s1.csv")["loss"]
    assert losses.iloc[-1] < losses.iloc[0]
    train.main(["stage2", *arguments("s2")])  # from the encoder, too
    assert equal(weights("s1.pt"), weights("s2.pt"))  # so stage 1 learns all that an image shows, not one object
    write({"crops": {"context": 1.2}})
    train.main(["stage1", *arguments("alone")])
    assert not equal(weights("s1.pt"), weights("alone.pt"))
    write(WHOLE)
    reestimate.main(reestimation_arguments("deconvnet.pt"))

    net, about = load_net("deconvnet.pt", CPU, "float32")
    assert net.encoder.size.shape == (64, 96) and about["windows"]["context"] == "whole"
    row = tables.read("dataset/train-000.parquet").to_pylist()[0]
    wanted = predict(net, decode_image(row["image"]))
    result = Predictor("deconvnet.pt", inference=load("params.json").infer)(decode_image(row["image"]))
    assert result.windows == 1
    np.testing.assert_allclose(result.probabilities, wanted, atol=1e-5)

    tables.write("proposals/train-000.parquet", SCHEMA.empty_table())  # none, and none is needed
    line = "--model deconvnet.pt --dataset dataset --proposals proposals --out scores --shards train-000 --growth"
    infer.main(f"{line} --params params.json".split())
    scored = tables.read("scores/train-000.parquet").to_pylist()[0]
    assert scored["windows"] == 1 and len(set(scored["growth"])) == 1
    assert (decode(scored, len(CLASSES)).argmax(0) == wanted.argmax(0)).mean() > 0.99


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """The experiment of `pipeline.write_repository`, on whole images; the working folder."""
    experiment = pipeline.write_repository(tmp_path / "repository")
    params = yaml.safe_load((experiment / "params.yaml").read_text())
    params["crops"]["context"] = "whole"
    params["pretrain"]["size"]["input_size"] = SHAPE
    params["pretrain"]["resized"] = params["train"]["resized"] = [72, 108]
    params["report"]["examples"] = 1
    (experiment / "params.yaml").write_text(yaml.safe_dump(params))
    monkeypatch.chdir(experiment)
    return params


def test_from_archives_to_the_report(drawn):
    """Every stage's module in the order of the DAG, as dvc.yaml and the rules call them."""

    def call(module, line):
        module.main(line.split())

    for name, entry in drawn["fetch"].items():
        call(archives if "world" in entry["by"] else fetch, name)
    files_of = {name: entry["file"] for name, entry in drawn["fetch"].items()}
    archive_lists = f"--input {files_of['voc_trainval']} --sbd {files_of['sbd']} --test {files_of['voc_test']}"
    call(dataset, f"{archive_lists} --out data/dataset")
    shards = sorted(path.stem for path in Path("data/dataset").glob("*.parquet"))
    edges = f"--edge-model {files_of['edge_model']}"
    for name in shards:
        call(proposals, f"shard --dataset data/dataset/{name}.parquet {edges} --out data/proposals/{name}.parquet")
    call(proposals, "recall --dataset data/dataset --proposals data/proposals --metrics reports/proposals.json "
                    "--plot reports/proposals.csv")  # fmt: skip
    for stage in ("stage1", "stage2"):
        also = " --proposals data/proposals" * (stage == "stage2")
        call(crops_stage, f"{stage} --dataset data/dataset --out data/crops/{stage}.parquet{also} "
                          f"--balance reports/crops_{stage}.csv --render reports/crops_{stage}.png")  # fmt: skip
    for module, name, more, out in (
        (pretrain, "pretrain", f"--vgg16 {files_of['vgg16']} --crops data/crops/stage1.parquet", "weights/encoder"),
        (train, "train_stage1", "stage1 --init data/weights/encoder.pt --crops data/crops/stage1.parquet",
         "models/stage1"),
        (train, "train_stage2", "stage2 --init data/models/stage1.pt --crops data/crops/stage2.parquet",
         "models/stage2"),
        (train_fcn, "train_fcn", "--init data/weights/encoder.pt --crops data/crops/stage1.parquet", "models/fcn8s"),
    ):  # fmt: skip
        call(module, f"{more} --dataset data/dataset --out data/{out}.pt --checkpoints data/checkpoints/{name} "
                     f"--curves reports/{name}.csv --metrics reports/{name}.json")  # fmt: skip
    call(reestimate, "--dataset data/dataset --crops data/crops/stage2.parquet --model data/models/stage2.pt "
                     "--out data/models/deconvnet.pt")  # fmt: skip
    val = [name for name in shards if name.startswith("val")]
    for system in ("stage1", "fcn8s", "deconvnet"):
        growth = " --growth" * (system == "deconvnet")
        call(infer, f"--model data/models/{system}.pt --dataset data/dataset --proposals data/proposals "
                    f"--out data/scores/{system} --shards {' '.join(val)}{growth}")  # fmt: skip
    for name in val:
        members = " ".join(f"data/scores/{system}/{name}.parquet" for system in ("deconvnet", "fcn8s"))
        call(ensemble, f"--dataset data/dataset/{name}.parquet --members {members} "
                       f"--out data/scores/edeconvnet/{name}.parquet")  # fmt: skip
        for system in ("fcn8s", "deconvnet", "edeconvnet"):
            call(crf, f"--dataset data/dataset/{name}.parquet --scores data/scores/{system}/{name}.parquet "
                      f"--out data/labels/{system}_crf/{name}.parquet --processes 1")  # fmt: skip
    places = "--dataset data/dataset --scores data/scores --labels data/labels --reports reports "
    places += "--images data/evaluation/images.parquet"
    call(evaluate, places)
    call(report, f"{places} --proposals data/proposals --model data/models/deconvnet.pt --out reports/index.html")

    windows_of = tables.read("data/crops/stage2.parquet").to_pandas()
    assert (windows_of[["side_x", "side_y"]].to_numpy() == [200, 160]).all()  # the demo's images are 160x200
    assert files.read("data/models/fcn8s.pt")["spec"]["size"]["input_size"] == SHAPE
    scored = [row for name in val for row in tables.read(f"data/scores/deconvnet/{name}.parquet").to_pylist()]
    assert len(scored) == 4 and {row["windows"] for row in scored} == {1}
    assert json.loads(Path("reports/metrics.json").read_text())["deconvnet"]["mean_iou"] > 0
    assert "1 proposal" in Path("reports/index.html").read_text()


def test_parameters_that_do_not_fit(folder):
    params = json.loads((folder / "params.json").read_text())
    for section, key, value, message in (
        ("train", "resized", [72, 90], "less than pretrain.size.input_size"),
        ("train", "resized", [72], "resized: .* a side in px, or height and width"),
        ("pretrain", "resized", [64, 95], "pretrain: resized: .* is less than size.input_size"),
        ("crops", "context", "all", "crops.context: 'all' is not allowed"),
    ):
        changed = params | {section: params[section] | {key: value}}
        (folder / "params.json").write_text(json.dumps(changed))
        with pytest.raises(InputError, match=message):
            load("params.json")
