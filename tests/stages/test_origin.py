"""What makes each training stage start afresh, and what does not."""

import dataclasses
import functools
import json
import shutil

import pyarrow as pa
import pytest
import torch

from deconvnet import provenance, settings, tables
from deconvnet.nets import files
from deconvnet.nets.vgg import Classifier
from deconvnet.settings import Size
from deconvnet.training.loop import Trainer
from stages import pretrain, train, train_fcn
from tests.world import ROOT, RUN, SIZE, arguments, crop_table, pretraining_arguments, write_dataset, write_params

STAGES = {
    "pretrain": (pretrain, pretraining_arguments("a")),
    "stage1": (train, ["stage1", *arguments("a")]),
    "stage2": (train, ["stage2", *arguments("a")]),
    "train_fcn": (train_fcn, arguments("a")),
}
SHORT = {"steps": 2, "validate_every": 2, "warmup_steps": 0, "drop_at": [1]}
LAYOUT = {"memory_gb": 2, "checkpoint_minutes": 0, "compile": True}
OTHER = {
    "steps": 3, "batch": 16, "micro_batch": 8, "batch_norm_crops": 2, "lr": 0.01, "warmup_steps": 1, "drop_at": [],
    "held_out_crops": 5, "validate_every": 1, "momentum": 0.8, "weight_decay": 1e-3, "drop": 0.5, "patience": 2,
    "held_out": 0.3, "statistics_passes": 3, "encoder_lr": 0.5, "precision": "bf16", "seed": 8,
}  # fmt: skip
SETTINGS = {
    "pretrain": {"size": SIZE | {"width": 5}, "convention": "caffe_bgr", "batch_norm_eps": 1e-4, "resized": 80,
                 "background": 0.1},
    "train": {"batch_norm_eps": 1e-4, "decoder_start": "he", "resized": 80, "flip": False,
              "unpooling": "bilinear"},
    "train_fcn": {"batch_norm_eps": 1e-4, "skip_scales": [1, 2], "dropout": 0.4, "canvas": [96, 100], "scale": 0.5,
                  "flip": False},
}  # fmt: skip
MORE_CLASSES = {"dataset": {"classes": ["background", "red", "green", "blue", "more"]}}


class Starts(Exception):
    """A step is computed: the finished training that is at hand was not taken."""


@pytest.fixture(params=STAGES)
def stage(request, folder, monkeypatch):
    """A finished training of each stage, whose code is a copy. Returns (name, starts), a function that calls it again.

    `starts()` tells whether the training starts afresh.
    """
    code = folder / "code"
    for package in ("deconvnet", "experiment", "stages"):
        shutil.copytree(ROOT / package, code / package, ignore=shutil.ignore_patterns("__pycache__"))
    module, line = STAGES[request.param]
    monkeypatch.setattr(provenance, "ROOT", code)
    monkeypatch.setattr(module, "__file__", str(code / "stages" / module.__file__.rpartition("/")[2]))
    monkeypatch.setattr(torch, "compile", lambda model: model)
    write_params(folder, **SHORT)
    module.main(line)

    def step(self):
        raise Starts

    monkeypatch.setattr(Trainer, "_train_step", step)

    def starts():
        try:
            module.main(line)
        except Starts:
            return True
        return False

    assert not starts()
    return request.param, starts


def edit(path, before, after):
    text = path.read_text(encoding="utf-8")
    assert text.count(before) == 1, (path, before)
    path.write_text(text.replace(before, after), encoding="utf-8")


def test_every_setting_of_a_run_has_another_value_here():
    assert {field.name for field in dataclasses.fields(settings.Run)} == LAYOUT.keys() | OTHER.keys() == RUN.keys()
    for name, kind in (("pretrain", settings.Pretraining), ("train", settings.Training),
                       ("train_fcn", settings.FcnTraining)):  # fmt: skip
        fields = {field.name for field in dataclasses.fields(kind)} - {"run", "stage1", "stage2"}
        assert fields == SETTINGS[name].keys()


def test_settings(stage, folder, monkeypatch):
    name, starts = stage
    monkeypatch.setattr(provenance, "code", functools.cache(provenance.code))  # for speed: it does not change here
    section = "train" if name.startswith("stage") else name
    for key, value in LAYOUT.items():
        write_params(folder, **SHORT | {key: value})
        assert not starts(), key
    for key, value in OTHER.items():
        write_params(folder, **SHORT | {key: value})
        assert starts(), key
    for key, value in SETTINGS[section].items():
        write_params(folder, {section: {key: value}}, **SHORT)
        assert starts(), key
    write_params(folder, MORE_CLASSES, **SHORT)
    assert starts()
    others = {other: {"batch_norm_eps": 1e-4} for other in SETTINGS if other != section}
    if section == "train":
        others["train"] = {"stage2" if name == "stage1" else "stage1": RUN | SHORT | {"lr": 0.01}}
    write_params(folder, others, **SHORT)
    assert not starts()


def test_inputs(stage, folder):
    name, starts = stage
    if name == "pretrain":
        torch.save({"features.0.weight": torch.zeros(4, 3, 3, 3)}, "vgg16.pth")
    else:
        before = (folder / "encoder.pt").read_bytes()
        torch.manual_seed(4)
        net = Classifier(Size(**SIZE), 4, 1e-5)
        files.save("encoder.pt", net.spec, net.state_dict(), {})
        assert (folder / "encoder.pt").read_bytes() != before
    assert starts()


def test_data(stage, folder):
    _, starts = stage
    rows = write_dataset(folder / "dataset", images=12, seed=0)
    assert not starts()  # written anew, with the same content
    table = crop_table(rows)
    table.loc[0, "side_x"] += 1
    tables.write(folder / "crops.parquet", pa.Table.from_pandas(table, preserve_index=False))
    assert starts()
    table.loc[0, "side_x"] -= 1
    tables.write(folder / "crops.parquet", pa.Table.from_pandas(table, preserve_index=False))
    assert not starts()
    write_dataset(folder / "dataset", images=12, seed=1)
    assert starts()


def test_code(stage, folder):
    _, starts = stage
    net, train = folder / "code/deconvnet/nets/layers.py", folder / "code/deconvnet/training"
    edit(train / "loop.py", 'crops an "', 'windows an "')  # a message
    edit(train / "optimiser.py", "kinds = {}", "# a comment\n        kinds = {}")
    edit(folder / "code/experiment/training.py", "training curves, CSV", "the curves")  # help
    edit(folder / "code/deconvnet/settings.py", "0.01  # P 6.1", "0.02  # P 6.1")  # a default: values are compared
    assert not starts()
    text = net.read_text()
    edit(net, "return F.relu(", "return F.leaky_relu(")
    assert starts()
    net.write_text(text)
    assert not starts()
    edit(folder / "code/deconvnet/kernels/__init__.py", "clamp(min=1)", "clamp(min=2)")  # the loss
    assert starts()


def test_the_description_is_in_the_model(folder):
    write_params(folder, **SHORT)
    train_fcn.main(arguments("a"))
    found = files.read("a.pt")["about"]["provenance"]
    assert found["run"] == json.loads(json.dumps(RUN | SHORT)) and found["spec"]["kind"] == "fcn"
    assert found["settings"] == {
        "classes": ["background", "red", "green", "blue"], "canvas": [96, 96], "scale": 1.0, "flip": True,
        "skip_scales": [1.0, 1.0],
    }  # fmt: skip
    assert found["files"].keys() == {"init"} and len(found["files"]["init"]) == len(found["code"]) == 64
