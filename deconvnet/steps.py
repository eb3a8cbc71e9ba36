"""The training step and the forward pass, put together without data, for `deconvnet.census` and for measuring."""

import contextlib
import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from deconvnet import nets
from deconvnet.batches import Batches
from deconvnet.census import Census, census
from deconvnet.inference.models import ready
from deconvnet.pixels import ImageStore, Pixels
from deconvnet.settings import Run
from deconvnet.training.devices import Worker
from deconvnet.training.loop import Trainer

IMAGE = (375, 500)  # px, height and width of the one image that crops are cut from; VOC's


def training_step(
    run: Run, spec: dict, size: tuple[int, int], where: str
) -> tuple[Callable[[], None], Callable[[], None], list[Tensor]]:
    """`loop.Trainer`'s step: a function for all of its crops, one for the update, and what is in memory.

    On a CPU in one lane. Crops are cut from one image. The net's weights, and on the CPU its values, are new.
    """
    device = torch.device(where)
    with device:
        net = nets.build(spec)
    with one_thread():
        pretrained = [name for name, _ in net.named_parameters() if name.startswith("encoder.conv")]
        trainer = Trainer(
            net, _batches(spec, size, device), run, Worker(device), {}, Path("nowhere"), pretrained=pretrained
        )
    trainer.optimiser.sgd._need_device_dtype_check_for_fused = False  # which knows no meta device
    momentum = torch.zeros(trainer.optimiser.used, device=device)
    trainer.optimiser.load_momentum(momentum)
    resident = [trainer.optimiser.values, trainer.optimiser.gradients, momentum, *trainer.lanes.copies, *net.buffers()]
    return trainer.compute_gradients, trainer.update, resident


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """A single thread for PyTorch's kernels."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _batches(spec: dict, size: tuple[int, int], device: torch.device) -> Batches:
    """Crops of one image that lies, decoded, on `device`."""
    store = ImageStore.__new__(ImageStore)  # without files
    height, width = IMAGE
    store.ids, store.device = ["image"], device
    store.pixels = Pixels(
        torch.zeros(1 + height * width, dtype=torch.int32, device=device),
        torch.zeros(1 + height * width, dtype=torch.uint8, device=device),
        torch.ones(1, dtype=torch.int64, device=device), torch.tensor([IMAGE]).to(device),
    )  # fmt: skip
    whole = spec["kind"] == "fcn"
    window = {"x": 0, "y": 0, "side_x": size[1], "side_y": size[0], "instance": 1, "class_id": 1, "copies": 1}
    table = pd.DataFrame([window | {"image_id": "image"}])
    return Batches(
        store, table, "class" if spec["kind"] == "classifier" else "scene", size, size, flip=True, seed=0, fraction=0,
        limit=1, device=device, fill=(1, 1, 1) if whole else (0, 0, 0), whole_images=whole,
    )  # fmt: skip


def training_census(run: Run, spec: dict, size: tuple[int, int]) -> Census:
    """A step of `run.batch` crops of `size`, height and width in px, on one device.

    Images lie decoded on the device, and are not part of its memory here.
    """
    layout = Run(batch=run.batch, micro_batch=run.micro_batch, batch_norm_crops=run.batch_norm_crops,
                 precision=run.precision, encoder_lr=run.encoder_lr, steps=1, held_out=0)  # fmt: skip
    return _training_census(layout, json.dumps(spec), tuple(size))


@functools.cache  # stages of one layout share it
def _training_census(run: Run, spec: str, size: tuple[int, int]) -> Census:
    gradients, update, resident = training_step(run, json.loads(spec), size, "meta")
    return census(gradients, resident=resident) + census(update, resident=resident)


def inference_census(spec: dict, size: tuple[int, int], batch: int, precision: str = "bf16") -> Census:
    """A forward pass of `batch` crops of `size`, height and width in px, batch norm folded, to float32 scores."""
    return _inference_census(json.dumps(spec), tuple(size), batch, precision)


@functools.cache
def _inference_census(spec: str, size: tuple[int, int], batch: int, precision: str) -> Census:
    meta = torch.device("meta")
    with torch.no_grad():
        with meta:
            net = ready(nets.build(json.loads(spec)).eval(), meta, precision)
        images = torch.empty(batch, 3, *size, device=meta).contiguous(memory_format=torch.channels_last)
        return census(lambda: net(images).float(), resident=[*net.parameters(), *net.buffers(), images])
