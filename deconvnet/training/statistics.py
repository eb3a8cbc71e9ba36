"""Batch norm's statistics, estimated from training crops: plain averages over many forward passes (R)."""

from collections.abc import Iterable

import torch
from torch import nn

from deconvnet.batches import Batches
from deconvnet.nets.layers import batch_norms
from deconvnet.progress import progress
from deconvnet.training.devices import Worker

CROPS = 28  # per pass; R


@torch.no_grad()
def reestimate(
    net: nn.Module, batches: Batches, passes: int, crops: int, worker: Worker, precision: str, bar: bool = False
) -> None:
    """Replace the mean and variance of every batch norm by their averages over `passes` batches of `crops`.

    The net is left in evaluation mode. In each pass batch norm normalises over all the crops. The variance is the
    biased one, divided by m, as the release averages it (its m / (m - 1) is a division of integers, 1). Pass p is batch
    p of the training and is computed by process p % world, so the result depends on the number of devices by the
    rounding of float64 sums alone.
    """
    net.eval()  # but for batch norm: no dropout
    if not (layers := batch_norms(net)):
        return
    sums = {name: torch.zeros(2, len(layer.weight), dtype=torch.float64, device=worker.device)
            for name, layer in layers.items()}  # fmt: skip
    groups = {name: layer.crops for name, layer in layers.items()}
    hooks = []
    for name, layer in layers.items():
        layer.crops = None

        def add(_, inputs, total=sums[name]):
            variance, mean = torch.var_mean(inputs[0].float(), (0, 2, 3), correction=0)
            total += torch.stack([mean, variance])

        hooks.append(layer.register_forward_pre_hook(add))
        layer.train()
    numbers: Iterable[int] = range(worker.rank, passes, worker.world)
    for number in progress(numbers, unit="pass", disable=not bar or worker.rank > 0):
        images, _ = batches.train(number, crops, slice(None))
        with worker.autocast(precision):
            net(images)
    for hook in hooks:
        hook.remove()
    for name, layer in layers.items():
        layer.crops = groups[name]
        mean, variance = worker.sum(sums[name]) / passes
        layer.running_mean.copy_(mean)
        layer.running_var.copy_(variance)
    net.eval()
