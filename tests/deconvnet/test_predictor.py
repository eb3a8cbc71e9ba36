"""The predictor on files, PIL images and arrays: kinds of pictures, enlargement, answers, bad models."""

import io
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from deconvnet import Predictor, nets, settings
from deconvnet.crf import refine
from deconvnet.ensemble import combine
from deconvnet.errors import InputError
from deconvnet.images import PALETTE, decode_mask
from deconvnet.inference import results
from deconvnet.inference.photos import decode_photo
from deconvnet.inference.results import Found
from deconvnet.inference.whole_images import by_images
from deconvnet.inference.windows import by_windows, select
from deconvnet.nets import files
from deconvnet.proposals import EdgeBoxes

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


NAMES = ("background", "one", "two")
WINDOWS = {"context": 1.2, "square": True}
EDGES = settings.EdgeBoxes(edges="gradient", boxes=500, alpha=0.55, min_box_area=100)


def save_models(folder):
    """Models of three classes, as training leaves them."""
    made = {"fcn": colour_fcn(), "covering": covering_deconvnet(), "random": random_deconvnet()}
    for name, net in made.items():
        about = {"canvas": [160, 200]} if name == "fcn" else {"windows": WINDOWS}
        files.save(folder / f"{name}.pt", net.spec, net.state_dict(), about | {"classes": NAMES})
    for name, spec, names in (
        ("classifier", {"kind": "classifier", "size": TINY, "classes": 3, "eps": None}, NAMES),
        ("four", DECONVNET | {"classes": 4}, (*NAMES, "three")),
        ("others", DECONVNET, ("background", "two", "one")),
    ):
        about = {"classes": names, "windows": WINDOWS}
        files.save(folder / f"{name}.pt", spec, nets.build(spec).state_dict(), about)
    return folder


@pytest.fixture
def models(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return save_models(tmp_path)


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
    found = decode_photo(buffer.getvalue())
    assert found.dtype == np.uint8 and found.flags.writeable
    np.testing.assert_allclose(found, expected, atol=1 if "alpha" in kind or kind == "RGBA" else 0)


def test_a_cmyk_jpeg_is_not_inverted():
    buffer = io.BytesIO()
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(buffer, "JPEG", quality=100)
    np.testing.assert_allclose(decode_photo(buffer.getvalue()).mean((0, 1)), (255, 0, 0), atol=3)


@pytest.mark.parametrize("strip", [1, 200, 10**9])
@pytest.mark.parametrize("height, width", [(5, 7), (31, 20), (5, 40), (6, 7)])
def test_labels_enlarge_as_torch_interpolates(strip, height, width, monkeypatch):
    monkeypatch.setattr(results, "STRIP", strip)
    maps = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0))
    large = F.interpolate(maps[None], (height, width), mode="bilinear")[0]
    labels, probabilities = results.enlarge_labels(maps.numpy(), None, height, width)
    assert np.array_equal(labels, large.argmax(0))
    best = large.softmax(0).amax(0)
    np.testing.assert_allclose(probabilities, [best[large.argmax(0) == c].mean() for c in range(3)], rtol=1e-5)

    refined = maps.argmax(0).numpy()[::-1].astype(np.uint8).copy()  # others than the scores'
    votes = F.interpolate(F.one_hot(torch.from_numpy(refined).long(), 3).permute(2, 0, 1)[None].float(),
                          (height, width), mode="bilinear")[0]  # fmt: skip
    labels, probabilities = results.enlarge_labels(maps.numpy(), refined, height, width)
    top = votes.topk(2, 0).values
    clear = (top[0] - top[1] > 1e-5).numpy()  # rounding may decide the others
    assert np.array_equal(labels[clear], votes.argmax(0).numpy()[clear]) and clear.mean() > 0.8
    by_class = [large.softmax(0)[c][torch.from_numpy(labels == c)].mean() for c in range(3)]
    np.testing.assert_allclose(probabilities, by_class, rtol=1e-5)


def test_classes_and_overlay_by_hand():
    labels = np.zeros((6, 10), np.uint8)
    labels[2:5, 3:7] = 2
    rows = results.find_classes(labels, np.array([0.75, 0, 0.5]), NAMES)
    assert rows == [
        Found("background", 0, share=0.8, probability=0.75, box=(0, 0, 10, 6)),
        Found("two", 2, share=0.2, probability=0.5, box=(3, 2, 4, 3)),
    ]
    assert str(rows[1]) == "two 20.0%"
    drawn = results.tint(np.full((6, 10, 3), 100, np.uint8), labels)
    assert (drawn[0] == 100).all() and (drawn[2, 3:8] == 255).all() and (drawn[2:6, 3] == 255).all()
    assert drawn[3, 4].tolist() == ((100 + PALETTE[2].astype(int)) // 2).tolist()  # (0, 128, 0)


def test_a_legend_names_the_colours_below_the_picture():
    labels = np.zeros((60, 200), np.uint8)
    labels[:20], labels[40:] = 1, 2
    scores = np.eye(3, dtype=np.float32)[labels].transpose(2, 0, 1)
    result = results.Result(np.full((60, 200, 3), 90, np.uint8), scores, None, NAMES, None)
    plain, sheet = result.overlay(legend=False), result.overlay()
    assert plain.shape == (60, 200, 3) and sheet.shape[0] > 60 and sheet.shape[1] == 200
    assert np.array_equal(sheet[:60], plain)
    strip = sheet[60:].reshape(-1, 3)
    for number in (1, 2):
        assert (strip == PALETTE[number]).all(1).sum() > 80  # a swatch
    assert (strip.astype(int).sum(1) < 99).sum() > 20  # letters
    narrow = results.Result(np.full((60, 3, 3), 90, np.uint8), scores[:, :, :3].copy(), None, NAMES, None).overlay()
    assert narrow.shape[1] > 30 and narrow.shape[0] > sheet.shape[0]  # a line each, as wide as a name
    nothing = results.Result(np.zeros((9, 9, 3), np.uint8), np.zeros((3, 9, 9), np.float32), None, NAMES, None)
    assert nothing.overlay().shape == (9, 9, 3)


def by_hand(image, model, fcn=False, crf=None, ensemble="mean", inference=None):
    """Labels and windows of an image by the library's own functions."""
    inference = inference or settings.Inference()
    boxes, _ = EdgeBoxes(EDGES, None)(image)
    windows = select(boxes, 1.2, True, 0, inference.deconvnet.proposals)
    net, _ = files.load(model)
    ((maps, _),) = by_windows(net, [(image, windows)], inference.deconvnet, inference.precision)
    maps = maps.numpy()
    if fcn:
        (other,) = by_images(files.load("fcn.pt")[0], [image], (160, 200), 1, inference.precision)
        maps = combine(maps, other.numpy(), ensemble)
    return refine(maps, image, crf) if crf else maps.argmax(0), windows


@pytest.mark.parametrize("fcn", [None, "fcn.pt"])
@pytest.mark.parametrize("crf", [None, True])
def test_answers_are_those_of_its_parts(models, fcn, crf):
    predictor = Predictor("random.pt", fcn, crf, proposals=EDGES)
    crf = settings.Crf() if crf else None
    images = [scene(), scene(120, 96), np.zeros((50, 50, 3), np.uint8)]
    for image, result in zip(images, predictor(images), strict=True):
        expected, windows = by_hand(image, "random.pt", fcn, crf)
        assert (result.labels == expected).mean() > 0.999, "a batch of other windows may round otherwise"
        assert result.windows == len(windows) and result.computed == image.shape[:2]
        np.testing.assert_allclose(result.probabilities.sum(0), 1, atol=1e-5)
        assert [found.id for found in result.classes] == np.unique(result.labels).tolist()
        assert expected.any() == image.any()


def test_a_file_its_name_an_image_and_an_array_are_one_picture(models):
    image = scene()
    Image.fromarray(image).save("a.png")
    predictor = Predictor("fcn.pt")
    wanted = predictor(image).labels
    assert wanted.any() and predictor(image).source is None
    for picture in ("a.png", models / "a.png", Image.open("a.png")):
        assert np.array_equal(predictor(picture).labels, wanted)
    several = predictor(["a.png", image])
    assert [result.source for result in several] == ["a.png", None]
    assert predictor([]) == []
    result = predictor("a.png")
    result.save("labels.png"), result.save_overlay("overlay.png", legend=False)
    assert np.array_equal(decode_mask((models / "labels.png").read_bytes()), wanted)
    assert np.array_equal(np.asarray(Image.open("overlay.png")), result.overlay(legend=False))


def test_large_pictures_are_computed_at_the_size_of_training(models):
    image = np.zeros((400, 300, 3), np.uint8)
    image[:200, :, 0], image[200:, :, 1] = 255, 255
    assert Predictor("fcn.pt")(image).computed == (200, 150)
    assert Predictor("fcn.pt", longest=100)(image).computed == (100, 75)
    result = Predictor("random.pt")(image)
    assert result.computed == (400, 300)  # 500, VOC's, where no canvas is known
    assert result.labels.shape == (400, 300)


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), "u1")]
)
def test_other_arrays_are_refused(models, image):
    with pytest.raises(ValueError, match=r"an image must be uint8 \(H, W, 3\) RGB"):
        Predictor("fcn.pt")(image)


def test_pictures_that_cannot_be_read(models):
    (models / "a.txt").write_text("no picture")
    predictor, failures = Predictor("fcn.pt"), []
    with pytest.raises(InputError, match="none.png: No such file"):
        predictor("none.png")
    with pytest.raises(InputError, match="a.txt: does not decode"):
        predictor("a.txt")
    done = list(predictor.stream(["a.txt", scene(), "none.png"], lambda path, error: failures.append(path)))
    assert len(done) == 1 and failures == ["a.txt", "none.png"]


BAD = {
    "no model": ({"model": "none.pt"}, "none.pt: no such model"),
    "a classifier": ({"model": "classifier.pt"}, "classifier.pt: a net of kind classifier; wanted here: deconvnet or"),
    "no FCN": ({"model": "random.pt", "fcn": "random.pt"}, "random.pt: a net of kind deconvnet; wanted here: fcn"),
    "two FCNs": ({"model": "fcn.pt", "fcn": "fcn.pt"}, "fcn.pt: a net of kind fcn; wanted here: deconvnet"),
    "other number": ({"model": "four.pt", "fcn": "fcn.pt"}, "fcn.pt: scores 3 classes, not the 4 of four.pt"),
    "other names": ({"model": "others.pt", "fcn": "fcn.pt"}, "fcn.pt: class 1 is 'one', not 'two' as in others.pt"),
    "no forest": (
        {"model": "random.pt", "proposals": settings.EdgeBoxes()}, "proposals.edges is structured, which needs a file",
    ),
    "forest missing": ({"model": "random.pt", "edge_model": "none.gz"}, "none.gz: no edge model"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_models_are_refused(models, case):
    arguments, message = BAD[case]
    with pytest.raises(InputError) as error:
        Predictor(**arguments)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("key, model", [("classes", "covering.pt"), ("windows", "covering.pt"), ("canvas", "fcn.pt")])
def test_models_that_do_not_say_what_they_need(models, key, model):
    saved = files.read(model)
    del saved["about"][key]
    files.save("old.pt", saved["spec"], saved["state"], saved["about"])
    with pytest.raises(InputError, match=f"old.pt: does not say its {key}: made by an older version; train it again"):
        Predictor("old.pt")


def test_without_pydensecrf_the_crf_says_what_to_install(models):
    code = (
        "import sys; sys.modules['pydensecrf'] = None; from deconvnet import Predictor; Predictor('fcn.pt');"
        "Predictor('fcn.pt', crf=True)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "InputError: the CRF needs pydensecrf" in done.stderr and "pip install pydensecrf2" in done.stderr
