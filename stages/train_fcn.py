"""FCN-8s (Long, Shelhamer, Darrell, CVPR 2015), the other half of the ensemble, on whole images of the same data set.

An image lies at the top left of a black canvas whose rest is void, as the release pads it for inference.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pandas as pd
import torch

from stages import nets, shards
from stages.batches import Batches, Pictures
from stages.cli import InputError, run
from stages.config import Range, load
from stages.nets.fcn import FCN
from stages.nets.vgg import Size, load_encoder
from stages.trainer import Run, Trainer, data_hash, parser, place


@dataclass(frozen=True)
class Params:
    batch_norm_eps: Annotated[float, Range(0)] | None  # null: no batch norm, as published
    skip_scales: list[Annotated[float, Range(0)]]  # factors of pool4 and pool3
    dropout: Annotated[float, Range(0, 1)]  # after fc6 and fc7
    canvas: list[Annotated[int, Range(32)]]  # px, height and width
    flip: bool  # mirror half of the images
    run: Run

    def __post_init__(self):
        if len(self.skip_scales) != 2 or len(self.canvas) != 2:
            raise ValueError(
                "skip_scales and canvas: two numbers each are allowed, pool4's and pool3's, height and width"
            )


def whole_images(ids: list[str], canvas: tuple[int, int]) -> pd.DataFrame:
    """A crop table of one window an image: the canvas, from the image's corner, once an epoch."""
    height, width = canvas
    table = pd.DataFrame({"image_id": ids, "x": 0, "y": 0, "side_x": width, "side_y": height})
    return table.assign(instance=0, class_id=0, copies=1)


def main(arguments: list[str]) -> None:
    arguments_parser = parser("train_fcn", __doc__.splitlines()[0])
    arguments_parser.add_argument("--init", type=Path, required=True, help="encoder of pretrain")
    options = arguments_parser.parse_args(arguments)
    params = load(Params, "train_fcn", options.params)
    classes = len(load(list[str], "dataset.classes", options.params))

    torch.manual_seed(params.run.seed)
    saved = nets.read(options.init)
    net = FCN(Size(**saved["spec"]["size"]), classes, params.batch_norm_eps, 8, params.skip_scales, params.dropout)
    state = {
        name.removeprefix("encoder."): tensor for name, tensor in saved["state"].items() if name.startswith("encoder.")
    }
    missing = load_encoder(net.encoder, state, saved["spec"]["eps"])
    print(f"{options.init}: encoder layers that start fresh: {', '.join(missing) or 'none'}", flush=True)

    where = place()
    ids = sorted(set(shards.read(options.crops, ["image_id"])["image_id"].to_pylist()))  # DeconvNet's images, each once
    pictures = Pictures(options.dataset, set(ids), classes, params.run.memory_gb, where.device)
    if len(
        large := [
            name for name, size in pictures.sizes.items() if size[0] > params.canvas[0] or size[1] > params.canvas[1]
        ]
    ):
        size = "x".join(map(str, pictures.sizes[large[0]]))
        raise InputError(
            f"{large[0]}: {size} does not fit train_fcn.canvas {params.canvas[0]}x{params.canvas[1]}; enlarge it"
        )
    batches = Batches(
        pictures, whole_images(ids, params.canvas), "scene", params.canvas, params.canvas, flip=params.flip,
        seed=params.run.seed, fraction=params.run.held_out, limit=params.run.held_out_crops, device=where.device,
    )  # fmt: skip
    made_from = {
        "code": shards.code(__file__),
        "data": data_hash(options.dataset, options.crops),
        "init": shards.file_hash(options.init),
        "canvas": list(params.canvas),
        "flip": params.flip,
    }
    Trainer(net, batches, params.run, where, options, made_from).train()


if __name__ == "__main__":
    run(main)
