"""A released Caffe model (DeconvNet_trainval_inference.caffemodel, fcn-8s-pascal.caffemodel) -> a model file.

The model file is like those that the stages train: `Predictor`, `python -m experiment.predict` and everything else take
it. docs/released.md says which files these are and how their layers map. No Caffe is needed.
"""

import argparse
from pathlib import Path

from deconvnet.errors import InputError
from deconvnet.nets import files
from deconvnet.nets.released import convert
from experiment.cli import run


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiment.convert", description=__doc__.splitlines()[0])
    parser.add_argument("caffemodel", type=Path, metavar="FILE.caffemodel", help="DeconvNet's or FCN-8s's")
    parser.add_argument("--out", type=Path, required=True, help="the model file to write, such as deconvnet.pt")
    options = parser.parse_args(arguments)
    if options.out.resolve() == options.caffemodel.resolve() or options.out.is_dir():
        raise InputError(f"{options.out}: would be overwritten; choose another --out, a file such as deconvnet.pt")
    spec, state, about = convert(options.caffemodel)
    files.save(options.out, spec, state, about)
    numbers = sum(values.numel() for name, values in state.items() if name not in ("encoder.mean", "encoder.std"))
    name = {"deconvnet": "DeconvNet", "fcn": "FCN-8s"}[spec["kind"]]
    print(f"{options.out}: {name}, {spec['classes']} classes, {numbers:,} weights")


if __name__ == "__main__":
    run(main)
