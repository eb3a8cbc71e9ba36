"""What networks compute beside convolutions, each in as few passes over memory as it can be.

    batch_norm_relu      batch norm over groups of crops, and ReLU
    max_pool, unpool     2x2 max pooling with its switches, and unpooling
    softmax_loss         without a float32 copy of the logits

Each is written three times: in PyTorch's own operations (`plain`), which is what the others are tested against; in C++
for a thread of a CPU (`cpu`); in Triton for GPUs (`gpu`). `usable` says which is taken. They are operators of PyTorch
(`torch.ops.deconvnet`), so that shapes are known on the meta device, where `deconvnet.census` counts them. Maps are
(B, C, H, W) tensors in channels-last memory, float32 or bfloat16; arithmetic inside is float32.
"""

import importlib.util

import torch
from torch import Tensor

from deconvnet.images import VOID
from deconvnet.kernels import cpu, plain

TRITON = importlib.util.find_spec("triton") is not None

# Kernels that a GPU starts for a call, and the arguments, by place, that they read twice.
KERNELS = {
    "batch_norm_relu": (2, (0,)),  # x: for the statistics, then to normalise
    "batch_norm_relu_backward": (3, (0, 1)),
    "pool": (1, ()),
    "place": (1, ()),
    "pick": (1, ()),
    "crop_losses": (2, ()),
    "crop_losses_backward": (1, ()),
}

SCHEMAS = (
    "batch_norm_relu(Tensor x, Tensor weight, Tensor bias, float eps, int crops) -> (Tensor, Tensor)",
    "batch_norm_relu_backward(Tensor gradient, Tensor x, Tensor weight, Tensor bias, Tensor statistics) "
    "-> (Tensor, Tensor, Tensor)",
    "pool(Tensor x) -> (Tensor, Tensor)",
    "place(Tensor x, Tensor switches) -> Tensor",
    "pick(Tensor x, Tensor switches) -> Tensor",
    "crop_losses(Tensor logits, Tensor labels) -> Tensor",
    "crop_losses_backward(Tensor logits, Tensor labels, Tensor factors) -> Tensor",
)


def _on_gpu(name):
    def call(*arguments):
        from deconvnet.kernels import gpu  # Triton is imported where it is used

        return getattr(gpu, name)(*arguments)

    return call


_ops = torch.ops.deconvnet
_library = torch.library.Library("deconvnet", "FRAGMENT")
if not hasattr(_ops, "pool"):  # PyTorch keeps what a first import of this module in the same process defined
    for _schema in SCHEMAS:
        _name = _schema.partition("(")[0]
        _library.define(_schema)
        _library.impl(_name, getattr(cpu, _name), "CPU")
        _library.impl(_name, _on_gpu(_name), "CUDA")
        _library.impl(_name, getattr(plain, f"{_name}_shapes"), "Meta")


def usable(x: Tensor) -> bool:
    """Whether there are kernels for such maps here: on a GPU with Triton, on a CPU with a compiler and one thread."""
    if x.dtype not in (torch.float32, torch.bfloat16) or not x.is_contiguous(memory_format=torch.channels_last):
        return False
    if x.device.type == "cpu":
        return torch.get_num_threads() == 1 and cpu.library() is not None
    return x.device.type == "meta" or x.device.type == "cuda" and TRITON


def batch_norm_relu(x: Tensor, weight: Tensor, bias: Tensor, eps: float, crops: int | None) -> Tensor:
    """Batch norm with the statistics of `crops` images at a time (None: of all), then ReLU.

    x: (B, C, H, W), B a multiple of crops. weight, bias: float32 (C,). The variance is the biased one.
    """
    crops = crops or len(x)
    if usable(x):
        return _BatchNormReLU.apply(x, weight, bias, eps, crops)
    return plain.batch_norm_relu(x, weight, bias, eps, crops)


def max_pool(x: Tensor) -> tuple[Tensor, Tensor]:
    """2x2 max pooling with stride 2: (B, C, H, W) -> values and switches, both (B, C, H//2, W//2).

    A switch is one byte, the corner of its 2x2 window (0 1 / 2 3), or, where PyTorch's own pooling was taken, an int64
    index into the map. Among equal values the first in reading order wins. An odd last row or column is left out, and
    an index does not count it.
    """
    if x.shape[2] % 2 or x.shape[3] % 2:
        even = x[:, :, : x.shape[2] // 2 * 2, : x.shape[3] // 2 * 2]
        x = even.contiguous(memory_format=torch.channels_last)
    return _Pool.apply(x) if usable(x) else plain.max_pool(x)


def unpool(x: Tensor, switches: Tensor) -> Tensor:
    """Values at their switches, zero elsewhere: (B, C, H, W) -> (B, C, 2H, 2W)."""
    if switches.dtype == torch.uint8:
        if not x.is_contiguous(memory_format=torch.channels_last):
            x = x.contiguous(memory_format=torch.channels_last)
        return _Unpool.apply(x, switches)
    return plain.unpool(x, switches)


def softmax_loss(logits: Tensor, labels: Tensor, crops: int | None = None) -> Tensor:
    """Softmax loss: the mean over groups of `crops` (None: all is one group) of each group's mean over its pixels.

    logits: (B, C, H, W) or (B, C). labels: integers (B, H, W) or (B,); VOID takes no part. The release normalises over
    its micro-batch of 8 crops; with `crops` = 8 a larger micro-batch has the same loss.
    """
    crops = crops or len(labels)
    counts = (labels != VOID).view(-1, crops * labels[0].numel()).sum(1)  # of each group
    factors = (1 / (counts.clamp(min=1) * len(counts))).repeat_interleave(crops, output_size=len(labels))  # (B,)
    return crop_losses(logits, labels).dot(factors)


def crop_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """float32 (B,): the softmax loss of each crop, added up over its pixels. Arguments as of `softmax_loss`."""
    if labels.dtype == torch.uint8 and logits.dim() == 4 and usable(logits):
        return _CropLosses.apply(logits, labels.contiguous())
    return plain.crop_losses(logits, labels)


class _BatchNormReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, eps, crops):
        y, statistics = _ops.batch_norm_relu(x, weight, bias, eps, crops)
        ctx.save_for_backward(x, weight, bias, statistics)
        return y

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        return *_ops.batch_norm_relu_backward(gradient, *ctx.saved_tensors), None, None


class _Pool(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        y, switches = _ops.pool(x)
        ctx.save_for_backward(switches)
        ctx.mark_non_differentiable(switches)
        return y, switches

    @staticmethod
    def backward(ctx, gradient, _):
        return _ops.place(gradient.contiguous(memory_format=torch.channels_last), *ctx.saved_tensors)


class _Unpool(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, switches):
        ctx.save_for_backward(switches)
        return _ops.place(x, switches)

    @staticmethod
    def backward(ctx, gradient):
        return _ops.pick(gradient.contiguous(memory_format=torch.channels_last), *ctx.saved_tensors), None


class _CropLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, labels):
        ctx.save_for_backward(logits, labels)
        return _ops.crop_losses(logits, labels)

    @staticmethod
    def backward(ctx, gradient):
        return _ops.crop_losses_backward(*ctx.saved_tensors, gradient.contiguous()), None
