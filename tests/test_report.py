import json
import re
import xml.etree.ElementTree as ElementTree

import cv2
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
import yaml

from stages import crops, nets, report, shards
from stages.cli import InputError
from stages.images import VOC_CLASSES, VOID, encode_mask
from stages.nets.vgg import Size
from tests.conftest import draw, jpeg

CLASSES = ["background", "one", "two", "three"]  # three: never there
IMAGES = 5


def per_class(values: dict[str, float], classes=VOC_CLASSES) -> pd.DataFrame:
    """The same IoU for every system; nan where `values` has none."""
    own = [values.get(name, np.nan) for name in classes]
    return pd.DataFrame({"class": classes} | dict.fromkeys(report.SYSTEMS, own))


def metrics(**means: float) -> dict:
    sizes = {"pixel_accuracy": 0.9, "small": 0.1, "medium": 0.2, "large": 0.3, "boundary": 0.2}
    return {system: {"mean_iou": means.get(system, 0.5)} | sizes for system in report.SYSTEMS}


GROWTH = pd.DataFrame({"proposals": [1, 5, 10], "mean_iou": [0.2, 0.4, 0.3], "pixel_accuracy": [0.7, 0.8, 0.8]})


def boundary(**values: float) -> pd.DataFrame:
    return pd.DataFrame({"width": [1, 4]} | {name: [values.get(name, 0.2), 0.5] for name in report.SYSTEMS})


def test_differences_to_the_paper():
    # FCN-8s of the paper: mean 62.2, background 91.2, aeroplane 76.8, bicycle 34.2
    table = per_class({"background": 0.9234, "aeroplane": 0.7, "bicycle": 0.342})
    rows = report.results(table, metrics(fcn8s=0.6), list(VOC_CLASSES))
    place = [row.label for row in rows].index("FCN-8s")
    assert [row.kind for row in rows[place : place + 3]] == ["ours", "paper", "delta"]
    ours, paper, delta = (row.values for row in rows[place : place + 3])
    assert ours[:5] == [60.0, 92.3, 70.0, 34.2, None]
    assert paper[:4] == [62.2, 91.2, 76.8, 34.2] and len(paper) == 22
    assert delta[:5] == [-2.2, 1.1, -6.8, 0.0, None]
    assert [report.signed(value) for value in delta[:5]] == ["−2.2", "+1.1", "−6.8", "0.0", "–"]
    assert [row.kind for row in rows].count("delta") == 5  # the paper has neither stage 1 nor FCN-8s+CRF
    assert report.tops(rows)[:3] == [60.0, 92.3, 70.0] and report.tops(rows)[4] is None


def test_the_papers_rows_have_their_means():
    for row in report.PAPER.values():
        assert np.mean(row[1:]) == pytest.approx(row[0], abs=0.06)


def test_other_classes_are_not_compared():
    rows = report.results(per_class({"one": 0.5}, CLASSES), metrics(), CLASSES)
    assert [row.kind for row in rows] == ["ours"] * 7


def test_claims_hold_and_fail():
    better = metrics(stage1=0.3, fcn8s=0.4, deconvnet=0.5, edeconvnet=0.55, deconvnet_crf=0.51, edeconvnet_crf=0.56)
    better["deconvnet"] |= {"small": 0.2, "large": 0.31}
    gains = report.claims(better, GROWTH, boundary(deconvnet=0.3))
    assert gains == {
        "a": {"fcn8s": 15.0, "deconvnet": 5.0}, "b": {"deconvnet": 1.0, "edeconvnet": 1.0}, "c": {"deconvnet": 20.0},
        "e": {"last": 10.0}, "f": {"small": 10.0, "large": 1.0}, "g": {"narrowest": 10.0},
    }  # fmt: skip
    assert {report.verdict(own) for own in gains.values()} == {"holds"}

    worse = metrics(stage1=0.5, fcn8s=0.4, deconvnet=0.5, edeconvnet=0.45, deconvnet_crf=0.51, edeconvnet_crf=0.44)
    worse["deconvnet"] |= {"small": 0.2, "large": 0.29}  # one of two is not enough
    gains = report.claims(worse, GROWTH[::-1], boundary(fcn8s=0.3))
    assert {report.verdict(own) for own in gains.values()} == {"does not hold"}

    better["fcn8s"]["large"] = None
    assert report.verdict(report.claims(better, GROWTH, boundary())["f"]) == "not measured"


def test_rows_of_the_confusion_add_up_to_one():
    rows = [("deconvnet", "one", "one", 3), ("deconvnet", "one", "two", 1), ("fcn8s", "one", "one", 7)]
    table = pd.DataFrame(rows, columns=["system", "truth", "predicted", "pixels"])
    shares = report.row_shares(table, "deconvnet", CLASSES)
    assert shares[1].tolist() == [0, 0.75, 0.25, 0]
    assert np.isnan(shares[[0, 2, 3]]).all()


def test_times_count_the_last_run_of_a_command():
    runs = [("infer", ["a"], 9), ("infer", ["b"], 2), ("crf", [], 1.5), ("infer", ["a"], 3)]
    lines = [json.dumps({"module": name, "arguments": given, "seconds": spent}) for name, given, spent in runs]
    assert report.times(lines).to_numpy().tolist() == [["infer", 2, 5.0], ["crf", 1, 1.5]]
    assert not len(report.times([]))
    with pytest.raises(InputError, match="times.jsonl: line 2 "):
        report.times([lines[0], "{"])


def test_galleries():
    frame = pd.DataFrame({"image_id": list("gfedcba"), "mean_iou": [0.7, 0.6, 0.5, 0.4, 0.3, 0.2, np.nan]})
    chosen = report.choose(frame.assign(system="edeconvnet_crf"), 2)
    assert chosen == {"Best": ["g", "f"], "Typical": ["e", "d"], "Worst": ["b", "c"]}
    assert report.choose(frame[:1].assign(system="edeconvnet_crf"), 2)["Worst"] == ["g"]


def test_what_labels_hold():
    labels = np.array([[0, 0, 0, 0], [1, 1, VOID, 2]], np.uint8)
    assert report.content(labels, CLASSES) == "background 57 %, one 29 %, two 14 %"
    # background 3 of 4, one 1 of 2, two 0 of 1; the void pixel is not looked at
    predicted = np.array([[0, 0, 0, 1], [1, 0, 3, 2]], np.uint8)
    predicted[1, 3] = 1
    assert report.image_iou(labels, predicted) == pytest.approx((3 / 5 + 1 / 4 + 0) / 3)


def test_a_window_is_cut_as_for_training():
    image = draw(0)[0]
    for window in ([-9, -5, 40, 40], [50, 30, 60, 60], [10, 10, 20, 20]):
        cut, _ = crops.cut(image, np.zeros(image.shape[:2], np.uint8), np.array(window))
        np.testing.assert_array_equal(report.crop(image, np.array(window, np.int32), 32), cv2.resize(cut, (32, 32)))


def tiny_net() -> nets.DeconvNet:
    torch.manual_seed(0)
    return nets.DeconvNet(Size(width=4, fc_width=8, input_size=32), len(CLASSES), eps=1e-5).eval()


def test_activations_are_the_nets_in_its_order():
    net, picture = tiny_net(), cv2.resize(draw(0)[0], (32, 32))
    maps = report.activations(net, picture)
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


@pytest.fixture
def world(experiment):
    """An experiment folder with all that the page is made of: five images, three proposals each."""
    params = yaml.safe_load((experiment / "params.yaml").read_text())
    params["dataset"]["classes"], params["report"] = CLASSES, {"examples": 2, "side": 48}
    params["infer"]["growth"] = [1, 2, 5]
    (experiment / "params.yaml").write_text(yaml.safe_dump(params))
    rows, boxes, images = [], [], []
    tables = {name: [] for name in report.SYSTEMS}
    for number in range(IMAGES):
        name = f"2011_{number:06d}"
        image, truth, instances = draw(number)
        truth[:, 8] = VOID
        rows.append(
            {
                "image_id": name, "height": 60, "width": 80, "image": jpeg(image), "class_mask": encode_mask(truth),
                "instance_mask": encode_mask(instances), "instance_classes": [1, 2],
                "instance_boxes": [[8, 5, 20, 20], [40, 30, 25, 25]], "instance_areas": [400, 625],
            }
        )  # fmt: skip
        boxes += [(name, rank, 10.0 * rank, 5.0, 30.0, 20.0, 1 / rank) for rank in (1, 2, 3)]
        for key in report.SYSTEMS:
            labels = np.where(truth == VOID, 0, truth).astype(np.uint8)
            labels[: 3 * number + len(key)] = 0
            growth = [encode_mask(labels * (step > 0)) for step in range(3)] if key == "deconvnet" else []
            tables[key].append({"image_id": name, "labels": encode_mask(labels), "growth": growth})
            images.append((name, key, report.image_iou(truth, labels), 0.9))
    shards.write("data/dataset/val-000.parquet", pa.Table.from_pylist(rows))
    columns = ["image_id", "rank", "x", "y", "width", "height", "objectness"]
    shards.write("data/proposals/val-000.parquet", pa.Table.from_pandas(pd.DataFrame(boxes, columns=columns)))
    for key, table in tables.items():
        folder = "labels" if key.endswith("_crf") else "scores"
        shards.write(f"data/{folder}/{key}/val-000.parquet", pa.Table.from_pylist(table))
    frame = pd.DataFrame(images, columns=["image_id", "system", "mean_iou", "pixel_accuracy"])
    shards.write("data/evaluation/images.parquet", pa.Table.from_pandas(frame))
    net = tiny_net()
    nets.save("data/models/deconvnet.pt", net.spec, net.state_dict(), {"code": "0123456789abcdef"})
    write_reports(experiment / "reports")
    return experiment


def write_reports(folder):
    folder.mkdir()
    found = {"images": IMAGES, "images_without_proposals": 0, "objects": {"small": 0, "medium": 5, "large": 5}}
    (folder / "metrics.json").write_text(json.dumps(found | metrics(edeconvnet_crf=0.6171)))
    pairs = [(a, b, (5 if a == b else 1) * (a != "three")) for a in CLASSES for b in CLASSES]
    sizes = [(name, np.nan, 0.5, 0.6) for name in report.SYSTEMS]
    recall = {"boxes": [10, 100], "recall_iou_0.5": [0.5, 0.75], "recall_iou_0.7": [0.2, 0.4]}
    crop_counts = {"class": CLASSES[1:], "objects": 5, "windows": [5, 7, 0], "used": [5, 7, 0], "examples": [9, 9, 0]}
    curves = pd.DataFrame({"step": [2, 4], "lr": [0.1, 0.01], "loss": [2.0, 1.0], "held_out_loss": [2.0, 1.5]})
    trained = curves.assign(held_out_accuracy=0.5, held_out_mean_iou=[0.1, 0.25])
    reports = {
        "per_class": per_class({"background": 0.9, "one": 0.4321, "two": 0.3}, CLASSES),
        "confusion": pd.DataFrame(
            [(system, *pair) for system in report.SYSTEMS for pair in pairs],
            columns=["system", "truth", "predicted", "pixels"],
        ),
        "sizes": pd.DataFrame(sizes, columns=["system", "small", "medium", "large"]),
        "boundary": boundary(), "growth": GROWTH, "proposals": pd.DataFrame(recall),
        "crops_stage1": pd.DataFrame(crop_counts), "crops_stage2": pd.DataFrame(crop_counts),
        "pretrain": curves[:0], "train_stage1": trained, "train_stage2": trained, "train_fcn": trained,
    }  # fmt: skip
    for name, table in reports.items():
        table.to_csv(folder / f"{name}.csv", index=False)


def make(*more: str) -> str:
    options = {
        "dataset": "data/dataset", "proposals": "data/proposals", "scores": "data/scores", "labels": "data/labels",
        "images": "data/evaluation/images.parquet", "model": "data/models/deconvnet.pt", "reports": "reports",
        "out": "reports/index.html",
    }  # fmt: skip
    report.main([word for name, value in options.items() for word in (f"--{name}", value)] + list(more))
    return open("reports/index.html", encoding="utf-8").read()


def test_the_page(world):
    page = make("--pictures", "pictures")
    assert page == make()  # the same bytes, always
    tree = ElementTree.fromstring(page)  # well-formed, so that any parser agrees
    words = re.sub("[ \n]+", " ", " ".join(tree.itertext()))
    for text in ("61.7\N{NO-BREAK SPACE}%", "another data set", "nothing was pre-trained", "Not recorded", "012345678"):
        assert text in words
    assert "test server" not in words  # there is nothing to compare

    rows = [["".join(cell.itertext()).strip() for cell in row] for row in tree.iter("tr")]
    assert ["System", "mean", *CLASSES] in rows
    assert ["EDeconvNet+CRF", "61.7", "90.0", "43.2", "30.0", "–"] in rows
    assert ["one", "12", "62", "12", "12"] in rows and ["three", "–", "–", "–", "–"] in rows  # confusions

    pictures = list(tree.iter("img"))
    # three charts a group (no pre-training), three examples of 6 cells, three steps twice, the input and 20 layers
    assert len(pictures) == 3 + 3 + 3 + 3 * 6 + 3 * 2 + 1 + 20
    for picture in pictures:
        assert picture.get("src").startswith("data:image/") and len(picture.get("alt")) > 8
    for element in tree.iter():
        for name in ("src", "href", "srcset", "data", "action"):
            outside = re.match(r"\w+://", element.get(name, ""))
            assert not outside or (element.tag, name) == ("a", "href")
    assert not list(tree.iter("script")) and "@import" not in page and "url(" not in page
    anchors = {link.get("href")[1:] for link in tree.iter("a") if link.get("href").startswith("#")}
    assert anchors == {section.get("id") for section in tree.iter("section")}
    assert {path.name for path in (world / "pictures").iterdir()} == {"gallery.png", "growth.png"}


def test_images_that_were_trained_on_are_no_test(world):
    params = yaml.safe_load((world / "params.yaml").read_text())
    params["crops"]["split"] = "trainval_aug"
    (world / "params.yaml").write_text(yaml.safe_dump(params))
    assert "trained on, too" in make()


@pytest.mark.parametrize("name, stage", [("metrics.json", "evaluate"), ("train_fcn.csv", "train_fcn")])
def test_a_missing_report(world, name, stage):
    (world / "reports" / name).unlink()
    with pytest.raises(InputError, match=f"reports/{name}: missing; run `dvc repro {stage}`"):
        make()


def test_reports_of_other_classes(world):
    table = pd.read_csv("reports/confusion.csv").replace("two", "dog")
    table.to_csv("reports/confusion.csv", index=False)
    with pytest.raises(InputError, match="reports/confusion.csv: .*dataset.classes.*dog"):
        make()


def test_images_of_another_data_set(world):
    images = shards.read("data/evaluation/images.parquet").to_pandas().replace("2011_000002", "2007_000002")
    shards.write("data/evaluation/images.parquet", pa.Table.from_pandas(images))
    with pytest.raises(InputError, match="images.parquet: has 2007_000002, which data/dataset lacks"):
        make()
