"""The whole parameter file: what is checked at every start, and that the repository's own files hold."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from deconvnet import settings
from deconvnet.errors import InputError
from experiment import params

REPOSITORY = Path(__file__).parents[2]
STAGES = sorted(path.stem for path in (REPOSITORY / "stages").glob("[!_]*.py"))


@pytest.fixture
def values():
    return yaml.safe_load((REPOSITORY / "demo/params.yaml").read_text())


def written(folder, values, name="params.yaml"):
    path = folder / name
    path.write_text(yaml.safe_dump(values))
    return path


def changed(values, key, value):
    """The parameters with one of them set; `value` ... removes it."""
    *parents, last = key.split(".")
    section = values
    for name in parents:
        section = section[name]
    if value is ...:
        del section[last]
    else:
        section[last] = value
    return values


def test_the_root_has_the_library_s_defaults():
    """What a Python user gets without a file is what the paper's parameter file says."""
    root = params.load(REPOSITORY / "params.yaml")
    for own, default in (
        (root.proposals, settings.EdgeBoxes()),
        (root.crops, settings.Crops()),
        (root.pretrain, settings.Pretraining()),
        (root.train, settings.Training()),
        (root.reestimate, settings.Reestimation()),
        (root.train_fcn, settings.FcnTraining()),
        (root.infer, settings.Inference()),
        (root.ensemble, settings.Ensemble()),
        (root.crf, settings.Crf()),
        (root.evaluate, settings.Evaluation()),
    ):
        assert own == default


@pytest.mark.parametrize("folder", [REPOSITORY / "demo", REPOSITORY / "small"])
def test_every_experiment_s_parameters_hold_and_say_what_to_expect(folder):
    params.load(folder / "params.yaml")
    head = (folder / "params.yaml").read_text().split("\n\n")[0]
    for word in ("command", "time", "memory", "disk", "expect"):
        assert f"#   {word}" in head


def test_what_trainings_share_stands_once_and_a_run_may_differ(tmp_path, values):
    values["training"]["momentum"] = 0.8
    values["train"]["stage2"]["momentum"] = 0.7
    found = params.load(written(tmp_path, values))
    runs = [found.pretrain.run, found.train.stage1, found.train.stage2, found.train_fcn.run]
    assert [run.momentum for run in runs] == [0.8, 0.8, 0.7, 0.8]
    assert {run.seed for run in runs} == {2015}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("crf.iteratons", 3, "crf.iteratons: unknown key (value 3); allowed: iterations, normalization"),
        ("crf.iterations", 0, "crf.iterations: 0 is not allowed; allowed: a whole number from 1 to 1000"),
        ("crf.iterations", ..., "crf.iterations: missing; needed: a whole number from 1 to 1000"),
        ("crf", ..., "crf: missing section; add it"),
        ("crop", {}, "crop: unknown section; allowed: root, fetch, dataset"),
        ("report.side", "wide", "report.side: 'wide' is not allowed"),
        ("infer.growth", [], "infer: growth: [] is not allowed; allowed: one or more different values"),
        ("infer.growth", [5, 5], "infer: growth: [5, 5] is not allowed"),
        ("evaluate.split", "train", "evaluate.split: train is not in infer.splits"),
        ("infer.splits", ["val", "test"], "infer.splits: test is named, but fetch.voc_test has no address"),
        ("proposals.edges", "structured", "proposals.edges: structured needs fetch.edge_model"),
        ("train.resized", 64, None),
        ("pretrain.size.input_size", 96, "pretrain: resized: 72 is less than size.input_size 96"),
        ("train_fcn.canvas", [160], "train_fcn: canvas: allowed: two numbers of px"),
        ("train.stage1.batch", 33, "train.stage1: batch: 33 does not divide into equal micro-batches"),
        ("train.stage1.drop_at", "plateu", "train.stage1.drop_at: 'plateu' is not allowed"),
        ("training.held_out", 1.5, "training.held_out: 1.5 is not allowed"),
        ("fetch.sbd.addresses", ["ftp://host/file"], "fetch.sbd"),
        ("fetch.vgg16.addresses", ["ftp://host/file"], "fetch.vgg16: addresses: 'ftp://host/file' is not allowed"),
        ("dataset.classes", ["one", "one"], "dataset: classes: 2 names are not allowed"),
        ("pretrain.convention", "caffe", "pretrain.convention: 'caffe' is not allowed; allowed: \"imagenet1k_v1\""),
    ],
)
def test_one_line_names_the_file_the_key_and_what_is_allowed(tmp_path, values, key, value, message):
    path = written(tmp_path, changed(values, key, value))
    if message is None:
        params.load(path)
        return
    with pytest.raises(InputError) as error:
        params.load(path)
    assert str(error.value).startswith(f"{path}: {message}")
    assert "\n" not in str(error.value)


def test_plateau_needs_validation(tmp_path, values):
    values["train"]["stage1"] |= {"drop_at": "plateau", "held_out": 0}
    with pytest.raises(InputError, match=r"train.stage1: drop_at: plateau needs validation, but held_out is 0"):
        params.load(written(tmp_path, values))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("crf: [", "not valid YAML"),
        ("", "holds no sections"),
        ("- 1", "holds no sections"),
        ("root: .", "fetch: missing section"),
        ("root: . \ntrain: 3", "fetch: missing section"),
    ],
)
def test_files_that_are_none(tmp_path, text, message):
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        params.load(path)


def test_a_file_that_is_not_there_or_not_text(tmp_path):
    with pytest.raises(InputError, match="No such file.*experiment folder"):
        params.load(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not UTF-8"):
        params.load(tmp_path / "params.yaml")


def test_json_stands_in_for_yaml(tmp_path, values):
    import json

    path = tmp_path / "params.json"
    path.write_text(json.dumps(values))
    assert params.load(path) == params.load(written(tmp_path, values))


ARGUMENTS = {
    "fetch": "sbd",
    "folders": "images --out a",
    "dataset": "--input a --sbd b --test c --out d",
    "proposals": "recall --dataset a --proposals b --metrics c --plot d",
    "crops": "stage1 --dataset a --out b --balance c --render d",
    "pretrain": "--vgg16 a --dataset b --crops c --out d --checkpoints e --curves f --metrics g",
    "train": "stage1 --init a --dataset b --crops c --out d --checkpoints e --curves f --metrics g",
    "train_fcn": "--init a --dataset b --crops c --out d --checkpoints e --curves f --metrics g",
    "reestimate": "--model a --dataset b --crops c --out d",
    "infer": "--model a --dataset b --proposals c --out d --shards e",
    "ensemble": "--dataset a --members b c --out d",
    "crf": "--dataset a --scores b --out c",
    "evaluate": "--dataset a --scores b --labels c --reports d --images e",
    "report": "--dataset a --proposals b --scores c --labels d --images e --model f --reports g --out h",
}


@pytest.mark.parametrize("stage", STAGES)
def test_any_stage_ends_at_a_typo_anywhere(tmp_path, values, stage):
    section = "crf" if stage != "crf" else "report"
    written(tmp_path, changed(values, f"{section}.typo", 1))
    done = subprocess.run(
        [sys.executable, "-m", f"stages.{stage}", *ARGUMENTS[stage].split()],
        cwd=tmp_path, env={"PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        next(line for line in done.stderr.splitlines() if f"params.yaml: {section}.typo: unknown key (value 1)" in line)
    ]
