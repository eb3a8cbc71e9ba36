"""Prediction on pictures: kinds of files, sizes, the same answers as the stages', bad input."""

import io
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from world import CPU

from stages import crf, ensemble, infer, nets, predict, proposals
from stages.cli import InputError
from stages.config import load
from stages.images import PALETTE, decode_mask

TINY = {"width": 4, "fc_width": 16, "input_size": 96}
FCN = {"kind": "fcn", "size": TINY, "classes": 3, "eps": None, "skip_scales": [1.0, 1.0]}
DECONVNET = {"kind": "deconvnet", "size": TINY, "classes": 3, "eps": 1e-5}


def scene(height=96, width=120):
    """A red and a green rectangle on dark noise."""
    image = np.random.default_rng(0).integers(0, 30, (height, width, 3)).astype(np.uint8)
    image[height // 4 : height // 2, width // 6 : width // 2] = (255, 0, 0)
    image[height // 2 : -height // 6, width // 2 : -width // 8] = (0, 255, 0)
    return image


def colour_fcn():
    """An FCN that passes colours on to pool3, where red is class 1, green class 2 and less than 100 background."""
    net = nets.build(FCN)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if "upsampling" not in name:
                parameter.zero_()
            if name.startswith("encoder.conv") and name.endswith("weight"):
                for channel in range(3):
                    parameter[channel, channel, 1, 1] = 1
        net.encoder.mean.zero_(), net.encoder.std.fill_(1)
        net.score_pools[1].bias[0] = 100
        net.score_pools[1].weight[1, 0] = net.score_pools[1].weight[2, 1] = 1
    return net


def covering_deconvnet():
    """A DeconvNet that gives class 2 to all that it sees."""
    net = nets.build(DECONVNET)
    with torch.no_grad():
        net.score.weight.zero_()
        net.score.bias.copy_(torch.tensor([0.0, 0, 5]))
    return net


def random_deconvnet():
    """A DeconvNet whose answer depends on all pixels of a window."""
    torch.manual_seed(0)
    net = nets.build(DECONVNET | {"eps": None})
    for name, parameter in net.named_parameters():
        if name.endswith("weight"):
            torch.nn.init.kaiming_normal_(parameter)
    with torch.no_grad():
        net.score.weight *= 3000  # to scores of about 1
        net.score.weight[0] = 0
        net.score.weight[2] = -net.score.weight[1]
    return net


@pytest.fixture
def models(experiment):
    made = {"fcn": colour_fcn(), "covering": covering_deconvnet(), "random": random_deconvnet()}
    for name, net in made.items():
        nets.save(experiment / f"{name}.pt", net.spec, net.state_dict(), {})
    nets.save(experiment / "classifier.pt", *parts({"kind": "classifier", "size": TINY, "classes": 3, "eps": None}))
    nets.save(experiment / "four.pt", *parts(DECONVNET | {"classes": 4}))
    return experiment


def parts(spec):
    return spec, nets.build(spec).state_dict(), {}


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
    assert overlay.shape == (report["height"], report["width"], 3)
    return decode_mask(data), overlay, report


GREY = np.arange(48 * 64, dtype=np.uint8).reshape(48, 64)
RGB = np.stack([GREY, GREY.T.reshape(48, 64), 255 - GREY], -1)
ALPHA = np.repeat(np.array([0, 128, 255, 255], np.uint8), 16)[None].repeat(48, 0)


def over_white(colours):
    """By definition: alpha x colour + (1 - alpha) x white."""
    alpha = ALPHA[..., None] / 255
    return alpha * colours + (1 - alpha) * 255


def palette():
    image = Image.fromarray(GREY % 4)
    image.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0, 0, 0, 200])
    return image


EXIF = Image.Exif()
EXIF[0x0112] = 6  # the camera was turned: show it a quarter turn clockwise
COLOURS = np.array([(255, 255, 255), (200, 0, 0), (0, 200, 0), (0, 0, 200)])
KINDS = {  # name: picture, format, options of saving, expected pixels
    "grey": (GREY, "PNG", {}, GREY),
    "1 bit": (Image.fromarray(GREY > 99), "PNG", {}, (GREY > 99) * 255),
    "16 bits": (GREY.astype(np.uint16) * 257, "PNG", {}, GREY),
    "16 bits, the other end first": (GREY.astype(">u2") * 257, "TIFF", {}, GREY),
    "16 bits, opened as 32": (GREY.astype(np.uint16) * 257, "PPM", {}, GREY),
    "RGBA": (np.dstack([RGB, ALPHA]), "PNG", {}, over_white(RGB)),
    "grey and alpha": (np.dstack([GREY, ALPHA]), "PNG", {}, over_white(GREY[..., None])),
    "palette": (palette(), "PNG", {"transparency": 0}, COLOURS[GREY % 4]),
    "GIF of two frames": (
        palette(), "GIF", {"transparency": 0, "save_all": True, "append_images": [palette().rotate(180)]},
        COLOURS[GREY % 4],
    ),
    "CMYK": (Image.merge("CMYK", [*Image.fromarray(RGB).split(), Image.new("L", (64, 48))]), "TIFF", {}, 255 - RGB),
    "turned": (RGB, "PNG", {"exif": EXIF}, np.rot90(RGB, -1)),
    "turned, grey of 16 bits": (GREY.astype(np.uint16) * 257, "PNG", {"exif": EXIF}, np.rot90(GREY, -1)),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_pictures(kind):
    image, name, options, expected = KINDS[kind]
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, name, **options)
    expected = np.broadcast_to(expected if expected.ndim == 3 else expected[..., None], (*expected.shape[:2], 3))
    found = predict.decode(buffer.getvalue())
    assert found.dtype == np.uint8 and found.flags.writeable
    np.testing.assert_allclose(found, expected, atol=1 if "alpha" in kind or kind == "RGBA" else 0)


def test_a_cmyk_jpeg_is_not_inverted():
    buffer = io.BytesIO()
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(buffer, "JPEG", quality=100)
    np.testing.assert_allclose(predict.decode(buffer.getvalue()).mean((0, 1)), (255, 0, 0), atol=3)


@pytest.mark.parametrize("strip", [1, 200, 10**9])
@pytest.mark.parametrize("height, width", [(5, 7), (31, 20), (5, 40), (6, 7)])
def test_labels_enlarge_as_torch_interpolates(strip, height, width, monkeypatch):
    monkeypatch.setattr(predict, "STRIP", strip)
    maps = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0))
    large = F.interpolate(maps[None], (height, width), mode="bilinear")[0]
    labels, probabilities = predict.label(maps.numpy(), None, height, width)
    assert np.array_equal(labels, large.argmax(0))
    best = large.softmax(0).amax(0)
    np.testing.assert_allclose(probabilities, [best[large.argmax(0) == c].mean() for c in range(3)], rtol=1e-5)

    refined = maps.argmax(0).numpy()[::-1].astype(np.uint8).copy()  # others than the scores'
    votes = F.interpolate(F.one_hot(torch.from_numpy(refined).long(), 3).permute(2, 0, 1)[None].float(),
                          (height, width), mode="bilinear")[0]  # fmt: skip
    labels, probabilities = predict.label(maps.numpy(), refined, height, width)
    top = votes.topk(2, 0).values
    clear = (top[0] - top[1] > 1e-5).numpy()  # rounding may decide the others
    assert np.array_equal(labels[clear], votes.argmax(0).numpy()[clear]) and clear.mean() > 0.8
    by_class = [large.softmax(0)[c][torch.from_numpy(labels == c)].mean() for c in range(3)]
    np.testing.assert_allclose(probabilities, by_class, rtol=1e-5)


def test_report_and_overlay_by_hand():
    labels = np.zeros((6, 10), np.uint8)
    labels[2:5, 3:7] = 2
    rows = predict.found(labels, np.array([0.75, 0, 0.5]), ["background", "one", "two"])
    assert rows == [
        {"class": "background", "id": 0, "share": 0.8, "probability": 0.75, "box": (0, 0, 10, 6)},
        {"class": "two", "id": 2, "share": 0.2, "probability": 0.5, "box": (3, 2, 4, 3)},
    ]
    drawn = predict.overlay(np.full((6, 10, 3), 100, np.uint8), labels)
    assert (drawn[0] == 100).all() and (drawn[2, 3:8] == 255).all() and (drawn[2:6, 3] == 255).all()
    assert drawn[3, 4].tolist() == ((100 + PALETTE[2].astype(int)) // 2).tolist()  # (0, 128, 0)


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


def by_hand(image, model, fcn=False, refine=False):
    """Labels and scores of an image by the stages' own functions."""
    params, frame = load(infer.Params, "infer"), infer.frame()
    classes = load(list[str], "dataset.classes")
    boxes, _ = proposals.EdgeBoxes(load(proposals.Params, "proposals"), None)(image)
    windows = infer.select(boxes, params.deconvnet, frame, params.deconvnet.proposals)
    net = infer.load_net(model, classes, CPU)
    ((maps, _),) = infer.by_windows(net, [(image, windows)], params.deconvnet, params.precision)
    maps = maps.numpy()
    if fcn:
        (other,) = infer.whole_images(
            infer.load_net("fcn.pt", classes, CPU), [image], frame.canvas, 1, params.precision
        )
        maps = ensemble.combine(maps, other.numpy(), load(ensemble.Params, "ensemble").method)
    return crf.refine(maps, image, load(crf.Params, "crf")) if refine else maps.argmax(0), windows


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
def test_the_stages_own_answers(models, options, monkeypatch, capsys):
    monkeypatch.setattr(predict, "GROUP", 2)
    images = {"a": scene(), "b": scene(120, 96), "flat": np.zeros((50, 50, 3), np.uint8)}
    for name, image in images.items():
        save(models / f"in/{name}.png", image)
    predict.main(["in", "--model", "random.pt", "--out", "out", *options])
    for name, image in images.items():
        labels, _, report = results(models / "out", name)
        expected, windows = by_hand(image, "random.pt", "--fcn" in options, "--crf" in options)
        assert (labels == expected).mean() > 0.999, "a batch of other windows may round otherwise"
        assert report["windows"] == len(windows) and report["crf"] == ("--crf" in options)
        assert expected.any() == (name != "flat")
    assert "flat.png: no proposals" in capsys.readouterr().out


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


def test_another_experiments_parameters(models, monkeypatch):
    save(models / "in/a.png", scene())
    (models / "elsewhere").mkdir()
    monkeypatch.chdir(models / "elsewhere")
    predict.main(["../in", "--model", "../covering.pt", "--out", "out", "--params", "../params.yaml"])
    assert len(results(models / "elsewhere/out", "a")[2]["classes"]) > 1
    params = yaml.safe_load((models / "params.yaml").read_text())
    params["proposals"]["edges"] = "structured"
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
    "model of four classes": (["in/a.png"], ["in", "--model", "four.pt"], "four.pt: scores 4 classes, but"),
    "a classifier": (["in/a.png"], ["in", "--model", "classifier.pt"], "classifier.pt: a net of kind classifier"),
    "no FCN": (["in/a.png"], ["in", "--fcn", "random.pt"], "random.pt: a net of kind deconvnet; wanted here: fcn"),
    "two FCNs": (["in/a.png"], ["in", "--model", "fcn.pt", "--fcn", "fcn.pt"], "fcn.pt: a net of kind fcn; wanted"),
    "no parameters": (["in/a.png"], ["in", "--params", "none.yaml"], "none.yaml: No such file"),
}


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
