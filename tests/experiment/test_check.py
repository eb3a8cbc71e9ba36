"""What a run is said to need, against hand arithmetic and the demo's own files."""

import time

import pyarrow as pa
import pytest
import torch
import yaml

from deconvnet import cost, tables
from deconvnet.errors import InputError
from deconvnet.roofline import GPUS
from deconvnet.steps import inference_census
from experiment import check
from experiment.params import load

ROOT = check.Path(__file__).parents[2]
GPU = GPUS["H200 SXM"]


def rows(out):
    """The table's rows by stage, cells parted by two spaces or more."""
    lines = [line.split("  ") for line in out.split("\n\n")[1].splitlines()]
    return {line[0].strip(): [cell.strip() for cell in line[1:] if cell.strip()] for line in lines}


def test_the_papers_parameters_are_checked_in_seconds(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    begin = time.monotonic()
    check.main([])
    assert time.monotonic() - begin < 60  # 10 s on two idle cores
    out = capsys.readouterr().out
    assert out.startswith("params.yaml: every key is there and allowed\n")
    found = rows(out)
    assert "0.25 EFLOP" in found["train_stage1"] and "0.51 EFLOP" in found["train_stage2"]
    assert found["pretrain"][-1] == "VGG-16's weights, passed on"
    assert "20,000 steps of 64 crops, 64 at once" in found["train_stage1"]


def test_a_typo_anywhere_ends_the_check(experiment):
    params = yaml.safe_load(open("params.yaml"))
    params["crf"]["iteratons"] = params["crf"].pop("iterations")
    (experiment / "params.yaml").write_text(yaml.safe_dump(params))
    with pytest.raises(InputError, match="params.yaml: crf.iteratons: unknown key"):
        check.main([])


def test_images_are_counted_by_the_parameters_then_by_the_data_set(experiment):
    params = load()
    assert check.count_images(params, experiment / "data/dataset") is None
    voc = load(ROOT / "params.yaml")
    assert check.count_images(voc, experiment / "data/dataset") == check.Images(10582, 12031, 1449, 187_500)
    for name, heights in (("train-000", [10, 30]), ("train-001", [20]), ("val-000", [40])):
        path = experiment / f"data/dataset/{name}.parquet"
        ids = [f"{name}-{height}" for height in heights]
        tables.write(path, pa.table({"image_id": ids, "height": heights, "width": [100] * len(heights)}))
    assert check.count_images(params, experiment / "data/dataset") == check.Images(3, 4, 1, 2500)
    tables.write(path, pa.table({"image_id": ["a", "b"], "height": [160, 161], "width": [200, 100]}))
    with pytest.raises(
        InputError, match="val-000.parquet: b: 161x100 px do not fit train_fcn.canvas 160x200 in params"
    ):
        check.count_images(params, experiment / "data/dataset")


def test_needs_by_hand():
    params, images = load(ROOT / "params.yaml"), check.Images(10582, 12031, 1449, 187_500)
    needs = {need.stage: need for need in check.other_needs(params, images)}
    assert needs["dataset"].disk == pytest.approx(12031 * 102e3)
    assert needs["proposals"].disk == pytest.approx(12031 * 2000 * 9.7)
    assert needs["edeconvnet"].disk == pytest.approx(1449 * 1.22e6)
    assert needs["edeconvnet_crf"].disk == pytest.approx(1449 * 3200)
    assert needs["fcn8s_crf"].seconds == pytest.approx(1449 * 2 / check.cores())

    costs = check.train_costs(params, "cuda", 3)
    trained = {need.stage: need for need in check.train_needs(params, costs, GPU)}
    stage1, price = trained["train_stage1"], costs["train_stage1"]
    assert price.devices == 2  # 64 crops do not divide among 3
    assert (stage1.flops, stage1.memory) == (price.flops, price.device_bytes + cost.UNCOUNTED)
    assert stage1.disk == 3 * 4 * 251_788_949  # model, checkpoint, best weights, float32
    assert stage1.seconds == pytest.approx(price.seconds(GPU))
    inferred = {need.stage: need for need in check.infer_needs(params, images, "cuda", 2, GPU)}
    window = inference_census(check.trainings(params)["train_stage1"][1], (224, 224), 1).flops
    assert inferred["infer@stage1"].flops == pytest.approx(1449 * 50 * window)
    assert inferred["infer@deconvnet"].flops == pytest.approx(1449 * 100 * window)  # infer.growth goes to 100
    assert inferred["reestimate"].flops == pytest.approx(501 * 28 * window)


def test_what_common_gpus_would_make_of_it():
    lines = check.on_gpus(load(ROOT / "params.yaml"))
    assert len(lines) == 5 and lines[1].startswith("  train_stage1, train_stage2: 0.2 TFLOP, 7")
    assert "T4" in lines[2] and "H200" in lines[2]  # 9.3 GB fit all of them


def test_without_published_weights_the_encoder_is_trained(experiment):
    params = load()
    assert not params.fetch.vgg16.addresses
    costs = check.train_costs(params, "cuda", 1)
    trained = {need.stage: need for need in check.train_needs(params, costs, GPU)}
    run = params.pretrain.run
    assert trained["pretrain"].flops > run.steps * run.batch * 1e6 and "steps of" in trained["pretrain"].note


def test_what_the_machine_lacks_is_said(experiment, monkeypatch):
    params, images = load(ROOT / "params.yaml"), check.Images(10**7, 10**7, 1449, 187_500)
    needs = [check.Need("train_stage1", memory=1e15, flops=1)]
    lines = check.warnings(params, images, needs, 1e18, torch.device("cpu"))
    assert len(lines) == 3 and "of disk are free, 1,000,000,000 GB are still wanted" in lines[0]
    assert lines[1].startswith("train_stage1 wants 1,000,000 GB") and lines[1].endswith("lower its micro_batch")
    assert lines[2].startswith("decoded images take 9,375 GB, more than training.memory_gb")
    assert not check.warnings(params, None, [], 0, torch.device("cpu"))


def test_an_experiment_of_unknown_size(experiment, capsys):
    (experiment / "data/archives").mkdir(parents=True)
    (experiment / "data/archives/voc_trainval.tar").write_bytes(bytes(3_000_000))
    check.main([])
    out = capsys.readouterr().out
    assert "images of unknown number" in out and "dataset.counts" in out
    found = rows(out)
    assert "infer@deconvnet" not in found and "train_stage1" in found
    assert found["fetch"] == ["3 MB", "without sbd, whose size is not known yet"]
