"""The DAG: a tiny world runs through it as users run it."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import yaml

from tests.pipeline import bytes_of, call, clone, environment, repro, worked

REPOSITORY = Path(__file__).parents[2]
DVC = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]


@pytest.fixture(scope="module")
def world(built, tmp_path_factory):
    return clone(built, tmp_path_factory.mktemp("pipeline") / "repository")


def test_the_world_is_built(world):
    names = {f"{split}-{number:03d}.parquet" for split, number in (("train", 0), ("train", 1), ("val", 0))}
    assert {path.name for path in (world / "data/dataset").iterdir()} == names
    assert {path.name for path in (world / "data/proposals").iterdir()} == names
    for folder in ("scores/stage1", "scores/fcn8s", "scores/deconvnet", "scores/edeconvnet", "labels/edeconvnet_crf"):
        assert {path.name for path in (world / "data" / folder).iterdir()} == {"val-000.parquet"}
    metrics = json.loads((world / "reports/metrics.json").read_text())
    assert metrics["images"] == 4
    assert 0 < metrics["edeconvnet_crf"]["pixel_accuracy"] <= 1
    assert {path.name for path in (world / "data/models").glob("*.pt")} == {"stage1.pt", "stage2.pt", "deconvnet.pt",
                                                                            "fcn8s.pt"}  # fmt: skip
    entries = [
        entry for stage in DVC.values() for kind in ("outs", "metrics", "plots") for entry in stage.get(kind, [])
    ]
    names = {name for entry in entries for name in ([entry] if isinstance(entry, str) else entry)}
    listed = {name for name in names if name.startswith("reports/")}
    assert {f"reports/{path.name}" for path in (world / "reports").iterdir()} - {"reports/.gitignore"} == listed


def test_a_second_repro_does_nothing(world):
    assert "Data and pipelines are up to date" in repro(world)


def ran(printed):
    return re.findall(r"Running stage '(.*)'", printed)


def test_crf_parameters_rerun_crf_evaluation_and_report_alone(world):
    params = (world / "params.yaml").read_text()
    (world / "params.yaml").write_text(params.replace("iterations: 5", "iterations: 4"))
    done = ran(repro(world, "report"))
    assert sorted(done) == ["crf@deconvnet", "crf@edeconvnet", "crf@fcn8s", "evaluate", "report"]


def test_a_stale_shard_is_rebuilt_alone_to_the_same_bytes(world):
    before = bytes_of(world / "data")
    kept = {path: path.stat().st_mtime_ns for path in (world / "data/proposals").glob("*-000.parquet")}
    (world / "data/proposals/train-001.parquet").unlink()
    (world / "data/proposals/train-009.parquet").write_bytes(b"of another data set")
    (world / "data/proposals/.val-000.parquet.123.tmp").write_bytes(b"left by a killed job")
    for path in (world / "data/dataset").iterdir():
        os.utime(path)  # as after a pull: newer than what was made of it
    done = call(world, "sh", "-c", "PYTHONPATH=.. snakemake --snakefile ../workflow/Snakefile --config stage=proposals")
    assert done.returncode == 0, done.stderr
    assert bytes_of(world / "data") == before
    assert {path.name for path in (world / "data/proposals").iterdir()} == {
        "train-000.parquet",
        "train-001.parquet",
        "val-000.parquet",
    }
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_a_comment_rebuilds_no_shard_and_a_parameter_all(world):
    before = worked(world, "proposals", "shard")
    module = world.parent / "stages/proposals.py"
    module.write_text(module.read_text() + "# a comment\n")
    printed = repro(world)
    assert "Running stage 'proposals'" in printed
    assert "Running stage 'crops" not in printed
    assert worked(world, "proposals", "shard") == before
    params = (world / "params.yaml").read_text()
    (world / "params.yaml").write_text(params.replace("beta: 0.75", "beta: 0.7"))
    printed = repro(world, "crops_stage1", "crops_stage2")
    assert "Running stage 'crops_stage2'" in printed
    assert "Running stage 'crops_stage1'" not in printed
    assert len(worked(world, "proposals", "shard")) - len(before) == 3


@pytest.mark.parametrize("splits, said", [
    ("[nope]", 'params.yaml: infer.splits[0]: \'nope\' is not allowed; allowed: "train", "val", "test"'),
    ("[val, test]", "params.yaml: infer.splits: test is named, but fetch.voc_test has no address; give it one"),
    ("[train]", "params.yaml: evaluate.split: val is not in infer.splits; add it there"),
])  # fmt: skip
def test_bad_splits_stop_snakemake_with_one_line(world, splits, said):
    params = (world / "params.yaml").read_text()
    (world / "params.yaml").write_text(params.replace("splits:\n  - val", f"splits: {splits}"))
    command = "PYTHONPATH=.. snakemake --snakefile ../workflow/Snakefile --config stage=infer system=fcn8s"
    done = call(world, "sh", "-c", command)
    (world / "params.yaml").write_text(params)
    assert done.returncode != 0
    assert f"error: {said}" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_damaged_shard_of_the_data_set_stops_snakemake_with_one_line(world):
    shard = world / "data/dataset/val-000.parquet"
    whole = shard.read_bytes()
    shard.unlink()  # a link into the cache
    shard.write_bytes(whole[:-100])
    command = "PYTHONPATH=.. snakemake --snakefile ../workflow/Snakefile --config stage=proposals"
    done = call(world, "sh", "-c", command)
    shard.write_bytes(whole)
    assert done.returncode != 0
    assert "error: data/dataset/val-000.parquet: damaged; `chmod u+w`, `touch` and remove it, then" in done.stderr
    assert "Traceback" not in done.stderr


def test_training_takes_the_machines_gpus_and_inference_one(world, tmp_path):
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 'GPU 0: one'\necho 'GPU 1: another'\n")
    smi.chmod(0o755)
    path = f"{tmp_path}:{environment()['PATH']}"

    def said(stage, **more):
        options = f"--dry-run --printshellcmds --quiet host --config {stage}"
        command = f"PYTHONPATH=.. snakemake --snakefile ../workflow/Snakefile {options}"
        done = call(world, "sh", "-c", command, PATH=path, **more)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    (world / "data/scores/fcn8s/val-000.parquet").unlink()
    shutil.rmtree(world / ".snakemake", ignore_errors=True)  # a clone has none
    assert "torchrun --standalone --nproc-per-node 2 -m stages.train stage1 " in said("stage=train system=stage1")
    printed = said("stage=infer system=fcn8s")
    assert " gpu=1" in printed and " --shards val-000 --threads " in printed
    # three shards and two GPUs: two jobs
    params = (world / "params.yaml").read_text()
    (world / "params.yaml").write_text(params.replace("splits:\n  - val", "splits: [train, val]"))
    printed = said("stage=infer system=fcn8s")
    (world / "params.yaml").write_text(params)
    assert sorted(re.findall(r"--shards (.*?) --threads", printed)) == ["train-000", "train-001 val-000"]
    assert " python -m stages.train " in said("stage=train system=stage1", CUDA_VISIBLE_DEVICES="1")


def test_bad_parameters_stop_with_one_line(world):
    params = (world / "params.yaml").read_text()
    (world / "params.yaml").write_text(params.replace("context: 1.2", "context: 0.5"))
    before = bytes_of(world / "data")
    done = call(world, "dvc", "repro")
    (world / "params.yaml").write_text(params)
    assert done.returncode != 0
    assert "error: params.yaml: crops.context: 0.5 is not allowed; allowed: a number from 1 to 10" in done.stderr
    assert "Traceback" not in done.stderr
    assert bytes_of(world / "data/dataset") == {
        k.relative_to("dataset"): v for k, v in before.items() if k.parts[0] == "dataset"
    }
