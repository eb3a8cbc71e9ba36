"""Reports as the page reads them: columns, types and ranges checked, so that nothing behind it meets anything else."""

import io
import json
from pathlib import Path

import numpy as np
import pandas as pd

from deconvnet import metrics as pixels
from deconvnet.errors import InputError
from deconvnet.files import read_plain
from deconvnet.systems import SYSTEMS
from experiment.report.numbers import DIGITS

MOST = 64 << 20  # bytes of a report
SHARE, SIGNED, COUNT, NUMBER = (0, 1), (-1, 1), (0, 2**53), (0, 1e30)
SIZES = ("small", "medium", "large")
OF_SYSTEMS = dict.fromkeys(SYSTEMS, SHARE)
CURVES = {"step": COUNT, "lr": NUMBER, "loss": NUMBER, "held_out_loss": NUMBER} | dict.fromkeys(
    ("held_out_accuracy", "held_out_mean_iou"), SHARE
)
CROPS = {"class": str} | dict.fromkeys(("objects", "windows", "used", "examples"), COUNT)
# Columns by report: text, or the range of the numbers, both ends included. Counts are whole, and there for every row.
COLUMNS = {
    "per_class": {"class": str} | OF_SYSTEMS,
    "confusion": {"system": str, "truth": str, "predicted": str, "pixels": COUNT},
    "sizes": {"system": str} | dict.fromkeys(SIZES, SHARE),
    "boundary": {"width": COUNT} | OF_SYSTEMS,
    "growth": {"proposals": COUNT, "mean_iou": SHARE, "pixel_accuracy": SHARE},
    "intervals": {"system": str, "minus": str, "mean_iou": SIGNED, "low": SIGNED, "high": SIGNED},
    "proposals": {"boxes": COUNT},
    "crops_stage1": CROPS, "crops_stage2": CROPS,
    "pretrain": CURVES, "train_stage1": CURVES, "train_stage2": CURVES, "train_fcn": CURVES,
}  # fmt: skip
ASCENDING = {"boundary": "width", "proposals": "boxes"} | {
    name: "step" for name, columns in COLUMNS.items() if columns is CURVES
}


def report(path: Path, stage: str) -> pd.DataFrame | dict:
    """A report, CSV or JSON. Raises InputError for one that `stage` did not make so."""
    data = read_plain(path, MOST)
    try:
        if path.suffix == ".json":
            found = json.loads(data.decode("utf-8"))
            check_metrics(found)
            return found
        texts = {column: str for column, kind in COLUMNS[path.stem].items() if kind is str}
        table = pd.read_csv(io.BytesIO(data), encoding="utf-8", dtype=texts, keep_default_na=False, na_values=[""])
        check_table(table, path.stem)
        return table
    except (ValueError, KeyError, TypeError, RecursionError, pd.errors.ParserError) as error:
        said = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: not as it was written ({said}); run `dvc repro {stage}`") from None


def check_table(table: pd.DataFrame, name: str) -> None:
    """Raise ValueError unless the report of this name has its columns, and they their values."""
    columns = COLUMNS[name]
    if name == "proposals":
        columns = columns | {column: SHARE for column in table if column.startswith("recall_iou_")}
        for column in columns.keys() - {"boxes"}:
            float(column.removeprefix("recall_iou_"))
    if columns is CURVES and not len(table):
        return  # nothing was trained
    if list(table.columns) != list(columns):
        raise ValueError(f"columns {', '.join(map(str, table.columns))}, not {', '.join(columns)}")
    if not len(table):
        raise ValueError("no rows")
    for column, kind in columns.items():
        if kind is str:
            if column != "minus" and table[column].isna().any():
                raise ValueError(f"{column}: empty")
            continue
        table[column] = pd.to_numeric(table[column])
        values = table[column].to_numpy(float)
        known = values[~np.isnan(values)]
        if len(known) and not (kind[0] <= known.min() and known.max() <= kind[1]):
            raise ValueError(f"{column}: {known.min():g} to {known.max():g}; allowed: {kind[0]} to {kind[1]:g}")
        if kind is COUNT and (len(known) < len(values) or (known != np.rint(known)).any()):
            raise ValueError(f"{column}: not whole numbers")
        if column in ("lr", "loss", "low", "high") and name != "intervals" and len(known) < len(values):
            raise ValueError(f"{column}: empty")
    if (column := ASCENDING.get(name)) and (np.diff(table[column]) <= 0).any():
        raise ValueError(f"{column}: not ascending")
    if "system" in columns and (strange := set(table["system"]) ^ SYSTEMS.keys()):
        raise ValueError(f"system: see {min(strange)}")
    key = [column for column, kind in columns.items() if kind is str]
    if key and table.duplicated(key).any():
        raise ValueError(f"{', '.join(key)}: a row is there twice")


def check_agreement(found: dict[str, pd.DataFrame | dict], classes: list[str]) -> None:
    """Raise ValueError where a report of `evaluate` says another number than confusion.csv or metrics.json has."""
    metrics, confusion = found["metrics"], found["confusion"].set_index(["system", "truth", "predicted"])["pixels"]
    everyone = pd.MultiIndex.from_product([SYSTEMS, classes, classes])
    if len(confusion) != len(everyone):
        raise ValueError("confusion.csv: not a row for every pair of classes")
    matrices = confusion.loc[everyone].to_numpy().reshape(len(SYSTEMS), len(classes), len(classes))
    ious, per_class = pixels.ious(matrices), found["per_class"].set_index("class").loc[classes]
    sizes, near = found["sizes"].set_index("system"), found["boundary"].iloc[0]
    intervals = {(row.system, row.minus): row for row in found["intervals"].fillna("").itertuples()}
    mean_iou = dict(zip(SYSTEMS, pixels.mean(ious), strict=True))
    for at, key in enumerate(SYSTEMS):
        own = metrics[key]
        for name, said, other in [
            ("per_class.csv", per_class[key], ious[at]),
            ("metrics.json: mean_iou", own["mean_iou"], mean_iou[key]),
            ("metrics.json: pixel_accuracy", own["pixel_accuracy"], pixels.accuracy(matrices[at])),
            ("sizes.csv", sizes.loc[key, list(SIZES)], [own[size] for size in SIZES]),
            ("boundary.csv", near[key], own["boundary"]),
        ]:
            _same(f"{name}: {key}", said, other)
        if (key, "") not in intervals:
            raise ValueError(f"intervals.csv: lacks {key}")
    for (system, minus), row in intervals.items():
        _same(f"intervals.csv: {system}", row.mean_iou, mean_iou[system] - (mean_iou[minus] if minus else 0))


def _same(name: str, said: object, other: object) -> None:
    if not np.allclose(np.array(said, float), np.array(other, float), rtol=0, atol=2 * 10**-DIGITS, equal_nan=True):
        raise ValueError(f"{name}: not what the other reports say")


def check_metrics(found: object) -> None:
    """Raise ValueError, KeyError or TypeError unless metrics.json has its numbers."""
    if not isinstance(found, dict):
        raise TypeError("no dictionary")
    if lacking := SYSTEMS.keys() - found.keys():
        raise ValueError(f"lacks {min(lacking)}")
    counts = [found["images"], found["images_without_proposals"], *(found["objects"][size] for size in SIZES)]
    if not all(isinstance(count, int) and not isinstance(count, bool) and count >= 0 for count in counts):
        raise ValueError("a count is no whole number")
    for system in SYSTEMS:
        for name in ("mean_iou", "pixel_accuracy", *SIZES, "boundary"):
            value = found[system][name]
            if value is not None and (not isinstance(value, (int, float)) or not 0 <= value <= 1):
                raise ValueError(f"{system}: {name}: {value!r}")
        if len(found[system]) != 6:
            raise ValueError(f"{system}: other entries than its six")
