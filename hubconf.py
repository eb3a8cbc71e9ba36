"""Entry points of torch.hub, for a clone of this repository:

net = torch.hub.load("path/to/clone", "deconvnet", source="local")
predictor = torch.hub.load("path/to/clone", "predictor", "deconvnet.pt", source="local")
"""

import dataclasses

from deconvnet import Predictor as predictor  # noqa: F401, N813
from deconvnet import build, load
from deconvnet.settings import Size

dependencies = ["cv2", "numpy", "pandas", "PIL", "pyarrow", "torch", "tqdm"]


def deconvnet(model=None, classes=21, eps=1e-9, **size):
    """The DeconvNet of a model file, in evaluation mode; without a file a fresh one, of the paper's size.

    size: width, fc_width and input_size, where they differ from the paper's. eps: of batch norm, None for none.
    """
    return _net("deconvnet", model, classes, eps, size)


def fcn8s(model=None, classes=21, eps=None, **size):
    """The FCN-8s of a model file, in evaluation mode; without a file a fresh one. Arguments as of `deconvnet`."""
    return _net("fcn", model, classes, eps, size)


def _net(kind, model, classes, eps, size):
    if model:
        return load(model)[0]
    return build({"kind": kind, "size": dataclasses.asdict(Size(**size)), "classes": classes, "eps": eps})
