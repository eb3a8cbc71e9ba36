"""Scores of DeconvNet and FCN-8s -> EDeconvNet's (paper 5.2), a table of deconvnet/scores.py."""

import argparse
from pathlib import Path

import pyarrow as pa

from deconvnet import ensemble, provenance, scores, tables
from deconvnet.errors import InputError
from deconvnet.progress import progress
from deconvnet.settings import Ensemble
from experiment.cli import run
from experiment.params import load


def fingerprint(members: list[Path], classes: int, settings: Ensemble) -> str:
    """What a shard of the ensemble is made from."""
    inputs = [tables.footer(path).get("content", "") for path in members]
    return provenance.fingerprint(__file__, [settings, classes], *inputs)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m stages.ensemble", description=__doc__)
    parser.add_argument("--dataset", type=Path, required=True, help="shard of the data set")
    parser.add_argument("--members", type=Path, nargs=2, required=True, help="shards of scores")
    parser.add_argument("--out", type=Path, required=True, help="shard of scores")
    options = parser.parse_args(arguments)
    params = load()
    classes, method = len(params.dataset.classes), params.ensemble.method
    first, second = (scores.read(path, options.dataset) for path in options.members)
    mark = fingerprint(options.members, classes, params.ensemble)  # now: the code may be edited while it runs
    table, name = [], f"{options.out.parent.name} {options.out.stem}"
    for a, b in zip(progress(first, unit="image", desc=name), second, strict=True):
        maps = [scores.decode(row, classes) for row in (a, b)]
        if maps[0].shape != maps[1].shape:
            raise InputError(
                f"{a['image_id']}: scores of {a['width']}x{a['height']} px in {options.members[0]}, "
                f"{b['width']}x{b['height']} in {options.members[1]}; run `dvc repro`"
            )
        try:
            encoded = scores.encode(ensemble.combine(*maps, method))
        except ValueError as error:
            raise InputError(f"{options.out}: {a['image_id']}: {error}; set ensemble.method to mean") from None
        table.append({"image_id": a["image_id"], "growth": []} | encoded)
    tables.write(options.out, pa.Table.from_pylist(table, scores.SCHEMA), mark)
    print(f"{name}: {len(table)} images combined")


if __name__ == "__main__":
    run(main)
