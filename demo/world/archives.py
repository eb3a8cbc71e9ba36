"""The demo's world: drawn objects, written as VOC 2012 and SBD archives in the official layouts.

Run in an experiment folder, for an entry of `fetch` in params.yaml with `by: demo/world/archives.py`.

The world is designed so that the paper's ideas matter. A class is a shape *and* a texture: some other class has the
same shape with another texture, some other class the same texture on another shape in nearly the same hue, and
distractors (background) wear both. A texture grows with its object, and objects range from a dozen pixels to nearly the
whole image: a window around the object always shows the same thing, a fixed receptive field does not. Rings, table legs
and gear teeth are thin.

An image depends on its seed and its id alone, so the two archives agree on the images that they share. The year in the
id says which lists name it:

    2008 SBD alone, train.txt       2010 VOC train (the first `shared_train` also in SBD)
    2009 SBD alone, val.txt         2011 VOC val   (the first `shared_val` also in SBD, as in reality)
"""

import argparse
import gzip
import io
import multiprocessing
import signal
import tarfile
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from scipy.io import savemat
from scipy.sparse import csc_matrix

from deconvnet.errors import InputError
from deconvnet.files import whole
from deconvnet.images import PALETTE
from deconvnet.progress import progress
from demo.world.scenes import Scene, paint, scene
from demo.world.shapes import CLASSES
from experiment import params as parameters
from experiment.cli import run
from experiment.machine import cores
from experiment.params import DrawnSbd, DrawnVoc

DRAWN = 1_300_000_000  # s since 1970: the files' time in the archives, March 2011


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
    image.putpalette(PALETTE.ravel().tolist())
    image.save(buffer, "PNG")
    return buffer.getvalue()


def mat(values: dict) -> bytes:
    """A MATLAB file whose bytes depend on the values alone."""
    buffer = io.BytesIO()
    savemat(buffer, values, do_compression=True)
    # savemat puts the time of day here. The words are those of the first version, so that archives keep their bytes.
    header = b"MATLAB 5.0 MAT-file Platform: posix, drawn by stages.shapes"
    return header.ljust(116) + buffer.getvalue()[116:]


def voc_lists(params: DrawnVoc) -> dict[str, list[str]]:
    """List file in the archive -> image ids."""
    train, val = ids(2010, params.train), ids(2011, params.val)
    folder = "VOCdevkit/VOC2012/ImageSets/Segmentation"
    return {f"{folder}/train.txt": train, f"{folder}/val.txt": val, f"{folder}/trainval.txt": train + val}


def sbd_lists(params: DrawnSbd) -> dict[str, list[str]]:
    """List file in the archive -> image ids. The images shared with VOC go to both lists in turn."""
    shared = ids(2010, params.shared_train) + ids(2011, params.shared_val)
    folder = "benchmark_RELEASE/dataset"
    return {
        f"{folder}/train.txt": ids(2008, params.train) + shared[::2],
        f"{folder}/val.txt": ids(2009, params.val) + shared[1::2],
    }


def ids(year: int, count: int) -> list[str]:
    return [f"{year}_{number:06d}" for number in range(1, count + 1)]


def members(params: DrawnVoc | DrawnSbd, processes: int = 1, name: str = "") -> Iterator[tuple[str, bytes]]:
    """The archive's files in order: the lists, then each image's. `name` stands before the progress bar."""
    voc = isinstance(params, DrawnVoc)
    lists = voc_lists(params) if voc else sbd_lists(params)
    one = partial(voc_members if voc else sbd_members, seed=params.seed)
    for file, listed in lists.items():
        yield file, "".join(f"{image_id}\n" for image_id in listed).encode()
    image_ids = sorted({image_id for listed in lists.values() for image_id in listed})
    # Spawned, not forked: a fork copies OpenCV's locks, not its threads. One thread each: the processes fill the cores.
    context = multiprocessing.get_context("spawn")
    with context.Pool(processes, _start_worker) as pool:
        for files in progress(pool.imap(one, image_ids, chunksize=8), total=len(image_ids), unit="image", desc=name):
            yield from files


def _start_worker() -> None:
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a traceback


def write_archive(stream: io.BufferedIOBase, files: Iterable[tuple[str, bytes]]) -> None:
    """Write (name, content) pairs as a tar whose bytes depend on them alone."""
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), DRAWN
            archive.addfile(info, io.BytesIO(content))


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="demo/world/archives.py", description=__doc__.partition("\n")[0])
    parser.add_argument("key", choices=["voc_trainval", "sbd"], help="which archive: section fetch.KEY of params.yaml")
    key = parser.parse_args(arguments).key
    params = getattr(parameters.load().fetch, key)
    if not isinstance(params, (DrawnVoc, DrawnSbd)):
        raise InputError(f"params.yaml: fetch.{key}.by: {params.by}, not demo/world/archives.py; `dvc repro` runs it")
    files = members(params, cores(), key)
    with whole(params.file) as path, open(path, "wb") as file:
        if key == "sbd":
            with gzip.GzipFile("", "wb", compresslevel=6, fileobj=file, mtime=0) as stream:
                write_archive(stream, files)
        else:
            write_archive(file, files)
    print(f"{params.file}: drawn, {Path(params.file).stat().st_size:,} bytes")


if __name__ == "__main__":
    run(main)
