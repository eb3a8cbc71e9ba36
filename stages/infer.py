"""Model and proposals -> class scores of whole images (paper 5.1), tables of deconvnet/scores.py.

DeconvNet scores every proposal's window alone; its score maps are resized to their windows, put into the image with 0
outside, and aggregated pixel by pixel. FCN-8s scores the whole image at once.

One process makes several shards, one after the other. While the net is at work, a thread decodes the images to come, a
pool encodes the scores of those before, and the last shard is written; its file appears as soon as it is whole.
"""

import argparse
import functools
import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pyarrow as pa

from deconvnet import provenance, scores, tables
from deconvnet.boxes import by_image
from deconvnet.errors import InputError
from deconvnet.files import file_hash
from deconvnet.images import decode_image
from deconvnet.progress import progress
from experiment import machine
from experiment.cli import record, run
from experiment.params import Params, load

if TYPE_CHECKING:
    from torch import nn

AHEAD = 16  # images decoded before their turn, at most
_model_hash = functools.cache(file_hash)  # one model for all shards


@dataclass(frozen=True)
class Shard:
    """What a shard of scores is made from. proposals: None for FCN-8s. count: of images."""

    dataset: Path
    proposals: Path | None
    out: Path
    count: int


def fingerprint(dataset: Path, proposals: Path | None, model: Path, growth: bool, params: Params) -> str:
    """What a shard of scores is made from; batch sizes are no part of it. proposals: None for FCN-8s."""
    own = {"precision": params.infer.precision}
    if proposals is None:
        own["canvas"], paths = params.train_fcn.canvas, [dataset]
    else:
        own |= asdict(params.infer.deconvnet) | {"batch": None}
        own |= {"context": params.crops.context, "square": params.crops.square}
        own |= {"growth": params.infer.growth if growth else None}
        paths = [dataset, proposals]
    contents = [tables.footer(path).get("content", "") for path in paths]
    return provenance.fingerprint(__file__, own, *contents, _model_hash(model))


@dataclass(frozen=True)
class Picture:
    """An image that is decoded, uint8 (H, W, 3), with its windows, int32 (n, 4); None for FCN-8s."""

    image_id: str
    image: np.ndarray
    windows: np.ndarray | None


# From here on modules are imported where they are used: the Snakefile imports this one for its fingerprint, and PyTorch
# takes seconds.


def pictures(shards: list[Shard], params: Params, growth: tuple[int, ...]) -> Iterator[Picture]:
    """All images of the shards, in their order."""
    from deconvnet.inference.windows import select

    settings, crops = params.infer.deconvnet, params.crops
    for shard in shards:
        boxes = None if shard.proposals is None else by_image(tables.read(shard.proposals))
        for entry in tables.read(shard.dataset, ["image_id", "image"]).to_pylist():
            try:
                image = decode_image(entry["image"])
            except ValueError as error:
                raise InputError(f"{shard.dataset}: {entry['image_id']}: {error}; run `dvc repro dataset`") from None
            windows = None
            if boxes is not None:
                found, most = boxes.get(entry["image_id"], np.zeros((0, 4))), max(settings.proposals, *growth, 0)
                windows = select(found, crops.context, crops.square, settings.min_side, most)
            yield Picture(entry["image_id"], image, windows)


def score(
    net: "nn.Module",
    model: Path,
    shards: list[Shard],
    found: Iterator[Picture],
    params: Params,
    growth: tuple[int, ...],
) -> Iterator[Callable[[], dict]]:
    """For each picture what encodes its scores into a row. Batches never mix shards: bytes depend on one alone."""
    from deconvnet.inference.encoding import encoder
    from deconvnet.inference.whole_images import by_images
    from deconvnet.inference.windows import by_windows

    for shard in shards:
        unseen, again = itertools.tee(itertools.islice(found, shard.count))
        images = (picture.image for picture in unseen)
        if net.spec["kind"] == "fcn":
            settings = params.train_fcn.canvas, params.infer.fcn_batch, params.infer.precision
            results = ((maps, []) for maps in by_images(net, images, *settings))
        else:
            places = ((picture.image, picture.windows) for picture in unseen)
            results = by_windows(net, places, params.infer.deconvnet, params.infer.precision, growth)
        for picture, result in zip(again, results, strict=True):
            yield functools.partial(row, model, picture, encoder(*result), params.infer.deconvnet.proposals)


def row(model: Path, picture: Picture, encode: Callable[[], dict], proposals: int) -> dict:
    """The row of a picture in a table of scores."""
    try:
        columns = encode()
    except ValueError as error:
        raise InputError(f"{model}: {picture.image_id}: {error}; train the model again") from None
    windows = None if picture.windows is None else min(len(picture.windows), proposals)
    return {"image_id": picture.image_id, "windows": windows} | columns


def write(shard: Shard, rows: list[dict], mark: str, said: str, arguments: list[str]) -> None:
    """Write a shard and say so."""
    tables.write(shard.out, pa.Table.from_pylist(rows, scores.SCHEMA), mark)
    record(arguments)
    empty = sum(row["windows"] == 0 for row in rows)
    more = f", {empty} of them without a proposal and so all background" if empty else ""
    print(f"{said}{more}", flush=True)


def make(
    net: "nn.Module", model: Path, shards: list[Shard], marks: list[str], params: Params, growth: tuple[int, ...],
    threads: int,
) -> None:  # fmt: skip
    """Make the shards, one after the other, each of the fingerprint in `marks`."""
    from deconvnet.inference.overlap import ahead, behind

    with ThreadPoolExecutor(threads) as pool, ThreadPoolExecutor(1) as writer:
        found = ahead(pictures(shards, params, growth), AHEAD)
        rows = behind(pool, score(net, model, shards, found, params, growth), 2 * threads)
        written = None
        for shard, mark in zip(shards, marks, strict=True):
            name = f"{model.stem} {shard.dataset.stem}"
            table = list(progress(itertools.islice(rows, shard.count), total=shard.count, unit="image", desc=name))
            if written:
                written.result()  # two tables in memory at most
            said = f"{name}: {shard.count} images scored on {next(net.parameters()).device}"
            as_one = ["--model", model, "--dataset", shard.dataset, "--out", shard.out]
            written = writer.submit(write, shard, table, mark, said, [str(word) for word in as_one])
        if written:
            written.result()


def main(arguments: list[str]) -> None:
    import torch

    from deconvnet.inference.devices import own_device
    from deconvnet.inference.models import check_classes, load_net

    parser = argparse.ArgumentParser(prog="python -m stages.infer", description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="DeconvNet or FCN-8s")
    parser.add_argument("--dataset", type=Path, required=True, help="folder of the data set")
    parser.add_argument("--proposals", type=Path, required=True, help="folder of proposals; not read for FCN-8s")
    parser.add_argument("--out", type=Path, required=True, help="folder of scores")
    parser.add_argument("--shards", nargs="*", required=True, help="names of the shards to make, such as val-000")
    parser.add_argument("--growth", action="store_true", help="keep labels after infer.growth proposals, too")
    parser.add_argument("--threads", type=int, default=machine.cores(), help="of a CPU; all by default")
    parser.add_argument("--params", type=Path, default="params.yaml", help="parameter file; params.yaml by default")
    options = parser.parse_args(arguments)
    params = load(options.params)
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(options.threads)
    torch.backends.cudnn.benchmark = True
    net, about = load_net(options.model, own_device(), params.infer.precision)
    source = f"dataset.classes in {options.params}; train on this data set, or name the model's classes"
    check_classes(options.model, net, about, params.dataset.classes, source)
    whole = net.spec["kind"] == "fcn"
    shards = []
    for name in options.shards:
        places = [folder / f"{name}.parquet" for folder in (options.dataset, options.proposals, options.out)]
        count = len(tables.read(places[0], ["image_id"]))
        shards.append(Shard(places[0], None if whole else places[1], places[2], count))
    # now: the code may be edited while it runs
    marks = [fingerprint(one.dataset, one.proposals, options.model, options.growth, params) for one in shards]
    growth = params.infer.growth if options.growth else ()
    make(net, options.model, shards, marks, params, growth, options.threads)


if __name__ == "__main__":
    run(main)
