"""Figures of the claims' page, as bytes of SVG and PNG files."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure

from deconvnet import tables
from deconvnet.comparison import VERDICTS
from deconvnet.images import decode_image, decode_mask
from experiment.claims.comparisons import Comparison, Shown
from experiment.claims.counts import Counts, Row
from experiment.report.charts import STYLE
from experiment.report.galleries import sheet
from experiment.report.pictures import Cell, fit, mask, photo

COLOURS = {"holds": "#009e73", "does not hold": "#d55e00", "undecided": "#7f7f7f"}
MARKERS = {"holds": "o", "does not hold": "X", "undecided": "D"}  # for those who do not see the colour
EXAMPLES, SIDE = 4, 200  # images that say why a claim does not hold; px of their longer side


def svg(draw: Callable[[Figure], None]) -> bytes:
    buffer = io.BytesIO()
    with rc_context(STYLE | {"svg.hashsalt": "claims"}):
        draw(figure := Figure(layout="constrained"))
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def _ladder(figure: Figure, names: list[str], label: str):
    """Axes with a name on each row, the first on top."""
    figure.set_size_inches(8.5, 1 + 0.27 * len(names))
    axes = figure.subplots()
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(f"{label}\nmean over seeds, 95 % interval over images, | each seed", fontsize=9)
    return axes


def _mark(axes, place: int, low: float, high: float, mean: float, seeds: list[float], colour: str, marker: str) -> None:
    axes.plot([low, high], [place] * 2, color=colour, linewidth=2)
    axes.plot(mean, place, marker, color=colour, markersize=7)
    axes.plot(seeds, [place] * len(seeds), "|", color="#1a1a1a", markersize=7)


def forest(rows: list[Row]) -> bytes:
    """Every difference with its interval and its seeds."""

    def draw(figure: Figure) -> None:
        names = [f"({row.asked.letter}) {row.asked.name}" + " *" * row.asked.control for row in rows]
        axes = _ladder(figure, names, "difference in points of mean IoU")
        axes.axvline(0, color="#1a1a1a", linewidth=1)
        for place, row in enumerate(rows):
            colour, found = COLOURS[row.verdict], row.found
            if found is None:
                axes.text(0, place, " diverged", va="center", fontsize=8, color=colour)
            else:
                _mark(axes, place, found.low, found.high, found.mean, found.seeds, colour, MARKERS[row.verdict])
        for name in VERDICTS:
            axes.plot([], [], MARKERS[name], color=COLOURS[name], label=name)
        figure.legend(loc="outside lower center", ncols=3)

    return svg(draw)


def dots(levels: pd.DataFrame, names: list[str]) -> bytes:
    """Mean IoU of what a claim compares: rows of `counts.levels`."""

    def draw(figure: Figure) -> None:
        axes = _ladder(figure, names, "mean IoU (%)")
        for place, row in enumerate(levels.itertuples()):
            _mark(axes, place, row.low, row.high, row.mean_iou, [*map(float, row.seeds.split())], "#0072b2", "o")

    return svg(draw)


def lines(counts: Counts, points: dict[str, list[tuple[float, Shown]]], label: str, logarithmic: bool) -> bytes:
    """Mean IoU along an axis: a line for each name, a thin one for each seed."""

    def draw(figure: Figure) -> None:
        figure.set_size_inches(6.5, 4)
        axes, axis = figure.subplots(), ()
        for (name, own), colour, marker in zip(points.items(), ("#0072b2", "#d55e00", "#009e73"), "osD", strict=False):
            found = [(x, counts.seeds_of(shown)) for x, shown in own]
            found = [(x, seeds) for x, seeds in found if seeds is not None]
            if found:
                axis, values = zip(*found, strict=True)
                axes.plot(axis, np.array(values), color=colour, linewidth=0.6, alpha=0.6)
                axes.plot(axis, np.mean(values, 1), color=colour, marker=marker, label=name)
                axes.set_xticks(axis, [f"{x:g}" for x in axis])
        if logarithmic:
            axes.set_xscale("log")
            axes.set_xticks(axis, [f"{x:g}" for x in axis])
        axes.set_xticks([], minor=True)
        axes.set(xlabel=label, ylabel="mean IoU (%)")
        figure.legend(loc="outside lower center", ncols=3)

    return svg(draw)


def why(counts: Counts, asked: Comparison, dataset: Path, split: str) -> bytes | None:
    """PNG of the images on which the first seed speaks most against a claim: image, truth, labels of both sides.

    None where one side's labels were not kept.
    """
    labels = [counts.rows(Shown(shown.table, shown.system)) for shown in (asked.one, asked.other)]
    if any(rows is None or rows[0]["labels"].isna().any() for rows in labels):
        return None
    gains = (counts.image_ious(asked.one) - counts.image_ious(asked.other)).dropna().sort_values()
    chosen, pictures = list(gains.index[:EXAMPLES]), {}
    one, _, other = asked.name.partition(" over ")
    names = "image", "truth", one, other.split(",")[0]
    for shard in sorted(dataset.glob(f"{split}-*.parquet")):
        table = tables.read(shard, ["image_id", "image", "class_mask"]).to_pandas().set_index("image_id")
        for image_id in set(chosen) & set(table.index):
            row = table.loc[image_id]
            shown = [photo(fit(decode_image(row["image"]), SIDE)), mask(decode_mask(row["class_mask"]), SIDE)]
            shown += [mask(decode_mask(rows[0].loc[image_id, "labels"]), SIDE) for rows in labels]
            pictures[image_id] = [Cell(name, "", "", picture) for name, picture in zip(names, shown, strict=True)]
    return sheet([pictures[image_id] for image_id in chosen])
