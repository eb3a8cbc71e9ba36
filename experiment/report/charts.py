"""Charts of the page: SVG, with their finding in words and their numbers as a table."""

import functools
import io
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from deconvnet.systems import GROWING, SYSTEMS
from experiment.report.numbers import percent
from experiment.report.pictures import uri
from experiment.report.tables import listed

STYLE = {
    "svg.hashsalt": "report", "font.family": "DejaVu Sans", "font.size": 10, "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "grid.color": "#e3e3e3", "axes.axisbelow": True,
    "legend.frameon": False, "legend.fontsize": 9, "lines.linewidth": 1.6, "lines.markersize": 4.5,
    "hatch.linewidth": 0.8,
}  # fmt: skip


@dataclass(frozen=True)
class Look:
    colour: str  # Okabe and Ito's, which any colour vision tells apart
    marker: str
    refined: bool = False  # by the CRF: a dash or a hatch, in the colour of the system that it refines


LOOKS = {
    "stage1": Look("#7f7f7f", "x"),
    "fcn8s": Look("#d55e00", "s"),
    "deconvnet": Look("#0072b2", "o"),
    "edeconvnet": Look("#009e73", "D"),
}
OTHERS = (Look("#cc79a7", "v"), Look("#e69f00", "^"), Look("#56b4e9", "P"), Look("#1a1a1a", "*"))  # in turn


def look(key: str) -> Look:
    """A system's look. One that has none here gets one of OTHERS."""
    base = SYSTEMS[key].crf or key
    others = [name for name, system in SYSTEMS.items() if name not in LOOKS and not system.crf]
    found = LOOKS.get(base) or OTHERS[others.index(base) % len(OTHERS)]
    return Look(found.colour, found.marker, SYSTEMS[key].crf is not None)


@dataclass(frozen=True)
class Chart:
    title: str
    message: str  # in numbers: what a reader sees without the image
    source: str  # data URI
    table: dict  # of `listed`


def chart(draw):
    """Make of `draw(figure, table, ...)`, which returns the message, a function of (title, table, ...) -> Chart."""

    @functools.wraps(draw)
    def wrapped(title: str, table: pd.DataFrame, *more) -> Chart:
        buffer = io.BytesIO()
        with rc_context(STYLE):
            figure = Figure(figsize=(4.8, 3.6), layout="constrained")
            message = draw(figure, table, *more)
            figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
        return Chart(title, message, uri(buffer.getvalue(), "svg+xml"), listed(table))

    return wrapped


def number_axis(axes, values, label: str, base: float = 10) -> None:
    """A logarithmic x axis, marked at the very values."""
    axes.set_xscale("log", base=base)
    axes.set_xticks(list(values))
    axes.set_xticks([], minor=True)
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.set_xlabel(label)


def drop_steps(curves: pd.DataFrame, drop_at: list[int] | str) -> list[int]:
    """Steps at which the learning rate dropped: those of `drop_at` that were reached, none under a cosine.

    For `plateau`: the step of the validation that made it drop, which is the row before the first one with a lower
    learning rate. The warm-up only raises it.
    """
    if drop_at == "plateau":
        return curves["step"].shift()[curves["lr"].diff() < 0].astype(int).tolist()
    if drop_at == "cosine":
        return []
    return [step for step in drop_at if step < curves["step"].max()]


@chart
def training(figure: Figure, curves: pd.DataFrame, drop_at: list[int] | str) -> str:
    figure.set_size_inches(4.8, 4.8)
    loss, accuracy = figure.subplots(2, sharex=True)
    held_out = 100 * curves["held_out_mean_iou"]
    loss.plot(curves["step"], curves["loss"], color="#7f7f7f", linestyle="--", label="training")
    for step in drop_steps(curves, drop_at):
        for axes in (loss, accuracy):
            axes.axvline(step, color="#808080", linewidth=1, linestyle=":")
    first, last = curves.iloc[0], curves.iloc[-1]
    losses = f"the training loss from {first['loss']:.3g} at step {first['step']:,.0f} to {last['loss']:.3g}"
    accuracy.set_xlabel("step (updates)")
    loss.set_ylabel("loss (nats)")
    if held_out.isna().all():
        loss.legend()
        return f"No image was held out; {losses}."
    loss.plot(curves["step"], curves["held_out_loss"], color="#1a1a1a", marker="o", label="held out")
    loss.legend()
    accuracy.plot(curves["step"], held_out, color="#1a1a1a", marker="o")
    accuracy.set(ylabel="mean IoU (%)\nheld out", ylim=(0, 1.08 * held_out.max() or 1))
    best = curves.loc[held_out.idxmax()]
    return (
        f"Held-out mean IoU goes from {percent(first['held_out_mean_iou'])} % at step {first['step']:,.0f} to "
        f"{percent(best['held_out_mean_iou'])} % at step {best['step']:,.0f}, its best; {losses}."
    )


@chart
def recall(figure: Figure, table: pd.DataFrame) -> str:
    axes = figure.subplots()
    for name, line in zip(table.columns[1:], ("o-", "s--", "D:", "^-.") * 9, strict=False):
        axes.plot(table["boxes"], 100 * table[name], line, color="#1a1a1a", label=f"IoU {name.split('_')[-1]}")
    number_axis(axes, table["boxes"], "proposals per image")
    axes.set(ylabel="objects found (%)", ylim=(0, 100))
    axes.legend(loc="lower right")
    found = [f"{percent(table[name].iloc[-1])} % at IoU {name.split('_')[-1]}" for name in table.columns[1:]]
    return f"{table['boxes'].iloc[-1]:,} proposals per image find, of all objects, {', '.join(found)}."


@chart
def balance(figure: Figure, table: pd.DataFrame) -> str:
    figure.set_size_inches(4.8, 1.2 + 0.26 * len(table))
    axes, place = figure.subplots(), np.arange(len(table))
    axes.barh(place - 0.2, table["windows"], 0.38, color="#b0b0b0", hatch="////", edgecolor="white", label="before")
    axes.barh(place + 0.2, table["examples"], 0.38, color="#404040", label="after")
    axes.set_yticks(place, table["class"], parse_math=False)  # a class may be named $x$
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("windows before, examples after")
    figure.legend(loc="outside lower center", ncols=2)
    before, after = (
        [f"{value:,}" for value in (table[name].min(), table[name].max())] for name in ("windows", "examples")
    )
    return f"Before, a class has {' to '.join(before)} windows; after, {' to '.join(dict.fromkeys(after))} examples."


@chart
def growth_curve(figure: Figure, table: pd.DataFrame) -> str:
    axes, own = figure.subplots(), look(GROWING)
    axes.plot(table["proposals"], 100 * table["mean_iou"], color=own.colour, marker=own.marker)
    number_axis(axes, table["proposals"], "proposals per image")
    axes.set(ylabel="mean IoU (%)", ylim=(0, None))
    grown = [f"{percent(row.mean_iou)} % with {row.proposals}" for row in table.itertuples()]
    return f"Mean IoU is {', '.join(grown)}."


@chart
def by_size(figure: Figure, table: pd.DataFrame) -> str:
    figure.set_size_inches(4.8, 4.4)
    axes, table = figure.subplots(), table.set_index("system")
    width = 0.86 / len(table)
    for index, (key, values) in enumerate(table.iterrows()):
        own, place = look(key), np.arange(len(values)) - 0.43 + width * (index + 0.5)
        axes.bar(place, 100 * values, 0.92 * width, color=own.colour, hatch="////" if own.refined else None,
                 edgecolor="white", linewidth=0.4, label=SYSTEMS[key].name)  # fmt: skip
    axes.set_xticks(range(len(table.columns)), [f"{name} objects" for name in table])
    axes.grid(visible=False, axis="x")
    axes.set_ylabel("mean IoU (%)")
    figure.legend(loc="outside lower center", ncols=2)
    return " ".join(f"{name.capitalize()} objects: {_against(table[name])}." for name in table)


@chart
def around_boundaries(figure: Figure, table: pd.DataFrame) -> str:
    figure.set_size_inches(4.8, 4.4)
    axes = figure.subplots()
    for key, system in SYSTEMS.items():
        own = look(key)
        axes.plot(table["width"], 100 * table[key], color=own.colour, marker=own.marker,
                  linestyle="--" if own.refined else "-", label=system.name)  # fmt: skip
    number_axis(axes, table["width"], "width of the band around true boundaries (px)", base=2)
    axes.set_ylabel("mean IoU in the band (%)")
    figure.legend(loc="outside lower center", ncols=2)
    ends = table.iloc[[0, -1]].iterrows()
    return " ".join(f"Within {row['width']:.0f} px: {_against(row)}." for _, row in ends)


def _against(fractions: pd.Series) -> str:
    names = ("edeconvnet", "deconvnet", "fcn8s")
    return ", ".join(f"{SYSTEMS[name].name} {percent(fractions[name])} %" for name in names)
