"""DeconvNet's two stages: single objects in their windows, then all that a proposal's window shows (paper 4.2).

    python -m stages.train stage1 --init data/weights/encoder.pt --crops data/crops/stage1.parquet ...
    python -m stages.train stage2 --init data/models/stage1.pt   --crops data/crops/stage2.parquet ...

With crops.context `whole` the windows are whole images, and both stages learn all that they show.

Several GPUs: `torchrun --nproc-per-node 4 -m stages.train stage1 ...`; the batch of the parameters is spread over them.
"""

from pathlib import Path

import torch
from torch import nn

from deconvnet import contents, tables
from deconvnet.batches import Batches
from deconvnet.nets import files
from deconvnet.nets.deconvnet import DeconvNet
from deconvnet.nets.weights import encoder_state, load_encoder
from deconvnet.pixels import ImageStore
from deconvnet.settings import Size, Training, pair
from deconvnet.training import devices, origin
from deconvnet.training.devices import Worker
from deconvnet.training.loop import Trainer
from experiment import params as parameters
from experiment import training
from experiment.cli import run


def initial(path: Path, classes: int, settings: Training, worker: Worker) -> nn.Module:
    """DeconvNet from the encoder of `pretrain`, whose size it takes, or from an earlier DeconvNet."""
    saved = files.read(path)
    net = DeconvNet(Size(**saved["spec"]["size"]), classes, settings.batch_norm_eps, settings.unpooling)
    if saved["spec"]["kind"] == "deconvnet":
        files.load_state(net, saved["state"], path)
    else:
        if settings.decoder_start == "he":
            net.start_by_he()
        missing = load_encoder(net.encoder, encoder_state(saved["state"]), saved["spec"]["eps"])
        worker.say(f"{path}: encoder layers that start fresh: {', '.join(missing) or 'none'}")
    return net


def main(arguments: list[str]) -> None:
    parser = training.parser("train", __doc__)
    parser.add_argument("stage", choices=("stage1", "stage2"))
    parser.add_argument(
        "--init", type=Path, required=True, help="encoder of pretrain (stage1) or model of stage1 (stage2)"
    )
    options = parser.parse_args(arguments)
    params = parameters.load(options.params)
    settings = params.train.stage1 if options.stage == "stage1" else params.train.stage2
    classes, resized, flip = params.dataset.classes, params.train.resized, params.train.flip
    worker = devices.join(settings.devices)
    if worker is None:
        return

    torch.manual_seed(settings.seed)
    net = initial(options.init, len(classes), params.train, worker)
    table = tables.read(options.crops, None, contents.crops(len(classes))).to_pandas()
    store = ImageStore(
        options.dataset, set(table["image_id"]), len(classes), settings.memory_gb, worker.device, worker.shared_memory
    )
    batches = Batches(
        store, table, "instance" if options.stage == "stage1" and params.crops.context != "whole" else "scene",
        pair(resized), net.encoder.size.shape, flip=flip, seed=settings.seed, fraction=settings.held_out,
        limit=settings.held_out_crops, device=worker.device,
    )  # fmt: skip
    provenance = origin.describe(
        __file__, [options.dataset, options.crops], {"init": options.init},
        {"stage": options.stage, "classes": classes, "resized": resized, "flip": flip,
         "decoder_start": params.train.decoder_start, "unpooling": params.train.unpooling},
    )  # fmt: skip
    result = Trainer(
        net, batches, settings, worker, provenance, options.checkpoints,
        watch=lambda curves: training.write_curves(options.curves, curves), pretrained=training.pretrained(net),
    ).train()  # fmt: skip
    if result:
        windows = {"context": params.crops.context, "square": params.crops.square}
        training.write(result, net.spec, {"classes": classes, "windows": windows}, options)
    devices.leave()


if __name__ == "__main__":
    run(main)
