"""Model cards: what is read from the model files, the parameters and the evaluation."""

import dataclasses

import pandas as pd
import pytest
import torch

from deconvnet.images import VOC_CLASSES
from deconvnet.systems import SYSTEMS
from experiment import params as parameters
from experiment.params import Fetched
from experiment.report import cards

SIZE = {"width": 8, "fc_width": 16, "input_size": 96}
RUN = {"steps": 2000, "batch": 32, "micro_batch": 8, "lr": 0.15, "drop_at": "cosine", "seed": 2015}


@pytest.fixture
def params(experiment):
    """The demo's, but for the classes."""
    return parameters.load()


def page(params, pretrained=True, **changes) -> str:
    about = {"provenance": {"code": "0123456789abcdef", "run": RUN}, "metrics": {"mean_iou": 0.4095, "step": 1500}}
    saved = {"spec": {"size": SIZE}, "state": {"a": torch.zeros(1200, 1000), "b": torch.zeros(50_000)}, "about": about}
    models = {"deconvnet": saved | {"about": about | {"reestimated": {"passes": 30}}}, "fcn8s": saved}
    part = {"pixel_accuracy": 0.9, "small": 0.1, "medium": 0.2, "large": None, "boundary": 0.3}
    metrics = {key: {"mean_iou": 0.8005} | part for key in SYSTEMS} | {"images": 1449, "images_without_proposals": 2}
    classes = ["background", "a|b <c>", "two", "three", "four"]
    params = dataclasses.replace(params, dataset=dataclasses.replace(params.dataset, classes=classes))
    params = dataclasses.replace(params, **changes)
    names = list(params.dataset.classes)
    values = [0.9, 0.05, None, 0.3, 0.2] + [0.8] * (len(names) - 5)
    per_class = pd.DataFrame({"class": names} | dict.fromkeys(SYSTEMS, values))
    return cards.cards(models, params, metrics, per_class, dict.fromkeys(SYSTEMS, "76.6 to 83.2"), pretrained)


def test_the_cards(params):
    text = page(params)
    assert text == page(params)
    assert [line for line in text.splitlines() if line.startswith("## ")] == ["## FCN-8s", "## DeconvNet", "## Limits"]
    card = text[text.index("## DeconvNet") : text.index("## Limits")]
    assert "They tell 5 classes apart: background, a\\|b &lt;c&gt;, two, three, four." in text
    for line in (
        "| file | `data/models/deconvnet.pt`, 1.2 million numbers (float32) |",
        "| training | steps 2000, batch 32, lr 0.15, drop_at cosine, seed 2015 |",
        "| held out | mean IoU 41.0 % at step 1,500 |",
        "| batch norm | statistics averaged anew over 30 passes |",
        "| mean IoU on val | 80.1 % (95 % interval over images 76.6 to 83.2), 1,449 images; pixel accuracy 90.0 % |",
        "| mean IoU by part | small objects 10.0 %, medium objects 20.0 %, large objects \N{EN DASH}; "
        "within 1 px of boundaries 30.0 % |",
        "| worst classes | a\\|b &lt;c&gt; 5.0 %, four 20.0 %, three 30.0 % |",
        "| start | the encoder learned by classification of crops of the same data set |",
    ):
        assert line in card.splitlines()
    assert "| batch norm | statistics of the training |" in text
    assert "synthetic" in text and "Of photographs these models know nothing." in text
    assert "2 of 1,449 images" in text and "no test" not in text


def test_the_data_and_its_licence(params):
    fetch = {name: Fetched("stages/fetch.py", name, ["there"]) for name in ("voc_trainval", "sbd", "vgg16")}
    real = dataclasses.replace(params.fetch, **fetch)
    voc = dataclasses.replace(params.dataset, classes=list(VOC_CLASSES))
    text = page(params, pretrained=False, fetch=real, dataset=voc)
    assert "PASCAL VOC 2012 and the annotations of SBD" in text and "Flickr" in text and "drawn" not in text
    assert "| start | the encoder is VGG-16 of ILSVRC (ImageNet's terms) |" in text
    assert "(ImageNet's terms); layers that it lacks: " in page(params, fetch=real, dataset=voc)
    own = page(params, fetch=real, crops=dataclasses.replace(params.crops, split="trainval_aug"))
    assert "a data set of its owner's" in own and "Images of val were trained on, too" in own
