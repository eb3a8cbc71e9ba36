"""ONNX files in onnxruntime: the net's own scores, also where pooling has ties, for any batch."""

import json
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F

from deconvnet import kernels, nets
from deconvnet.errors import InputError
from deconvnet.export import export
from deconvnet.nets import files
from deconvnet.nets.layers import batch_norms
from experiment.export import main
from tests.deconvnet.test_folding import trained

ABOUT = {"classes": ["background", "red", "green"], "canvas": [96, 64], "scale": 0.5, "metrics": 1}


def scores(path, images):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"images": images})[0]


def run(net, images):
    with torch.inference_mode():
        return net.eval()(torch.from_numpy(images)).numpy()


@pytest.mark.parametrize("kind", ["deconvnet", "fcn"])
def test_scores_are_the_net_s_for_any_batch(kind, tmp_path):
    net, path = trained(kind), tmp_path / "net.onnx"
    export(net, ABOUT, path)
    assert batch_norms(net)  # the net itself is not folded
    size = (64, 64) if kind == "deconvnet" else (48, 32)
    for batch in (1, 3):
        images = np.random.default_rng(batch).uniform(0, 255, (batch, 3, *size)).astype(np.float32)
        wanted = run(net, images)
        np.testing.assert_allclose(scores(path, images), wanted, rtol=1e-3, atol=1e-3 * np.abs(wanted).max())
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert {entry.key: json.loads(entry.value) for entry in model.metadata_props} == {
        name: ABOUT[name] for name in ("classes", "canvas", "scale")
    }
    assert "test_export" not in str(model) and ".py" not in str(model)  # no path of this machine


def whole_numbers():
    """A net whose channels each add up one to four of the layer before, moved by a pixel at most, some negative.

    So its scores are exact in any order of adding up, and its maps of an image of few colours are full of ties."""
    spec = {"kind": "deconvnet", "size": {"width": 8, "fc_width": 32, "input_size": 64}, "classes": 4, "eps": None}
    net, random = nets.build(spec), np.random.default_rng(5)
    state = net.state_dict()
    for name, weight in state.items():
        weight.zero_()
        if weight.dim() == 4:
            into = 1 if name.startswith("fc6_deconv") else 0  # the axis of channels that it makes
            terms = 1 if name.startswith("encoder.conv") else 2 if "conv." in name else 4
            for channel in range(weight.shape[into]):
                for _ in range(terms):
                    place = [random.choice([side // 2, side // 2, 0, side - 1]) for side in weight.shape]
                    place[into], place[1 - into] = channel, random.integers(0, weight.shape[1 - into])
                    weight[tuple(place)] = random.choice([1] * 9 + [-1])
    state["encoder.std"].fill_(1)
    return net


def last_wins(x):
    """Max pooling whose last maximum, not the first, gets the switch."""
    values, indices = F.max_pool2d(x.flip(2, 3), 2, return_indices=True)
    return values.flip(2, 3), x.shape[2] * x.shape[3] - 1 - indices.flip(2, 3)


def test_ties_in_pooling_choose_the_same_switches(tmp_path, monkeypatch):
    net = whole_numbers()
    export(net, ABOUT, tmp_path / "net.onnx")
    random = np.random.default_rng(0)
    images = random.integers(0, 3, (3, 3, 64, 64)).astype(np.float32)
    images[1] = 2  # one colour
    images[2] = np.kron(random.integers(0, 3, (3, 8, 8)), np.ones((8, 8)))  # flat squares
    wanted = run(net, images)
    assert np.abs(wanted).max() < 2**24 and (wanted != 0).mean() > 0.1
    np.testing.assert_array_equal(scores(tmp_path / "net.onnx", images), wanted)
    monkeypatch.setattr(kernels, "max_pool", last_wins)
    others = run(net, images)
    assert all((others[index] != wanted[index]).any() for index in range(3))  # so the ties matter in each of them


def test_the_command(tmp_path, capsys):
    net = trained("deconvnet")
    files.save(tmp_path / "model.pt", net.spec, net.state_dict(), ABOUT)
    main([str(tmp_path / "model.pt")])
    assert "onnxruntime's scores differ by " in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"model.pt", "model.onnx"}


def test_what_cannot_be_exported(tmp_path, monkeypatch):
    for kind, about, message in (("classifier", ABOUT, "of kind classifier; allowed"), ("fcn", {}, "its canvas")):
        net = nets.build({"kind": kind, "size": {"width": 4, "fc_width": 16, "input_size": 64}, "classes": 2, "eps": 1})
        files.save(tmp_path / "model.pt", net.spec, net.state_dict(), about)
        with pytest.raises(InputError, match=message):
            main([str(tmp_path / "model.pt"), "--out", str(tmp_path / "out.onnx")])
    with pytest.raises(InputError, match="would be overwritten"):
        main([str(tmp_path / "model.pt"), "--out", str(tmp_path / "model.pt")])
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(InputError, match="pip install onnx onnxscript"):
        export(trained("deconvnet"), ABOUT, tmp_path / "out.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]
