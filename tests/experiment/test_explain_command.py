"""The command that explains a picture: its files, its montage, what it refuses."""

import io
import os
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from deconvnet import nets
from deconvnet.errors import InputError
from deconvnet.nets import files
from experiment import explain

SIZE = {"width": 4, "fc_width": 16, "input_size": 64}
NAMES = ["background", "cat", "dog"]
METHODS = ["gradient", "guided", "deconvnet", "grad_cam", "guided_grad_cam", "features"]


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    for name, kind, eps in (("encoder", "classifier", 1e-5), ("deconvnet", "deconvnet", 1e-5), ("fcn", "fcn", None)):
        net = nets.build({"kind": kind, "size": SIZE, "classes": 3, "eps": eps})
        files.save(tmp_path / f"{name}.pt", net.spec, net.state_dict(), {"classes": NAMES})
    random = np.random.default_rng(0)
    Image.fromarray(random.integers(0, 256, (40, 70, 3), np.uint8)).save(tmp_path / "photo.png")
    return tmp_path


def run(folder, *options, picture="photo.png"):
    explain.main([str(folder / picture), *map(str, options), "--out", str(folder / "out")])
    return sorted(path.name for path in (folder / "out").iterdir())


def test_a_picture_for_each_method_and_a_montage(folder, capsys):
    options = ("--classifier", folder / "encoder.pt", "--model", folder / "deconvnet.pt", "--target", "dog")
    made = run(folder, *options, "--window", 10, 5, 30, 30)
    assert made == sorted(f"photo_{name}.png" for name in [*METHODS, "activations", "montage"])
    assert "explained: dog; 8 pictures" in capsys.readouterr().out
    pictures = {path.stem: np.asarray(Image.open(path)) for path in (folder / "out").iterdir()}
    side = 320  # the first multiple of 64 px from 288 on
    assert all(pictures[f"photo_{name}"].shape == (side + 22, side, 3) for name in METHODS if name != "features")
    # 1 + 5 methods, 5 features, 1 + 10 maps and the scores: four rows of 6
    assert pictures["photo_montage"].shape == (4 * (side + 22 + 8) - 8, 6 * (side + 8) - 8, 3)
    assert len({picture[30:].tobytes() for name, picture in pictures.items()}) == 8
    for name in METHODS:
        assert pictures[f"photo_{name}"][30:].std() > 5, name  # not one colour


def test_a_model_alone_and_a_number_as_target(folder):
    assert run(folder, "--model", folder / "deconvnet.pt", "--target", "2") == [
        "photo_activations.png", "photo_montage.png",
    ]  # fmt: skip


def test_what_a_net_sees():
    picture = np.zeros((40, 60, 3), np.uint8)
    picture[10:30, 20:40] = 200
    assert (explain.look(picture, [20, 10, 20, 20], 64) == 200).all()
    crop = explain.look(picture, [-20, 10, 80, 20], 64)  # beyond the left border: black
    assert (crop[:, :30] == 0).all() and (crop[:, 34:46] == 200).all()
    assert explain.look(picture, None, 64).shape == (64, 64, 3)


def test_how_it_is_drawn():
    values = torch.zeros(1, 3, 2, 2)
    values[0, 0, 0, 0], values[0, 1, 1, 1] = 2.0, -2.0
    np.testing.assert_array_equal(explain.signed(values)[0, 0], [255, 128, 128])
    np.testing.assert_array_equal(explain.signed(values)[1, 1], [128, 0, 128])
    assert (explain.signed(torch.zeros(1, 3, 2, 2)) == 128).all()
    levels = explain.heat(np.array([[0.0, 0.5, 1.0]]))[0].sum(1)
    assert levels[0] < levels[1] < levels[2]
    assert np.isfinite(explain.heat(np.zeros((2, 2)))).all()


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


ODD = {
    "one.png": encoded(Image.new("RGB", (1, 1), "red"), "PNG"),
    "thin.png": encoded(Image.new("L", (2000, 1), 40), "PNG"),
    "clear.png": encoded(Image.new("RGBA", (30, 20), (0, 0, 0, 0)), "PNG"),
    "deep.png": encoded(Image.fromarray(np.full((20, 30), 40000, np.uint16)), "PNG"),
    "cmyk.jpg": encoded(Image.new("CMYK", (30, 20)), "JPEG"),
    "palette.gif": encoded(Image.new("P", (30, 20)), "GIF"),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_pictures(folder, name):
    (folder / name).write_bytes(ODD[name])
    assert len(run(folder, "--classifier", folder / "encoder.pt", picture=name)) == 7


BAD = {
    "empty.jpg": b"",
    "cut.jpg": encoded(Image.new("RGB", (300, 200), "red"), "JPEG")[:400],
    "text.png": b"hello",
    "float.tif": encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"),
}


@pytest.mark.parametrize("name", BAD)
def test_pictures_that_are_none(folder, name):
    (folder / name).write_bytes(BAD[name])
    with pytest.raises(InputError, match=name) as raised:
        run(folder, "--classifier", folder / "encoder.pt", picture=name)
    assert "\n" not in str(raised.value) and not (folder / "out").exists()


@pytest.mark.parametrize(
    "options, message",
    [
        ([], "name a --classifier"),
        (["--classifier", "encoder.pt", "--target", "horse"], "--target horse: no class of .*background, cat, dog"),
        (["--classifier", "encoder.pt", "--target", "3"], "0 to 2"),
        (["--model", "fcn.pt"], "wants a DeconvNet"),
        (["--model", "encoder.pt"], "wants a DeconvNet"),
        (["--classifier", "fcn.pt"], "wants an encoder"),
        (["--classifier", "photo.png"], "not a PyTorch state dict"),
        (["--model", "none.pt"], "no such model"),
        (["--classifier", "encoder.pt", "--window", "70", "0", "5", "5"], "outside of .*70x40 px"),
        (["--classifier", "encoder.pt", "--window", "0", "0", "0", "5"], "allowed: sides of"),
        (["--classifier", "encoder.pt", "--window", "0", "0", "5", "99999999"], "allowed: sides of"),
    ],
)
def test_what_it_refuses_in_one_line(folder, options, message):
    options = [folder / option if option.endswith((".pt", ".png")) else option for option in options]
    with pytest.raises(InputError, match=message) as raised:
        run(folder, *options)
    assert "\n" not in str(raised.value) and not (folder / "out").exists()


def test_a_long_name_a_folder_and_a_pipe(folder):
    name = "ä" * 100 + ".png"
    (folder / "photo.png").rename(folder / name)
    assert len(run(folder, "--classifier", folder / "encoder.pt", picture=name)) == 7
    os.mkfifo(folder / "pipe.jpg")
    for path in ("pipe.jpg", ".", "none.jpg", "n" * 300):
        with pytest.raises(InputError, match="name a(nother| picture)"):
            run(folder, "--classifier", folder / "encoder.pt", picture=path)


def test_places_for_the_results(folder):
    (folder / "out").write_text("a file")
    with pytest.raises(InputError, match="choose another --out"):
        explain.main(
            [str(folder / "photo.png"), "--classifier", str(folder / "encoder.pt"), "--out", str(folder / "out")]
        )
    (folder / "out").unlink()
    (folder / "out").mkdir()
    (folder / "photo.png").rename(folder / "out/photo_montage.png")
    before = (folder / "out/photo_montage.png").read_bytes()
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(folder / "photo.png")
    (folder / "out/photo_guided.png").mkdir()
    with pytest.raises(InputError, match="photo_guided.png: would be overwritten"):
        run(folder, "--classifier", folder / "encoder.pt")
    assert (folder / "out/photo_montage.png").read_bytes() == before and len(list((folder / "out").iterdir())) == 2


def test_without_captum_there_is_one_line_and_no_file(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "captum", None)
    with pytest.raises(InputError, match="needs Captum"):
        run(folder, "--classifier", folder / "encoder.pt")
    assert not (folder / "out").exists()


def test_random_layers_are_said(folder, capsys, monkeypatch):
    monkeypatch.setattr(explain, "load_classifier", lambda path: (*_loaded(path)[:2], ["fc6", "fc7", "score"]))
    run(folder, "--classifier", folder / "encoder.pt")
    said = capsys.readouterr().out
    assert "lacks fc6, fc7, score: random here" in said and "no trained classes" in said


_loaded = explain.load_classifier
