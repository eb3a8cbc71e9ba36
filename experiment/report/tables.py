"""Tables of the page, as values and as text."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from deconvnet.images import VOC_CLASSES
from deconvnet.systems import SYSTEMS
from experiment.report import paper
from experiment.report.numbers import DASH, gain, percent, points, shown, signed


@dataclass(frozen=True)
class Row:
    label: str
    kind: str  # ours, paper or delta
    values: list[float | None]  # % (delta: points): the mean, then every class


def results(per_class: pd.DataFrame, metrics: dict, classes: list[str]) -> list[Row]:
    """Our rows; where the classes are VOC's, each is followed by the paper's and the difference."""
    rows = []
    for key, system in SYSTEMS.items():
        own = per_class.set_index("class")[key].reindex(classes)
        ours = [points(value) for value in [metrics[key]["mean_iou"], *own]]
        rows.append(Row(system.name, "ours", ours))
        if key in paper.TABLE and tuple(classes) == VOC_CLASSES:
            theirs = paper.TABLE[key]
            rows.append(Row("paper, test server", "paper", theirs))
            rows.append(Row("difference", "delta", [gain(*pair) for pair in zip(ours, theirs, strict=True)]))
    return rows


def tops(rows: list[Row]) -> list[float | None]:
    """The largest of our values in every column."""
    columns = zip(*(row.values for row in rows if row.kind == "ours"), strict=True)
    return [max((value for value in column if value is not None), default=None) for column in columns]


def row_shares(confusion: pd.DataFrame, system: str, classes: list[str]) -> np.ndarray:
    """(C, C) shares of each true class's pixels by predicted class; nan for a class that the truth lacks."""
    own = confusion[confusion["system"] == system].pivot(index="truth", columns="predicted", values="pixels")
    counts = own.reindex(index=classes, columns=classes).fillna(0).to_numpy(float)
    total = counts.sum(1, keepdims=True)
    return np.divide(counts, total, out=np.full_like(counts, np.nan), where=total > 0)


def summary(metrics: dict) -> pd.DataFrame:
    """All metrics of all systems, in %, as text."""
    return pd.DataFrame(
        [{"system": key} | {name: percent(value) for name, value in metrics[key].items()} for key in SYSTEMS]
    )


def intervals(table: pd.DataFrame) -> dict[str, str]:
    """The 95 % intervals of intervals.csv as text, in %, by system; those of differences by "SYSTEM over OTHER"."""
    found = {}
    for row in table.fillna({"minus": ""}).itertuples():
        name, write = (f"{row.system} over {row.minus}", signed) if row.minus else (row.system, shown)
        found[name] = f"{write(points(row.low))} to {write(points(row.high))}"
    return found


def listed(table: pd.DataFrame) -> dict:
    """A table as text for the page: `columns` and `rows`."""

    def text(value) -> str:
        if isinstance(value, str):
            return SYSTEMS[value].name if value in SYSTEMS else value
        if pd.isna(value):
            return DASH
        return f"{value:.4g}" if isinstance(value, float) and abs(value) < 1000 else f"{value:,.0f}"

    return {
        "columns": [text(name).replace("_", " ").replace("iou", "IoU") for name in table.columns],
        "rows": [[text(value) for value in row] for row in table.itertuples(index=False)],
    }
