"""Batch norm that starts where weights learned without it left off.

The release puts VGG-16's weights under a fresh batch norm, which takes every channel's own size and threshold away, and
has 60,000 steps to find others. With few steps it pays to start where the published net is: scale and shift of every
batch norm are set so that, on training crops, the layers compute what they did without it, but for one factor a layer,
which the next batch norm takes off again.
"""

import torch
from torch import Tensor

from deconvnet.batches import Batches
from deconvnet.nets.layers import batch_norms
from deconvnet.nets.vgg import VGG16


@torch.no_grad()
def calibrate(encoder: VGG16, state: dict[str, Tensor], batches: Batches, crops: int) -> None:
    """Set scale and shift of the batch norms under the layers that `state` holds, from the run's first `crops` crops.

    state: weights and biases in the names of `VGG16`, learned without batch norm, which `encoder` has taken over. Layers
    after the first that `state` lacks stay as they are. All crops are computed at once.
    """
    norms = batch_norms(encoder)
    layers = []
    for name in (name.removesuffix(".norm") for name in norms):
        if f"{name}.conv.bias" not in state:
            break
        layers.append(name)
    scale = 1.0  # of a layer's output, by which the published net's is divided

    def adjust(name: str):
        def set_from(norm, inputs):
            nonlocal scale
            variance, mean = torch.var_mean(inputs[0].float(), (0, 2, 3), correction=0)
            deviation = (variance + norm.eps).sqrt()
            size = deviation.square().mean().sqrt().clamp_min(1e-12)
            bias = state[f"{name}.conv.bias"].to(mean)
            norm.weight.copy_(deviation / size)
            norm.bias.copy_((mean + bias / scale) / size)
            scale *= float(size)

        return set_from

    hooks = [norms[f"{name}.norm"].register_forward_pre_hook(adjust(name)) for name in layers]
    training, groups = encoder.training, {name: norm.crops for name, norm in norms.items()}
    encoder.train()
    for norm in norms.values():
        norm.crops = None
    images = batches.train(0, crops, slice(None))[0]
    encoder.pools(encoder.normalise(images))
    for hook in hooks:
        hook.remove()
    for name, norm in norms.items():
        norm.crops = groups[name]
    encoder.train(training)
