"""Networks as ONNX files, which run without PyTorch and without this library.

A file takes `images`, float32 (B, 3, H, W) RGB 0 to 255, any B, and returns `scores`, float32 (B, C, H, W) before the
softmax. Batch norm is folded. What inference needs beside the net is in the file's metadata, each entry as JSON:
`classes`, and `windows` or `canvas` and `scale`, as in model files (`deconvnet.nets.files`).

Of several equal values in a pooling window the first gets the switch, as everywhere here. ONNX leaves open which one
does; onnxruntime's CPU kernels take the first, too, which a test holds them to.
"""

import copy
import json
import logging
from pathlib import Path

import numpy as np
import torch
from torch import nn

from deconvnet.errors import InputError
from deconvnet.files import whole
from deconvnet.nets.folding import fold

OPSET = 18  # the oldest that PyTorch writes without a conversion
LARGEST = 2e9  # bytes; a protobuf message ends at 2 GiB
KEPT = ("classes", "windows", "canvas", "scale")


def export(net: nn.Module, about: dict, path: str | Path) -> None:
    """Write an ONNX file of a DeconvNet or an FCN, as `deconvnet.load` gives both: whole or not at all.

    H and W are the net's input size; for an FCN the canvas in `about`, times its scale. Raises InputError where onnx
    and onnxscript are not installed (`pip install deconvnet[onnx]`), and for a net of 2 GB or more.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(f"the export needs onnx and onnxscript ({error}); `pip install onnx onnxscript`") from None
    if sum(tensor.nbytes for tensor in net.state_dict().values()) >= LARGEST:
        raise InputError(f"{path}: a net of 2 GB or more does not fit into one ONNX file; export a narrower one")
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)  # it remarks on empty shapes
    # Not channels last: in that layout the net calls the kernels of deconvnet.kernels, which ONNX does not know.
    net = fold(copy.deepcopy(net)).float().cpu().to(memory_format=torch.contiguous_format).eval().requires_grad_(False)
    program = torch.onnx.export(
        net, (example(net, about),), dynamo=True, opset_version=OPSET, verbose=False, input_names=["images"],
        output_names=["scores"], dynamic_shapes=({0: torch.export.Dim("batch")},),
    )  # fmt: skip
    model = program.model
    for part in (model.graph, *model.graph.all_nodes(), *model.graph.initializers.values(), *model.graph.inputs):
        part.metadata_props.clear()  # PyTorch notes paths of this machine
    model.metadata_props.update({name: json.dumps(about[name]) for name in KEPT if name in about})
    with whole(path) as temporary:
        onnx.save(program.model_proto, temporary)


def example(net: nn.Module, about: dict, seed: int = 0) -> torch.Tensor:
    """Two images of noise, of the size that an export of `net` takes, float32 (2, 3, H, W)."""
    if net.spec["kind"] == "fcn":
        size = [max(1, round(side * about.get("scale", 1.0))) for side in about["canvas"]]
    else:
        size = net.encoder.size.shape
    return torch.randint(0, 256, (2, 3, *size), generator=torch.Generator().manual_seed(seed)).float()


def difference(net: nn.Module, about: dict, path: str | Path) -> float:
    """How much the scores of a net's ONNX file in onnxruntime differ from its own, on noise: the mean over the mean.

    The largest difference says little: in float32, added up in another order, two nearly equal values of a pooling
    window may change places, and the switch with them.
    """
    import onnxruntime

    images = example(net, about, seed=1)
    with torch.inference_mode():
        ours = net(images).numpy()
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (theirs,) = session.run(None, {"images": images.numpy()})
    return float(np.abs(ours - theirs).mean() / np.abs(ours).mean())
