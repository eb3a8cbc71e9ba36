"""What the cells of the claims label, counted image by image by region: python -m experiment.claims.measure ...

    variant bilinear 1 --out data/counts/bilinear-1.parquet   DeconvNet alone
    systems 1 --out data/counts/systems-1.parquet             all that one seed's nets make

A row: `image_id` · `system` · `region` · `right`, `true`, `predicted` pixels by class · `labels`, a PNG (region all).
The table of a training that diverged has no rows.
"""

import argparse
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import pyarrow as pa

from deconvnet import random_boxes, regions, scores, tables
from deconvnet.images import decode_mask
from deconvnet.progress import progress
from deconvnet.settings import Evaluation
from experiment.claims import cells
from experiment.cli import run
from experiment.machine import cores

SCHEMA = pa.schema(
    {"image_id": pa.string(), "system": pa.string(), "region": pa.string()}
    | {name: pa.list_(pa.int32()) for name in ("right", "true", "predicted")}
    | {"labels": pa.binary()}
)


def infer(cell: cells.Cell, system: str, model: Path) -> Path:
    """Scores of a model in a cell: their folder."""
    cells.link(cell / f"data/models/{system}.pt", model)
    cell.workflow("infer", system)
    return cell / f"data/scores/{system}"


def deconvnet(claims: cells.Claims, name: str, seed: int) -> tuple[cells.Cell, Path | None]:
    """A variant's cell and the scores of its DeconvNet, batch norm re-estimated; None: its training diverged."""
    cell, trained = cells.variant(claims, name, seed)
    model, final = Path(f"data/models/{name}-{seed}.pt"), "data/models/reestimated.pt"
    if not model.stat().st_size:
        return cell, None
    if cell.params.train.batch_norm_eps is None:
        return cell, infer(cell, "deconvnet", model)
    if not (cell / "data/crops").exists():
        cells.crops(cell)
    cell.module("reestimate", "--model", str(model.absolute()), "--dataset", "data/dataset",
                "--crops", f"data/crops/{trained[-1]}.parquet", "--out", final)  # fmt: skip
    return cell, infer(cell, "deconvnet", cell / final)


def systems(claims: cells.Claims, seed: int) -> Iterator[tuple[str, Path]]:
    """Every system made of one seed's nets, by name, with the folder of its shards; none if a training diverged.

    What is made of them with other settings lies in cells of its own.
    """
    own, scored = deconvnet(claims, cells.REFERENCE, seed)
    model, fcn = (Path(f"data/models/{net}-{seed}.pt") for net in (cells.REFERENCE, "fcn8s"))
    if scored is None or not fcn.stat().st_size:
        return
    yield "deconvnet", scored
    yield "fcn8s", infer(own, "fcn8s", fcn)
    own.workflow("ensemble", "edeconvnet")
    yield "edeconvnet", own / "data/scores/edeconvnet"

    def apart(suffix: str, changes: dict | None = None, shared: dict[str, Path] | None = None) -> cells.Cell:
        return cells.Cell(claims, f"{own.folder.name}-{suffix}", {"training": {"seed": seed}} | (changes or {}), shared)

    def ensemble(cell: cells.Cell) -> Path:
        cell.workflow("ensemble", "edeconvnet")
        return cell / "data/scores/edeconvnet"

    made = {f"scores/{key}": own / f"data/scores/{key}" for key in ("deconvnet", "fcn8s", "edeconvnet")}
    members = {place: folder for place, folder in made.items() if folder.name != "edeconvnet"}
    yield "product", ensemble(apart("product", {"ensemble": {"method": "product"}}, members))
    for norm in ("none", "symmetric"):
        cell = apart(f"crf-{norm}", {"crf": {"normalization": norm}}, made)
        for key in ("fcn8s", "deconvnet", "edeconvnet"):
            cell.workflow("crf", key)
            yield f"{key}_crf_{norm}", cell / f"data/labels/{key}_crf"

    other = claims.seeds[(claims.seeds.index(seed) + 1) % len(claims.seeds)]
    second = deconvnet(claims, cells.REFERENCE, other)[1] if other != seed else None
    if second:
        yield "pair", ensemble(apart("pair", shared={"scores/deconvnet": scored, "scores/fcn8s": second}))

    final = (own / "data/models/deconvnet.pt").resolve()
    yield "average", infer(apart("average", {"infer": {"deconvnet": {"aggregation": "average"}}}), "deconvnet", final)
    drawn = cells.CELLS / f"{own.folder.name}-random/data/drawn"
    for shard in sorted((own / "data/dataset").glob(f"{own.params.evaluate.split}-*.parquet")):
        boxes = random_boxes.propose(tables.read(shard, ["image_id", "height", "width"]), own.params.proposals, seed)
        tables.write(drawn / shard.name, boxes)
    yield "random", infer(apart("random", shared={"proposals": drawn}), "deconvnet", final)
    if own.params.train.batch_norm_eps is not None:
        yield "not_reestimated", infer(apart("plain"), "deconvnet", model)


def count(cell: cells.Cell, folders: dict[str, Path], measures: cells.Measures) -> pa.Table:
    """The table of what `folders` hold: labels by system, and those after each number of proposals where it grows."""
    params = cell.params
    classes, split = len(params.dataset.classes), params.evaluate.split
    chosen = Evaluation(split, list(measures.sizes), list(measures.boundary))
    names = sorted(path.name for path in (cell / "data/dataset").glob(f"{split}-*.parquet"))

    def one(row: dict, found: dict[str, dict]) -> list[tuple]:
        masks = decode_mask(row["class_mask"]), decode_mask(row["instance_mask"])
        rows = []
        for system, source in found.items():
            said = decode_mask(source["labels"])
            counted = regions.count(row, *masks, said, classes, chosen, measures.thin)
            rows += [(row["image_id"], system, region, *parts.tolist(), source["labels"] if region == "all" else None)
                     for region, parts in counted.items()]  # fmt: skip
            for number, data in zip(params.infer.growth, source.get("growth") or [], strict=False):
                grown = regions.count(row, *masks, decode_mask(data), classes, chosen, measures.thin)["all"]
                rows.append((row["image_id"], f"{system} after {number}", "all", *grown.tolist(), None))
        return rows

    rows, columns = [], ["image_id", "labels"]
    with ThreadPoolExecutor(cores()) as pool, progress(unit="image", desc=f"count {cell.folder.name}") as bar:
        for name in names:
            shard = cell / "data/dataset" / name
            tables_of = {}
            for system, folder in folders.items():
                more = ["growth"] if folder.parent.name == "scores" else []
                tables_of[system] = scores.read(folder / name, shard, [*columns, *more])
            found = [dict(zip(tables_of, each, strict=True)) for each in zip(*tables_of.values(), strict=True)]
            for some in pool.map(one, tables.read(shard).to_pylist(), found):
                rows += some
                bar.update()
    return pa.Table.from_arrays(
        [pa.array(column, field.type) for column, field in zip(zip(*rows, strict=True), SCHEMA, strict=True)],
        schema=SCHEMA,
    )


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiment.claims.measure",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    one, every = commands.add_parser("variant"), commands.add_parser("systems")
    one.add_argument("variant")
    for command in (one, every):
        command.add_argument("seed", type=int)
        command.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    claims = cells.load()
    cv2.setNumThreads(1)  # the images share the cores
    name = getattr(options, "variant", cells.REFERENCE)
    if options.command == "systems":
        folders = dict(systems(claims, options.seed))
    else:
        scored = deconvnet(claims, name, options.seed)[1]
        folders = {"deconvnet": scored} if scored else {}
    cell, _ = cells.variant(claims, name, options.seed)
    table = count(cell, folders, claims.measures) if folders else SCHEMA.empty_table()
    tables.write(options.out, table)
    print(f"{options.out}: {len(table['image_id'].unique())} images, {len(folders)} systems")


if __name__ == "__main__":
    run(main)
