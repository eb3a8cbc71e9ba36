"""Model and proposals -> class scores of whole images (paper 5.1), tables of deconvnet/scores.py.

DeconvNet scores every proposal's window alone; its score maps are resized to their windows, put into the image with 0
outside, and aggregated pixel by pixel. FCN-8s scores the whole image at once.

One process makes several shards, one after the other. While the net is at work, a thread decodes the images to come, a
pool encodes the scores of those before, and the last shard is written; its file appears as soon as it is whole.
"""

import argparse
import functools
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from deconvnet import contents, provenance, scores, tables
from deconvnet.files import file_hash
from experiment import machine
from experiment.cli import record, run
from experiment.params import Params, load

if TYPE_CHECKING:
    from deconvnet.inference.shards import Shard

_model_hash = functools.cache(file_hash)  # one model for all shards


def fingerprint(dataset: Path, proposals: Path | None, model: Path, growth: bool, params: Params) -> str:
    """What a shard of scores is made from; batch sizes are no part of it. proposals: None for FCN-8s."""
    own = {"precision": params.infer.precision}
    if proposals is None:
        own |= {"canvas": params.train_fcn.canvas, "scale": params.train_fcn.scale}
        paths = [dataset]
    else:
        own |= asdict(params.infer.deconvnet) | {"batch": None}
        own |= {"context": params.crops.context, "square": params.crops.square}
        own |= {"growth": params.infer.growth if growth else None}
        paths = [dataset, proposals]
    inputs = [tables.footer(path).get("content", "") for path in paths]
    return provenance.fingerprint(__file__, own, *inputs, _model_hash(model))


def write(shard: "Shard", rows: list[dict], mark: str, model: Path, device: str) -> None:
    """Write a shard and say so."""
    tables.write(shard.out, pa.Table.from_pylist(rows, scores.SCHEMA), mark)
    record([str(word) for word in ("--model", model, "--dataset", shard.dataset, "--out", shard.out)])
    empty = sum(row["windows"] == 0 for row in rows)
    more = f", {empty} of them without a proposal and so all background" if empty else ""
    print(f"{model.stem} {shard.dataset.stem}: {len(rows)} images scored on {device}{more}", flush=True)


def main(arguments: list[str]) -> None:
    # here, since the Snakefile imports this module for its fingerprint, and PyTorch takes seconds
    import cv2
    import torch

    from deconvnet.inference.devices import own_device
    from deconvnet.inference.models import check_classes, load_net
    from deconvnet.inference.shards import Plan, Shard, make

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
        count = len(tables.read(places[0], ["image_id"], contents.DATASET))
        shards.append(Shard(places[0], None if whole else places[1], places[2], count))
    growth = params.infer.growth if options.growth else ()
    plan = Plan(params.infer, params.crops, params.train_fcn, growth)
    # now: the code may be edited while it runs
    marks = {
        shard: fingerprint(shard.dataset, shard.proposals, options.model, options.growth, params) for shard in shards
    }
    device = str(next(net.parameters()).device)
    make(
        net, options.model, shards, plan, options.threads,
        lambda shard, rows: write(shard, rows, marks[shard], options.model, device),
    )  # fmt: skip


if __name__ == "__main__":
    run(main)
