"""Batch norm's statistics, estimated from training crops: plain averages over many forward passes (R)."""

import torch
from torch import Tensor

from deconvnet.batches import Batches
from deconvnet.nets.layers import batch_norms
from deconvnet.progress import progress
from deconvnet.training.devices import Worker
from deconvnet.training.lanes import Lane, Lanes

CROPS = 28  # per pass; R


@torch.no_grad()
def reestimate(lanes: Lanes, batches: Batches, passes: int, crops: int, worker: Worker, bar: bool = False) -> None:
    """Replace the mean and variance of every batch norm by their averages over `passes` batches of `crops`.

    The lanes are left in evaluation mode. In each pass batch norm normalises over all the crops. The variance is the
    biased one, divided by m, as the release averages it (its m / (m - 1) is a division of integers, 1). Pass p is batch
    p of the training and is computed by process p % world, so the result depends on the number of devices by the
    rounding of float64 sums alone.
    """
    lanes.train(False)  # but for batch norm: no dropout
    layers = [list(batch_norms(lane.net).values()) for lane in lanes.lanes]
    if not layers[0]:
        return
    groups = layers[0][0].crops
    for layer in sum(layers, []):
        layer.crops = None
        layer.train()

    def observe(lane: Lane, number: int) -> list[Tensor]:
        """Mean and variance of every batch norm's input, float64 (2, C) each."""
        found: dict[int, Tensor] = {}

        def see(layer, inputs):
            variance, mean = torch.var_mean(inputs[0].float(), (0, 2, 3), correction=0)
            found[id(layer)] = torch.stack([mean, variance]).double()

        norms = batch_norms(lane.net).values()
        hooks = [layer.register_forward_pre_hook(see) for layer in norms]
        lane.net(batches.train(number, crops, slice(None))[0])
        for hook in hooks:
            hook.remove()
        return [found[id(layer)] for layer in norms]

    sums = [torch.zeros(2, len(layer.weight), dtype=torch.float64, device=worker.device) for layer in layers[0]]
    mine, many = list(range(worker.rank, passes, worker.world)), len(lanes.lanes)
    with progress(total=len(mine), unit="pass", disable=not bar or worker.rank > 0) as shown:
        for begin in range(0, len(mine), many):
            for found in lanes.map(observe, mine[begin : begin + many]):
                for total, values in zip(sums, found, strict=True):
                    total += values
                shown.update()
    for layer, total in zip(layers[0], sums, strict=True):  # the lanes share these buffers
        mean, variance = worker.sum(total) / passes
        layer.running_mean.copy_(mean)
        layer.running_var.copy_(variance)
    for layer in sum(layers, []):
        layer.crops = groups
    lanes.train(False)
