"""The training loss and the counts that held-out metrics come from, on tensors of any device."""

import torch
import torch.nn.functional as F
from torch import Tensor

from deconvnet import metrics
from deconvnet.images import VOID


def pixel_loss(logits: Tensor, labels: Tensor, crops: int | None = None) -> Tensor:
    """Softmax loss of (B, C, ...) logits and (B, ...) labels: the mean over groups of `crops` of each group's mean.

    A group's mean goes over its labels that are not void. The release normalises over its micro-batch of 8 crops; with
    `crops` = 8 a larger micro-batch has the same loss. None: all of the batch is one group.
    """
    losses, counts = _per_crop(logits, labels)
    crops = crops or len(labels)
    return (losses.view(-1, crops).sum(1) / counts.view(-1, crops).sum(1).clamp(min=1)).mean()


def loss_sum(logits: Tensor, labels: Tensor) -> Tensor:
    """float64 (2,): the softmax loss added up over the labels that are not void, and their number."""
    losses, counts = _per_crop(logits, labels)
    return torch.stack([losses.double().sum(), counts.double().sum()])


def _per_crop(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    losses = F.cross_entropy(logits.float(), labels.long(), ignore_index=VOID, reduction="none")  # (B, ...), void: 0
    return losses.reshape(len(labels), -1).sum(1), (labels != VOID).reshape(len(labels), -1).sum(1)  # (B,), (B,)


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
