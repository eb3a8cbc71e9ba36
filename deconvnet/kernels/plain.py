"""The kernels in PyTorch's own operations, differentiated by autograd; and the shapes of what the others return."""

import torch
import torch.nn.functional as F
from torch import Tensor

from deconvnet.images import VOID


def batch_norm_relu(x: Tensor, weight: Tensor, bias: Tensor, eps: float, crops: int) -> Tensor:
    parts = [F.batch_norm(part, None, None, weight, bias, training=True, eps=eps) for part in x.split(crops)]
    return F.relu(parts[0] if len(parts) == 1 else torch.cat(parts), inplace=True)


def max_pool(x: Tensor) -> tuple[Tensor, Tensor]:
    return F.max_pool2d(x, 2, return_indices=True)


def unpool(x: Tensor, switches: Tensor) -> Tensor:
    return F.max_unpool2d(x, switches, 2)


def crop_losses(logits: Tensor, labels: Tensor) -> Tensor:
    losses = F.cross_entropy(logits.float(), labels.long(), ignore_index=VOID, reduction="none")  # (B, ...), void: 0
    return losses.reshape(len(labels), -1).sum(1)


def _half(x: Tensor, dtype: torch.dtype) -> Tensor:
    batch, channels, height, width = x.shape
    return x.new_empty((batch, height // 2, width // 2, channels), dtype=dtype).permute(0, 3, 1, 2)


def batch_norm_relu_shapes(x, weight, bias, eps, crops):
    return torch.empty_like(x), x.new_empty((len(x) // crops, 2, x.shape[1]), dtype=torch.float32)


def batch_norm_relu_backward_shapes(gradient, x, weight, bias, statistics):
    return torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)


def pool_shapes(x):
    return _half(x, x.dtype), _half(x, torch.uint8)


def place_shapes(x, switches):
    batch, channels, height, width = x.shape
    return x.new_empty((batch, 2 * height, 2 * width, channels)).permute(0, 3, 1, 2)


def pick_shapes(x, switches):
    return _half(x, x.dtype)


def crop_losses_shapes(logits, labels):
    return logits.new_empty(len(logits), dtype=torch.float32)


def crop_losses_backward_shapes(logits, labels, factors):
    return torch.empty_like(logits)
