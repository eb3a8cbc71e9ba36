"""DeconvNet (Noh, Hong, Han, ICCV 2015) as a library: networks, crops, training, inference, CRF, evaluation.

    Predictor                    trained models on any pictures: proposals, ensemble, CRF
    build, load, save            networks and their files
    predict                      an image through a network at once
    max_pool2d, max_unpool2d     pooling with switches, and unpooling

A network is built from a `spec`, which its file has, too. The sizes of `deconvnet.settings.Size` are the paper's; here
is a small one:

>>> import deconvnet, torch
>>> spec = {"kind": "deconvnet", "classes": 3, "eps": 1e-9, "size": {"width": 4, "fc_width": 16, "input_size": 64}}
>>> net = deconvnet.build(spec)
>>> net(torch.zeros(2, 3, 64, 64)).shape  # images, RGB 0 to 255 -> scores of 3 classes
torch.Size([2, 3, 64, 64])
>>> deconvnet.save("model.pt", net.spec, net.state_dict(), {"classes": ["background", "cat", "dog"]})
>>> net, about = deconvnet.load("model.pt")
>>> about["classes"]
['background', 'cat', 'dog']
>>> probabilities = deconvnet.predict(net, torch.zeros(50, 80, 3, dtype=torch.uint8).numpy())
>>> probabilities.shape
(3, 50, 80)

Names are imported when they are first used, so that `import deconvnet` costs nothing.
"""

import importlib

EXPORTS = {
    "Predictor": "deconvnet.predictor",
    "build": "deconvnet.nets",
    "load": "deconvnet.nets.files",
    "max_pool2d": "deconvnet.pooling",
    "max_unpool2d": "deconvnet.pooling",
    "predict": "deconvnet.predictor",
    "save": "deconvnet.nets.files",
}
__all__ = sorted(EXPORTS)


def __getattr__(name: str):
    if name not in EXPORTS:
        raise AttributeError(f"module 'deconvnet' has no attribute {name!r}")
    return getattr(importlib.import_module(EXPORTS[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *EXPORTS]
