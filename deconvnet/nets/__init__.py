"""The networks by kind."""

from torch import nn

from deconvnet.nets.deconvnet import DeconvNet
from deconvnet.nets.fcn import FCN
from deconvnet.nets.vgg import Classifier
from deconvnet.settings import Size

KINDS = {"classifier": Classifier, "deconvnet": DeconvNet, "fcn": FCN}


def build(spec: dict) -> nn.Module:
    """A fresh net of `spec`: its kind, its size and the other arguments of its class."""
    arguments = {key: value for key, value in spec.items() if key not in ("kind", "size")}
    return KINDS[spec["kind"]](Size(**spec["size"]), **arguments)
