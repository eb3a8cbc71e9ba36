"""Images and masks: bytes to arrays and back, VOC's palette, contact sheets.

An image is uint8 (H, W, 3) RGB. A mask is uint8 (H, W): class mask 0 background, 1..C-1 classes, 255 void; instance
mask 0 none, 1..n instances, 255 void.
"""

import io
import warnings

import numpy as np
from PIL import Image, ImageFile

from deconvnet.errors import InputError

VOID = 255
VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip

MOST_PIXELS = 1 << 26  # of a picture, 8192 squared: one is decoded in less than 2 GB
warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the bound above is lower

# A cut-off JPEG must fail, not come back half grey (as OpenCV returns it).
ImageFile.LOAD_TRUNCATED_IMAGES = False


def decode_image(data: bytes) -> np.ndarray:
    """JPEG or PNG bytes -> uint8 (H, W, 3) RGB, in the stored orientation, which is the one masks are drawn in.

    Raises ValueError for bytes that are no image or a truncated one.
    """
    with _open(data) as image:
        return np.asarray(image.convert("RGB"))


def decoded_size(data: bytes) -> tuple[int, int]:
    """(height, width) of an image that decodes to its last row. Raises ValueError for one that does not."""
    with _open(data, raw=True) as image:
        return image.height, image.width


def decode_mask(data: bytes) -> np.ndarray:
    """PNG bytes -> uint8 (H, W), the palette's indices. Raises ValueError for anything but a palette or grey PNG."""
    with _open(data, formats=("PNG",)) as image:
        if image.mode not in ("P", "L"):
            raise ValueError(f"a mask must be a palette or grey PNG, this one has mode {image.mode}")
        # IHDR is a PNG's first chunk, its ninth byte the bit depth. Pillow would stretch 0..15 to 0..255.
        if image.mode == "L" and data[24] != 8:
            raise ValueError(f"a grey mask must have 8 bits, this one has {data[24]}; save it as a palette PNG")
        return np.asarray(image)


def decode_row(row: dict, classes: int = VOID) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A row of the data set -> image uint8 (H, W, 3), class mask and instance mask uint8 (H, W).

    Raises InputError where one does not decode, is of another size than the row says or has a class from `classes` on.
    """
    name, size = row["image_id"], (row["height"], row["width"])
    if row["image"] is None or row["class_mask"] is None or row["instance_mask"] is None:
        raise InputError(f"{name}: has no masks; run `dvc repro dataset`")
    try:
        image, class_mask = decode_image(row["image"]), decode_mask(row["class_mask"])
        instance_mask = decode_mask(row["instance_mask"])
    except ValueError as error:
        raise InputError(f"{name}: {error}; run `dvc repro dataset`") from None
    if not (image.shape[:2] == class_mask.shape == instance_mask.shape == size):
        raise InputError(f"{name}: image and masks differ in size from {size[0]}x{size[1]}")
    ids = np.flatnonzero(np.bincount(class_mask.reshape(-1), minlength=VOID + 1)[:VOID])
    if len(ids) and ids[-1] >= classes:
        raise InputError(f"{name}: label {ids[-1]} in the class mask; allowed: 0 to {classes - 1} and {VOID}")
    return image, class_mask, instance_mask


def encode_mask(mask: np.ndarray) -> bytes:
    """uint8 (H, W) -> bytes of a palette PNG in VOC's colours."""
    image = Image.fromarray(mask)
    image.putpalette(PALETTE.tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=3)  # masks are flat: level 6 takes twice the time for 5 % fewer bytes
    return buffer.getvalue()


def voc_palette() -> np.ndarray:
    """VOC's colour map, uint8 (256, 3): a number's bits 0, 1, 2 are R, G, B's highest, and so on down (VOCdevkit)."""
    number = np.arange(256)
    palette = np.zeros((256, 3), np.uint8)
    for level in range(8):
        for channel in range(3):
            palette[:, channel] |= ((number >> (3 * level + channel) & 1) << (7 - level)).astype(np.uint8)
    return palette


PALETTE = voc_palette()


def colour(mask: np.ndarray) -> np.ndarray:
    """uint8 (H, W) mask -> uint8 (H, W, 3) in VOC's colours."""
    return PALETTE[mask]


def cut_window(image: np.ndarray, labels: np.ndarray, window: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The part of an image (H, W, 3) and its labels (H, W) in a window [x, y, side_x, side_y]: black, void outside."""
    x, y, side_x, side_y = window
    height, width = labels.shape
    (top, bottom), (left, right) = np.clip((y, y + side_y), 0, height), np.clip((x, x + side_x), 0, width)
    inside = slice(top, bottom), slice(left, right)
    at = slice(max(top - y, 0), max(bottom - y, 0)), slice(max(left - x, 0), max(right - x, 0))
    crop, crop_labels = np.zeros((side_y, side_x, 3), np.uint8), np.full((side_y, side_x), VOID, np.uint8)
    crop[at], crop_labels[at] = image[inside], labels[inside]
    return crop, crop_labels


def contact_sheet(pictures: list[np.ndarray], columns: int, gap: int = 4) -> np.ndarray:
    """Pictures of one size (H, W, 3), row by row, on white, `gap` px apart."""
    height, width = pictures[0].shape[:2]
    rows = -(-len(pictures) // columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for index, picture in enumerate(pictures):
        y, x = index // columns * (height + gap), index % columns * (width + gap)
        sheet[y : y + height, x : x + width] = picture
    return sheet


class Undecodable(InputError, ValueError):
    """A picture that cannot be read. Whoever knows where it comes from says so; else it is one line, too."""


def check_pixels(image: Image.Image) -> None:
    """Raise ValueError for a picture of more than MOST_PIXELS, before it is decoded."""
    if image.width * image.height > MOST_PIXELS:
        raise ValueError(f"{image.width}x{image.height} px are more than the {MOST_PIXELS:,} that are read; shrink it")
    if not image.width * image.height:
        raise ValueError("has no pixel")


def _open(data: bytes, raw: bool = False, formats: tuple[str, ...] = ("JPEG", "PNG")) -> Image.Image:
    """The decoded image; `raw` leaves a JPEG in its own colour space, which is quicker."""
    try:
        image = Image.open(io.BytesIO(data), formats=formats)
        check_pixels(image)
        if raw:
            image.draft("YCbCr", image.size)
        image.load()
    except Exception as error:  # Pillow's decoders fail in many ways
        if isinstance(error, MemoryError):
            raise
        raise Undecodable(f"does not decode ({' '.join(str(error).split())[:200]})") from None
    return image
