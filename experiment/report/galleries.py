"""Examples: which images are shown, and what is shown of each."""

import base64
import io

import cv2
import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL import Image

from deconvnet.images import VOID, decode_image, decode_mask
from deconvnet.metrics import confusion, ious, mean
from deconvnet.systems import FINAL, SYSTEMS
from experiment.report.charts import STYLE
from experiment.report.numbers import percent
from experiment.report.pictures import Cell, fit, mask, photo

SHOWN = tuple(key for key, system in SYSTEMS.items() if system.shown)


def content(labels: np.ndarray, classes: list[str]) -> str:
    """Shares of the classes in labels (H, W), largest first, without void."""
    count = np.bincount(labels[labels != VOID], minlength=len(classes))
    shares = {
        classes[index]: 100 * count[index] / count.sum() for index in np.argsort(-count, kind="stable") if count[index]
    }
    return ", ".join(f"{name} {'<1' if share < 1 else round(share)} %" for name, share in shares.items()) or "void"


def image_iou(truth: np.ndarray, labels: np.ndarray, classes: int) -> float:
    """Mean IoU over the classes in truth or prediction, uint8 (H, W), as evaluate has it of single images."""
    return float(mean(ious(confusion(truth, labels, classes), predicted=True)))


def best_first(images: pd.DataFrame, system: str) -> list[str]:
    """Ids of images by a system's IoU."""
    own = images[images["system"] == system].dropna(subset="mean_iou")
    return own.sort_values(["mean_iou", "image_id"], ascending=False)["image_id"].tolist()


def choose(images: pd.DataFrame, examples: int) -> dict[str, list[str]]:
    """Ids of the best images, of typical ones (around the median) and of the worst, by the final system's IoU."""
    ids = best_first(images, FINAL)
    number = min(examples, max(1, len(ids) // 3))
    middle = (len(ids) - number) // 2
    return {"Best": ids[:number], "Typical": ids[middle : middle + number], "Worst": ids[::-1][:number]}


def growth_gain(row: dict, classes: int) -> float:
    """The IoU with the most proposals minus the IoU with the fewest."""
    truth, first, last = (decode_mask(data) for data in (row["class_mask"], row["growth"][0], row["growth"][-1]))
    return image_iou(truth, last, classes) - image_iou(truth, first, classes)


def object_share(row: dict) -> float:
    """Share of an image that its largest object takes."""
    return max(row["instance_areas"], default=0) / row["height"] / row["width"]


def example(row: dict, scores: dict[str, float], classes: list[str], side: int) -> list[Cell]:
    """An image, its truth and the labels of every shown system. scores: each system's IoU on the image."""
    name, truth = row["image_id"], decode_mask(row["class_mask"])
    kinds = ", ".join(classes[kind] for kind in np.unique(truth) if 0 < kind < len(classes))
    cells = [
        Cell("Image", name, f"Image {name}.", photo(fit(decode_image(row["image"]), side))),
        Cell("Truth", f"{name}: {kinds}", f"Truth of {name}: {content(truth, classes)}.", mask(truth, side)),
    ]
    for system in SHOWN:
        labels, caption = decode_mask(row["labels"][system]), f"{name}, IoU {percent(scores[system])} %"
        alt = f"{SYSTEMS[system].name} on {caption}: {content(labels, classes)}."
        cells.append(Cell(SYSTEMS[system].name, caption, alt, mask(labels, side)))
    return cells


def growing(row: dict, numbers: list[int], classes: list[str], side: int) -> list[tuple[Cell, Cell]]:
    """For each number of proposals: their windows on the image, new ones orange, and DeconvNet's labels from them."""
    name, image, truth, cells = row["image_id"], decode_image(row["image"]), decode_mask(row["class_mask"]), []
    places = np.rint(row["windows"] * (side / max(truth.shape))).astype(int)
    for before, number, data in zip([0, *numbers], numbers, row["growth"], strict=False):
        picture, labels = fit(image, side), decode_mask(data)
        for index, (x, y, width, height) in enumerate(places[:number].tolist()):
            look = ((190, 190, 190), 1) if index < before else ((255, 140, 0), 2)
            cv2.rectangle(picture, (x, y), (x + width, y + height), *look)
        title = f"{min(number, len(places))} proposal{'s' * (number > 1)}"
        caption = f"{name}, IoU {percent(image_iou(truth, labels, len(classes)))} %"
        alt = f"{title}, {caption}: {content(labels, classes)}."
        window = Cell(title, name, f"The windows of {title} on {name}.", photo(picture))
        cells.append((window, Cell("Labels", caption, alt, mask(labels, side))))
    return cells


def sheet(rows: list[list[Cell]]) -> bytes:
    """Pictures row by row under their titles, as one PNG for other documents."""
    buffer = io.BytesIO()
    with rc_context(STYLE):
        figure = Figure(figsize=(2 * len(rows[0]), 1.8 * len(rows)), layout="constrained")
        panels = figure.subplots(len(rows), len(rows[0]), squeeze=False)
        for index, cell in enumerate(cells := sum(rows, [])):
            axes = panels.flat[index]
            axes.imshow(Image.open(io.BytesIO(base64.b64decode(cell.source.partition(",")[2]))).convert("RGB"))
            if index < len(rows[0]) or cell.title != cells[index - len(rows[0])].title:
                axes.set_title(cell.title, fontsize=9)
            axes.axis("off")
        figure.savefig(buffer, format="png", dpi=100, metadata={"Software": None})
    return buffer.getvalue()
