"""FCN-8s (Long, Shelhamer, Darrell, CVPR 2015), the other half of the ensemble, on whole images of the same data set.

An image lies at the top left of a canvas, whose rest is void and of the mean colour: for inference, the release
subtracts the mean and then pads with 0.
"""

from pathlib import Path

import pandas as pd
import torch

from deconvnet import contents, tables
from deconvnet.batches import Batches
from deconvnet.errors import InputError
from deconvnet.nets import files
from deconvnet.nets.fcn import FCN
from deconvnet.nets.weights import encoder_state, load_encoder
from deconvnet.pixels import ImageStore
from deconvnet.settings import Size
from deconvnet.training import devices, origin
from deconvnet.training.loop import Trainer
from deconvnet.training.skip_scales import PUBLISHED, derive, skip_rms
from experiment import params as parameters
from experiment import training
from experiment.cli import run


def whole_images(ids: list[str], canvas: tuple[int, int]) -> pd.DataFrame:
    """A crop table with one window per image: the canvas, from the image's corner, once per epoch."""
    height, width = canvas
    table = pd.DataFrame({"image_id": ids, "x": 0, "y": 0, "side_x": width, "side_y": height})
    return table.assign(instance=0, class_id=0, copies=1)


def check_sizes(store: ImageStore, canvas: tuple[int, int]) -> None:
    """Raise InputError for an image that does not fit on the canvas."""
    for name, (height, width) in store.sizes.items():
        if height > canvas[0] or width > canvas[1]:
            raise InputError(
                f"{name}: {height}x{width} does not fit train_fcn.canvas {canvas[0]}x{canvas[1]}; enlarge it"
            )


def main(arguments: list[str]) -> None:
    parser = training.parser("train_fcn", __doc__)
    parser.add_argument("--init", type=Path, required=True, help="encoder of pretrain")
    options = parser.parse_args(arguments)
    params = parameters.load(options.params)
    settings, classes = params.train_fcn, params.dataset.classes
    derived = settings.skip_scales == "derived"
    worker = devices.join(settings.run.devices)
    if worker is None:
        return

    torch.manual_seed(settings.run.seed)
    saved = files.read(options.init)
    net = FCN(
        Size(**saved["spec"]["size"]), len(classes), settings.batch_norm_eps, 8,
        PUBLISHED if derived else settings.skip_scales, settings.dropout,
    )  # fmt: skip
    missing = load_encoder(net.encoder, encoder_state(saved["state"]), saved["spec"]["eps"])
    worker.say(f"{options.init}: encoder layers that start fresh: {', '.join(missing) or 'none'}")

    windows = tables.read(options.crops, ["image_id"], contents.CROPS)
    ids = sorted(set(windows["image_id"].to_pylist()))  # DeconvNet's images, each once
    store = ImageStore(
        options.dataset, set(ids), len(classes), settings.run.memory_gb, worker.device, worker.shared_memory
    )
    check_sizes(store, settings.canvas)
    batches = Batches(
        store, whole_images(ids, settings.canvas), "scene", settings.seen, settings.seen, flip=settings.flip,
        seed=settings.run.seed, fraction=settings.run.held_out, limit=settings.run.held_out_crops,
        device=worker.device, fill=net.encoder.mean.tolist(), whole_images=True,
    )  # fmt: skip
    if derived:
        rms = skip_rms(net, batches, worker)
        net.set_skip_scales(derive(rms))
        worker.say(
            f"skip_scales: pool4 {net.skip_scales[0]:g}, pool3 {net.skip_scales[1]:g}, derived from activations of rms "
            f"{rms[0]:.4g} and {rms[1]:.4g}"
        )
    provenance = origin.describe(
        __file__, [options.dataset, options.crops], {"init": options.init},
        {
            "classes": classes, "canvas": settings.canvas, "scale": settings.scale, "flip": settings.flip,
            "skip_scales": settings.skip_scales,
        },
    )  # fmt: skip
    result = Trainer(
        net, batches, settings.run, worker, provenance, options.checkpoints,
        watch=lambda curves: training.write_curves(options.curves, curves), pretrained=training.pretrained(net),
    ).train()  # fmt: skip
    if result:
        about = {"classes": classes, "canvas": settings.canvas, "scale": settings.scale}
        training.write(result, net.spec, about, options)
    devices.leave()


if __name__ == "__main__":
    run(main)
