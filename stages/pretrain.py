"""Encoder pre-training: what no VGG-16 file holds is learned by classifying crops, classes and background.

The paper starts from VGG-16 trained on ILSVRC. Where `fetch.vgg16` brings that file, this stage passes its weights on
and trains nothing. Where the file is empty (not configured), of another width, or partial, the encoder with fc6 and fc7
first learns to tell the crops of stage 1 and windows of background apart, in the place of ILSVRC, for both networks.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from deconvnet import contents, tables
from deconvnet.batches import Batches
from deconvnet.errors import InputError
from deconvnet.files import together
from deconvnet.nets import files
from deconvnet.nets.vgg import LAYERS, Classifier
from deconvnet.nets.weights import load_encoder, read_vgg16
from deconvnet.pixels import ImageStore
from deconvnet.settings import pair
from deconvnet.training import devices, origin
from deconvnet.training.backgrounds import with_backgrounds
from deconvnet.training.loop import Trainer
from experiment import params as parameters
from experiment import training
from experiment.cli import run


def main(arguments: list[str]) -> None:
    parser = training.parser("pretrain", __doc__)
    parser.add_argument(
        "--vgg16", type=Path, required=True, help="VGG-16 state dict in torchvision's names; an empty file: none"
    )
    options = parser.parse_args(arguments)
    params = parameters.load(options.params)
    settings, classes = params.pretrain, params.dataset.classes
    if not options.vgg16.exists():
        raise InputError(
            f"{options.vgg16}: no such file; `dvc repro fetch@vgg16` gets it, and with no address in fetch.vgg16 "
            "the encoder is pre-trained from scratch"
        )
    given = options.vgg16.stat().st_size > 0
    state = read_vgg16(options.vgg16, settings.size, settings.convention) if given else {}
    torch.manual_seed(settings.run.seed)
    net = Classifier(settings.size, len(classes), settings.batch_norm_eps)
    missing = load_encoder(net.encoder, state, eps=None)
    if state:
        net.encoder.set_convention(settings.convention)
    worker = devices.join(settings.run.devices if missing else lambda _: 1)
    if worker is None:
        return
    if given:
        worker.say(
            f"{options.vgg16}: holds {len(LAYERS) - len(missing)} of {len(LAYERS)} layers; starting fresh: "
            f"{', '.join(missing) or 'none'}"
        )
    provenance = origin.describe(
        __file__, [options.dataset, options.crops], {"vgg16": options.vgg16},
        {
            "classes": classes, "convention": settings.convention, "resized": settings.resized, "flip": True,
            "background": settings.background,
        },
    )  # fmt: skip
    if not missing:
        pass_on(net, state, {"classes": classes, "provenance": provenance}, options)
        return

    table = tables.read(options.crops, None, contents.crops(len(classes))).to_pandas()
    ids = set(table["image_id"])
    store = ImageStore(options.dataset, ids, len(classes), settings.run.memory_gb, worker.device, worker.shared_memory)
    table = with_backgrounds(table, store, settings.background, settings.run.seed)
    batches = Batches(
        store, table, "class", pair(settings.resized), settings.size.shape, flip=True,
        seed=settings.run.seed, fraction=settings.run.held_out, limit=settings.run.held_out_crops,
        device=worker.device,
    )  # fmt: skip
    pretrained = {f"encoder.{name}" for name in net.encoder.state_dict() if name.split(".")[0] not in missing}
    result = Trainer(
        net, batches, settings.run, worker, provenance, options.checkpoints,
        watch=lambda curves: training.write_curves(options.curves, curves), pretrained=pretrained,
    ).train()  # fmt: skip
    if result:
        training.write(result, net.spec, {"classes": classes}, options)
    devices.leave()


def pass_on(net: Classifier, state: dict[str, Tensor], about: dict, options: argparse.Namespace) -> None:
    """Write the file's weights as the encoder; curves and metrics say that nothing was trained."""
    weights = {f"encoder.{name}": tensor for name, tensor in state.items()}
    weights |= {"encoder.mean": net.encoder.mean, "encoder.std": net.encoder.std}
    with together():
        files.save(options.out, net.spec | {"eps": None}, weights, about)
        training.write_curves(options.curves)
        training.write_metrics(options.metrics, options.out.stem, {})


if __name__ == "__main__":
    run(main)
