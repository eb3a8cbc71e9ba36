"""The whole parameter file: what is checked at every start, and that the repository's own files hold."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import hypothesis
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

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
        (
            "infer.growth",
            [],
            "infer.growth: [] is not allowed; allowed: a list, each: a whole number from 1 to 100000, "
            "one or more different values",
        ),
        ("infer.growth", [5, 5], "infer.growth: [5, 5] is not allowed"),
        ("infer.splits", [], "infer.splits: [] is not allowed"),
        ("proposals.recall.boxes", [], "proposals.recall.boxes: [] is not allowed"),
        ("proposals.recall.boxes", [5, 5], "proposals.recall.boxes: [5, 5] is not allowed"),
        ("proposals.recall.iou", [], "proposals.recall.iou: [] is not allowed"),
        ("proposals.min_score", 1e300, "proposals.min_score: 1e+300 is not allowed"),
        ("proposals.boxes", 10**30, "proposals.boxes: 1000000000000000000000000000000 is not allowed"),
        ("crops.context", 1e300, "crops.context: 1e+300 is not allowed"),
        ("crops.seed", 10**30, "crops.seed: 1000000000000000000000000000000 is not allowed"),
        ("crops.seed", 10**400, "crops.seed: 1000000000"),
        ("crops.context", 10**400, "crops.context: 1000000000"),
        ("train.stage1.batch", 10**30, "train.stage1.batch: 1000000000000000000000000000000 is not allowed"),
        ("train.stage1.lr", 0, "train.stage1.lr: 0 is not allowed; allowed: a number from 1e-12 to 1e+30"),
        ("training.momentum", 1, "training.momentum: 1 is not allowed; allowed: a number from 0 to 0.9999"),
        ("train_fcn.dropout", 1, "train_fcn.dropout: 1 is not allowed; allowed: a number from 0 to 0.99"),
        ("train.stage1.drop_at", [9, 3], "train.stage1: drop_at: [9, 3] is not allowed; allowed: different steps"),
        ("train.stage1.drop_at", [-3], "train.stage1.drop_at[0]: -3 is not allowed"),
        ("train.stage1.drop_at", [200], "train.stage1.drop_at: 200 is not before the run's 200 steps end; lower it"),
        ("train.stage1.warmup_steps", 201, "train.stage1.warmup_steps: 201 is more than the run's 200 steps"),
        ("train.stage1.validate_every", 201, "train.stage1.validate_every: 201 is more than the run's 200 steps"),
        ("pretrain.background", 1, "pretrain.background: 1 is not allowed"),
        (
            "pretrain.size",
            {"width": 256, "fc_width": 65536, "input_size": 2048},
            "pretrain.size: fc_width: fc6 would have 549,755,813,888 weights; allowed: 1,000,000,000",
        ),
        ("dataset.classes", ["background", ""], "dataset.classes[1]: '' is not allowed"),
        ("dataset.classes", ["background", "a\nb"], "dataset.classes[1]: 'a\\nb' is not allowed"),
        ("dataset.counts", {1: 2, "x": 3}, "dataset.counts: 1: not allowed as a key; allowed: text"),
        ("evaluate.split", "train", "evaluate.split: train is not in infer.splits"),
        ("evaluate.sizes", [5, 9, 20], "evaluate.sizes: [5, 9, 20] is not allowed; allowed: two areas"),
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


@pytest.mark.parametrize("key", ["batch", "micro_batch"])
def test_batch_norm_needs_more_than_one_crop(tmp_path, values, key):
    values["train"]["stage1"] |= {"micro_batch": 1, "batch_norm_crops": None, key: 1}
    with pytest.raises(InputError, match=f"train: stage1.{key}: 1 crop is too few for batch norm"):
        params.load(written(tmp_path, values))
    values["train"]["batch_norm_eps"] = None
    params.load(written(tmp_path, values))


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
        ("a: 1\nb: 2\na: 3", "not valid YAML: the key 'a' is there twice"),
        ("a: &x {b: 1}\nc: {<<: *x}", "not valid YAML: merge keys are not read"),
        ("a: !!int x", "not valid YAML"),
        ("a: " + "1" * 5000, "not valid YAML"),
        ("a: !!python/object/apply:os.system [x]", "not valid YAML"),
        ("[" * 3000, "not valid YAML: nested too deep"),
        ("a: &a [*a]", "a: unknown section"),
        ("a: " + "x" * 300_000, "300,003 bytes, more than the 262,144 that are read"),
    ],
)
def test_files_that_are_none(tmp_path, text, message):
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        params.load(path)


@pytest.mark.parametrize(
    ("text", "value"),
    [("010", "010"), ("1:30", "1:30"), ("2015-13-45", "2015-13-45"), ("0x10", "0x10"), ("1_000", "1_000"),
     ("yes", "yes"),
     ("10", 10), ("-3", -3), ("0", 0), ("1e-4", 1e-4), ("5e3", 5000.0), (".5", 0.5), ("2.", 2.0), ("null", None),
     ("true", True), ("~", None), ("", None), (".", "."), ("1.2.3", "1.2.3"), ("'7'", "7")],
)  # fmt: skip
def test_a_number_is_written_as_people_and_dvc_read_it(tmp_path, text, value):
    path = tmp_path / "params.yaml"
    path.write_text(f"a: {text}\n")
    found = params.read(path)["a"]
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', "[" * 100_000, '{"a": ' + "1" * 5000 + "}", "\x00"])
def test_json_that_is_none(tmp_path, text):
    path = tmp_path / "params.json"
    path.write_text(text)
    with pytest.raises(InputError, match="not valid JSON"):
        params.load(path)


def test_a_pipe_is_no_parameter_file(tmp_path):
    os.mkfifo(tmp_path / "params.yaml")
    with pytest.raises(InputError, match="params.yaml: not a plain file"):
        params.load(tmp_path / "params.yaml")


def test_a_file_that_is_not_there_or_not_text(tmp_path):
    with pytest.raises(InputError, match="No such file.*experiment folder"):
        params.load(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not UTF-8"):
        params.load(tmp_path / "params.yaml")


def test_json_stands_in_for_yaml(tmp_path, values):
    path = tmp_path / "params.json"
    path.write_text(json.dumps(values))
    assert params.load(path) == params.load(written(tmp_path, values))


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


def places(values, path=()):
    yield path
    for name in values if isinstance(values, dict) else ():
        yield from places(values[name], (*path, name))


DEMO = yaml.safe_load((REPOSITORY / "demo/params.yaml").read_text())


@hypothesis.settings(max_examples=200, deadline=None, derandomize=True)
@given(place=st.sampled_from([path for path in places(DEMO) if path]), value=PLAIN)
def test_any_value_in_any_place_is_taken_or_refused_in_one_line(tmp_path_factory, place, value):
    values = section = copy.deepcopy(DEMO)
    for name in place[:-1]:
        section = section[name]
    section[place[-1]] = value
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps(values))
    try:
        params.load(path)
    except InputError as error:
        assert str(error).startswith(f"{path}: ") and str(error).isprintable()


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
