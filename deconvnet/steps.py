"""The training step and the forward pass, put together without data, for `deconvnet.census` and for measuring."""

import contextlib
import functools
import json
from collections.abc import Callable, Iterator

import pandas as pd
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from deconvnet import nets
from deconvnet.batches import Batches
from deconvnet.census import Census, census
from deconvnet.nets.layers import set_batch_norm_crops
from deconvnet.pixels import ImageStore, Pixels
from deconvnet.settings import Run
from deconvnet.training.metrics import pixel_loss
from deconvnet.training.optimiser import sgd

# What autocast computes in bfloat16, of what nets here call.
MULTIPLY = {torch.conv2d, torch.conv_transpose2d, torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__,
            torch.addmm, torch.mm, torch.bmm, torch.nn.functional.linear}  # fmt: skip
IMAGE = (375, 500)  # px, height and width of the one image that crops are cut from; VOC's


class _Lower(TorchFunctionMode):
    """Autocast for tensors on the meta device, which autocast itself passes over."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in MULTIPLY:
            args = [
                x.bfloat16() if isinstance(x, Tensor) and x.is_meta and x.dtype == torch.float32 else x for x in args
            ]
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def arithmetic(where: str, precision: str) -> Iterator[None]:
    """Autocast to bfloat16 where `precision` is bf16. where: "meta", which stands for a GPU, or "cpu"."""
    with contextlib.ExitStack() as stack:
        if where == "cpu":
            stack.enter_context(torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"))
        elif precision == "bf16":
            stack.enter_context(_Lower())
            # code that asks is told what it would be told on a GPU
            stack.callback(torch.set_autocast_enabled, "cuda", torch.is_autocast_enabled("cuda"))
            stack.callback(torch.set_autocast_dtype, "cuda", torch.get_autocast_dtype("cuda"))
            torch.set_autocast_enabled("cuda", True)
            torch.set_autocast_dtype("cuda", torch.bfloat16)
        yield


def build(spec: dict, where: str) -> nn.Module:
    """The net of `spec` on "meta" or "cpu", channels last as training has it."""
    with torch.device(where):
        net = nets.build(spec)
    for module in net.modules():  # `nn.Module.to` cannot change the layout of fake tensors
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.dim() == 4:
                module._parameters[name] = nn.Parameter(
                    parameter.detach().contiguous(memory_format=torch.channels_last)
                )
    return net


def training_step(
    run: Run, spec: dict, size: tuple[int, int], where: str
) -> tuple[Callable[[], None], Callable[[], None], list[Tensor]]:
    """What `loop.Trainer` does in a step: a function for one micro-batch, one for the update, and what is in memory.

    Crops are cut from one image. The net's weights, and on the CPU its values, are new.
    """
    net = build(spec, where).train()
    set_batch_norm_crops(net, run.batch_norm_crops)
    optimiser = sgd(net, run)
    optimiser._need_device_dtype_check_for_fused = False  # which knows no meta device
    for parameter in net.parameters():
        optimiser.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    batches, accumulation = _batches(spec, size, torch.device(where)), run.batch // run.micro_batch
    total = torch.zeros((), device=where)

    def micro_batch() -> None:
        images, labels = batches.train(0, run.batch, slice(0, run.micro_batch))
        with arithmetic(where, run.precision):
            loss = pixel_loss(net(images), labels, run.batch_norm_crops)
        (loss / accumulation).backward()
        total.add_(loss.detach() / accumulation)

    def update() -> None:
        optimiser.step()
        optimiser.zero_grad()

    momentum = [state["momentum_buffer"] for state in optimiser.state.values()]
    return micro_batch, update, [*net.parameters(), *net.buffers(), *momentum]


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


def training_census(run: Run, spec: dict, size: tuple[int, int], device: str = "cuda") -> Census:
    """A step of `run.batch` crops of `size`, height and width in px, on one device, "cuda" or "cpu".

    Images lie decoded on the device, and are not part of its memory here.
    """
    layout = Run(batch=run.batch, micro_batch=run.micro_batch, batch_norm_crops=run.batch_norm_crops,
                 precision=run.precision)  # fmt: skip
    return _training_census(layout, json.dumps(spec), tuple(size), device)


@functools.cache  # stages of one layout share it
def _training_census(run: Run, spec: str, size: tuple[int, int], device: str) -> Census:
    where, mode = _without_values(device)
    with mode:
        micro_batch, update, resident = training_step(run, json.loads(spec), size, where)
        found = census(micro_batch, where, resident)
        if run.batch > run.micro_batch:  # the others add to gradients that are there
            gradients = [tensor.grad for tensor in resident if tensor.grad is not None]
            found += census(micro_batch, where, [*resident, *gradients]) * (run.batch // run.micro_batch - 1)
        gradients = [tensor.grad for tensor in resident if tensor.grad is not None]
        return found + census(update, where, [*resident, *gradients])


def inference_census(
    spec: dict, size: tuple[int, int], batch: int, precision: str = "bf16", device: str = "cuda"
) -> Census:
    """A forward pass of `batch` crops of `size`, height and width in px, in evaluation mode, to float32 scores."""
    return _inference_census(json.dumps(spec), tuple(size), batch, precision, device)


@functools.cache
def _inference_census(spec: str, size: tuple[int, int], batch: int, precision: str, device: str) -> Census:
    where, mode = _without_values(device)
    with mode, torch.no_grad():
        net = build(json.loads(spec), where).eval()
        images = torch.empty(batch, 3, *size, device=where).contiguous(memory_format=torch.channels_last)

        def forward() -> Tensor:
            with arithmetic(where, precision):
                return net(images).float()

        return census(forward, where, [*net.parameters(), *net.buffers(), images])


def _without_values(device: str) -> tuple[str, contextlib.AbstractContextManager]:
    """Where tensors lie that stand for those of `device`, and the mode that keeps them without values.

    Fake tensors on the CPU, so that what asks for the device goes the CPU's way. PyTorch runs no backward pass on fake
    CUDA tensors without a GPU, so the meta device stands for that.
    """
    if device == "cpu":
        return "cpu", FakeTensorMode(allow_non_fake_inputs=True)
    return "meta", contextlib.nullcontext()
