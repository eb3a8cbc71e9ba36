"""What a model saw in one picture: labels of its full size, the classes found, an overlay."""

import functools
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from deconvnet.files import whole
from deconvnet.images import PALETTE, colour, encode_mask

STRIP = 1 << 24  # scores enlarged at once


@dataclass(frozen=True)
class Found:
    """A class that is in the labels."""

    name: str
    id: int  # class number, 0 for the background
    share: float  # of the picture's pixels
    probability: float  # mean over these pixels, by the scores, before any CRF
    box: tuple[int, int, int, int]  # x, y, width, height px: the tight box around all of its pixels

    def __str__(self) -> str:
        return f"{self.name} {self.share:.1%}"


class Result:
    """The labels of one picture.

    labels: uint8 (H, W), class numbers, of the picture's own size. classes: list of Found, by class number. scores:
    float32 (C, h, w) before the softmax and before any CRF, of the size `computed` at, which is smaller for a large
    picture. windows: the number of proposals seen, None for FCN-8s alone. names: of the classes, by number. image:
    uint8 (H, W, 3), upright. source: the picture's file, None if it came as an image.
    """

    def __init__(
        self, image: np.ndarray, scores: np.ndarray, refined: np.ndarray | None, names: tuple[str, ...],
        windows: int | None, source: str | Path | None = None,
    ):  # fmt: skip
        self.image, self.scores, self.names, self.windows, self.source = image, scores, names, windows, source
        self.labels, probabilities = enlarge_labels(scores, refined, *image.shape[:2])
        self.classes = find_classes(self.labels, probabilities, names)

    @property
    def computed(self) -> tuple[int, int]:
        """Height and width at which the net's scores were computed, px."""
        return self.scores.shape[1:]

    @functools.cached_property
    def probabilities(self) -> np.ndarray:
        """float32 (C, h, w): the softmax of the scores."""
        return torch.from_numpy(self.scores).softmax(0).numpy()

    def overlay(self, legend: bool = True) -> np.ndarray:
        """The picture, objects tinted in VOC's colours, boundaries white: uint8 (H, W, 3).

        legend: add a strip below that names the colours of the objects, if there are any; the result is then higher,
        and wider where the picture is narrower than a name.
        """
        tinted = tint(self.image, self.labels)
        objects = [found for found in self.classes if found.id]
        return add_legend(tinted, objects) if legend and objects else tinted

    def save(self, path: str | Path) -> None:
        """Write the labels as a palette PNG in VOC's colours."""
        with whole(path) as temporary:
            temporary.write_bytes(encode_mask(self.labels))

    def save_overlay(self, path: str | Path, legend: bool = True) -> None:
        """Write the overlay as a PNG."""
        with whole(path) as temporary:
            Image.fromarray(self.overlay(legend)).save(temporary, "PNG")

    def __repr__(self) -> str:
        height, width = self.labels.shape
        return f"<{width}x{height} px: {', '.join(map(str, self.classes))}>"


def enlarge_labels(
    maps: np.ndarray, refined: np.ndarray | None, height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Scores float32 (C, h, w), the CRF's labels (h, w) if any -> labels uint8 (height, width), probabilities (C,).

    The scores, or with a CRF its labels as votes, are enlarged bilinearly. A class's probability is the mean of the
    scores' softmax over the pixels labelled so; 0 where it has none.
    """
    classes, scores = len(maps), torch.from_numpy(maps)
    if refined is not None:
        votes = torch.from_numpy(refined == np.arange(classes)[:, None, None]).float()
    labels, sums = np.empty((height, width), np.uint8), np.zeros(classes)
    step = max(STRIP // (classes * width), 1)
    for top in range(0, height, step):
        rows = range(top, min(top + step, height))
        strip = enlarge(scores, rows, height, width)  # (C, rows, width)
        best = (strip if refined is None else enlarge(votes, rows, height, width)).argmax(0)  # (rows, width)
        chosen = strip.softmax(0).gather(0, best[None])
        sums += np.bincount(best.flatten(), chosen.flatten(), classes)
        labels[top : top + len(rows)] = best
    return labels, sums / np.bincount(labels.ravel(), minlength=classes).clip(1)


def enlarge(maps: Tensor, rows: range, height: int, width: int) -> Tensor:
    """Rows `rows` of maps float32 (C, h, w) resized bilinearly to (C, height, width)."""
    bottom = maps.shape[1] - 1
    y = ((torch.tensor(rows, dtype=torch.float64) + 0.5) * maps.shape[1] / height - 0.5).clamp(0, bottom)
    low, weight = y.long(), y.frac().float()[:, None]
    narrow = maps[:, low] * (1 - weight) + maps[:, (low + 1).clamp(max=bottom)] * weight  # (C, rows, w)
    return F.interpolate(narrow[None], (len(rows), width), mode="bilinear")[0]


def find_classes(labels: np.ndarray, probabilities: np.ndarray, names: tuple[str, ...]) -> list[Found]:
    """The classes in labels uint8 (H, W), by class number. probabilities: mean of each class, (C,)."""
    found = []
    for number in np.unique(labels).tolist():
        mask = labels == number
        box = cv2.boundingRect(mask.astype(np.uint8))
        share, probability = round(float(mask.mean()), 6), round(float(probabilities[number]), 4)
        found.append(Found(names[number], number, share, probability, tuple(box)))
    return found


def tint(image: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3): objects half in VOC's colours, boundaries between labels white."""
    tinted = np.where((labels > 0)[..., None], cv2.addWeighted(image, 0.5, colour(labels), 0.5, 0), image)
    brush = np.ones([2 + max(labels.shape) // 500] * 2, np.uint8)  # 2x2: a line of 1 px
    tinted[cv2.dilate(labels, brush) != cv2.erode(labels, brush)] = 255
    return tinted


def add_legend(image: np.ndarray, classes: list[Found]) -> np.ndarray:
    """The image (H, W, 3) with a white strip below: a swatch and the name of each class."""
    size = max(12, max(image.shape[:2]) // 40)  # px, height of the letters
    font = ImageFont.load_default(size)
    gap, line = size // 2, size * 3 // 2
    places, x, y = [], gap, gap
    for found in classes:
        needed = size + gap + round(font.getlength(found.name))
        if x > gap and x + needed + gap > image.shape[1]:
            x, y = gap, y + line
        places.append((x, y))
        x += needed + 2 * gap
    entries = list(zip(classes, places, strict=True))
    widest = max(left + size + 2 * gap + round(font.getlength(found.name)) for found, (left, _) in entries)
    sheet = np.full((image.shape[0] + y + line, max(image.shape[1], widest), 3), 255, np.uint8)
    sheet[: image.shape[0], : image.shape[1]] = image
    drawing = Image.fromarray(sheet)
    pen = ImageDraw.Draw(drawing)
    for found, (left, top) in entries:
        top += image.shape[0]
        pen.rectangle((left, top, left + size - 1, top + size - 1), tuple(PALETTE[found.id].tolist()), "grey")
        pen.text((left + size + gap, top + size / 2), found.name, "black", font, anchor="lm")
    return np.asarray(drawing)
