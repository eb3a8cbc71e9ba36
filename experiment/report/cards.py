"""Model cards (Mitchell et al. 2019): what each trained model is, of which data, how good, and where it ends."""

import html

import pandas as pd

from deconvnet.images import VOC_CLASSES
from deconvnet.systems import SYSTEMS
from experiment.params import DrawnVoc, Params
from experiment.report.numbers import DASH, percent

CARDS = tuple(key for key, system in SYSTEMS.items() if system.net and system.shown)  # models that people use
SIZES = ("small", "medium", "large")
RUN = ("steps", "batch", "lr", "warmup_steps", "drop_at", "momentum", "weight_decay", "precision", "seed")
KINDS = {
    "deconvnet": "sees the window of one proposal (EdgeBoxes) at a time; an image's labels are put together from all",
    "fcn": "sees the whole image at once",
}


def cards(
    models: dict[str, dict],
    params: Params,
    metrics: dict,
    per_class: pd.DataFrame,
    intervals: dict[str, str],
    pretrained: bool,
) -> str:
    """A Markdown page with a card for each of CARDS.

    models: model files by key, as `nets.files.read` has them. metrics, per_class: evaluate's reports. intervals: of
    `tables.intervals`. pretrained: the encoder learned something here. Equal arguments give equal text.
    """
    classes, split = params.dataset.classes, params.evaluate.split
    lines = [
        "# Models",
        "Written by the stage `report` from the model files, the parameters and the evaluation.",
        f"All were trained on {_data(params)} They tell {len(classes)} classes apart: {_names(classes)}.",
    ]
    for key in CARDS:
        saved, system = models[key], SYSTEMS[key]
        size, about, own = saved["spec"]["size"], saved["about"], metrics[key]
        run = about.get("provenance", {}).get("run", {})
        numbers = sum(tensor.numel() for tensor in saved["state"].values())
        held_out = about.get("metrics", {})
        rows = {
            "what": f"{system.name}, {KINDS[system.net]}",
            "file": f"`data/models/{key}.pt`, {numbers / 1e6:.1f} million numbers (float32)",
            "input": "RGB, 0 to 255, "
            + (f"windows resized to {size['input_size']} px" if system.net == "deconvnet" else "images as they are"),
            "size": f"width {size['width']} (VGG-16: 64), fc layers {size['fc_width']} (4096)",
            "start": _start(params, pretrained),
            "training": ", ".join(f"{name} {run[name]}" for name in RUN if name in run),
            "held out": f"mean IoU {percent(held_out['mean_iou'])} % at step {held_out['step']:,}"
            if "mean_iou" in held_out else "none",
            "batch norm": f"statistics averaged anew over {about['reestimated']['passes']} passes"
            if "reestimated" in about else "statistics of the training",
            f"mean IoU on {split}": f"{percent(own['mean_iou'])} % (95 % interval over images {intervals[key]}), "
            f"{metrics['images']:,} images; pixel accuracy {percent(own['pixel_accuracy'])} %",
            "mean IoU by part": ", ".join(f"{part} objects {_share(own[part])}" for part in SIZES)
            + f"; within {params.evaluate.boundary[0]} px of boundaries {_share(own['boundary'])}",
            "worst classes": _worst(per_class.set_index("class")[key]),
            "code": f"{about.get('provenance', {}).get('code', '')[:12]}, a hash of the modules that trained it",
        }  # fmt: skip
        table = ["| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in rows.items() if text)]
        lines += [f"## {system.name}", "\n".join(table)]
    limits = [
        "What is none of the classes is labelled as one of them, most often background.",
        "One training with one seed. The interval says what other images would change, not what another seed would.",
        f"DeconvNet sees nothing of an image without a proposal; that is {metrics['images_without_proposals']:,} of "
        f"{metrics['images']:,} images here.",
        f"FCN-8s takes images up to {' x '.join(map(str, params.train_fcn.canvas))} px (height x width); larger "
        "ones are computed smaller.",
        "No other data set, no other camera and no attack was tried. Nothing was measured on groups of people.",
    ]
    if params.crops.split != "trainaug" or split != "val":
        limits.insert(0, f"Images of {split} were trained on, too: the figures above are no test.")
    if isinstance(params.fetch.voc_trainval, DrawnVoc):
        limits.insert(0, "The world is drawn. Of photographs these models know nothing.")
    lines += ["## Limits", "\n".join(f"- {limit}" for limit in limits)]
    return "\n\n".join(lines) + "\n"


def _data(params: Params) -> str:
    """What was trained on, and under which terms."""
    windows = f"The split {params.crops.split}, less a held-out part."
    if isinstance(params.fetch.voc_trainval, DrawnVoc):
        return f"a synthetic data set that this repository draws (demo/world; MIT, as the code). {windows}"
    if tuple(params.dataset.classes) == VOC_CLASSES:
        sbd = " and the annotations of SBD" if params.fetch.sbd.addresses else ""
        return (
            f"PASCAL VOC 2012{sbd}. {windows} The images come from Flickr and are under its terms of use; the data "
            "sets ask to be cited. Whether such terms bind a model's weights is not settled."
        )
    return f"a data set of its owner's in VOC's layout, whose licence its owner knows. {windows}"


def _start(params: Params, pretrained: bool) -> str:
    given, here = bool(params.fetch.vgg16.addresses), "classification of crops of the same data set"
    if not given:
        return f"the encoder learned by {here}"
    return "the encoder is VGG-16 of ILSVRC (ImageNet's terms)" + (
        f"; layers that it lacks: {here}" if pretrained else ""
    )


def _share(value: float | None) -> str:
    """A fraction in %, or a dash for what was not measured."""
    text = percent(value)
    return text if text == DASH else f"{text} %"


def _worst(ious: pd.Series) -> str:
    """The three classes with the lowest IoU, a series by class."""
    lowest = ious.dropna().sort_values(kind="stable")[:3]
    return ", ".join(f"{_names([name])} {percent(value)} %" for name, value in lowest.items())


def _names(names) -> str:
    """Names as text of a Markdown table."""
    return ", ".join(html.escape(name, quote=False).replace("|", "\\|") for name in names)
