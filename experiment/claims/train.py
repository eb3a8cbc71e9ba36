"""One training of the claims, in a cell of its own (experiment/claims/cells.py): python -m experiment.claims.train ...

    rate bilinear 0.05 --out data/rates/bilinear-0.05.json   a variant's stage 2 alone, at one learning rate, held out
    rates --out data/rates.json                              the best rate of each variant that tried some
    train bilinear 1 --out data/models/bilinear-1.pt         a variant of DeconvNet, with a seed
    fcn8s 1 --out data/models/fcn8s-1.pt                     FCN-8s, with a seed

A training that diverges is a result: its model file is empty, its held-out mean IoU null.
"""

import argparse
import json
import shutil
from pathlib import Path

import pandas as pd

from deconvnet.errors import InputError
from deconvnet.files import whole
from experiment.claims import cells
from experiment.cli import run


def train(cell: cells.Cell, trained: list[str]) -> Path | None:
    """Train DeconvNet by the stages named; the model, or None: it diverged. Stage 2 alone starts from the encoder."""
    (cell / "data/models").mkdir(parents=True, exist_ok=True)
    if not (cell / "data/crops").is_symlink():
        cells.crops(cell)
    if trained == ["stage2"]:
        cells.link(cell / "data/models/stage1.pt", cell / "data/weights/encoder.pt")
    try:
        for stage in trained:
            cell.workflow("train", stage)
    except cells.Diverged:
        return None
    return cell / f"data/models/{trained[-1]}.pt"


def keep(model: Path | None, out: Path) -> None:
    """Copy a model out of its cell; an empty file for none."""
    with whole(out) as file:
        file.touch() if model is None else shutil.copyfile(model, file)


def held_out(cell: cells.Cell) -> dict[str, float]:
    """Of stage 2 at its last validation: `held_out_loss`, `held_out_mean_iou`."""
    last = pd.read_csv(cell / "reports/train_stage2.csv").dropna().iloc[-1]
    return {name: float(last[name]) for name in ("held_out_loss", "held_out_mean_iou")}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiment.claims.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    rate, best, one, fcn = (commands.add_parser(name) for name in ("rate", "rates", "train", "fcn8s"))
    for command in (rate, one):
        command.add_argument("variant")
    rate.add_argument("lr", type=float)
    for command in (one, fcn):
        command.add_argument("seed", type=int)
    for command in (rate, best, one, fcn):
        command.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    claims = cells.load()
    if options.command == "rate":
        cell = cells.rate(claims, options.variant, options.lr)
        found = held_out(cell) if train(cell, ["stage2"]) else dict.fromkeys(("held_out_loss", "held_out_mean_iou"))
        write(options.out, {"variant": options.variant, "lr": options.lr} | found)
    elif options.command == "rates":
        found = [json.loads(path.read_text()) for path in sorted(options.out.with_suffix("").glob("*.json"))]
        lrs, variants = claims.rates.tried, claims.rates.variants
        tried = [one for one in found if one["lr"] in lrs and one.get("variant") in variants]  # no older ones
        write(options.out, {"chosen": choose(tried, variants), "tried": tried})
    elif options.command == "train":
        keep(train(*cells.variant(claims, options.variant, options.seed)), options.out)
    else:
        cell = cells.Cell(claims, f"fcn8s-{options.seed}", {"training": {"seed": options.seed}})
        try:
            cell.workflow("train_fcn")
            keep(cell / "data/models/fcn8s.pt", options.out)
        except cells.Diverged:
            keep(None, options.out)


def choose(tried: list[dict], variants: list[str]) -> dict[str, float]:
    """The rate of each variant with the best held-out mean IoU; of equal ones the one with the lower held-out loss."""
    chosen = {}
    for variant in variants:
        own = [trial for trial in tried if trial["variant"] == variant and trial["held_out_mean_iou"] is not None]
        if not own:
            raise InputError(f"data/rates: every rate tried for {variant} diverged; add lower ones to rates.tried")
        chosen[variant] = min(own, key=lambda trial: (-trial["held_out_mean_iou"], trial["held_out_loss"]))["lr"]
    return chosen


def write(path: Path, values: dict) -> None:
    with whole(path) as file:
        file.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run(main)
