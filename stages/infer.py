"""Model and proposals -> class scores of whole images (paper 5.1), a table of deconvnet/scores.py.

DeconvNet scores every proposal's window alone; its score maps are resized to their windows, put into the image with 0
outside, and aggregated pixel by pixel. FCN-8s scores the whole image at once.
"""

import argparse
import functools
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa

from deconvnet import provenance, scores, tables
from deconvnet.boxes import by_image
from deconvnet.errors import InputError
from deconvnet.files import file_hash
from deconvnet.images import decode_image, encode_mask
from deconvnet.progress import progress
from experiment.cli import run
from experiment.params import Params, load

_model_hash = functools.cache(file_hash)  # one model for all shards


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


def decoded(dataset: Path, rows: list[dict]) -> Iterator[np.ndarray]:
    """The images of a shard's rows, uint8 (H, W, 3)."""
    for row in rows:
        try:
            yield decode_image(row["image"])
        except ValueError as error:
            raise InputError(f"{dataset}: {row['image_id']}: {error}; run `dvc repro dataset`") from None


def main(arguments: list[str]) -> None:
    # here, since the Snakefile imports this module for its fingerprint, and PyTorch takes seconds
    import torch

    from deconvnet.inference.devices import own_device
    from deconvnet.inference.models import check_classes, load_net
    from deconvnet.inference.whole_images import by_images
    from deconvnet.inference.windows import by_windows, select

    parser = argparse.ArgumentParser(prog="python -m stages.infer", description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="DeconvNet or FCN-8s")
    parser.add_argument("--dataset", type=Path, required=True, help="shard of the data set")
    parser.add_argument("--proposals", type=Path, required=True, help="shard of proposals; not read for FCN-8s")
    parser.add_argument("--out", type=Path, required=True, help="shard of scores")
    parser.add_argument("--growth", action="store_true", help="keep labels after infer.growth proposals, too")
    parser.add_argument("--threads", type=int, help="of a CPU; all by default")
    parser.add_argument("--params", type=Path, default="params.yaml", help="parameter file; params.yaml by default")
    options = parser.parse_args(arguments)
    params = load(options.params)
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.backends.cudnn.benchmark = True
    net, about = load_net(options.model, own_device())
    source = f"dataset.classes in {options.params}; train on this data set, or name the model's classes"
    check_classes(options.model, net, about, params.dataset.classes, source)
    whole = net.spec["kind"] == "fcn"
    rows = tables.read(options.dataset, ["image_id", "image"]).to_pylist()
    images = decoded(options.dataset, rows)
    # now: the code may be edited while it runs
    mark = fingerprint(options.dataset, None if whole else options.proposals, options.model, options.growth, params)

    windows, growth = params.infer.deconvnet, params.infer.growth if options.growth else ()
    if whole:
        found = [None] * len(rows)
        maps = by_images(net, images, params.train_fcn.canvas, params.infer.fcn_batch, params.infer.precision)
        results = ((result, []) for result in maps)
    else:
        boxes, none = by_image(tables.read(options.proposals)), np.zeros((0, 4))
        most = max(windows.proposals, *growth, 0)
        context, square = params.crops.context, params.crops.square
        found = [select(boxes.get(row["image_id"], none), context, square, windows.min_side, most) for row in rows]
        results = by_windows(net, zip(images, found, strict=True), windows, params.infer.precision, growth)
    name = f"{options.model.stem} {options.dataset.stem}"
    table = []
    for row, places, (result, grown) in zip(
        rows, found, progress(results, total=len(rows), unit="image", desc=name), strict=True
    ):
        try:
            encoded = scores.encode(result.cpu().numpy())
        except ValueError as error:
            raise InputError(f"{options.model}: {row['image_id']}: {error}; train the model again") from None
        table.append(
            {
                "image_id": row["image_id"],
                "windows": None if places is None else min(len(places), windows.proposals),
                "growth": [encode_mask(labels.argmax(0).byte().cpu().numpy()) for labels in grown],
            }
            | encoded
        )
    tables.write(options.out, pa.Table.from_pylist(table, scores.SCHEMA), mark)
    empty = sum(places is not None and not len(places) for places in found)
    more = f", {empty} of them without a proposal and so all background" if empty else ""
    print(f"{name}: {len(rows)} images scored on {next(net.parameters()).device}{more}", flush=True)


if __name__ == "__main__":
    run(main)
