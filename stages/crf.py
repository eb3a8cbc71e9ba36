"""Scores and images -> labels by a fully connected CRF.

A row of data/labels/{system}_crf/{split}-NNN.parquet: `image_id` · `labels`, a palette PNG.
"""

import argparse
from pathlib import Path

import pyarrow as pa

from deconvnet import contents, crf, provenance, scores, tables
from deconvnet.progress import progress
from deconvnet.settings import Crf
from experiment.cli import run
from experiment.machine import cores
from experiment.params import load


def fingerprint(dataset: Path, source: Path, classes: int, settings: Crf) -> str:
    """What a shard of labels is made from."""
    inputs = [tables.footer(path).get("content", "") for path in (dataset, source)]
    return provenance.fingerprint(__file__, [settings, classes], *inputs)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m stages.crf", description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", type=Path, required=True, help="shard of the data set")
    parser.add_argument("--scores", type=Path, required=True, help="shard of scores")
    parser.add_argument("--out", type=Path, required=True, help="shard of labels")
    parser.add_argument("--processes", type=int, default=cores())
    options = parser.parse_args(arguments)
    params = load()
    classes, name = len(params.dataset.classes), f"{options.out.parent.name} {options.out.stem}"
    rows = scores.read(options.scores, options.dataset)
    images = tables.read(options.dataset, ["image"], contents.DATASET)["image"].to_pylist()
    mark = fingerprint(
        options.dataset, options.scores, classes, params.crf
    )  # now: the code may be edited while it runs
    refined = crf.refine_rows(rows, images, classes, params.crf, options.processes)
    table = list(progress(refined, total=len(rows), unit="image", desc=name))
    tables.write(options.out, pa.Table.from_pylist(table, scores.LABELS_SCHEMA), mark)
    print(f"{name}: {len(table)} images refined")


if __name__ == "__main__":
    run(main)
