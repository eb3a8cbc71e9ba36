"""The demo's classes: a class is a shape and a texture.

A shape takes u, v (arrays of one size, in units of half the object's size, v downwards) and `thin`, the least width
that can be seen, and says which places lie inside. A texture takes u, v, turned, and its period, and says which places
have the second of the object's two colours.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


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


def blob(u, v, thin, waves):
    angle = np.arctan2(v, u)
    bumps = sum(size * np.sin(n * angle + phase) for n, size, phase in zip((2, 3, 5), *waves, strict=True))
    return np.hypot(u, v) <= 0.72 + bumps


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
