"""DeconvNet (Noh, Hong, Han, ICCV 2015) as a library: networks, crops, training, inference, CRF, evaluation.

    from deconvnet import Predictor

Names are imported when they are first used, so that `import deconvnet` costs nothing.
"""

import importlib

EXPORTS = {
    "Predictor": "deconvnet.predictor",
    "build": "deconvnet.nets",
    "load": "deconvnet.nets.files",
    "save": "deconvnet.nets.files",
}
__all__ = sorted(EXPORTS)


def __getattr__(name: str):
    if name not in EXPORTS:
        raise AttributeError(f"module 'deconvnet' has no attribute {name!r}")
    return getattr(importlib.import_module(EXPORTS[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *EXPORTS]
