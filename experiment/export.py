"""A model as an ONNX file, for onnxruntime and others; what it takes and returns is in deconvnet/export.py.

Where onnxruntime is installed, the file is run on noise and held against the model.
"""

import argparse
import importlib.util
from pathlib import Path

from deconvnet.errors import InputError
from deconvnet.export import difference, export
from deconvnet.nets import files
from experiment.cli import run

KINDS = ("deconvnet", "fcn")
TOLERANCE = 1e-2  # of the mean score; float32 added up in another order makes far less


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiment.export", description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="model file of a DeconvNet or FCN-8s")
    parser.add_argument("--out", type=Path, help="ONNX file; the model's name with .onnx by default")
    options = parser.parse_args(arguments)
    out = options.out or options.model.with_suffix(".onnx")
    if out == options.model:
        raise InputError(f"{out}: would be overwritten; name another file with --out")
    net, about = files.load(options.model)
    if (kind := net.spec["kind"]) not in KINDS:
        raise InputError(f"{options.model}: a net of kind {kind}; allowed: {', '.join(KINDS)}")
    if kind == "fcn" and "canvas" not in about:
        raise InputError(f"{options.model}: does not say its canvas: made by an older version; train it again")
    export(net, about, out)
    checked = ""
    if importlib.util.find_spec("onnxruntime"):
        found = difference(net, about, out)
        if not found <= TOLERANCE:
            raise InputError(f"{out}: onnxruntime's scores differ by {found:.1%} on average; do not use it")
        checked = f"; onnxruntime's scores differ by {found:.1e} on average"
    print(f"{out}: {out.stat().st_size / 1e6:,.1f} MB{checked}")


if __name__ == "__main__":
    run(main)
