"""Pictures of the page: images, labels and maps of a network as data URIs, with captions."""

import base64
import io
from dataclasses import dataclass

import cv2
import numpy as np
from matplotlib import colormaps
from PIL import Image

from deconvnet.images import VOID, colour

LINE = 150, 150, 150  # grey


@dataclass(frozen=True)
class Cell:
    title: str
    caption: str
    alt: str
    source: str  # data URI


def uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def fit(picture: np.ndarray, side: int) -> np.ndarray:
    """An image (H, W, 3) or labels (H, W), scaled to a longer side of `side` px."""
    scale = side / max(picture.shape[:2])
    size = [max(1, round(length * scale)) for length in picture.shape[1::-1]]
    smooth = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return cv2.resize(picture, size, interpolation=smooth if picture.ndim == 3 else cv2.INTER_NEAREST)


def photo(image: np.ndarray) -> str:
    """uint8 (H, W, 3) RGB -> a JPEG's data URI."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=85)
    return uri(buffer.getvalue(), "jpeg")


def borders(labels: np.ndarray) -> np.ndarray:
    """bool (H, W): the last pixels of regions of labels (H, W), but for those along void, which parts them itself."""
    found = np.zeros(labels.shape, bool)
    for one, other in ((np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:-1], np.s_[1:])):
        found[one] |= (labels[one] != labels[other]) & (labels[one] != VOID) & (labels[other] != VOID)
    return found


def mask(labels: np.ndarray, side: int) -> str:
    """Labels uint8 (H, W) -> a PNG's data URI, in VOC's colours.

    A grey line parts regions that void does not part: some of VOC's colours are hardly seen on its black background.
    """
    labels = fit(labels, side)
    picture, buffer = colour(labels), io.BytesIO()
    picture[borders(labels)] = LINE
    Image.fromarray(picture).save(buffer, "PNG")
    return uri(buffer.getvalue(), "png")


def heat(values: np.ndarray, side: int) -> str:
    """A map (H, W), its lowest value black, its highest light yellow, its cells squares."""
    levels = np.rint(255 * (values - values.min()) / max(np.ptp(values), 1e-12)).astype(np.uint8)
    picture, buffer = Image.fromarray(fit(levels, max(side, len(levels)))), io.BytesIO()
    picture.putpalette(colormaps["inferno"](np.arange(256), bytes=True)[:, :3].tobytes())
    picture.save(buffer, "PNG")
    return uri(buffer.getvalue(), "png")
