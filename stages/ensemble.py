"""Scores of DeconvNet and FCN-8s -> EDeconvNet's (paper 5.2), a table of stages/scores.py."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from stages import scores, shards
from stages.cli import InputError, progress, run
from stages.config import load

LEAST = 1e-12  # a probability of 0 has no logarithm


@dataclass(frozen=True)
class Params:
    method: Literal["mean", "product"]  # of probabilities (paper); of scores clipped at 0 (release)


def combine(a: np.ndarray, b: np.ndarray, method: str) -> np.ndarray:
    """Two score maps -> scores whose softmax is the ensemble's probabilities, all float32 (C, H, W).

    mean: log of the mean of both probability maps. product: product of both, each clipped at 0.
    """
    if method == "product":
        return np.maximum(a, 0) * np.maximum(b, 0)
    return np.log(np.maximum((scores.softmax(a) + scores.softmax(b)) / 2, LEAST, dtype=np.float32))


def fingerprint(members: list[Path], classes: int, params: Params) -> str:
    """What a shard of the ensemble is made from."""
    inputs = [shards.footer(path).get("content", "") for path in members]
    return shards.fingerprint(__file__, [vars(params), classes], *inputs)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m stages.ensemble", description=__doc__)
    parser.add_argument("--dataset", type=Path, required=True, help="shard of the data set")
    parser.add_argument("--members", type=Path, nargs=2, required=True, help="shards of scores")
    parser.add_argument("--out", type=Path, required=True, help="shard of scores")
    options = parser.parse_args(arguments)
    params, classes = load(Params, "ensemble"), len(load(list[str], "dataset.classes"))
    first, second = (scores.read(path, options.dataset) for path in options.members)
    mark = fingerprint(options.members, classes, params)  # now: the code may be edited while it runs
    table = []
    for a, b in zip(progress(first, unit="image", desc=options.out.stem), second, strict=True):
        maps = [scores.decode(row, classes) for row in (a, b)]
        if maps[0].shape != maps[1].shape:
            raise InputError(
                f"{a['image_id']}: scores of {a['width']}x{a['height']} px in {options.members[0]}, "
                f"{b['width']}x{b['height']} in {options.members[1]}; run `dvc repro`"
            )
        table.append({"image_id": a["image_id"], "growth": []} | scores.encode(combine(*maps, params.method)))
    shards.write(options.out, pa.Table.from_pylist(table, scores.SCHEMA), mark)


if __name__ == "__main__":
    run(main)
