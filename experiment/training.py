"""What the training stages share: their arguments, and the files that a training leaves."""

import argparse
import json
from pathlib import Path

import pandas as pd
from torch import nn

from deconvnet.files import together, whole
from deconvnet.nets import files
from deconvnet.training.loop import COLUMNS, Result


def parser(stage: str, description: str) -> argparse.ArgumentParser:
    """The arguments that every training stage takes."""
    parser = argparse.ArgumentParser(
        prog=f"python -m stages.{stage}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", type=Path, required=True, help="folder of the data set's shards")
    parser.add_argument("--crops", type=Path, required=True, help="table of windows, parquet")
    parser.add_argument("--out", type=Path, required=True, help="model with the best held-out mean IoU")
    parser.add_argument("--last", type=Path, help="model after the last step")
    parser.add_argument("--curves", type=Path, required=True, help="training curves, CSV")
    parser.add_argument("--metrics", type=Path, required=True, help="held-out metrics of the best model, JSON")
    parser.add_argument(
        "--checkpoints", type=Path, required=True,
        help="folder to resume from; kept at the end, so that a finished training is not repeated",
    )  # fmt: skip
    parser.add_argument("--params", type=Path, default="params.yaml", help="parameter file (YAML or JSON)")
    return parser


def pretrained(net: nn.Module) -> set[str]:
    """Names of the parameters of VGG-16's convolutions; fc6 and fc7 often start fresh, as their size is another."""
    return {name for name, _ in net.named_parameters() if name.startswith("encoder.conv")}


def write(result: Result, spec: dict, about: dict, options: argparse.Namespace) -> None:
    """Write the model files, curves and metrics of a training. about: what inference needs beside the net."""
    about = about | {"provenance": result.provenance}
    with together():
        files.save(options.out, spec, result.best, about | {"metrics": result.metrics})
        if options.last:
            files.save(options.last, spec, result.last, about | {"metrics": result.last_metrics})
        write_curves(options.curves, result.curves)
        write_metrics(options.metrics, options.out.stem, result.metrics)


def write_curves(path: Path, curves: pd.DataFrame | None = None) -> None:
    """The curves of `Result`, for `dvc plots`; None: nothing was trained."""
    with whole(path) as file:
        (pd.DataFrame(columns=COLUMNS) if curves is None else curves).to_csv(file, index=False, float_format="%.6g")


def write_metrics(path: Path, model: str, metrics: dict[str, float]) -> None:
    """The file for `dvc metrics`: mean IoU on held-out crops by model; empty where there is none.

    The name stands alone in DVC's tables, which have a column for every number.
    """
    held_out = {model: round(metrics["mean_iou"], 4)} if "mean_iou" in metrics else {}
    with whole(path) as file:
        file.write_text(json.dumps({"held_out": held_out}, indent=2) + "\n", encoding="utf-8")
