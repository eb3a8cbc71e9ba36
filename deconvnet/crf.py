"""Scores and images -> labels by a fully connected CRF (Krahenbuhl, Koltun, NIPS 2011), as the release uses it."""

import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pydensecrf.densecrf as densecrf

from deconvnet import scores
from deconvnet.errors import InputError
from deconvnet.images import decode_image, encode_mask
from deconvnet.settings import Crf

NORMALIZATIONS = {"none": densecrf.NO_NORMALIZATION, "symmetric": densecrf.NORMALIZE_SYMMETRIC}


def refine(class_scores: np.ndarray, image: np.ndarray, settings: Crf) -> np.ndarray:
    """Scores float32 (C, H, W) and image uint8 (H, W, 3) -> labels uint8 (H, W) of the mean field's best classes.

    The unary energy is -log of the scores' softmax. A Potts model with two Gaussian kernels joins all pairs of pixels:
    one over positions (smoothness), one over positions and colours (appearance). Normalisation `none` adds a kernel's
    values up as they are (R); `symmetric` divides the kernel by the square roots of its row and column sums, which
    makes the pairwise term many times weaker.
    """
    classes, height, width = class_scores.shape
    field = densecrf.DenseCRF2D(width, height, classes)
    shifted = class_scores - class_scores.max(0)
    energy = np.log(np.exp(shifted).sum(0)) - shifted  # -log softmax
    field.setUnaryEnergy(np.ascontiguousarray(energy.reshape(classes, -1), np.float32))
    normalization = NORMALIZATIONS[settings.normalization]
    field.addPairwiseGaussian(
        sxy=settings.smoothness_sxy, compat=settings.smoothness_weight, normalization=normalization
    )
    field.addPairwiseBilateral(
        sxy=settings.appearance_sxy,
        srgb=settings.appearance_srgb,
        rgbim=np.array(image),  # pydensecrf wants one that it could write to
        compat=settings.appearance_weight,
        normalization=normalization,
    )
    marginals = np.asarray(field.inference(settings.iterations))  # (C, H*W)
    return marginals.argmax(0).astype(np.uint8).reshape(height, width)


def refine_row(row: dict, data: bytes, classes: int, settings: Crf) -> dict:
    """A row of a table of labels, from a row of scores and the image's bytes. Raises InputError for another size."""
    try:
        image = decode_image(data)
    except ValueError as error:
        raise InputError(f"{row['image_id']}: {error}; run `dvc repro dataset`") from None
    maps = scores.decode(row, classes)
    if image.shape[:2] != maps.shape[1:]:
        raise InputError(
            f"{row['image_id']}: scores of {maps.shape[2]}x{maps.shape[1]} px, but the image has "
            f"{image.shape[1]}x{image.shape[0]}; run `dvc repro`"
        )
    return {"image_id": row["image_id"], "labels": encode_mask(refine(maps, image, settings))}


def refine_rows(
    rows: list[dict], images: list[bytes], classes: int, settings: Crf, processes: int = 1
) -> Iterator[dict]:
    """`refine_row` of each image in turn, on so many processes.

    With more than one, a script that calls this needs the guard `if __name__ == "__main__":`.
    """
    one = functools.partial(refine_row, classes=classes, settings=settings)
    processes = min(processes, len(rows))
    if processes <= 1:
        yield from map(one, rows, images)
        return
    # A forked process would inherit locks that pyarrow's threads hold here. The fork server is a fresh process, which
    # imports this module once and has no threads.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(processes, mp_context=context, initializer=end_with_parent) as pool:
        yield from pool.map(one, rows, images, chunksize=4)


def end_with_parent() -> None:
    """For a process of a pool: end when its parent is killed, instead of waiting for work for ever.

    Ctrl-C ends it without a traceback: the parent says what there is to say.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=lambda: (multiprocessing.parent_process().join(), os._exit(1)), daemon=True).start()
