"""The command on pictures: files and folders, its outputs, another experiment's parameters, bad input."""

import io
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image

from deconvnet import predictor
from deconvnet.errors import InputError
from deconvnet.images import PALETTE, decode_mask
from experiment import predict
from experiment.params import load
from tests.deconvnet.test_predictor import EXIF, by_hand, save_models, scene


@pytest.fixture
def models(experiment):
    return save_models(experiment)


def save(path, image, **options):
    path.parent.mkdir(exist_ok=True)
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(path, **options)
    return path


def results(out, name):
    data = (out / f"{name}.png").read_bytes()
    assert Image.open(io.BytesIO(data)).getpalette() == PALETTE.ravel().tolist()
    overlay = np.asarray(Image.open(out / f"{name}_overlay.png"))
    report = json.loads((out / f"{name}.json").read_text())
    height, width = report["height"], report["width"]
    assert overlay.shape[0] >= height and overlay.shape[1] >= width
    overlay = overlay[:height, :width]  # without the legend
    return decode_mask(data), overlay, report


def test_colours_are_the_classes(models):
    """FCN alone, on pictures of the canvas's size, smaller, turned: a class where its colour is."""
    save(models / "in/plain.png", scene())
    save(models / "in/turned.jpg", scene(), exif=EXIF, quality=100, subsampling=0)
    save(models / "in/wide.webp", scene(96, 200), lossless=True)
    (models / "in/notes.txt").write_text("no picture")
    (models / "in/._plain.png").write_bytes(b"what other systems leave")
    predict.main(["in", "in/plain.png", "--model", "fcn.pt", "--out", "out"])
    assert {path.stem for path in (models / "out").glob("*.json")} == {"plain", "turned", "wide"}
    for name, image in (("plain", scene()), ("turned", np.rot90(scene(), -1)), ("wide", scene(96, 200))):
        labels, _, report = results(models / "out", name)
        for number, channel in ((1, 0), (2, 1)):
            here = image[..., channel] == 255
            inner, outer = labels[here], labels[F.max_pool2d(torch.from_numpy(here)[None].float(), 33, 1, 16)[0] == 0]
            assert (inner == number).mean() > 0.9 and not (outer == number).any()
        assert (report["windows"], report["model"], report["fcn"], report["crf"]) == (None, "fcn.pt", None, False)
        assert [row["class"] for row in report["classes"]] == ["background", "one", "two"]
        assert sum(row["share"] for row in report["classes"]) == pytest.approx(1, abs=1e-5)
        for row in report["classes"]:
            ys, xs = np.nonzero(labels == row["id"])
            assert row["share"] == pytest.approx(len(ys) / labels.size, abs=1e-6)
            assert row["box"] == [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1] and row["probability"] > 0.9


def test_windows_cover_what_is_labelled(models):
    """A net that gives class 2 everywhere labels the union of the windows, in pictures of several groups."""
    images = {f"p{number}": scene(60 + 20 * number, 120) for number in range(5)}
    images["p2"][:] = 0  # no edge, no proposal
    for name, image in images.items():
        save(models / f"in/{name}.png", image)
    predict.main(["in", "--model", "covering.pt", "--out", "out"])
    for name, image in images.items():
        labels, overlay, report = results(models / "out", name)
        expected = np.zeros(image.shape[:2], np.uint8)
        _, windows = by_hand(image, "covering.pt")
        for x, y, width, height in windows:
            expected[max(y, 0) : max(y + height, 0), max(x, 0) : max(x + width, 0)] = 2
        assert np.array_equal(labels, expected) and report["windows"] == len(windows)
        assert (name == "p2") == (len(windows) == 0) == bool((overlay == image).all())


@pytest.mark.parametrize("options", [[], ["--fcn", "fcn.pt"], ["--crf"], ["--fcn", "fcn.pt", "--crf"]], ids=" ".join)
def test_the_librarys_own_answers(models, options, monkeypatch, capsys):
    monkeypatch.setattr(predictor, "GROUP", 2)
    params = load()
    images = {"a": scene(), "b": scene(120, 96), "flat": np.zeros((50, 50, 3), np.uint8)}
    for name, image in images.items():
        save(models / f"in/{name}.png", image)
    predict.main(["in", "--model", "random.pt", "--out", "out", *options])
    out = capsys.readouterr().out
    for name, image in images.items():
        labels, _, report = results(models / "out", name)
        crf = params.crf if "--crf" in options else None
        expected, windows = by_hand(image, "random.pt", "--fcn" in options, crf, params.ensemble.method, params.infer)
        assert (labels == expected).mean() > 0.999, "a batch of other windows may round otherwise"
        assert report["windows"] == len(windows) and report["crf"] == ("--crf" in options)
        assert expected.any() == (name != "flat")
        seen = ", ".join(f"{row['class']} {row['share']:.1%}" for row in report["classes"])
        assert f"in/{name}.png: {seen}" in out
    assert "flat.png: background 100.0%; no proposals: DeconvNet sees nothing of it" in out
    assert "out/: labels, overlay and report of 3 pictures" in out
    assert "random.pt: knows background, one, two; whatever else a picture shows is labelled as one of them" in out


@pytest.mark.parametrize("size", [(1, 1), (3, 7), (1, 300), (300, 2), (15, 400)], ids=str)
def test_tiny_and_narrow_pictures(models, size):
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    save(models / "in/a.png", noise)
    predict.main(["in/a.png", "--model", "covering.pt", "--out", "alone", "--crf"])
    labels, overlay, report = results(models / "alone", "a")
    assert labels.shape == size and not labels.any() and report["windows"] == 0 and (overlay == noise).all()
    predict.main(["in/a.png", "--model", "covering.pt", "--fcn", "fcn.pt", "--crf", "--out", "both"])
    assert results(models / "both", "a")[0].shape == size


def test_a_large_picture(models):
    """24 million pixels, computed at the canvas's 200: red left, black, green right."""
    image = np.zeros((4000, 6000, 3), np.uint8)
    image[:, :2000, 0] = image[:, 4000:, 1] = 255
    save(models / "in/large.png", image, compress_level=1)
    predict.main(["in", "--model", "fcn.pt", "--crf", "--out", "out"])
    labels, overlay, report = results(models / "out", "large")
    assert (labels.shape, report["computed"]) == ((4000, 6000), [133, 200])
    near = 9 * 30  # px: what nine pixels become
    assert (labels[near:-near, near : 2000 - near] == 1).all() and (labels[near:-near, 4000 + near : -near] == 2).all()
    assert (labels[near:-near, 2000 + near : 4000 - near] == 0).all()
    ends = (labels[near:-near] == 1).sum(1)  # where red ends, row by row: a straight edge stays one
    assert np.ptp(ends) <= 1 and (overlay[2000, 1000] == (192, 0, 0)).all()  # half of 255 and 128


def test_without_a_parameter_file_the_model_suffices(models, monkeypatch, capsys):
    save(models / "in/a.png", scene(300, 400))
    (models / "elsewhere").mkdir()
    monkeypatch.chdir(models / "elsewhere")
    predict.main(["../in", "--model", "../covering.pt", "--fcn", "../fcn.pt"])
    labels, _, report = results(models / "elsewhere/predicted", "a")
    assert labels.any() and report["computed"] == [150, 200]
    assert "no params.yaml and no --edge-model: proposals from gradient edges" in capsys.readouterr().out


def test_another_experiments_parameters(models, monkeypatch):
    save(models / "in/a.png", scene())
    (models / "elsewhere").mkdir()
    monkeypatch.chdir(models / "elsewhere")
    predict.main(["../in", "--model", "../covering.pt", "--out", "out", "--params", "../params.yaml"])
    assert len(results(models / "elsewhere/out", "a")[2]["classes"]) > 1
    params = yaml.safe_load((models / "params.yaml").read_text())
    params["proposals"]["edges"], params["fetch"]["edge_model"]["addresses"] = "structured", ["file:/nowhere"]
    (models / "params.yaml").write_text(yaml.safe_dump(params))
    with pytest.raises(InputError, match=r"\.\./data/weights/edge_model\.yml\.gz: no edge model"):
        predict.main(["../in", "--model", "../random.pt", "--out", "out", "--params", "../params.yaml"])
    predict.main(["../in", "--model", "../fcn.pt", "--out", "out", "--params", "../params.yaml"])  # needs no edges


BAD = {  # pictures to write, arguments, message
    "missing": ([], ["in/none.png"], "in/none.png: No such file or directory"),
    "empty folder": ([], ["empty"], "empty: no picture in this folder"),
    "not an image": (["in/a.png"], ["in/a.png", "in/text.jpg"], "in/text.jpg: not a picture"),
    "one stem": (["in/a.png", "in/a.jpg"], ["in"], "in/a.jpg and in/a.png: both would become out/a.png"),
    "one stem in two folders": (["in/a.png", "two/a.png"], ["in", "two"], "in/a.png and two/a.png: both would"),
    "named as an overlay": (["in/a.png", "in/a_overlay.png"], ["in"], "both would become out/a_overlay.png"),
    "onto itself": (["in/a.png"], ["in/a.png", "--out", "in"], "in/a.png: would be overwritten by a result of in/a"),
    "onto another": (["out/a.png", "in/a.jpg"], ["out/a.png", "in/a.jpg"], "out/a.png: would be overwritten"),
    "out is a file": (["in/a.png"], ["in", "--out", "params.yaml"], "params.yaml: File exists; choose a folder"),
    "out under a file": (["in/a.png"], ["in", "--out", "params.yaml/x"], "params.yaml/x: Not a directory"),
    "no model": (["in/a.png"], ["in", "--model", "none.pt"], "none.pt: no such model"),
    "model of four classes": (
        ["in/a.png"], ["in", "--model", "four.pt"],
        "four.pt: trained on other classes than params.yaml names (4 classes, there 3); name with --params the",
    ),
    "renamed classes": (
        ["in/a.png"], ["in", "--model", "others.pt"],
        "others.pt: trained on other classes than params.yaml names (class 1 is 'two', there 'one'); name with --",
    ),
    "a classifier": (["in/a.png"], ["in", "--model", "classifier.pt"], "classifier.pt: a net of kind classifier"),
    "no FCN": (["in/a.png"], ["in", "--fcn", "random.pt"], "random.pt: a net of kind deconvnet; wanted here: fcn"),
    "two FCNs": (["in/a.png"], ["in", "--model", "fcn.pt", "--fcn", "fcn.pt"], "fcn.pt: a net of kind fcn; wanted"),
    "no parameters": (["in/a.png"], ["in", "--params", "none.yaml"], "none.yaml: No such file"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_said_before_anything_is_computed(models, case):
    pictures, arguments, message = BAD[case]
    (models / "empty").mkdir()
    (models / "in").mkdir()
    (models / "in/text.jpg").write_text("hello")
    for name in pictures:
        save(models / name, scene())
    if "text.jpg" not in message:
        (models / "in/text.jpg").unlink()
    before = sorted(path for path in models.rglob("*") if path.is_file())
    with pytest.raises(InputError) as error:
        predict.main(["--model", "covering.pt", "--out", "out", *arguments])
    assert message in str(error.value) and "\n" not in str(error.value)
    assert sorted(path for path in models.rglob("*") if path.is_file()) == before


def test_a_bomb(models, monkeypatch):
    save(models / "in/a.png", scene())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 96 * 120 // 2 - 1)
    with pytest.raises(InputError, match=r"in/a.png: Image size \(11520 pixels\) exceeds limit"):
        predict.main(["in", "--model", "covering.pt", "--out", "out"])


def test_pictures_that_turn_out_broken_do_not_stop_the_others(models):
    for name in ("a.png", "b.jpg", "c.png", "d.tif"):
        path = save(models / f"in/{name}", scene())
        if name != "c.png":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    save(models / "in/e.tif", np.ones((9, 9), np.float32))
    save(models / "in/f.png", scene())
    with pytest.raises(InputError) as error:
        predict.main(["in", "--model", "covering.pt", "--out", "out"])
    message = str(error.value)
    assert message.startswith("4 of 6 pictures failed, the others are done: in/a.png: does not decode (")
    assert "in/b.jpg: does not decode (image file is truncated" in message and "\n" not in message
    assert "in/d.tif: does not decode (" in message and "in/e.tif: does not decode (floating-point" in message
    assert {path.name for path in (models / "out").iterdir()} == {
        f"{name}{ending}" for name in "cf" for ending in (".png", "_overlay.png", ".json")
    }
