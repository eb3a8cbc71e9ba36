"""Windows that show background alone: pre-training's class 0."""

import numpy as np
import pandas as pd

from deconvnet.pixels import ImageStore


def backgrounds(store: ImageStore, count: int, seed: int) -> pd.DataFrame:
    """Up to `count` square windows without an object or void, as rows of a crop table of class 0.

    Sides are log-uniform from 16 px to the image's shorter side; drawn from the images in turn, at most 20 draws per
    image.
    """
    random = np.random.default_rng([seed, 3])
    found = []
    for attempt in range(20 * len(store.ids)):
        if len(found) == count:
            break
        image = attempt % len(store.ids)
        labels = store.scene(image)[..., 3]
        height, width = labels.shape
        side = int(np.exp(random.uniform(np.log(16), np.log(min(height, width)))))
        x, y = int(random.integers(0, width - side + 1)), int(random.integers(0, height - side + 1))
        if not labels[y : y + side, x : x + side].any():
            found.append((store.ids[image], x, y, side, side, 0, 0, 1))
    return pd.DataFrame(found, columns=["image_id", "x", "y", "side_x", "side_y", "instance", "class_id", "copies"])


def with_backgrounds(table: pd.DataFrame, store: ImageStore, share: float, seed: int) -> pd.DataFrame:
    """The crop table with background windows added, whose copies are `share` of all."""
    wanted = round(table["copies"].sum() * share / (1 - share))
    windows = backgrounds(store, min(wanted, 20 * len(store.ids)), seed)
    if len(windows):
        windows["copies"] = np.diff(np.linspace(0, wanted, len(windows) + 1).round().astype(int))
    return pd.concat([table, windows], ignore_index=True)
