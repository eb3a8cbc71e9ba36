"""The demo's pictures: objects arranged and drawn, each with its exact annotation."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import cv2
import numpy as np

from deconvnet.images import VOID
from demo.world import shapes
from demo.world.shapes import HUE_SPREAD, KINDS, SOLID

HEIGHT, WIDTH = 160, 200  # px
SAMPLES = 3  # samples per pixel along each axis; odd, so that one is the pixel's centre, which decides its label
SIZES = 20.0, 190.0  # px, the larger side of an object, log-uniform between
THIN = 4.0  # px, the least width of a ring or a table leg
MIN_PIXELS, MIN_VISIBLE = 16, 0.5  # an object of less, or of which less is seen, is not drawn


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
            items.append(new_item(rng, 0, partial(shapes.blob, waves=waves), kind.texture, kind.hue, half))
        else:
            shape = SOLID[rng.integers(len(SOLID))]
            free = [texture for texture in (shapes.plain, shapes.checks, shapes.hoops) if (shape, texture) not in pairs]
            items.append(new_item(rng, 0, shape, free[rng.integers(len(free))], rng.uniform(0, 360), half))
    return items


def region(item: Item) -> tuple[int, int, int]:
    """Top, left and side (px) of the square that the item is drawn in, which may extend beyond the image."""
    reach = int(np.ceil(item.half * 1.45)) + 1
    return int(item.y) - reach, int(item.x) - reach, 2 * reach


def sample(item: Item, rows: slice, columns: slice) -> tuple[np.ndarray, np.ndarray]:
    """u, v of the samples in these rows and columns of samples of the item's region."""
    top, left, side = region(item)
    offsets = (np.arange(side * SAMPLES, dtype=np.float32) + 0.5) / SAMPLES
    dx, dy = (left + offsets - item.x)[None, columns], (top + offsets - item.y)[rows, None]
    cos, sin = np.cos(item.turn), np.sin(item.turn)
    half_u, half_v = item.half * min(1, item.squeeze), item.half * min(1, 1 / item.squeeze)
    return (cos * dx + sin * dy) / half_u, (cos * dy - sin * dx) / half_v


def clip(top: int, left: int, side: int) -> tuple[slice, slice, slice, slice]:
    """Rows and columns (px) of a region inside the image, then the same rows and columns within the region."""
    # neighbours may lie outside altogether: then nothing is left of rows or columns
    (y0, y1), (x0, x1) = np.clip((top, top + side), 0, HEIGHT), np.clip((left, left + side), 0, WIDTH)
    return slice(y0, y1), slice(x0, x1), slice(y0 - top, y1 - top), slice(x0 - left, x1 - left)


def footprint(item: Item) -> tuple[np.ndarray, int]:
    """Pixels whose centre the item covers (H x W bool), and their number with those outside the image."""
    centre = slice(SAMPLES // 2, None, SAMPLES)
    inside = item.shape(*sample(item, centre, centre), thin=THIN / item.half)
    rows, columns, region_rows, region_columns = clip(*region(item))
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[rows, columns] = inside[region_rows, region_columns]
    return mask, int(inside.sum())


def draw(picture: np.ndarray, item: Item) -> None:
    """Paint the item, with a soft shadow, onto the sampled canvas (H*SAMPLES x W*SAMPLES x 3 float32), in place."""
    rows, columns, region_rows, region_columns = (
        slice(part.start * SAMPLES, part.stop * SAMPLES) for part in clip(*region(item))
    )
    u, v, target = *sample(item, region_rows, region_columns), picture[rows, columns]
    inside = item.shape(u, v, thin=THIN / item.half)
    shifted = cv2.copyMakeBorder(inside.astype(np.float32), SAMPLES, 0, SAMPLES, 0, cv2.BORDER_REPLICATE)
    shadow = cv2.GaussianBlur(shifted[:-SAMPLES, :-SAMPLES], None, 1.5 * SAMPLES)  # a pixel down and right
    target *= cv2.merge([1 - 0.3 * shadow] * 3)  # NumPy would broadcast pixel by pixel, 3 values at a time
    u, v = u[inside], v[inside]
    cos, sin = np.cos(item.texture_turn), np.sin(item.texture_turn)
    second = item.texture(cos * u + sin * v, cos * v - sin * u, max(0.5, 4 / item.half))  # 4 px can be seen
    light = 1 + item.light[0] * u + item.light[1] * v
    target[inside] = (item.colors.T[:, second.astype(int)] * light).T


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
