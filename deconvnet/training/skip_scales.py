"""Factors of FCN-8s's skip connections that suit the weights of its encoder.

At-once training multiplies pool4 by 0.01 and pool3 by 0.0001 (F). These numbers belong to the activations of Caffe's
VGG-16, whose input has a range of some 250. Torchvision's weights take an input about 58 times smaller, and so are
their activations: times 0.0001, pool3 would have no part in the scores, and FCN-8s would be FCN-16s or less.

Measured with Caffe's convolutions, scaled so that their activations are 58 times smaller, under random fc6 and fc7
(V1's own weights were not at hand): after 60 steps of the score layers alone on 6 images of VOC, at lr 0.01, what pool3
adds to the scores has 0.3 % of their rms with derived factors and 0.0007 % with the published ones; the loss is 0.05
and 1.08.
"""

import math

import numpy as np
import torch

from deconvnet.batches import Batches
from deconvnet.nets.fcn import FCN
from deconvnet.training.devices import Worker

PUBLISHED = (0.01, 0.0001)  # of pool4 and pool3, F
# Root mean square of pool4 and pool3 over 20 images of VOC 2012 train, under Caffe's VGG-16 (convention
# imagenet1k_features); measured on VOC images, 2026. Single images: 54 to 166 and 308 to 870.
CAFFE_RMS = (111.0, 602.0)
IMAGES = 20


@torch.no_grad()
def skip_rms(net: FCN, batches: Batches, worker: Worker) -> tuple[float, float]:
    """Root mean square of the activations of pool4 and pool3 over 20 whole training images, spread evenly over all."""
    images = torch.unique(batches.table[batches.train_rows, 0])
    chosen = images[
        torch.from_numpy(np.linspace(0, len(images) - 1, min(IMAGES, len(images))).round().astype(np.int64))
    ]
    net.to(worker.device).eval()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    totals = torch.zeros(2, 2, dtype=torch.float64, device=worker.device)  # pool4, pool3; sum of squares, count
    for index in chosen.tolist():
        image = batches.store.scene(index)[None, ..., :3].permute(0, 3, 1, 2).to(worker.device)  # (1, 3, H, W)
        pools = net.pools(net.encoder.normalise(image))
        for total, values in zip(totals, (pools[3], pools[2]), strict=True):
            total += torch.tensor([float(values.double().square().sum()), values.numel()], device=worker.device)
    pool4, pool3 = worker.from_first((totals[:, 0] / totals[:, 1]).sqrt()).tolist()
    return pool4, pool3


def derive(rms: tuple[float, float]) -> tuple[float, float]:
    """Factors with which activations of `rms` are as large as Caffe's are under the published factors.

    They have two digits, so that rounding errors of a device do not change them.
    """
    factors = [published * caffe / max(found, 1e-12) for published, caffe, found in
               zip(PUBLISHED, CAFFE_RMS, rms, strict=True)]  # fmt: skip
    return tuple(round(factor, 1 - math.floor(math.log10(factor))) for factor in factors)
