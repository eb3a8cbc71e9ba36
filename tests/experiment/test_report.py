"""The report's tables, claims, charts and pictures: values worked out by hand, or by the net itself."""

import base64
import io

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from deconvnet.images import PALETTE, VOC_CLASSES, VOID
from deconvnet.nets.deconvnet import DeconvNet
from deconvnet.settings import Size
from deconvnet.systems import SYSTEMS, System
from experiment.report import activations, charts, claims, galleries, numbers, paper, pictures, tables
from tests.conftest import draw, jpeg

CLASSES = ["background", "one", "two", "three"]  # three: never there


def per_class(values: dict[str, float], classes=VOC_CLASSES) -> pd.DataFrame:
    """The same IoU for every system; nan where `values` has none."""
    own = [values.get(name, np.nan) for name in classes]
    return pd.DataFrame({"class": classes} | dict.fromkeys(SYSTEMS, own))


def metrics(**means: float) -> dict:
    sizes = {"pixel_accuracy": 0.9, "small": 0.1, "medium": 0.2, "large": 0.3, "boundary": 0.2}
    return {system: {"mean_iou": means.get(system, 0.5)} | sizes for system in SYSTEMS}


GROWTH = pd.DataFrame({"proposals": [1, 5, 10], "mean_iou": [0.2, 0.4, 0.3], "pixel_accuracy": [0.7, 0.8, 0.8]})


def boundary(**values: float) -> pd.DataFrame:
    return pd.DataFrame({"width": [1, 4]} | {name: [values.get(name, 0.2), 0.5] for name in SYSTEMS})


def test_differences_to_the_paper():
    # FCN-8s of the paper: mean 62.2, background 91.2, aeroplane 76.8, bicycle 34.2
    table = per_class({"background": 0.9234, "aeroplane": 0.7, "bicycle": 0.342})
    rows = tables.results(table, metrics(fcn8s=0.6), list(VOC_CLASSES))
    place = [row.label for row in rows].index("FCN-8s")
    assert [row.kind for row in rows[place : place + 3]] == ["ours", "paper", "delta"]
    ours, paper, delta = (row.values for row in rows[place : place + 3])
    assert ours[:5] == [60.0, 92.3, 70.0, 34.2, None]
    assert paper[:4] == [62.2, 91.2, 76.8, 34.2] and len(paper) == 22
    assert delta[:5] == [-2.2, 1.1, -6.8, 0.0, None]
    assert [numbers.signed(value) for value in delta[:5]] == ["−2.2", "+1.1", "−6.8", "0.0", "–"]
    assert [row.kind for row in rows].count("delta") == 5  # the paper has neither stage 1 nor FCN-8s+CRF
    assert tables.tops(rows)[:3] == [60.0, 92.3, 70.0] and tables.tops(rows)[4] is None


def test_the_papers_rows_have_their_means():
    for row in paper.TABLE.values():
        assert np.mean(row[1:]) == pytest.approx(row[0], abs=0.06)


def test_other_classes_are_not_compared():
    rows = tables.results(per_class({"one": 0.5}, CLASSES), metrics(), CLASSES)
    assert [row.kind for row in rows] == ["ours"] * 7


BETTER = {"stage1": 0.3, "fcn8s": 0.45, "deconvnet": 0.5, "edeconvnet": 0.53, "deconvnet_crf": 0.51,
          "edeconvnet_crf": 0.54}  # fmt: skip


def judge(found: dict, growth: pd.DataFrame, bands: pd.DataFrame) -> dict[str, str]:
    return {letter: claims.verdict(letter, own) for letter, own in claims.gains(found, growth, bands).items()}


def test_claims_hold():
    better = metrics(**BETTER)
    better["deconvnet"] |= {"small": 0.2, "large": 0.31}
    gains = claims.gains(better, GROWTH, boundary(deconvnet=0.3))
    assert gains == {
        "a": {"fcn8s": 8.0, "deconvnet": 3.0, "final over fcn8s": 9.0, "final over deconvnet": 4.0},
        "b": {"deconvnet": 1.0, "edeconvnet": 1.0}, "c": {"deconvnet": 20.0}, "e": {"last": 10.0},
        "d": {}, "f": {"small": 10.0, "large": 1.0}, "g": {"narrowest": 10.0},
    }  # fmt: skip
    assert {letter for letter, own in gains.items() if claims.verdict(letter, own) == "holds"} == set("abef")
    assert {claims.verdict(letter, gains[letter]) for letter in "cdg"} == {"not tested"}  # by one run


def test_claims_fail():
    worse = metrics(stage1=0.5, fcn8s=0.4, deconvnet=0.5, edeconvnet=0.45, deconvnet_crf=0.51, edeconvnet_crf=0.44)
    worse["deconvnet"] |= {"small": 0.2, "large": 0.29}  # one of two is not enough
    found = judge(worse, GROWTH[::-1], boundary(fcn8s=0.3))
    assert {letter for letter, verdict in found.items() if verdict == "fails"} == set("abcefg")


@pytest.mark.parametrize(
    "values, verdict",
    [
        ({"edeconvnet": 0.499}, "fails"),  # below DeconvNet without the CRF, whatever the CRF adds
        ({"edeconvnet_crf": 0.516, "edeconvnet": 0.51}, "holds"),  # 1.6 points of 3.1
        ({"edeconvnet_crf": 0.515, "edeconvnet": 0.51}, "holds in sign only"),  # 1.5 points of 3.1
        ({"fcn8s": 0.488}, "holds"),  # 5.2 points of 10.3
        ({"fcn8s": 0.49}, "holds in sign only"),  # 5.0 points of 10.3
    ],
)
def test_the_ensemble_gains_at_least_half_of_what_the_paper_says(values, verdict):
    assert judge(metrics(**BETTER | values), GROWTH, boundary())["a"] == verdict


@pytest.mark.parametrize(
    "added, verdict",
    [(0.0, "fails"), (0.004, "holds in sign only"), (0.005, "holds"), (0.018, "holds"), (0.019, "holds in sign only"),
     (0.065, "holds in sign only")],
)  # fmt: skip
def test_about_a_point_is_half_of_it_to_twice(added, verdict):
    found = metrics(**BETTER | {"deconvnet_crf": 0.5 + added, "edeconvnet_crf": 0.53 + 0.008})
    assert judge(found, GROWTH, boundary())["b"] == verdict


def test_a_claim_without_a_number_is_not_tested():
    found = metrics(**BETTER)
    found["fcn8s"]["large"] = None
    assert judge(found, GROWTH, boundary())["f"] == "not tested"


def test_the_tally():
    verdicts = {"a": "holds", "b": "holds in sign only", "c": "holds", "d": "not tested", "e": "fails"}
    assert claims.tally(verdicts) == (
        "Of 5 claims of the paper, 2 hold, 1 holds in sign only, 1 fails, 1 is not tested."
    )


def test_a_gain_whose_interval_reaches_0_holds_in_sign_only():
    pairs = [("edeconvnet", "fcn8s", 0.02), ("edeconvnet", "deconvnet", -0.001), ("deconvnet", "stage1", 0.1)]
    pairs += [
        ("edeconvnet_crf", "edeconvnet", 0.001),
        ("deconvnet_crf", "deconvnet", 0.002),
        ("fcn8s_crf", "fcn8s", -1),
    ]
    table = pd.DataFrame(pairs, columns=["system", "minus", "low"])
    assert {letter: claims.lowest(letter, table) for letter in "abcde"} == {
        "a": -0.001, "b": 0.001, "c": 0.1, "d": np.inf, "e": np.inf,
    }  # fmt: skip
    gains = claims.gains(metrics(**BETTER), GROWTH, boundary())
    assert claims.verdict("a", gains["a"], -0.001) == claims.verdict("a", gains["a"], 0.0) == "holds in sign only"
    assert claims.verdict("a", gains["a"], 0.001) == "holds"


@pytest.mark.parametrize(
    "fraction, text",
    [(0.4095, "41.0"), (0.40945, "40.9"), (0.409499, "40.9"), (0.8005, "80.1"), (0.0005, "0.1"), (1.0, "100.0"),
     (None, "–"), (float("nan"), "–")],
)  # fmt: skip
def test_numbers_are_rounded_half_up_from_what_is_written(fraction, text):
    assert numbers.percent(fraction) == text
    assert fraction is None or numbers.percent(np.float64(fraction)) == text


def test_rows_of_the_confusion_add_up_to_one():
    rows = [("deconvnet", "one", "one", 3), ("deconvnet", "one", "two", 1), ("fcn8s", "one", "one", 7)]
    table = pd.DataFrame(rows, columns=["system", "truth", "predicted", "pixels"])
    shares = tables.row_shares(table, "deconvnet", CLASSES)
    assert shares[1].tolist() == [0, 0.75, 0.25, 0]
    assert np.isnan(shares[[0, 2, 3]]).all()


def test_galleries():
    frame = pd.DataFrame({"image_id": list("gfedcba"), "mean_iou": [0.7, 0.6, 0.5, 0.4, 0.3, 0.2, np.nan]})
    chosen = galleries.choose(frame.assign(system="edeconvnet_crf"), 2)
    assert chosen == {"Best": ["g", "f"], "Typical": ["e", "d"], "Worst": ["b", "c"]}
    assert galleries.choose(frame[:1].assign(system="edeconvnet_crf"), 2)["Worst"] == ["g"]


def test_what_labels_hold():
    labels = np.array([[0, 0, 0, 0], [1, 1, VOID, 2]], np.uint8)
    assert galleries.content(labels, CLASSES) == "background 57 %, one 29 %, two 14 %"
    # background 3 of 4, one 1 of 2, two 0 of 1; the void pixel is not looked at
    predicted = np.array([[0, 0, 0, 1], [1, 0, 3, 2]], np.uint8)
    predicted[1, 3] = 1
    assert galleries.image_iou(labels, predicted, len(CLASSES)) == pytest.approx((3 / 5 + 1 / 4 + 0) / 3)


def test_the_largest_object_is_shown_as_the_net_sees_it():
    image, labels, _ = draw(0)
    window = np.array([-9, 20, 40, 60], np.int32)
    data = {"image": jpeg(image), "instance_areas": [3, 9, 4], "instance_classes": [2, 1, 3]}
    data["object_windows"] = np.stack([window + 1, window, window])
    picture, kind = activations.largest_object(data, (32, 32))
    assert kind == 1
    whole = np.zeros((100, 100, 3), np.uint8)  # the image on a black canvas, 10 px in
    whole[10:70, 10:90] = np.asarray(Image.open(io.BytesIO(data["image"])))
    np.testing.assert_array_equal(picture, cv2.resize(whole[30:90, 1:41], (32, 32)))


def tiny_net() -> DeconvNet:
    torch.manual_seed(0)
    return DeconvNet(Size(width=4, fc_width=8, input_size=32), len(CLASSES), eps=1e-5).eval()


def test_activations_are_the_nets_in_its_order():
    net, picture = tiny_net(), cv2.resize(draw(0)[0], (32, 32))
    maps = activations.activations(net, picture)
    blocks = {5: 3, 4: 3, 3: 3, 2: 2, 1: 2}
    names = [[f"unpool{n}", *(f"deconv{n}_{k}" for k in range(1, layers + 1))] for n, layers in blocks.items()]
    assert list(maps) == ["fc6_deconv", *sum(names, []), "score"]
    assert maps["unpool5"].shape[1:] == (2, 2) and maps["deconv1_2"].shape == (4, 32, 32)
    for number in blocks:
        assert (maps[f"unpool{number}"] != 0).mean() <= 0.25
    with torch.inference_mode():
        expected = net(torch.from_numpy(picture).permute(2, 0, 1)[None].float())[0].numpy()
    np.testing.assert_array_equal(maps["score"], expected)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_learning_rate_drops_are_drawn_at_their_steps():
    curves = pd.DataFrame({"step": [100, 200, 300], "lr": [0.2, 0.2, 0.002]})
    assert charts.drop_steps(curves, [200, 275, 900]) == [200, 275]  # 900 was not reached
    assert charts.drop_steps(curves, []) == charts.drop_steps(curves, "cosine") == []
    # a plateau is found by the validation after step 200, so that the row of step 300 has the lower rate
    assert charts.drop_steps(curves, "plateau") == [200]
    trained = curves.assign(loss=1.0, held_out_loss=1.0, held_out_mean_iou=[0.1, 0.4095, 0.3])
    with_drops, without = (charts.training("t", trained, drops) for drops in ([200, 275], []))
    assert with_drops.source != without.source
    assert "to 41.0 % at step 200, its best" in with_drops.message


def test_a_training_without_held_out_images_has_its_chart():
    curves = pd.DataFrame({"step": [1, 2], "lr": 0.1, "loss": [2.0, 1.0], "held_out_loss": np.nan,
                           "held_out_mean_iou": np.nan})  # fmt: skip
    message = charts.training("t", curves, []).message
    assert message == "No image was held out; the training loss from 2 at step 1 to 1."


def test_a_new_system_needs_no_change_of_the_charts(monkeypatch):
    monkeypatch.setitem(SYSTEMS, "new", System("New", net="fcn"))
    monkeypatch.setitem(SYSTEMS, "new_crf", System("New+CRF", crf="new"))
    looks = {key: charts.look(key) for key in SYSTEMS}
    assert looks["new"].colour == looks["new_crf"].colour and looks["new_crf"].refined and not looks["new"].refined
    assert len({(look.colour, look.refined) for look in looks.values()}) == len(SYSTEMS)
    chart = charts.around_boundaries("t", pd.DataFrame({"width": [1, 4]} | dict.fromkeys(SYSTEMS, [0.2, 0.3])))
    assert "new+crf" not in chart.message.lower() and chart.source


def test_labels_are_shown_in_vocs_colours_with_lines_between_classes():
    labels = np.array([[0, 0, VOID, 1], [0, 0, VOID, 1], [2, 2, VOID, 1]], np.uint8)
    data = base64.b64decode(pictures.mask(labels, 4).partition(",")[2])
    shown = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    expected = PALETTE[labels]
    expected[1, :2] = pictures.LINE  # above the class 2; void parts the rest
    np.testing.assert_array_equal(shown, expected)
