"""The weights that were released with the papers, as Caffe files, turned into this project's model files.

    DeconvNet_trainval_inference.caffemodel    DeconvNet (Noh, Hong, Han)
    fcn-8s-pascal.caffemodel                   FCN-8s (Long, Shelhamer, Darrell), the other half of DeconvNet's ensemble

Names and shapes of the layers are those of the published network descriptions. What differs from ours:

- DeconvNet's batch norm comes folded: y = scale * x + shift for each channel, the statistics within them. Together with
  the convolution before it, weight W and bias b, it is one convolution, of weight scale * W and bias scale * b + shift.
  So the converted net has no batch norm (`eps` None). Batch norm with a running mean of -b, a running variance of
  1 - eps, weight `scale` and bias `shift` after the convolution W would be the same function.
- A deconvolution's weight is (in, out, k, k). Ours of 3x3 are convolutions: (out, in, k, k) and turned by 180 degrees.
- The input is BGR less a mean: the input channels of conv1_1 change places, the mean goes into the net.
- FCN-8s's upsamplings may have a bias; ours have none. It is added to the bias of the scores that it is summed with.
- FCN-8s's last upsampling must be bilinear, as ours is.
"""

import dataclasses
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from deconvnet import nets
from deconvnet.errors import InputError
from deconvnet.files import file_hash
from deconvnet.images import VOC_CLASSES
from deconvnet.nets.caffemodel import read_caffemodel
from deconvnet.nets.deconvnet import BLOCKS
from deconvnet.nets.fcn import bilinear
from deconvnet.nets.vgg import CONVS, LAYERS
from deconvnet.settings import Crops, FcnTraining, Size

MEAN = (122.67891434, 116.66876762, 104.00698793)  # RGB; the release's, in the files' own order 104, 116, 122

# Our layer: the name in the file, and that of the batch norm after it.
DECONVNET = (
    {f"encoder.{name}.conv": (name, name.replace("conv", "bn")) for name in CONVS}
    | {f"encoder.{name}.conv": (name, f"bn{name}") for name in ("fc6", "fc7")}
    | {"fc6_deconv.conv": ("fc6-deconv", "fc6-deconv-bn")}
    | {f"deconv{n}_{i}.conv": (f"deconv{n}_{i}", f"debn{n}_{i}") for n, block in BLOCKS.items()
       for i in range(1, len(block) + 1)}
    | {"score": ("seg-score-voc", None)}
)  # fmt: skip
# Our layer: its names in the file, first that of fcn-8s-pascal, then that of Berkeley's later releases.
FCN = {f"encoder.{name}.conv": (name,) for name in LAYERS} | {
    "score_fc7": ("score-fr", "score_fr"),
    "upsamplings.0": ("score2", "upscore2"),
    "score_pools.0": ("score-pool4", "score_pool4"),
    "upsamplings.1": ("score4", "upscore_pool4"),
    "score_pools.1": ("score-pool3", "score_pool3"),
}
LAST = ("upsample", "upscore8")  # FCN-8s's last upsampling, 16x16 with stride 8


class _Blobs:
    """The blobs of a file, taken one by one; what is missing, of another shape or left over is noted."""

    def __init__(self, layers: dict[str, list[np.ndarray]]):
        self.layers, self.taken, self.problems = layers, {}, []

    def take(self, names: tuple[str, ...], index: int, shape: tuple[int, ...]) -> np.ndarray:
        """Blob `index` of the first layer of `names` that there is; zeros where it does not fit."""
        name = next((name for name in names if name in self.layers), names[0])
        blobs = self.layers.get(name, [])
        self.taken[name] = max(self.taken.get(name, 0), index + 1)
        if index >= len(blobs):
            kind = "weights" if index == 0 else f"blob {index + 1}"
            self.problems.append(f"{name} lacks its {kind}" if blobs else f"{name} is missing")
        # older files write a vector as 1x1x1xN, batch norm as 1xNx1x1
        elif [side for side in blobs[index].shape if side != 1] != [side for side in shape if side != 1]:
            self.problems.append(f"{name} is {_sides(blobs[index].shape)}, not {_sides(shape)}")
        elif not np.isfinite(blobs[index]).all():
            self.problems.append(f"{name} has values that are not finite")
        else:
            return blobs[index].reshape(shape)
        return np.zeros(shape if len(shape) == 1 else (1,) * len(shape), np.float32)

    def has(self, names: tuple[str, ...], index: int) -> bool:
        return any(len(self.layers.get(name, [])) > index for name in names)

    def check(self, path: str | Path, kind: str) -> None:
        """Raise InputError for what was noted, and for layers or blobs that nobody took."""
        for name, blobs in self.layers.items():
            if len(blobs) > self.taken.get(name, 0):
                what = "has too many blobs" if name in self.taken else "is no layer of it"
                self.problems.append(f"{name[:60]} {what}")
        if self.problems:
            problems = sorted(dict.fromkeys(self.problems), key=lambda problem: not problem.endswith("missing"))
            more = f" and {len(problems) - 6} more" if len(problems) > 6 else ""
            said = "; ".join(problems[:6]) + more
            raise InputError(f"{path}: not the released {kind}: {said}; name another file, or get it again")


def convert(path: str | Path) -> tuple[dict, dict[str, Tensor], dict]:
    """A released .caffemodel -> `spec`, `state` and `about` of a model file (`deconvnet.nets.files.save`).

    The width, fc6's width and its kernel are read off the file; the classes are VOC's 21. Raises InputError for a file
    that is no .caffemodel or lacks layers, has others, or has some of other shapes.
    """
    layers = read_caffemodel(path)
    blobs = _Blobs(layers)
    if {name for name, _ in DECONVNET.values()} - set(LAYERS) & set(layers):
        kind, make = "DeconvNet", _deconvnet
    elif {name for names in FCN.values() for name in names} - set(LAYERS) & set(layers):
        kind, make = "FCN-8s", _fcn
    else:
        some = ", ".join(name[:30] for name in list(layers)[:4]) or "none"
        raise InputError(
            f"{path}: neither the released DeconvNet nor FCN-8s, which have seg-score-voc or score-fr; its layers with "
            f"weights: {some}{', ...' if len(layers) > 4 else ''}; name one of the two files"
        )
    with np.errstate(over="ignore", invalid="ignore"):
        spec, state, about = make(blobs, _size(layers))
    blobs.check(path, kind)
    first = "encoder.conv1_1.conv.weight"
    state[first] = state[first].flip(1)  # (w, BGR, 3, 3) -> (w, RGB, 3, 3)
    state |= {"encoder.mean": torch.tensor(MEAN), "encoder.std": torch.ones(3)}
    if unfit := next((name for name, values in state.items() if not torch.isfinite(values).all()), None):
        raise InputError(f"{path}: {unfit} exceeds float32 once batch norm is folded into it; get the file again")
    about |= {"classes": list(VOC_CLASSES), "converted": {"file": Path(path).name, "sha256": file_hash(path)}}
    return spec, state, about


def _size(layers: dict[str, list[np.ndarray]]) -> Size:
    """The net's size by conv1_1 and fc6; the paper's where they are missing or odd."""
    conv1, fc6 = (layers.get(name, [np.empty(0)])[0].shape for name in ("conv1_1", "fc6"))
    width = {"width": conv1[0]} if len(conv1) == 4 and 0 < conv1[0] <= 1024 else {}
    if len(fc6) != 4 or not (0 < fc6[0] <= 65536 and 0 < fc6[2] <= 64):
        return Size(**width)
    return Size(**width, fc_width=fc6[0], input_size=32 * fc6[2])


def _sides(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape[:8]))


def _shapes(spec: dict) -> dict[str, tuple[int, ...]]:
    return {name: tuple(values.shape) for name, values in nets.build_empty(spec).state_dict().items()}


def _deconvnet(blobs: _Blobs, size: Size) -> tuple[dict, dict[str, Tensor], dict]:
    spec = {"kind": "deconvnet", "size": dataclasses.asdict(size), "classes": len(VOC_CLASSES), "eps": None,
            "unpooling": "switches"}  # fmt: skip
    shapes, state = _shapes(spec), {}
    for layer, (name, norm) in DECONVNET.items():
        shape, outputs = shapes[f"{layer}.weight"], shapes[f"{layer}.bias"]
        if name.startswith("deconv"):
            weight = blobs.take((name,), 0, (shape[1], shape[0], *shape[2:]))  # (in, out, 3, 3)
            weight = weight.swapaxes(0, 1)[:, :, ::-1, ::-1]  # (out, in, 3, 3), turned
        else:
            weight = blobs.take((name,), 0, shape)
        bias = blobs.take((name,), 1, outputs).astype(np.float64)
        if norm:
            scale, shift = blobs.take((norm,), 0, outputs), blobs.take((norm,), 1, outputs)
            weight = weight * scale.reshape((1, -1, 1, 1) if name == "fc6-deconv" else (-1, 1, 1, 1))
            bias = scale * bias + shift
        state[f"{layer}.weight"], state[f"{layer}.bias"] = _tensor(weight), _tensor(bias)
    crops = Crops()
    return spec, state, {"windows": {"context": crops.context, "square": crops.square}}


def _fcn(blobs: _Blobs, size: Size) -> tuple[dict, dict[str, Tensor], dict]:
    training = FcnTraining()
    spec = {
        "kind": "fcn", "size": dataclasses.asdict(size), "classes": len(VOC_CLASSES), "eps": None, "stride": 8,
        "skip_scales": [1.0, 1.0], "dropout": training.dropout,
    }  # fmt: skip
    shapes, state = _shapes(spec), {}
    for layer, names in FCN.items():
        for index, kind in enumerate(("weight", "bias")):
            if f"{layer}.{kind}" in shapes:
                state[f"{layer}.{kind}"] = _tensor(blobs.take(names, index, shapes[f"{layer}.{kind}"]))
    for number in (0, 1):
        names, bias = FCN[f"upsamplings.{number}"], f"score_pools.{number}.bias"
        if blobs.has(names, 1):
            state[bias] = state[bias] + _tensor(blobs.take(names, 1, shapes[bias]))
    classes = len(VOC_CLASSES)
    last = blobs.take(LAST, 0, (classes, classes, 16, 16))
    wanted = np.eye(classes)[:, :, None, None] * bilinear(8).numpy()
    if not blobs.problems and not np.allclose(last, wanted, atol=1e-4):
        blobs.problems.append("its last upsampling is not bilinear, which is all that ours can be")
    return spec, state, {"canvas": list(training.canvas), "scale": training.scale}


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(values, np.float32, order="C"))
