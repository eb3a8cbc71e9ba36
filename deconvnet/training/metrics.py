"""The counts that held-out metrics come from, on tensors of any device."""

import torch
from torch import Tensor

from deconvnet import kernels, metrics
from deconvnet.images import VOID


def loss_sum(logits: Tensor, labels: Tensor) -> Tensor:
    """float64 (2,): the softmax loss added up over the labels that are not void, and their number."""
    return torch.stack([kernels.crop_losses(logits, labels).double().sum(), (labels != VOID).sum()])


def confusion_matrix(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """int64 (classes, classes) counts, truth by row, prediction by column; void left out."""
    valid = labels != VOID
    pairs = labels[valid].long() * classes + predicted[valid]
    return torch.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def summary(confusion: Tensor) -> dict[str, float]:
    """`accuracy` of all pixels and `mean_iou` over the classes that occur in truth or prediction."""
    matrix = confusion.cpu().numpy()
    return {
        "accuracy": float(metrics.accuracy(matrix)),
        "mean_iou": float(metrics.mean(metrics.ious(matrix, predicted=True))),
    }
