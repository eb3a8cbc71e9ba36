"""Model files of anybody: what is refused, and before there is memory for it."""

import re
import zipfile

import pytest
import torch

from deconvnet.errors import InputError
from deconvnet.nets import files
from deconvnet.nets.deconvnet import DeconvNet
from deconvnet.nets.weights import read_vgg16
from deconvnet.settings import Size
from tests.fuzz import trainer_on
from tests.world import vgg16_file

ABOUT = {"classes": ["background", "a"], "windows": {"context": 1.2, "square": True}}


@pytest.fixture
def saved(tmp_path):
    net = DeconvNet(Size(4, 8, 64), 2, 1e-5)
    files.save(tmp_path / "m.pt", net.spec, net.state_dict(), ABOUT)
    return files.read(tmp_path / "m.pt")


def refusal(path, saved):
    torch.save(saved, path)
    for read in (files.read, files.load):
        with pytest.raises(InputError) as error:
            read(path)
    return str(error.value).removeprefix(f"{path}: ")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite(tmp_path, saved, value):
    saved["state"]["encoder.fc6.conv.weight"].view(-1)[7] = value
    assert refusal(tmp_path / "m.pt", saved).startswith("encoder.fc6.conv.weight: holds values that are not finite")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "x"}, "its spec builds no net (spec: net.kind: 'x' is not allowed"),
        ({"classes": 10**9}, "its spec builds no net (spec: net.classes: 1000000000 is not allowed"),
        ({"classes": 3}, "of another network or class count: score.weight 2x4x1x1 (the net wants 3x4x1x1)"),
        ({"size": {"width": 1024, "fc_width": 4, "input_size": 64}}, "of another network or class count"),
        ({"size": {"width": "x", "fc_width": 4, "input_size": 64}}, "its spec builds no net (spec: net.size.width"),
        ({"unpooling": "x"}, "its spec builds no net (spec: net.unpooling"),
        ({"stride": 8}, "its spec builds no net ("),
        ({"more": 8}, "its spec builds no net (spec: net.more: unknown key"),
    ],
)
def test_specs_of_other_nets(tmp_path, saved, change, said):
    assert refusal(tmp_path / "m.pt", saved | {"spec": saved["spec"] | change}).startswith(said)


@pytest.mark.parametrize(
    "change", [{"windows": {"context": 1e300, "square": True}}, {"classes": "ab"}, {"canvas": [1]}]
)
def test_what_stands_beside_the_weights(tmp_path, saved, change):
    assert refusal(tmp_path / "m.pt", saved | {"about": ABOUT | change}).startswith("about")


def test_a_compressed_model_is_refused_before_it_is_read(tmp_path, saved):
    with (
        zipfile.ZipFile(tmp_path / "m.pt") as old,
        zipfile.ZipFile(tmp_path / "n.pt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for part in old.namelist():
            new.writestr(part, old.read(part))
    with pytest.raises(InputError, match=r"n.pt: not a model file: compressed"):
        files.read(tmp_path / "n.pt")


def test_vgg16_with_entries_that_are_no_tensors(tmp_path):
    state = vgg16_file(tmp_path / "v.pth")
    torch.save(state | {"features.0.weight": "x", "features.0.bias": torch.tensor(1)}, tmp_path / "v.pth")
    found = read_vgg16(tmp_path / "v.pth", Size(64, 8, 64), "imagenet1k_v1")
    assert "conv1_1.conv.weight" not in found and "conv1_2.conv.weight" in found


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"net": {}}, "of another network"),
        ({"provenance": {"code": torch.zeros(2)}}, "its provenance is damaged"),
        ({"momentum": torch.zeros(3)}, r"momentum of \(3,\) values"),
        ({"momentum": None}, "step 2 of a run of 4"),
        ({"step": 99}, "step 99 of a run of 4"),
        ({"rows": [{"step": 1}]}, "its curves"),
        ({"schedule": {}}, "its curves, its best metrics or its schedule are damaged"),
        ({"losses": [float("nan")]}, "its curves"),
        ({"best": {"mean_iou": "x"}}, "its curves"),
        (
            {"best": {"loss": 1, "mean_iou": 0.5, "step": 1}, "best_file": "../../x"},
            "names '../../x' as its best weights",
        ),
    ],
)
def test_a_checkpoint_whose_content_does_not_hold_falls_back_to_the_one_before(tmp_path, capsys, change, said):
    """Its checksums hold: written by another hand, or a version that was wrong."""
    trainer = trainer_on(tmp_path)
    for step in (1, 2):
        trainer.step = step
        trainer._save_checkpoint()
    trainer.checkpoints.wait()
    latest = tmp_path / "checkpoint.pt"
    torch.save(torch.load(latest, weights_only=True) | change, latest)
    resumed = trainer_on(tmp_path)
    resumed._resume()
    assert resumed.step == 1
    assert re.search(f"checkpoint.pt: .*{said}.*continuing from previous.pt, after step 1", capsys.readouterr().out)
