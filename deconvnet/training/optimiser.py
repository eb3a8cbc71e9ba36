"""SGD with the release's rules on all of a net at once, and the schedule of the learning rate."""

import math
from collections.abc import Collection
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from deconvnet.nets.layers import BatchNormReLU
from deconvnet.settings import Run
from deconvnet.training.devices import Worker


class Optimiser:
    """SGD on a net whose values, gradients and momentum lie each in one piece of memory.

    A convolution's bias learns at twice the rate and does not decay (R, F). Scale and shift of batch norm learn at the
    plain rate and decay, as the release's prototxt has it (lr_mult 1, decay_mult 1). The paper's weight decay is 5e-4;
    in the release it comes to 5e-4 / 8, since its Caffe adds the decay before it divides by the eight accumulated
    batches.

    Layers that start pre-trained learn at `run.encoder_lr` times the rate; at 0 they are frozen, and cost no gradient.

    Of several processes each adds up, changes and remembers the momentum of its share of the values alone, then tells
    the others the new values.
    """

    def __init__(self, net: nn.Module, run: Run, worker: Worker, pretrained: Collection[str] = ()):
        self.worker = worker
        norms = {id(parameter) for module in net.modules() if isinstance(module, BatchNormReLU)
                 for parameter in module.parameters()}  # fmt: skip
        kinds = {}  # (rate, decay): parameters, plain ones first
        for name, parameter in net.named_parameters():
            slow = run.encoder_lr if name in pretrained else 1.0
            bias = name.endswith("bias") and id(parameter) not in norms
            if not slow:
                parameter.requires_grad_(False)
                continue
            kinds.setdefault((bias, slow), []).append(parameter)
        spans, ordered = [], []  # of equal rate and decay: end, rate, decay
        for bias, slow in sorted(kinds, key=lambda kind: (kind[0], -kind[1])):
            ordered += kinds[bias, slow]
            end = sum(parameter.numel() for parameter in ordered)
            spans.append((end, 2 * slow if bias else slow, 0.0 if bias else run.weight_decay))
        self.used = spans[-1][0]
        length = math.ceil(self.used / worker.world) * worker.world
        self.values = torch.zeros(length, device=worker.device)
        self.gradients = torch.zeros_like(self.values)
        views, begin = {}, 0
        for parameter in ordered:
            views[id(parameter)] = _view(self.gradients, begin, parameter)
            value = _view(self.values, begin, parameter)
            value.copy_(parameter.detach())
            parameter.data = value
            begin += parameter.numel()
        self.views = [views.get(id(parameter)) for parameter in net.parameters()]  # of gradients; None: frozen

        share = length // worker.world
        self.own = slice(worker.rank * share, (worker.rank + 1) * share)
        self.own_gradients = self.gradients if worker.world == 1 else torch.zeros(share, device=worker.device)
        groups, self.parts = [], []
        spans[-1] = (length, *spans[-1][1:])  # with what makes the shares equal
        for before, (end, scale, decay) in zip([0, *(span[0] for span in spans)], spans, strict=False):
            start, end = max(before, self.own.start), min(end, self.own.stop)
            if start < end:
                part = nn.Parameter(self.values[start:end])
                part.grad = self.own_gradients[start - self.own.start : end - self.own.start]
                groups.append({"params": [part], "lr_scale": scale, "weight_decay": decay})
                self.parts.append(part)
        self.sgd = torch.optim.SGD(groups, lr=run.lr, momentum=run.momentum, fused=True)

    @torch.no_grad()
    def take(self, gradients: list[Tensor | None], first: bool) -> None:
        """Add gradients, in the order of the net's parameters, to those of the step; `first`: forget those before."""
        pairs = [(view, given) for view, given in zip(self.views, gradients, strict=True) if given is not None]
        if not pairs:
            return
        views, given = map(list, zip(*pairs, strict=True))
        if first:
            torch._foreach_copy_(views, given)
        else:
            torch._foreach_add_(views, [gradient.float() for gradient in given])

    def step(self, rate: float) -> None:
        """Change the values by the gradients that all processes took."""
        for group in self.sgd.param_groups:
            group["lr"] = rate * group["lr_scale"]
        if self.worker.world > 1:
            dist.reduce_scatter_tensor(self.own_gradients, self.gradients)
        self.sgd.step()
        if self.worker.world > 1:
            dist.all_gather_into_tensor(self.values, self.values[self.own].clone())

    def momentum(self) -> Tensor:
        """float32, on the CPU: the momentum of every value, from all processes, which all call this."""
        own = torch.zeros_like(self.own_gradients)
        begin = 0
        for part in self.parts:
            if (buffer := self.sgd.state[part].get("momentum_buffer")) is not None:
                own[begin : begin + len(part)] = buffer
            begin += len(part)
        if self.worker.world == 1:
            return own[: self.used].cpu()
        everyone = torch.empty_like(self.values)
        dist.all_gather_into_tensor(everyone, own)
        return everyone[: self.used].cpu()

    def load_momentum(self, momentum: Tensor) -> None:
        """Go on from what `momentum` returned, in however many processes."""
        everyone = torch.zeros_like(self.values)
        everyone[: self.used] = momentum.to(everyone.device)
        begin = self.own.start
        for part in self.parts:
            self.sgd.state[part]["momentum_buffer"] = everyone[begin : begin + len(part)].clone()
            begin += len(part)


def _view(flat: Tensor, begin: int, like: Tensor) -> Tensor:
    """The part of `flat` from `begin` in the shape of `like`, in channels-last memory where that has four axes."""
    part = flat[begin : begin + like.numel()]
    if like.dim() != 4:
        return part.view(like.shape)
    out, channels, height, width = like.shape
    return part.view(out, height, width, channels).permute(0, 3, 1, 2)


@dataclass
class Schedule:
    """The learning rate by step: a linear warm-up, then drops at fixed steps or where held-out accuracy stops rising,
    or a cosine down to 0."""

    run: Run
    factor: float = 1.0  # of the drops at plateaus so far
    top_accuracy: float = -1.0
    stale: int = 0  # validations since the top accuracy

    def rate(self, step: int) -> float:
        """The rate of a step, counted from 0."""
        warm = min(1.0, (step + 1) / (self.run.warmup_steps + 1))
        if self.run.drop_at == "cosine":
            return self.run.lr * warm * (1 + math.cos(math.pi * step / self.run.steps)) / 2
        drops = 0 if self.run.drop_at == "plateau" else sum(step >= at for at in self.run.drop_at)
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
