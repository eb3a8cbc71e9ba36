"""DeconvNet's two stages: single objects in their windows, then all that a proposal's window shows (paper 4.2).

    python -m stages.train stage1 --init data/weights/encoder.pt --crops data/crops/stage1.parquet ...
    python -m stages.train stage2 --init data/models/stage1.pt   --crops data/crops/stage2.parquet ...

Several GPUs: `torchrun --nproc-per-node 4 -m stages.train stage1 ...`; the batch of the parameters is spread over them.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from torch import nn

from stages import nets, shards
from stages.batches import Batches, Pictures
from stages.cli import run
from stages.config import Range, load
from stages.nets.deconvnet import DeconvNet
from stages.nets.vgg import Size, load_encoder
from stages.trainer import Run, Trainer, data_hash, parser, place


@dataclass(frozen=True)
class Params:
    batch_norm_eps: Annotated[float, Range(0)] | None  # null: no batch norm (the paper's claim (d))
    resized: Annotated[int, Range(64)]  # px, a window is resized to this before the random crop of the net's input
    flip: bool  # mirror half of the crops
    stage1: Run
    stage2: Run


def initial(path: Path, classes: int, eps: float | None) -> nn.Module:
    """DeconvNet from the encoder of `pretrain`, whose size it takes, or from an earlier DeconvNet."""
    saved = nets.read(path)
    net = DeconvNet(Size(**saved["spec"]["size"]), classes, eps)
    if saved["spec"]["kind"] == "deconvnet":
        nets.load_state(net, saved["state"], path)
    else:
        state = {
            name.removeprefix("encoder."): tensor
            for name, tensor in saved["state"].items()
            if name.startswith("encoder.")
        }
        missing = load_encoder(net.encoder, state, saved["spec"]["eps"])
        print(f"{path}: encoder layers that start fresh: {', '.join(missing) or 'none'}", flush=True)
    return net


def main(arguments: list[str]) -> None:
    arguments_parser = parser("train", __doc__)
    arguments_parser.formatter_class = argparse.RawDescriptionHelpFormatter
    arguments_parser.add_argument("stage", choices=("stage1", "stage2"))
    arguments_parser.add_argument(
        "--init", type=Path, required=True, help="encoder of pretrain (stage1) or model of stage1 (stage2)"
    )
    options = arguments_parser.parse_args(arguments)
    params = load(Params, "train", options.params)
    settings: Run = getattr(params, options.stage)
    classes = len(load(list[str], "dataset.classes", options.params))

    torch.manual_seed(settings.seed)
    net = initial(options.init, classes, params.batch_norm_eps)
    where = place()
    table = shards.read(options.crops).to_pandas()
    pictures = Pictures(options.dataset, set(table["image_id"]), classes, settings.memory_gb, where.device)
    batches = Batches(
        pictures, table, "instance" if options.stage == "stage1" else "scene", (params.resized,) * 2,
        (net.encoder.size.input_size,) * 2, flip=params.flip, seed=settings.seed, fraction=settings.held_out,
        limit=settings.held_out_crops, device=where.device,
    )  # fmt: skip
    made_from = {
        "code": shards.code(__file__),
        "stage": options.stage,
        "data": data_hash(options.dataset, options.crops),
        "init": shards.file_hash(options.init),
        "resized": params.resized,
        "flip": params.flip,
    }
    Trainer(net, batches, settings, where, options, made_from).train()


if __name__ == "__main__":
    run(main)
