"""The networks by kind."""

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from deconvnet.fields import Range, parse
from deconvnet.nets.deconvnet import DeconvNet
from deconvnet.nets.fcn import FCN
from deconvnet.nets.vgg import Classifier
from deconvnet.settings import Epsilon, Size

KINDS = {"classifier": Classifier, "deconvnet": DeconvNet, "fcn": FCN}


@dataclass(frozen=True)
class Spec:
    """What a model file says of its net; None is what the kind does not have, or has by default."""

    kind: Literal["classifier", "deconvnet", "fcn"]
    size: Size
    classes: Annotated[int, Range(1, 1024)]
    eps: Epsilon | None
    unpooling: Literal["switches", "bilinear", "transposed"] | None = None
    stride: Literal[8, 16, 32] | None = None
    skip_scales: list[Annotated[float, Range(0, 1e30)]] | None = None
    dropout: Annotated[float, Range(0, 0.99)] | None = None

    def __post_init__(self):
        if self.skip_scales is not None and len(self.skip_scales) != 2:
            raise ValueError("skip_scales: allowed: two numbers: pool4's factor and pool3's")


def build(spec: dict) -> nn.Module:
    """A fresh net of `spec`: its kind, its size and the other arguments of its class.

    Raises InputError for a spec that says something else, TypeError for an argument of another kind.
    """
    found = parse(Spec, spec, "spec", "net")
    given = {field.name: getattr(found, field.name) for field in dataclasses.fields(Spec)[4:]}
    arguments = {name: value for name, value in given.items() if value is not None}
    return KINDS[found.kind](found.size, classes=found.classes, eps=found.eps, **arguments)


RANDOM = (nn.init.normal_, nn.init.kaiming_normal_, nn.init.kaiming_uniform_, nn.init.uniform_, Tensor.normal_,
          Tensor.uniform_)  # fmt: skip


class _Unfilled(TorchFunctionMode):
    """Leaves out random values: on the meta device they would import PyTorch's compiler, which takes seconds."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in RANDOM:
            return args[0] if args else kwargs["tensor"]
        return function(*args, **(kwargs or {}))


def build_empty(spec: dict) -> nn.Module:
    """The net of a spec on the meta device: names and shapes, no values, no memory. Raises as `build`."""
    with torch.device("meta"), _Unfilled():
        return build(spec)
