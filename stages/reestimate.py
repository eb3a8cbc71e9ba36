"""Batch-norm statistics of a trained DeconvNet, estimated anew: plain averages over many forward passes (release)."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from torch import nn

from stages import nets, shards
from stages.batches import Batches, Pictures
from stages.cli import InputError, progress, run
from stages.config import Range, load
from stages.nets.layers import BatchNorm, set_batch_norm_crops
from stages.trainer import data_hash, place


@dataclass(frozen=True)
class Params:
    passes: Annotated[int, Range(1)]  # forward passes that are averaged
    batch: Annotated[int, Range(2)]  # crops a pass
    resized: Annotated[int, Range(64)]  # px, as in train
    memory_gb: Annotated[float, Range(0)]  # for decoded images
    seed: Annotated[int, Range(0)]


@torch.no_grad()
def reestimate(net: nn.Module, batches: Batches, passes: int, batch: int) -> None:
    """Replace the running mean and variance of every batch norm by their average over `passes` training batches."""
    set_batch_norm_crops(net, None)
    for module in net.modules():
        if isinstance(module, BatchNorm):
            module.reset_running_stats()
            module.momentum = None  # torch: a cumulative average, every pass of equal weight
    net.train()
    for step in progress(range(passes), unit="pass"):
        images, _ = batches.train(step, batch, slice(None))
        with torch.autocast(images.device.type, torch.bfloat16, enabled=images.device.type == "cuda"):
            net(images)
    net.eval()


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m stages.reestimate", description=__doc__)
    parser.add_argument("--dataset", type=Path, required=True, help="folder of the data set's shards")
    parser.add_argument("--crops", type=Path, required=True, help="table of stage 2's windows, parquet")
    parser.add_argument("--model", type=Path, required=True, help="model of stage 2")
    parser.add_argument("--out", type=Path, required=True, help="the model with its new statistics")
    parser.add_argument("--params", type=Path, default="params.yaml", help="parameter file (YAML or JSON)")
    options = parser.parse_args(arguments)
    params = load(Params, "reestimate", options.params)
    net, about = nets.load(options.model)
    if not any(isinstance(module, BatchNorm) for module in net.modules()):
        raise InputError(f"{options.model}: has no batch norm to re-estimate; set train.batch_norm_eps and train again")
    device = place().device
    table = shards.read(options.crops).to_pandas()
    pictures = Pictures(options.dataset, set(table["image_id"]), net.spec["classes"], params.memory_gb, device)
    batches = Batches(
        pictures, table, "scene", (params.resized,) * 2, (net.encoder.size.input_size,) * 2, flip=True,
        seed=params.seed, fraction=0, limit=0, device=device,
    )  # fmt: skip
    reestimate(net.to(device, memory_format=torch.channels_last), batches, params.passes, params.batch)
    about = {
        "code": shards.code(__file__),
        "data": data_hash(options.dataset, options.crops),
        "passes": params.passes,
        "batch": params.batch,
        "trained": about | {"file": shards.file_hash(options.model)},
    }
    nets.save(options.out, net.spec, {name: tensor.cpu() for name, tensor in net.state_dict().items()}, about)


if __name__ == "__main__":
    run(main)
