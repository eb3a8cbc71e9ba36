"""SGD with the release's rules, and the schedule of the learning rate."""

from dataclasses import dataclass

import torch
from torch import nn

from deconvnet.nets.layers import BatchNorm
from deconvnet.settings import Run


def sgd(net: nn.Module, run: Run) -> torch.optim.SGD:
    """SGD: a convolution's bias learns at twice the rate and does not decay (R, F).

    Scale and shift of batch norm learn at the plain rate and decay, as the release's prototxt has it (lr_mult 1,
    decay_mult 1). The paper's weight decay is 5e-4; in the release it comes to 5e-4 / 8, since its Caffe adds the decay
    before it divides by the eight accumulated batches.
    """
    norms = {id(parameter) for module in net.modules() if isinstance(module, BatchNorm)
             for parameter in module.parameters()}  # fmt: skip
    plain, biases = [], []
    for name, parameter in net.named_parameters():
        (biases if name.endswith("bias") and id(parameter) not in norms else plain).append(parameter)
    groups = [
        {"params": plain, "lr_scale": 1.0, "weight_decay": run.weight_decay},
        {"params": biases, "lr_scale": 2.0, "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, lr=run.lr, momentum=run.momentum, fused=True)


def set_learning_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Give every group of `sgd` its share of the rate."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group["lr_scale"]


@dataclass
class Schedule:
    """The learning rate by step: a linear warm-up, and drops at fixed steps or where held-out accuracy stops rising."""

    run: Run
    factor: float = 1.0  # of the drops at plateaus so far
    top_accuracy: float = -1.0
    stale: int = 0  # validations since the top accuracy

    def rate(self, step: int) -> float:
        """The rate of a step, counted from 0."""
        drops = 0 if self.run.drop_at == "plateau" else sum(step >= at for at in self.run.drop_at)
        warm = min(1.0, (step + 1) / (self.run.warmup_steps + 1))
        return self.run.lr * warm * self.factor * self.run.drop**drops

    def validated(self, accuracy: float) -> None:
        """Take in a validation; `run.patience` of them without a better accuracy are a plateau."""
        if accuracy > self.top_accuracy:
            self.top_accuracy, self.stale = accuracy, 0
        else:
            self.stale += 1
        if self.run.drop_at == "plateau" and self.stale >= self.run.patience:
            self.factor, self.stale = self.factor * self.run.drop, 0

    def state(self) -> dict:
        """What a checkpoint keeps."""
        return {"factor": self.factor, "top_accuracy": self.top_accuracy, "stale": self.stale}

    def load_state(self, state: dict) -> None:
        """Go on from what a checkpoint kept."""
        self.factor, self.top_accuracy, self.stale = state["factor"], state["top_accuracy"], state["stale"]
