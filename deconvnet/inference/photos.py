"""Pictures as they come (any format, mode, orientation and size) to arrays that a net can see."""

import io
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

from deconvnet.errors import InputError
from deconvnet.files import read_plain
from deconvnet.images import check_pixels

MOST = 1 << 30  # bytes of a picture's file
# What Pillow decodes by itself. Not among them: EPS, for which it starts another program.
FORMATS = ("AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "SGI", "TGA", "TIFF", "WEBP")


def read_photo(source: str | Path | Image.Image | np.ndarray) -> np.ndarray:
    """A picture file, a PIL image or an array -> uint8 (H, W, 3) RGB.

    A file or a PIL image is turned upright by its EXIF orientation; of several frames the first counts; transparent
    parts lie on white; 16 bits become 8. An array must be uint8 (H, W, 3) RGB already. Raises InputError for a file
    that is no picture, ValueError for another array, TypeError for anything else.
    """
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3 or not source.size:
            raise ValueError(f"an image must be uint8 (H, W, 3) RGB, not {source.dtype} {source.shape}")
        return source
    if isinstance(source, Image.Image):
        return upright(source)
    try:
        return decode_photo(read_plain(source, MOST))
    except ValueError as error:
        raise InputError(f"{source}: {error}; name a picture that Pillow reads") from None


def decode_photo(data: bytes) -> np.ndarray:
    """A picture file's bytes -> uint8 (H, W, 3) RGB, upright; its first frame. Raises ValueError where that fails."""
    try:
        return upright(Image.open(io.BytesIO(data), formats=FORMATS))
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders fail in many ways
        raise ValueError(f"does not decode ({' '.join(str(error).split())[:200]})") from None


def upright(image: Image.Image) -> np.ndarray:
    """A PIL image -> uint8 (H, W, 3) RGB, turned by its EXIF orientation, transparent parts on white."""
    check_pixels(image)
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("floating-point pixels have no agreed white; save it with 8 or 16 bits")
    if image.mode.startswith("I"):  # 16 bits, which Pillow would clip, not scale
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))


def shrink(image: np.ndarray, longest: int) -> np.ndarray:
    """The image (H, W, 3), reduced by averaging where its longer side exceeds `longest` px."""
    factor = longest / max(image.shape[:2])
    if factor >= 1:
        return image
    height, width = (max(round(side * factor), 1) for side in image.shape[:2])
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
