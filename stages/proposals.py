"""Data set shards -> EdgeBoxes object proposals, about 2,000 per image (paper 6.1).

A row of data/proposals/{split}-NNN.parquet: `image_id` · `rank` 1 for the best · `x`, `y`, `width`, `height` px ·
`objectness`. Rows are sorted by image and rank.
"""

import argparse
import json
from pathlib import Path

import cv2

from deconvnet import contents, provenance, settings, tables
from deconvnet.files import file_hash, together, whole
from deconvnet.proposals import EdgeBoxes, propose, recall
from experiment import params as parameters
from experiment.cli import run


def fingerprint(dataset: Path, edge_model: Path, chosen: settings.EdgeBoxes) -> str:
    """What the proposals of a shard of the data set are made from. How recall is measured is no part of it."""
    own = {name: value for name, value in vars(chosen).items() if name != "recall"}
    model = file_hash(edge_model) if chosen.edges == "structured" else ""
    return provenance.fingerprint(__file__, own, provenance.content(dataset), model)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m stages.proposals", description=__doc__.splitlines()[0])
    actions = parser.add_subparsers(dest="action", required=True)
    shard = actions.add_parser("shard", help="proposals of one shard of the data set")
    shard.add_argument("--dataset", type=Path, required=True, help="shard of the data set")
    shard.add_argument(
        "--edge-model", type=Path, required=True, help="structured-forest model; not read for gradient edges"
    )
    shard.add_argument("--out", type=Path, required=True, help="shard of proposals")
    summary = actions.add_parser("recall", help="how many objects the proposals of all shards find")
    summary.add_argument("--dataset", type=Path, required=True, help="folder of the data set's shards")
    summary.add_argument("--proposals", type=Path, required=True, help="folder of the proposals' shards")
    summary.add_argument("--metrics", type=Path, required=True, help="JSON to write")
    summary.add_argument("--plot", type=Path, required=True, help="CSV to write")
    options = parser.parse_args(arguments)
    params = parameters.load().proposals
    if options.action == "shard":
        make_shard(options.dataset, options.edge_model, options.out, params)
    else:
        measure(options.dataset, options.proposals, options.metrics, options.plot, params.recall)


def make_shard(dataset: Path, edge_model: Path, out: Path, chosen: settings.EdgeBoxes) -> None:
    """Write the proposals of a shard of the data set."""
    cv2.setNumThreads(1)  # the shards share the cores; one thread each wastes none
    detector = EdgeBoxes(chosen, edge_model)
    images = tables.read(dataset, ["image_id", "image"], contents.DATASET)
    mark = fingerprint(dataset, edge_model, chosen)  # now: the code may be edited while it runs
    found = propose(images, detector, dataset.stem)
    tables.write(out, found, mark)
    print(f"{out}: {len(found):,} proposals for {len(images):,} images")


def measure(dataset: Path, proposals: Path, metrics: Path, plot: Path, chosen: settings.Recall) -> None:
    """Write the share of the objects that the proposals of all shards find."""
    frame = recall(dataset, proposals, chosen)
    table = frame.pivot(index="boxes", columns="iou", values="recall").round(4)
    with together(), whole(metrics) as numbers, whole(plot) as drawn:
        # DVC's tables have a column for every number in it
        numbers.write_text(json.dumps({"recall": table.iloc[-1].add_prefix("iou_").to_dict()}, indent=2) + "\n")
        table.add_prefix("recall_iou_").to_csv(drawn)
    shares = ", ".join(f"{share:.1%} at IoU {overlap:g}" for overlap, share in table.iloc[-1].items())
    print(f"{plot}: the best {table.index[-1]} proposals per image find {shares} of {chosen.split}'s "
          f"{frame['objects'].iloc[0]:,} objects")  # fmt: skip


if __name__ == "__main__":
    run(main)
