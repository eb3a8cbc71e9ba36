"""The command that writes the page: its content, its bytes, and what it says about inputs that do not fit."""

import json
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import yaml

from deconvnet import tables
from deconvnet.bootstrap import parts
from deconvnet.errors import InputError
from deconvnet.images import VOID, encode_mask
from deconvnet.metrics import confusion
from deconvnet.nets import files
from deconvnet.nets.fcn import FCN
from deconvnet.settings import Size
from deconvnet.systems import SYSTEMS
from experiment.report.galleries import image_iou
from stages import report
from stages.evaluate import COMPARED, SCHEMA
from tests.conftest import draw, jpeg
from tests.experiment.test_report import CLASSES, GROWTH, boundary, metrics, tiny_net

IMAGES = 5


@pytest.fixture
def world(experiment):
    """An experiment folder with all that the page is made of: five images, three proposals each."""
    params = yaml.safe_load((experiment / "params.yaml").read_text())
    params["dataset"]["classes"], params["report"] = CLASSES, {"examples": 2, "side": 48}
    params["infer"]["growth"] = [1, 2, 5]
    (experiment / "params.yaml").write_text(yaml.safe_dump(params))
    rows, boxes, images = [], [], []
    labelled = {name: [] for name in SYSTEMS}
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
        for key in SYSTEMS:
            labels = np.where(truth == VOID, 0, truth).astype(np.uint8)
            labels[: 3 * number + len(key)] = 0
            growth = [encode_mask(labels * (step > 0)) for step in range(3)] if key == "deconvnet" else []
            labelled[key].append({"image_id": name, "labels": encode_mask(labels), "growth": growth})
            right, true, predicted = parts(confusion(truth, labels, len(CLASSES))).tolist()
            images.append((name, key, image_iou(truth, labels, len(CLASSES)), 0.9, right, true, predicted))
    tables.write("data/dataset/val-000.parquet", pa.Table.from_pylist(rows))
    columns = ["image_id", "rank", "x", "y", "width", "height", "objectness"]
    tables.write("data/proposals/val-000.parquet", pa.Table.from_pandas(pd.DataFrame(boxes, columns=columns)))
    for key, table in labelled.items():
        folder = "labels" if key.endswith("_crf") else "scores"
        tables.write(f"data/{folder}/{key}/val-000.parquet", pa.Table.from_pylist(table))
    frame = pd.DataFrame(images, columns=SCHEMA.names)
    tables.write("data/evaluation/images.parquet", pa.Table.from_pandas(frame))
    net = tiny_net()
    files.save("data/models/deconvnet.pt", net.spec, net.state_dict(), {"provenance": {"code": "0123456789abcdef"}})
    write_reports(experiment / "reports")
    return experiment


# Of each class that is there, 5 pixels are right (the best system: 8), and 1 is taken for each other class.
RIGHT = dict.fromkeys(SYSTEMS, 5) | {"edeconvnet_crf": 8}
IOU = {name: right / (right + 5) for name, right in RIGHT.items()}  # 3 more true, 2 more predicted


def write_reports(folder):
    folder.mkdir()
    found = {"images": IMAGES, "images_without_proposals": 0, "objects": {"small": 0, "medium": 5, "large": 5}}
    found |= metrics(**IOU)
    for name, right in RIGHT.items():
        found[name]["pixel_accuracy"] = right / (right + 3)
    (folder / "metrics.json").write_text(json.dumps(found))
    pixels = [(name, a, b, (right if a == b else 1) * (a != "three"))
              for name, right in RIGHT.items() for a in CLASSES for b in CLASSES]  # fmt: skip
    sizes = [(name, 0.1, 0.2, 0.3) for name in SYSTEMS]
    per_class = {name: [iou] * 3 + [np.nan] for name, iou in IOU.items()}
    recall = {"boxes": [10, 100], "recall_iou_0.5": [0.5, 0.75], "recall_iou_0.7": [0.2, 0.4]}
    crop_counts = {"class": CLASSES[1:], "objects": 5, "windows": [5, 7, 0], "used": [5, 7, 0], "examples": [9, 9, 0]}
    curves = pd.DataFrame({"step": [2, 4], "lr": [0.1, 0.01], "loss": [2.0, 1.0], "held_out_loss": [2.0, 1.5]})
    trained = curves.assign(held_out_accuracy=0.5, held_out_mean_iou=[0.1, 0.25])
    reports = {
        "per_class": pd.DataFrame({"class": CLASSES} | per_class),
        "confusion": pd.DataFrame(pixels, columns=["system", "truth", "predicted", "pixels"]),
        "sizes": pd.DataFrame(sizes, columns=["system", "small", "medium", "large"]),
        "intervals": intervals(), "boundary": boundary(), "growth": GROWTH, "proposals": pd.DataFrame(recall),
        "crops_stage1": pd.DataFrame(crop_counts), "crops_stage2": pd.DataFrame(crop_counts),
        "pretrain": trained[:0], "train_stage1": trained, "train_stage2": trained, "train_fcn": trained,
    }  # fmt: skip
    for name, table in reports.items():
        table.to_csv(folder / f"{name}.csv", index=False)


def intervals() -> pd.DataFrame:
    alone = [(name, None, iou, 0.55, 0.65) for name, iou in IOU.items()]
    pairs = [(name, other, IOU[name] - IOU[other], -0.02, 0.2) for name, other in COMPARED]
    return pd.DataFrame(alone + pairs, columns=["system", "minus", "mean_iou", "low", "high"])


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
    for text in ("61.5\N{NO-BREAK SPACE}%", "another data set", "nothing was pre-trained", "012345678"):
        assert text in words
    assert "(95\N{NO-BREAK SPACE}% interval 55.0 to 65.0)" in words and "(\N{MINUS SIGN}2.0 to +20.0)" in words
    assert "test server" not in words  # there is nothing to compare
    assert re.search(r"EDeconvNet\+CRF\s+61\.5", "".join(tree.itertext()))  # a name does not touch its number
    # of the file's values: every system has 10 % on small objects and 20 % at boundaries
    assert "small objects, EDeconvNet 10.0\N{NO-BREAK SPACE}% against DeconvNet's 10.0" in words

    rows = [["".join(cell.itertext()).strip() for cell in row] for row in tree.iter("tr")]
    assert ["System", "mean", *CLASSES] in rows
    assert ["EDeconvNet+CRF", "61.5", "61.5", "61.5", "61.5", "–"] in rows
    for confused in (["one", "13", "63", "13", "13"], ["three", "–", "–", "–", "–"]):
        assert rows.count(confused) == len(SYSTEMS) - (confused[0] == "one")

    pictures = list(tree.iter("img"))
    # three charts a group (no pre-training), three examples of 6 cells, three steps twice, the input and 20 layers
    # and the typical one at the top
    assert len(pictures) == 3 + 3 + 3 + 3 + 3 * 6 + 3 * 2 + 1 + 20
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


def test_every_image_is_on_a_page_of_its_own(world):
    assert "Every image" not in make()
    page = make("--browser", "reports/images")
    links = {link.get("href") for link in ElementTree.fromstring(page).iter("a")}
    assert {"images/index.html", "images/index.html#2011_000002"} <= links
    names = {f"2011_{number:06d}.{suffix}" for number in range(IMAGES) for suffix in ("jpg", "png")}
    assert {path.name for path in (world / "reports/images").iterdir()} == names | {"index.html"}


def test_the_models_have_cards(world):
    assert "models.md" not in make()
    net = FCN(Size(width=4, fc_width=8, input_size=32), len(CLASSES), 1e-5, 8, (1.0, 1.0), 0.5)
    files.save("data/models/fcn8s.pt", net.spec, net.state_dict(), {"canvas": [96, 96]})
    page = make("--cards", "reports/models.md", "--fcn", "data/models/fcn8s.pt")
    assert 'href="models.md"' in page
    text = (world / "reports/models.md").read_text()
    assert "61.5" not in text and "## DeconvNet" in text and "interval over images 55.0 to 65.0" in text


def test_the_closing_line(world, capsys):
    make()
    assert capsys.readouterr().out == f"EDeconvNet+CRF 61.5 % mean IoU, report: {world / 'reports/index.html'}\n"


def test_it_says_what_the_data_is(world):
    distractors = "Shapes with the wrong texture are distractors; the truth labels them background."
    drawn = make()
    assert distractors in drawn and "a synthetic data set" in drawn
    params = yaml.safe_load((world / "params.yaml").read_text())
    for name in ("voc_trainval", "sbd"):
        params["fetch"][name] = {"by": "stages/fetch.py", "file": f"data/{name}.tar", "addresses": ["own.tar"]}
    (world / "params.yaml").write_text(yaml.safe_dump(params))
    own = make()
    assert distractors not in own and "a data set of 3 classes." in own


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


def test_reports_that_contradict_each_other(world):
    table = pd.read_csv("reports/per_class.csv")
    table.loc[1, "fcn8s"] += 0.1
    table.to_csv("reports/per_class.csv", index=False)
    with pytest.raises(InputError, match="reports: per_class.csv: fcn8s: not what the other reports say; run `dvc"):
        make()


def test_images_of_another_data_set(world):
    images = tables.read("data/evaluation/images.parquet").to_pandas()
    images["image_id"] = images["image_id"].replace("2011_000002", "2007_000002")
    tables.write("data/evaluation/images.parquet", pa.Table.from_pandas(images))
    with pytest.raises(InputError, match="images.parquet: has 2007_000002, which data/dataset lacks"):
        make()
