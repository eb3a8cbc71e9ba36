"""Batch-norm statistics of a trained DeconvNet, estimated anew: plain averages over many forward passes (release)."""

import argparse
from pathlib import Path

import torch

from deconvnet import contents, provenance, tables
from deconvnet.batches import Batches
from deconvnet.errors import InputError
from deconvnet.files import file_hash
from deconvnet.nets import files
from deconvnet.nets.layers import batch_norms
from deconvnet.pixels import ImageStore
from deconvnet.settings import pair
from deconvnet.training import devices, statistics
from deconvnet.training.lanes import Lanes
from experiment import params as parameters
from experiment.cli import run


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m stages.reestimate", description=__doc__)
    parser.add_argument("--dataset", type=Path, required=True, help="folder of the data set's shards")
    parser.add_argument("--crops", type=Path, required=True, help="table of stage 2's windows, parquet")
    parser.add_argument("--model", type=Path, required=True, help="model of stage 2")
    parser.add_argument("--out", type=Path, required=True, help="the model with its new statistics")
    parser.add_argument("--params", type=Path, default="params.yaml", help="parameter file (YAML or JSON)")
    options = parser.parse_args(arguments)
    params = parameters.load(options.params)
    resized, flip = params.train.resized, params.train.flip
    passes, crops = params.reestimate.passes, params.reestimate.batch
    memory_gb, precision = params.train.stage2.memory_gb, params.train.stage2.precision
    seed = params.train.stage2.seed
    worker = devices.join(lambda processes: min(processes, passes))
    if worker is None:
        return

    net, about = files.load(options.model)
    if not batch_norms(net):
        raise InputError(f"{options.model}: has no batch norm to re-estimate; set train.batch_norm_eps and train again")
    classes = net.spec["classes"]
    table = tables.read(options.crops, None, contents.crops(classes)).to_pandas()
    ids = set(table["image_id"])
    store = ImageStore(options.dataset, ids, classes, memory_gb, worker.device, worker.shared_memory)
    batches = Batches(
        store, table, "scene", pair(resized), net.encoder.size.shape, flip=flip, seed=seed, fraction=0, limit=0,
        device=worker.device,
    )  # fmt: skip
    net.to(worker.device, memory_format=torch.channels_last)
    lanes = Lanes(net, precision, worker.device, torch.get_num_threads())
    statistics.reestimate(lanes, batches, passes, crops, worker, bar=True)
    if worker.rank == 0:
        state = {name: tensor.cpu() for name, tensor in net.state_dict().items()}
        reestimated = {
            "code": provenance.code(__file__), "data": provenance.content(options.dataset, options.crops),
            "model": file_hash(options.model), "passes": passes, "batch": crops, "resized": resized, "flip": flip,
            "precision": precision, "seed": seed,
        }  # fmt: skip
        files.save(options.out, net.spec, state, about | {"reestimated": reestimated})
    devices.leave()


if __name__ == "__main__":
    run(main)
