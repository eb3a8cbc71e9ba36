"""Encoder pre-training: what no VGG-16 file holds is learned by classifying crops, classes and background.

The paper starts from VGG-16 trained on ILSVRC. Where `fetch.vgg16` brings that file, this stage passes its weights on
and trains nothing. Where the file is empty (not configured), of another width, or partial, the encoder with fc6 and fc7
first learns to tell the crops of stage 1 and windows of background apart, in the place of ILSVRC, for both networks.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pandas as pd
import torch

from stages import nets, shards
from stages.batches import Batches, Pictures
from stages.cli import InputError, run, whole
from stages.config import Range, load
from stages.nets.vgg import Classifier, Size, load_encoder, read_vgg16
from stages.trainer import Run, Trainer, data_hash, parser, place, write_metrics


@dataclass(frozen=True)
class Params:
    size: Size
    convention: Literal["imagenet1k_v1", "imagenet1k_features"]  # the input that the VGG-16 file was trained with
    batch_norm_eps: Annotated[float, Range(0)]
    resized: Annotated[int, Range(64)]  # px, a window is resized to this before the random crop of size.input_size
    background: Annotated[float, Range(0, 1)]  # share of windows without an object among the crops
    run: Run


def backgrounds(pictures: Pictures, count: int, seed: int) -> pd.DataFrame:
    """Up to `count` square windows without an object or void, as rows of a crop table of class 0.

    Sides log-uniform from 16 px to the image's shorter side; drawn from the images in turn, 20 draws an image at most.
    """
    random = np.random.default_rng([seed, 3])
    found = []
    for attempt in range(20 * len(pictures.ids)):
        if len(found) == count:
            break
        image = attempt % len(pictures.ids)
        pixels, place = pictures.select(torch.tensor([image]))
        height, width = pixels.sizes[place[0]].tolist()
        start = int(pixels.starts[place[0]])
        side = int(np.exp(random.uniform(np.log(16), np.log(min(height, width)))))
        x, y = int(random.integers(0, width - side + 1)), int(random.integers(0, height - side + 1))
        scene = pixels.colours[start : start + height * width].view(torch.uint8).view(height, width, 4)[..., 3]
        if not scene[y : y + side, x : x + side].any():
            found.append((pictures.ids[image], x, y, side, side, 0, 0, 1))
    return pd.DataFrame(found, columns=["image_id", "x", "y", "side_x", "side_y", "instance", "class_id", "copies"])


def with_backgrounds(table: pd.DataFrame, pictures: Pictures, share: float, seed: int) -> pd.DataFrame:
    """The table with background windows added, whose copies make `share` of all."""
    wanted = round(table["copies"].sum() * share / (1 - share))
    windows = backgrounds(pictures, min(wanted, 20 * len(pictures.ids)), seed)
    if len(windows):
        windows["copies"] = np.diff(np.linspace(0, wanted, len(windows) + 1).round().astype(int))
    return pd.concat([table, windows], ignore_index=True)


def main(arguments: list[str]) -> None:
    arguments_parser = parser("pretrain", __doc__.splitlines()[0])
    arguments_parser.add_argument(
        "--vgg16", type=Path, required=True, help="VGG-16 state dict of torchvision; an empty file: none"
    )
    options = arguments_parser.parse_args(arguments)
    params = load(Params, "pretrain", options.params)
    classes = len(load(list[str], "dataset.classes", options.params))
    if not options.vgg16.exists():
        raise InputError(
            f"{options.vgg16}: no such file; `dvc repro fetch@vgg16` gets it, and with no address in fetch.vgg16 "
            "the encoder is pre-trained from scratch"
        )
    state = read_vgg16(options.vgg16, params.size) if options.vgg16.stat().st_size else {}

    torch.manual_seed(params.run.seed)
    net = Classifier(params.size, classes, params.batch_norm_eps)
    missing = load_encoder(net.encoder, state, eps=None)
    if state:
        net.encoder.set_convention(params.convention)
    if options.vgg16.stat().st_size:
        print(
            f"{options.vgg16}: holds {15 - len(missing)} of 15 layers; starting fresh: {', '.join(missing) or 'none'}",
            flush=True,
        )
    if not missing:
        pass_on(net, state, options)
        return

    where = place()
    table = shards.read(options.crops).to_pandas()
    pictures = Pictures(options.dataset, set(table["image_id"]), classes, params.run.memory_gb, where.device)
    table = with_backgrounds(table, pictures, params.background, params.run.seed)
    batches = Batches(
        pictures, table, "class", (params.resized,) * 2, (params.size.input_size,) * 2, flip=True, seed=params.run.seed,
        fraction=params.run.held_out, limit=params.run.held_out_crops, device=where.device,
    )  # fmt: skip
    made_from = {
        "data": data_hash(options.dataset, options.crops),
        "background": params.background,
        "resized": params.resized,
        "loaded": 15 - len(missing),
    }
    Trainer(net, batches, params.run, where, options, made_from).train()


def pass_on(net: Classifier, state: dict, options) -> None:
    """Write the file's weights as the encoder; curves and metrics say that nothing was trained."""
    spec = net.spec | {"eps": None}
    weights = {f"encoder.{name}": tensor for name, tensor in state.items()}
    weights |= {"encoder.mean": net.encoder.mean, "encoder.std": net.encoder.std}
    nets.save(options.out, spec, weights, {"module": "Classifier", "source": str(options.vgg16)})
    with whole(options.curves) as file:
        pd.DataFrame(columns=["step", "lr", "loss", "held_out_loss"]).to_csv(file, index=False)
    write_metrics(options.metrics, {})


if __name__ == "__main__":
    run(main)
