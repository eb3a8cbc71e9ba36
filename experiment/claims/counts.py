"""What the cells counted, read back for the comparisons."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd

from deconvnet import tables
from deconvnet.bootstrap import interval, mean_ious
from deconvnet.comparison import Difference, difference, verdict
from deconvnet.metrics import divide, mean
from experiment.claims.cells import Rule
from experiment.claims.comparisons import Comparison, Shown

PIXELS = ("right", "true", "predicted")


@dataclasses.dataclass(frozen=True)
class Row:
    """A comparison and what came out. `found` is None where a training diverged."""

    asked: Comparison
    found: Difference | None
    verdict: str


class Counts:
    """The tables of a folder (experiment.claims.measure's), of all seeds."""

    def __init__(self, folder: Path, seeds: list[int]):
        self.folder, self.seeds, self.kept = folder, seeds, {}

    def rows(self, shown: Shown) -> list[pd.DataFrame] | None:
        """Of each seed the rows by image id, sorted; None where a training diverged or the system was not made."""
        if shown.table not in self.kept:
            found = [tables.read(self.folder / f"{shown.table}-{seed}.parquet").to_pandas() for seed in self.seeds]
            self.kept[shown.table] = [dict(list(table.groupby(["system", "region"]))) for table in found]
        found = [groups.get((shown.system, shown.region)) for groups in self.kept[shown.table]]
        return (
            None if any(each is None for each in found) else [own.set_index("image_id").sort_index() for own in found]
        )

    def pixels(self, shown: Shown) -> np.ndarray | None:
        """int (N, seeds, 3, C) as of `bootstrap.parts`, or None."""
        rows = self.rows(shown)
        if rows is None:
            return None
        return np.stack([np.stack([np.stack(own[name]) for name in PIXELS], 1) for own in rows], 1)

    def seeds_of(self, shown: Shown) -> np.ndarray | None:
        """Mean IoU in % of each seed."""
        pixels = self.pixels(shown)
        return None if pixels is None else 100 * mean_ious(pixels.sum(0, keepdims=True), 1)[0]

    def image_ious(self, shown: Shown) -> pd.Series:
        """Mean IoU of each image over the classes that are there, of the first seed."""
        own = self.rows(shown)[0]
        right, true, predicted = (np.stack(own[name]) for name in PIXELS)
        return pd.Series(mean(divide(right, np.where(true > 0, true + predicted - right, 0))), own.index)


def compare(counts: Counts, asked: list[Comparison], rule: Rule) -> list[Row]:
    """Every comparison both of whose sides were made. One that diverged loses against one that did not."""
    rows = []
    for each in asked:
        one, other = counts.pixels(each.one), counts.pixels(each.other)
        if one is not None and other is not None:
            found = difference(one, other, rule.rounds)
            rows.append(Row(each, found, verdict(found, rule.margin)))
        elif one is not None or other is not None:
            rows.append(Row(each, None, "holds" if other is None else "does not hold"))
    return rows


def levels(counts: Counts, asked: list[Comparison], rounds: int) -> pd.DataFrame:
    """Mean IoU in % of everything compared: over seeds, its deviation, the interval of the mean, each seed's."""
    rows = []
    for shown in dict.fromkeys(each for row in asked for each in (row.one, row.other)):
        pixels = counts.pixels(shown)
        if pixels is None:
            continue
        seeds = counts.seeds_of(shown)
        low, high = 100 * interval(mean_ious(pixels, rounds).mean(1))
        deviation = seeds.std(ddof=1) if len(seeds) > 1 else np.nan
        rows.append(
            (*dataclasses.astuple(shown), seeds.mean(), deviation, low, high, " ".join(f"{x:.2f}" for x in seeds))
        )
    columns = ["table", "system", "region", "mean_iou", "deviation", "low", "high", "seeds"]
    return pd.DataFrame(rows, columns=columns).round(3)
