"""The embedded default: a small world of drawn objects, written as official-layout VOC 2012 and SBD archives.

    cd demo && python -m stages.shapes voc_trainval      # section fetch.voc_trainval of params.yaml, `by: shapes`
    cd demo && python -m stages.shapes sbd

The world is made to need the method. A class is a shape *and* a texture: another class has the shape with another
texture, another the texture on another shape in nearly the same hue, and distractors (background) wear both. A
texture grows with its object, and objects range from a dozen pixels to nearly the whole image: a window around the
object always shows the same thing, a fixed receptive field does not. Rings, table legs and gear teeth are thin.

An image is a function of (seed, image id) alone, so the two archives agree on the pictures that they share without
knowing each other. The id's year says who lists it:

    2008 SBD alone, train.txt       2010 VOC train (the first `shared_train` also in SBD)
    2009 SBD alone, val.txt         2011 VOC val   (the first `shared_val` also in SBD, as in reality)
"""

import argparse
import gzip
import io
import multiprocessing
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Literal

import cv2
import numpy as np
from PIL import Image
from scipy.io import savemat
from scipy.sparse import csc_matrix

from stages.cli import progress, run, whole
from stages.config import Range, load

HEIGHT, WIDTH = 160, 200  # px
VOID = 255
SAMPLES = 3  # samples a pixel along each axis; odd, so that one is the pixel's centre, which decides its label
SIZES = 20.0, 190.0  # px, the larger side of an object, log-uniform between
THIN = 4.0  # px, the least width of a ring or a table leg
MIN_PIXELS, MIN_VISIBLE = 16, 0.5  # an object of less, or of which less is seen, is not drawn
DRAWN = 1_300_000_000  # s since 1970: the files' time in the archives, March 2011


@dataclass(frozen=True)
class VocParams:
    by: Literal["shapes"]
    file: str  # the tar, from the experiment folder
    seed: Annotated[int, Range(0)]
    train: Annotated[int, Range(1, 999_999)]  # images
    val: Annotated[int, Range(1, 999_999)]  # images


@dataclass(frozen=True)
class SbdParams:
    by: Literal["shapes"]
    file: str  # the tgz, from the experiment folder
    seed: Annotated[int, Range(0)]  # VOC's, or the shared images are other pictures
    train: Annotated[int, Range(0, 999_999)]  # images in SBD alone, listed in its train.txt
    val: Annotated[int, Range(0, 999_999)]  # images in SBD alone, listed in its val.txt
    shared_train: Annotated[int, Range(0, 999_999)]  # also VOC train images; at most VOC's `train`
    shared_val: Annotated[int, Range(0, 999_999)]  # also VOC val images; at most VOC's `val`

    def __post_init__(self):
        if not self.train + self.val + self.shared_train + self.shared_val:
            raise ValueError("no images at all; allowed: at least one of train, val, shared_train, shared_val above 0")


# Shapes: (u, v) in units of half the object's size, v down, -> inside. `thin` is the least width that can be seen.


def disc(u, v, thin):
    return u**2 + v**2 <= 1


def box(u, v, thin):
    return np.maximum(abs(u), abs(v)) <= 0.88


def triangle(u, v, thin):
    return (v <= 0.8) & (v + 0.95 >= 1.9 * abs(u))


def star(u, v, thin):
    angle = (np.arctan2(u, -v) + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5  # from the nearest of five points
    radius = np.hypot(u, v)
    return radius * (np.cos(angle) * 0.43 + np.sin(abs(angle)) * 0.72) <= 0.43


def cross(u, v, thin):
    return (np.minimum(abs(u), abs(v)) <= 0.34) & (np.maximum(abs(u), abs(v)) <= 1)


def ring(u, v, thin):
    radius = np.hypot(u, v)
    return (radius <= 1) & (radius >= 1 - max(0.27, thin))


def table(u, v, thin):
    width = max(0.17, thin)
    top = (abs(u) <= 1) & (abs(v + 0.65) <= max(0.17, thin / 2))
    return top | (abs(abs(u) - 0.75) <= width / 2) & (v >= -0.65) & (v <= 0.85)


def gear(u, v, thin):
    return np.hypot(u, v) <= np.where(np.cos(9 * np.arctan2(v, u)) > 0, 1.0, 0.74)


# Textures: (u, v) as above, turned, and the period -> which of the object's two colours.


def plain(u, v, period):
    return np.zeros(u.shape, bool)


def stripes(u, v, period):
    return u % period < period / 2


def checks(u, v, period):
    return (u % period < period / 2) ^ (v % period < period / 2)


def dots(u, v, period):
    return (u % period / period - 0.5) ** 2 + (v % period / period - 0.5) ** 2 < 0.31**2


def hoops(u, v, period):
    return np.hypot(u, v) % period < period / 2


def sectors(u, v, period):
    return np.arctan2(v, u) * 5 / np.pi % 2 < 1


@dataclass(frozen=True)
class Kind:
    name: str
    shape: Callable
    texture: Callable
    hue: float  # degrees, the centre; an object's hue spreads around it by HUE_SPREAD
    share: float  # of the objects


HUE_SPREAD = 10.0  # degrees, standard deviation: neighbours overlap, so that hue alone does not tell the class
KINDS = (
    Kind("ball", disc, stripes, 0, 0.18),
    Kind("crate", box, stripes, 36, 0.15),
    Kind("button", disc, dots, 216, 0.12),
    Kind("star", star, checks, 108, 0.11),
    Kind("table", table, stripes, 288, 0.10),
    Kind("pennant", triangle, dots, 252, 0.09),
    Kind("tile", box, checks, 144, 0.08),
    Kind("ring", ring, sectors, 324, 0.07),
    Kind("cross", cross, stripes, 72, 0.05),
    Kind("gear", gear, hoops, 180, 0.05),
)
CLASSES = ("background", *(kind.name for kind in KINDS))
SOLID = disc, box, triangle, star, cross  # what distractors are shaped like


@dataclass(frozen=True)
class Item:
    """An object, or a distractor (label 0), before it is drawn."""

    label: int  # index into CLASSES
    shape: Callable
    texture: Callable
    x: float  # px, centre
    y: float
    half: float  # px, half the larger side
    squeeze: float  # width to height, or less than 1 height to width
    turn: float  # radians, of the shape
    texture_turn: float  # radians, of the texture on the shape
    colors: np.ndarray  # 2 x 3, RGB in 0..1
    light: np.ndarray  # 2: relative brightness gained from centre to edge along u and v


@dataclass(frozen=True)
class Scene:
    """A picture and its exact annotation."""

    image: np.ndarray  # H x W x 3 uint8, RGB
    class_mask: np.ndarray  # H x W uint8, 0..len(KINDS); the contour is 255 (void)
    instance_mask: np.ndarray  # H x W uint8, 0 none, 1..n, the same contour 255
    visible: np.ndarray  # H x W uint8, 0 none, 1..n: the instances without contours
    instance_classes: np.ndarray  # n uint8, class of instance k at k-1


def scene(seed: int, image_id: str) -> Scene:
    """The picture `image_id` of the world `seed`."""
    rng = np.random.default_rng([seed, int(image_id.replace("_", ""))])
    objects, visible, contour = arrange(rng)
    classes = np.array([item.label for item in objects], np.uint8)
    void = np.uint8(VOID)
    picture = background(rng)
    for item in distractors(rng) + objects:
        draw(picture, item)
    image = photograph(picture, rng)
    class_mask = np.where(contour, void, paint(visible, classes))
    return Scene(image, class_mask, np.where(contour, void, visible), visible, classes)


def paint(instances: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Each pixel's class: `instances` (H x W uint8, 0 none, 1..n) through `classes` (n uint8), 0 for none."""
    return np.concatenate([[np.uint8(0)], classes])[instances]


def arrange(rng: np.random.Generator) -> tuple[list[Item], np.ndarray, np.ndarray]:
    """1 to 6 objects from back to front, their visible parts (H x W uint8, 1..n) and void contours (H x W bool)."""
    objects: list[Item] = []
    while not objects:
        wanted: list[Item] = []
        count = rng.integers(1, 6)
        while len(wanted) < count:
            wanted.append(new_object(rng))
            if rng.random() < 0.25:
                wanted.append(neighbour(rng, wanted[-1]))
        visible, contour = np.zeros((HEIGHT, WIDTH), np.uint8), np.zeros((HEIGHT, WIDTH), bool)
        areas: list[int] = []  # px of each object, hidden and outside parts included
        for item in sorted(wanted, key=lambda item: -item.half):
            inside, area = footprint(item)
            around = cv2.dilate(inside.astype(np.uint8), cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))) > 0
            next_visible = np.where(inside, len(objects) + 1, visible).astype(np.uint8)
            next_contour = np.where(inside, False, contour | around)
            seen = np.bincount(next_visible[~next_contour], minlength=len(objects) + 2)[1:]
            shown = np.bincount(next_visible.ravel(), minlength=len(objects) + 2)[1:]
            if all(seen >= MIN_PIXELS) and all(shown >= MIN_VISIBLE * np.array([*areas, area])):
                objects.append(item)
                areas.append(area)
                visible, contour = next_visible, next_contour
    return objects, visible, contour


def new_object(rng: np.random.Generator) -> Item:
    label = int(rng.choice(len(KINDS), p=[kind.share for kind in KINDS])) + 1
    kind = KINDS[label - 1]
    half = np.exp(rng.uniform(*np.log(SIZES))) / 2
    return new_item(rng, label, kind.shape, kind.texture, kind.hue, half)


def new_item(rng: np.random.Generator, label: int, shape: Callable, texture: Callable, hue: float, half: float) -> Item:
    """An item with a random place, at most a quarter of it outside on each side, and random pose and colours."""
    margin = min(half / 2, HEIGHT / 2)
    hue = rng.normal(hue, HUE_SPREAD)
    color = hsv(hue, rng.uniform(0.55, 0.95), rng.uniform(0.5, 0.95))
    second = hsv(rng.uniform(0, 360), rng.uniform(0.0, 0.45), rng.choice([rng.uniform(0.1, 0.3), rng.uniform(0.8, 1)]))
    return Item(
        label,
        shape,
        texture,
        x=rng.uniform(margin, WIDTH - margin),
        y=rng.uniform(margin, HEIGHT - margin),
        half=half,
        squeeze=np.exp(rng.uniform(-0.25, 0.25)),
        turn=rng.uniform(-0.45, 0.45),
        texture_turn=rng.uniform(0, np.pi),
        # A texture's contrast stays below most outlines', or EdgeBoxes finds little but textures.
        colors=np.stack([color, 0.4 * color + 0.6 * second]),
        light=rng.uniform(-0.2, 0.2, 2),
    )


def neighbour(rng: np.random.Generator, item: Item) -> Item:
    """Another object of the same class and about the same size, touching `item`."""
    kind = KINDS[item.label - 1]
    other = new_item(rng, item.label, kind.shape, kind.texture, kind.hue, item.half * rng.uniform(0.6, 1.0))
    angle, distance = rng.uniform(0, 2 * np.pi), 0.9 * (item.half + other.half)
    return replace(other, x=item.x + distance * np.cos(angle), y=item.y + distance * np.sin(angle))


def distractors(rng: np.random.Generator) -> list[Item]:
    """0 to 2 items that belong to no class: a class's texture on a blob, or its shape with no class's texture."""
    pairs = {(kind.shape, kind.texture) for kind in KINDS}
    items = []
    for _ in range(rng.choice(3, p=[0.4, 0.4, 0.2])):
        kind = KINDS[rng.integers(len(KINDS))]
        half = np.exp(rng.uniform(*np.log([24, 90]))) / 2
        if rng.random() < 0.5:
            waves = rng.uniform(0.05, 0.14, 3), rng.uniform(0, 2 * np.pi, 3)
            items.append(new_item(rng, 0, partial(blob, waves=waves), kind.texture, kind.hue, half))
        else:
            shape = SOLID[rng.integers(len(SOLID))]
            free = [texture for texture in (plain, checks, hoops) if (shape, texture) not in pairs]
            items.append(new_item(rng, 0, shape, free[rng.integers(len(free))], rng.uniform(0, 360), half))
    return items


def blob(u, v, thin, waves):
    angle = np.arctan2(v, u)
    bumps = sum(size * np.sin(n * angle + phase) for n, size, phase in zip((2, 3, 5), *waves, strict=True))
    return np.hypot(u, v) <= 0.72 + bumps


def sample(item: Item) -> tuple[int, int, np.ndarray, np.ndarray]:
    """The item's region on the sampled canvas: its top and left (px), and u, v of each of its samples.

    The region is whole pixels and may extend beyond the image.
    """
    reach = int(np.ceil(item.half * 1.45)) + 1
    top, left = int(item.y) - reach, int(item.x) - reach
    offsets = (np.arange(2 * reach * SAMPLES, dtype=np.float32) + 0.5) / SAMPLES
    dx, dy = (left + offsets - item.x)[None], (top + offsets - item.y)[:, None]
    cos, sin = np.cos(item.turn), np.sin(item.turn)
    half_u, half_v = item.half * min(1, item.squeeze), item.half * min(1, 1 / item.squeeze)
    return top, left, (cos * dx + sin * dy) / half_u, (cos * dy - sin * dx) / half_v


def clip(top: int, left: int, side: int) -> tuple[slice, slice, slice, slice]:
    """Rows and columns (px) of a region inside the image, then the same rows and columns within the region."""
    # neighbours may lie outside altogether: then nothing is left of rows or columns
    (y0, y1), (x0, x1) = np.clip((top, top + side), 0, HEIGHT), np.clip((left, left + side), 0, WIDTH)
    return slice(y0, y1), slice(x0, x1), slice(y0 - top, y1 - top), slice(x0 - left, x1 - left)


def footprint(item: Item) -> tuple[np.ndarray, int]:
    """Pixels whose centre the item covers (H x W bool), and their number with those outside the image."""
    top, left, u, v = sample(item)
    centre = slice(SAMPLES // 2, None, SAMPLES)
    inside = item.shape(u[centre, centre], v[centre, centre], thin=THIN / item.half)
    rows, columns, region_rows, region_columns = clip(top, left, len(inside))
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[rows, columns] = inside[region_rows, region_columns]
    return mask, int(inside.sum())


def draw(picture: np.ndarray, item: Item) -> None:
    """Paint the item, with a soft shadow, onto the sampled canvas (H*SAMPLES x W*SAMPLES x 3 float32), in place."""
    top, left, u, v = sample(item)
    rows, columns, region_rows, region_columns = (
        slice(part.start * SAMPLES, part.stop * SAMPLES) for part in clip(top, left, len(u) // SAMPLES)
    )
    u, v, target = u[region_rows, region_columns], v[region_rows, region_columns], picture[rows, columns]
    inside = item.shape(u, v, thin=THIN / item.half)
    shifted = cv2.copyMakeBorder(inside.astype(np.float32), SAMPLES, 0, SAMPLES, 0, cv2.BORDER_REPLICATE)
    shadow = cv2.GaussianBlur(shifted[:-SAMPLES, :-SAMPLES], None, 1.5 * SAMPLES)  # a pixel down and right
    target *= 1 - 0.3 * shadow[..., None]
    cos, sin = np.cos(item.texture_turn), np.sin(item.texture_turn)
    second = item.texture(cos * u + sin * v, cos * v - sin * u, max(0.5, 4 / item.half))  # 4 px can be seen
    light = 1 + item.light[0] * u + item.light[1] * v
    target[inside] = item.colors[second[inside].astype(int)] * light[inside][:, None]


def background(rng: np.random.Generator) -> np.ndarray:
    """A canvas of muted colours, cloudy, grainy or woven, with some sticks (H*SAMPLES x W*SAMPLES x 3 float32)."""
    stretch = rng.uniform(1, 6)
    stretches = (stretch, 1) if rng.random() < 0.5 else (1, stretch)
    field = sum(
        weight * noise(rng, scale * stretches[0], scale * stretches[1])
        for scale, weight in ((2, 0.12), (6, 0.25), (18, 0.6))
    )
    if rng.random() < 0.4:  # a weave
        angle, period = rng.uniform(0, np.pi), rng.uniform(5, 14)
        y, x = np.mgrid[:HEIGHT, :WIDTH]
        field = field + rng.uniform(0.3, 0.8) * np.sin(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / period)
    mix = np.clip(0.5 + 0.35 * field, 0, 1)[..., None]
    hue, value = rng.uniform(0, 360), rng.uniform(0.3, 0.8)
    colors = [hsv(hue + rng.normal(0, 40), rng.uniform(0.05, 0.45), value + d) for d in (-0.12, 0.12, 0.0)]
    picture = colors[0] * (1 - mix) + colors[1] * mix
    slow = np.clip(0.5 + 0.5 * noise(rng, 60, 60), 0, 1)[..., None]
    picture = (picture * (1 - 0.6 * slow) + colors[2] * 0.6 * slow).astype(np.float32)
    picture = cv2.resize(picture, (WIDTH * SAMPLES, HEIGHT * SAMPLES), interpolation=cv2.INTER_LINEAR)
    for _ in range(rng.integers(0, 3)):
        ends = rng.uniform(0, 1, (2, 2)) * [WIDTH * SAMPLES, HEIGHT * SAMPLES]
        color = hsv(rng.uniform(0, 360), rng.uniform(0, 0.6), rng.uniform(0.2, 0.9))
        start, stop = ends.astype(int).tolist()
        cv2.line(picture, start, stop, color.tolist(), int(rng.integers(SAMPLES, 3 * SAMPLES)), cv2.LINE_AA)
    return picture


def noise(rng: np.random.Generator, scale_y: float, scale_x: float) -> np.ndarray:
    """Smooth noise of unit variance (H x W float32) whose grain is scale_y by scale_x px."""
    shape = int(HEIGHT / scale_y) + 3, int(WIDTH / scale_x) + 3
    field = cv2.resize(rng.standard_normal(shape, np.float32), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    return field / field.std()


def photograph(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The canvas as a camera sees it: lit from a side, slightly blurred, noisy (H x W x 3 uint8)."""
    image = cv2.resize(picture, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
    y, x = np.mgrid[-1 : 1 : HEIGHT * 1j, -1 : 1 : WIDTH * 1j]
    slope = rng.uniform(-0.15, 0.15, 2)
    image *= (rng.uniform(0.85, 1.15) + slope[0] * x + slope[1] * y)[..., None]
    image = cv2.GaussianBlur(image, None, rng.uniform(0.2, 0.6))
    image += rng.normal(0, rng.uniform(0.01, 0.03), image.shape)
    return (np.clip(image, 0, 1) * 255).round().astype(np.uint8)


def hsv(hue: float, saturation: float, value: float) -> np.ndarray:
    """RGB in 0..1 (3 float32) of a hue in degrees and saturation and value in 0..1."""
    color = np.array([[[hue % 360, saturation, np.clip(value, 0, 1)]]], np.float32)
    return cv2.cvtColor(color, cv2.COLOR_HSV2RGB)[0, 0]


def voc_palette() -> np.ndarray:
    """VOC's colour map (256 x 3 uint8, RGB): the bits of the index, dealt to R, G and B from their highest bit down."""
    index = np.arange(256)
    channels = [sum((index >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(3)) for channel in range(3)]
    return np.stack(channels, 1).astype(np.uint8)


def sbd_annotation(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """The scene as SBD's annotators drew it: no void, corners rounded. Class and instance mask, H x W uint8."""
    instances = np.zeros_like(scene.visible)
    for k in range(1, len(scene.instance_classes) + 1):
        exact = (scene.visible == k).astype(np.uint8)
        rounded = cv2.medianBlur(exact, 3)
        instances[(rounded if 2 * rounded.sum() > exact.sum() else exact) > 0] = k
    return paint(instances, scene.instance_classes), instances


Members = list[tuple[str, bytes]]  # (name in the archive, content)


def voc_members(image_id: str, seed: int) -> Members:
    """The files of one image in VOC's layout."""
    drawn = scene(seed, image_id)
    return [
        (f"VOCdevkit/VOC2012/JPEGImages/{image_id}.jpg", jpeg(drawn.image)),
        (f"VOCdevkit/VOC2012/SegmentationClass/{image_id}.png", palette_png(drawn.class_mask)),
        (f"VOCdevkit/VOC2012/SegmentationObject/{image_id}.png", palette_png(drawn.instance_mask)),
    ]


def sbd_members(image_id: str, seed: int) -> Members:
    """The files of one image in SBD's layout."""
    drawn = scene(seed, image_id)
    class_mask, instance_mask = sbd_annotation(drawn)
    column = drawn.instance_classes[:, None]
    present = np.unique(column)[:, None]
    classes = {
        "Boundaries": boundaries(class_mask, range(1, len(CLASSES))),
        "Segmentation": class_mask,
        "CategoriesPresent": present,
    }
    instances = {
        "Boundaries": boundaries(instance_mask, range(1, len(column) + 1)),
        "Segmentation": instance_mask,
        "Categories": column,
    }
    return [
        (f"benchmark_RELEASE/dataset/cls/{image_id}.mat", mat({"GTcls": classes})),
        (f"benchmark_RELEASE/dataset/inst/{image_id}.mat", mat({"GTinst": instances})),
        (f"benchmark_RELEASE/dataset/img/{image_id}.jpg", jpeg(drawn.image)),
    ]


def boundaries(mask: np.ndarray, values: Iterable[int]) -> np.ndarray:
    """SBD's cell array: for each value a sparse H x W uint8, 1 on the region's outermost pixels."""
    regions = [(mask == value).astype(np.uint8) for value in values]
    cells = np.empty((len(regions), 1), object)
    cells[:, 0] = [csc_matrix(region - cv2.erode(region, np.ones((3, 3), np.uint8))) for region in regions]
    return cells


def jpeg(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=95, subsampling=0)  # 4:2:0 would smear small objects' colours
    return buffer.getvalue()


def palette_png(mask: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(mask, "P")
    image.putpalette(voc_palette().ravel().tolist())
    image.save(buffer, "PNG")
    return buffer.getvalue()


def mat(values: dict) -> bytes:
    """A MATLAB file whose bytes depend on the values alone."""
    buffer = io.BytesIO()
    savemat(buffer, values, do_compression=True)
    header = b"MATLAB 5.0 MAT-file Platform: posix, drawn by stages.shapes"  # where savemat puts the time of day
    return header.ljust(116) + buffer.getvalue()[116:]


def voc_lists(params: VocParams) -> dict[str, list[str]]:
    """List file in the archive -> image ids."""
    train, val = ids(2010, params.train), ids(2011, params.val)
    folder = "VOCdevkit/VOC2012/ImageSets/Segmentation"
    return {f"{folder}/train.txt": train, f"{folder}/val.txt": val, f"{folder}/trainval.txt": train + val}


def sbd_lists(params: SbdParams) -> dict[str, list[str]]:
    """List file in the archive -> image ids. The images shared with VOC go to both lists in turn."""
    shared = ids(2010, params.shared_train) + ids(2011, params.shared_val)
    folder = "benchmark_RELEASE/dataset"
    return {
        f"{folder}/train.txt": ids(2008, params.train) + shared[::2],
        f"{folder}/val.txt": ids(2009, params.val) + shared[1::2],
    }


def ids(year: int, count: int) -> list[str]:
    return [f"{year}_{number:06d}" for number in range(1, count + 1)]


def members(params: VocParams | SbdParams, processes: int | None = None) -> Iterator[tuple[str, bytes]]:
    """The archive's files in order: the lists, then each image's. `processes`: None for one a core."""
    lists = voc_lists(params) if isinstance(params, VocParams) else sbd_lists(params)
    one = partial(voc_members if isinstance(params, VocParams) else sbd_members, seed=params.seed)
    for name, listed in lists.items():
        yield name, "".join(f"{image_id}\n" for image_id in listed).encode()
    image_ids = sorted({image_id for listed in lists.values() for image_id in listed})
    # Spawned, not forked: a fork copies OpenCV's locks, not its threads. One thread each: the processes fill the cores.
    context = multiprocessing.get_context("spawn")
    with context.Pool(processes, cv2.setNumThreads, [1]) as pool:
        for files in progress(pool.imap(one, image_ids, chunksize=8), total=len(image_ids), unit="image"):
            yield from files


def write_archive(stream: io.BufferedIOBase, files: Iterable[tuple[str, bytes]]) -> None:
    """Write (name, content) pairs as a tar whose bytes depend on them alone."""
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), DRAWN
            archive.addfile(info, io.BytesIO(content))


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="stages.shapes", description=__doc__.partition("\n")[0])
    parser.add_argument("key", choices=["voc_trainval", "sbd"], help="section fetch.KEY of params.yaml")
    key = parser.parse_args(arguments).key
    params = load(VocParams if key == "voc_trainval" else SbdParams, f"fetch.{key}")
    with whole(params.file) as path, open(path, "wb") as file:
        if key == "sbd":
            with gzip.GzipFile("", "wb", compresslevel=6, fileobj=file, mtime=0) as stream:
                write_archive(stream, members(params))
        else:
            write_archive(file, members(params))


if __name__ == "__main__":
    run(main)
