"""Everything that was computed -> one HTML page, readable without a network, without images and without colour."""

import argparse
import base64
import functools
import io
import json
import platform
import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import cv2
import jinja2
import numpy as np
import pandas as pd
import torch
from matplotlib import colormaps, rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter
from PIL import Image

from stages import nets, scores, shards
from stages.boxes import by_image, windows
from stages.cli import InputError, run, whole
from stages.config import Range, load
from stages.images import PALETTE, VOC_CLASSES, VOID, decode_image, decode_mask, encode_mask
from stages.nets.deconvnet import BLOCKS


@dataclass(frozen=True)
class Params:
    examples: Annotated[int, Range(1)]  # images of each gallery: best, typical, worst
    side: Annotated[int, Range(32)]  # px, longer side of a picture


@dataclass(frozen=True)
class System:
    name: str
    colour: str  # Okabe and Ito's, told apart with any colour vision, for systems alone; the CRF adds a dash or a hatch
    marker: str

    @property
    def crf(self) -> bool:
        return self.name.endswith("+CRF")


SYSTEMS = {
    "stage1": System("DeconvNet, stage 1 only", "#7f7f7f", "x"),
    "fcn8s": System("FCN-8s", "#d55e00", "s"),
    "deconvnet": System("DeconvNet", "#0072b2", "o"),
    "edeconvnet": System("EDeconvNet", "#009e73", "D"),
    "fcn8s_crf": System("FCN-8s+CRF", "#d55e00", "s"),
    "deconvnet_crf": System("DeconvNet+CRF", "#0072b2", "o"),
    "edeconvnet_crf": System("EDeconvNet+CRF", "#009e73", "D"),
}
BEST = "edeconvnet_crf"  # the paper's final system: galleries and confusions are its
SHOWN = ("fcn8s", "deconvnet", "edeconvnet", BEST)  # in galleries
CANDIDATES = 50  # DeconvNet's best images, of which the growing and the activated one are chosen

# The paper's table (arXiv 1505.04366): IoU in % on VOC 2012's test server, trained on train and val; first the mean.
PAPER = {
    "fcn8s": [62.2, 91.2, 76.8, 34.2, 68.9, 49.4, 60.3, 75.3, 74.7, 77.6, 21.4, 62.5, 46.8,
        71.8, 63.9, 76.5, 73.9, 45.2, 72.4, 37.4, 70.9, 55.1],
    "deconvnet": [69.6, 92.7, 85.9, 42.6, 78.9, 62.5, 66.6, 87.4, 77.8, 79.5, 26.3, 73.4, 60.2,
        70.8, 76.5, 79.6, 77.7, 58.2, 77.4, 52.9, 75.2, 59.8],
    "deconvnet_crf": [70.5, 92.9, 87.8, 41.9, 80.6, 63.9, 67.3, 88.1, 78.4, 81.3, 25.9, 73.7, 61.2,
        72.0, 77.0, 79.9, 78.7, 59.5, 78.3, 55.0, 75.2, 61.5],
    "edeconvnet": [71.7, 92.9, 88.4, 39.7, 79.0, 63.0, 67.7, 87.1, 81.5, 84.4, 27.8, 76.1, 61.2,
        78.0, 79.3, 83.1, 79.3, 58.0, 82.5, 52.3, 80.1, 64.0],
    "edeconvnet_crf": [72.5, 93.1, 89.9, 39.3, 79.7, 63.9, 68.2, 87.4, 81.2, 86.1, 28.5, 77.0, 62.0,
        79.0, 80.3, 83.6, 80.2, 58.8, 83.4, 54.3, 80.7, 65.0],
}  # fmt: skip
EVALUATED = ("metrics.json", "per_class.csv", "confusion.csv", "sizes.csv", "boundary.csv", "growth.csv")
TRAINED = {
    "pretrain": "Pre-training of the encoder",
    "train_stage1": "DeconvNet, stage 1",
    "train_stage2": "DeconvNet, stage 2",
    "train_fcn": "FCN-8s",
}
PACKAGES = ("torch", "torchvision", "numpy", "opencv-contrib-python-headless", "pydensecrf2", "dvc", "snakemake")
DASH, MINUS, TIMES = "\N{EN DASH}", "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}"
STYLE = {
    "svg.hashsalt": "report", "font.family": "DejaVu Sans", "font.size": 10, "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "grid.color": "#e3e3e3", "axes.axisbelow": True,
    "legend.frameon": False, "legend.fontsize": 9, "lines.linewidth": 1.6, "lines.markersize": 4.5,
    "hatch.linewidth": 0.8,
}  # fmt: skip


def points(fraction: float | None) -> float | None:
    """A fraction in % as tables show it, one digit; None for what was not measured."""
    return None if fraction is None or np.isnan(fraction) else round(100 * float(fraction), 1)


def gain(ours: float | None, other: float | None) -> float | None:
    """Difference of two shown percentages in points."""
    return None if ours is None or other is None else round(ours - other, 1)


def shown(percentage: float | None) -> str:
    return DASH if percentage is None else f"{percentage:.1f}"


def signed(difference: float | None) -> str:
    """+1.2, −3.4, 0.0: readable without colour."""
    return DASH if difference is None else f"{difference:+.1f}".replace("-", MINUS) if difference else "0.0"


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
        if key in PAPER and tuple(classes) == VOC_CLASSES:
            rows.append(Row("paper, test server", "paper", PAPER[key]))
            rows.append(Row("difference", "delta", [gain(*pair) for pair in zip(ours, PAPER[key], strict=True)]))
    return rows


def tops(rows: list[Row]) -> list[float | None]:
    """The largest of our values in every column."""
    columns = zip(*(row.values for row in rows if row.kind == "ours"), strict=True)
    return [max((value for value in column if value is not None), default=None) for column in columns]


def claims(metrics: dict, growth: pd.DataFrame, boundary: pd.DataFrame) -> dict[str, dict[str, float | None]]:
    """Gains in points by the claim's letter and what is compared. report.html says which of them a claim rests on."""

    def over(system: str, other: str, metric: str = "mean_iou") -> float | None:
        return gain(points(metrics[system][metric]), points(metrics[other][metric]))

    narrow = boundary.iloc[0]
    return {
        "a": {name: over("edeconvnet", name) for name in ("fcn8s", "deconvnet")},
        "b": {name: over(f"{name}_crf", name) for name in ("deconvnet", "edeconvnet")},
        "c": {"deconvnet": over("deconvnet", "stage1")},
        "e": {"last": gain(points(growth["mean_iou"].iloc[-1]), points(growth["mean_iou"].iloc[0]))},
        "f": {size: over("deconvnet", "fcn8s", size) for size in ("small", "large")},
        "g": {"narrowest": gain(points(narrow["deconvnet"]), points(narrow["fcn8s"]))},
    }


def verdict(gains: dict[str, float | None]) -> str:
    """A claim holds where all its gains are above 0."""
    if None in gains.values():
        return "not measured"
    return "holds" if min(gains.values()) > 0 else "does not hold"


def row_shares(confusion: pd.DataFrame, system: str, classes: list[str]) -> np.ndarray:
    """(C, C) shares of each true class's pixels by predicted class; NaN for a class that the truth lacks."""
    own = confusion[confusion["system"] == system].pivot(index="truth", columns="predicted", values="pixels")
    counts = own.reindex(index=classes, columns=classes).fillna(0).to_numpy(float)
    total = counts.sum(1, keepdims=True)
    return np.divide(counts, total, out=np.full_like(counts, np.nan), where=total > 0)


def summary(metrics: dict) -> pd.DataFrame:
    """All metrics of all systems, in %."""
    return pd.DataFrame(
        [{"system": key} | {name: shown(points(value)) for name, value in metrics[key].items()} for key in SYSTEMS]
    )


def listed(table: pd.DataFrame) -> dict:
    """A table as text for the page."""

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


def times(lines: list[str]) -> pd.DataFrame:
    """A log of commands -> module, commands, seconds; of every command its last run counts."""
    last = {}
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            last[entry["module"], tuple(entry["arguments"])] = float(entry["seconds"])
        except (ValueError, KeyError, TypeError):
            raise InputError(f"data/times.jsonl: line {number} is no record of a command; delete it") from None
    table = pd.DataFrame([(module, spent) for (module, _), spent in last.items()], columns=["module", "seconds"])
    return table.groupby("module", sort=False)["seconds"].agg(commands="count", seconds="sum").reset_index()


@dataclass(frozen=True)
class Chart:
    title: str
    message: str  # in numbers: what a reader sees without the image
    source: str  # data URI
    table: dict  # of `listed`


def chart(draw):
    """Make of `draw(figure, table)`, which returns the message, a function of title and table -> Chart."""

    @functools.wraps(draw)
    def wrapped(title: str, table: pd.DataFrame) -> Chart:
        buffer = io.BytesIO()
        with rc_context(STYLE):
            figure = Figure(figsize=(4.8, 3.6), layout="constrained")
            message = draw(figure, table)
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


@chart
def training(figure: Figure, curves: pd.DataFrame) -> str:
    figure.set_size_inches(4.8, 4.8)
    loss, accuracy = figure.subplots(2, sharex=True)
    held_out = 100 * curves["held_out_mean_iou"]
    loss.plot(curves["step"], curves["loss"], color="#7f7f7f", linestyle="--", label="training")
    loss.plot(curves["step"], curves["held_out_loss"], color="#1a1a1a", marker="o", label="held out")
    loss.set_ylabel("loss (nats)")
    loss.legend()
    accuracy.plot(curves["step"], held_out, color="#1a1a1a", marker="o")
    accuracy.set(ylabel="mean IoU (%)\nheld out", xlabel="step (updates)", ylim=(0, 1.08 * held_out.max() or 1))
    for step in curves["step"][curves["lr"].diff() < 0]:
        for axes in (loss, accuracy):
            axes.axvline(step, color="#808080", linewidth=1, linestyle=":")
    first, best = curves.iloc[0], curves.iloc[held_out.argmax()]
    return (
        f"Held-out mean IoU goes from {100 * first['held_out_mean_iou']:.1f} % at step {first['step']:,.0f} to "
        f"{held_out.max():.1f} % at step {best['step']:,.0f}, its best; the training loss from {first['loss']:.3g} to "
        f"{curves['loss'].iloc[-1]:.3g}."
    )


@chart
def recall(figure: Figure, table: pd.DataFrame) -> str:
    axes = figure.subplots()
    for name, line in zip(table.columns[1:], ("o-", "s--", "D:", "^-.") * 9, strict=False):
        axes.plot(table["boxes"], 100 * table[name], line, color="#1a1a1a", label=f"IoU {name.split('_')[-1]}")
    number_axis(axes, table["boxes"], "proposals an image")
    axes.set(ylabel="objects found (%)", ylim=(0, 100))
    axes.legend(loc="lower right")
    found = [f"{100 * table[name].iloc[-1]:.1f} % at IoU {name.split('_')[-1]}" for name in table.columns[1:]]
    return f"{table['boxes'].iloc[-1]:,} proposals an image find, of all objects, {', '.join(found)}."


@chart
def balance(figure: Figure, table: pd.DataFrame) -> str:
    figure.set_size_inches(4.8, 1.2 + 0.26 * len(table))
    axes, place = figure.subplots(), np.arange(len(table))
    axes.barh(place - 0.2, table["windows"], 0.38, color="#b0b0b0", hatch="////", edgecolor="white", label="before")
    axes.barh(place + 0.2, table["examples"], 0.38, color="#404040", label="after")
    axes.set_yticks(place, table["class"])
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
    axes, look = figure.subplots(), SYSTEMS["deconvnet"]
    axes.plot(table["proposals"], 100 * table["mean_iou"], color=look.colour, marker=look.marker)
    number_axis(axes, table["proposals"], "proposals an image")
    axes.set(ylabel="mean IoU (%)", ylim=(0, None))
    grown = [f"{100 * row.mean_iou:.1f} % with {row.proposals}" for row in table.itertuples()]
    return f"Mean IoU is {', '.join(grown)}."


@chart
def by_size(figure: Figure, table: pd.DataFrame) -> str:
    figure.set_size_inches(4.8, 4.4)
    axes, table = figure.subplots(), table.set_index("system")
    width = 0.86 / len(table)
    for index, (key, values) in enumerate(table.iterrows()):
        look, place = SYSTEMS[key], np.arange(len(values)) - 0.43 + width * (index + 0.5)
        axes.bar(place, 100 * values, 0.92 * width, color=look.colour, hatch="////" if look.crf else None,
                 edgecolor="white", linewidth=0.4, label=look.name)  # fmt: skip
    axes.set_xticks(range(len(table.columns)), [f"{name} objects" for name in table])
    axes.grid(visible=False, axis="x")
    axes.set_ylabel("mean IoU (%)")
    figure.legend(loc="outside lower center", ncols=2)
    return " ".join(f"{name.capitalize()} objects: {against(table[name])}." for name in table)


@chart
def around_boundaries(figure: Figure, table: pd.DataFrame) -> str:
    figure.set_size_inches(4.8, 4.4)
    axes = figure.subplots()
    for key, look in SYSTEMS.items():
        axes.plot(table["width"], 100 * table[key], color=look.colour, marker=look.marker,
                  linestyle="--" if look.crf else "-", label=look.name)  # fmt: skip
    number_axis(axes, table["width"], "width of the band around true boundaries (px)", base=2)
    axes.set_ylabel("mean IoU in the band (%)")
    figure.legend(loc="outside lower center", ncols=2)
    ends = table.iloc[[0, -1]].iterrows()
    return " ".join(f"Within {row['width']:.0f} px: {against(row)}." for _, row in ends)


def against(fractions: pd.Series) -> str:
    return ", ".join(f"{SYSTEMS[name].name} {shown(points(fractions[name]))} %" for name in ("deconvnet", "fcn8s"))


@dataclass(frozen=True)
class Cell:
    title: str
    caption: str
    alt: str
    source: str  # data URI


def uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def fit(picture: np.ndarray, side: int) -> np.ndarray:
    """An image (H, W, 3) or labels (H, W), scaled to a longer side of `side` px."""
    scale = side / max(picture.shape[:2])
    size = [max(1, round(length * scale)) for length in picture.shape[1::-1]]
    smooth = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return cv2.resize(picture, size, interpolation=smooth if picture.ndim == 3 else cv2.INTER_NEAREST)


def photo(image: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=85)
    return uri(buffer.getvalue(), "jpeg")


def mask(labels: np.ndarray, side: int) -> str:
    return uri(encode_mask(fit(labels, side)), "png")


def heat(values: np.ndarray, side: int) -> str:
    """A map (H, W), its lowest value black, its highest light yellow, its cells squares."""
    levels = np.rint(255 * (values - values.min()) / max(np.ptp(values), 1e-12)).astype(np.uint8)
    picture, buffer = Image.fromarray(fit(levels, max(side, len(levels)))), io.BytesIO()
    picture.putpalette(colormaps["inferno"](np.arange(256), bytes=True)[:, :3].tobytes())
    picture.save(buffer, "PNG")
    return uri(buffer.getvalue(), "png")


def content(labels: np.ndarray, classes: list[str]) -> str:
    """Shares of the classes in labels (H, W), largest first, void left out."""
    count = np.bincount(labels[labels != VOID], minlength=len(classes))
    shares = {
        classes[index]: 100 * count[index] / count.sum() for index in np.argsort(-count, kind="stable") if count[index]
    }
    return ", ".join(f"{name} {'<1' if share < 1 else round(share)} %" for name, share in shares.items()) or "void"


def image_iou(truth: np.ndarray, labels: np.ndarray) -> float:
    """Mean IoU over the classes in truth or prediction (H, W), as evaluate has it of single images; void left out."""
    truth, labels = truth[truth != VOID], labels[truth != VOID]
    kinds = np.union1d(truth, labels)
    ious = [((truth == kind) & (labels == kind)).sum() / ((truth == kind) | (labels == kind)).sum() for kind in kinds]
    return float(np.mean(ious)) if ious else float("nan")


def best_first(images: pd.DataFrame, system: str) -> list[str]:
    """Ids of images by a system's IoU."""
    own = images[images["system"] == system].dropna(subset="mean_iou")
    return own.sort_values(["mean_iou", "image_id"], ascending=False)["image_id"].tolist()


def choose(images: pd.DataFrame, examples: int) -> dict[str, list[str]]:
    """Ids of the best images, of typical ones (around the median) and of the worst, by the final system's IoU."""
    ids = best_first(images, BEST)
    number = min(examples, max(1, len(ids) // 3))
    middle = (len(ids) - number) // 2
    return {"Best": ids[:number], "Typical": ids[middle : middle + number], "Worst": ids[::-1][:number]}


def growth_gain(row: dict) -> float:
    """What the last number of proposals has of IoU above the first."""
    truth, first, last = (decode_mask(data) for data in (row["class_mask"], row["growth"][0], row["growth"][-1]))
    return image_iou(truth, last) - image_iou(truth, first)


def object_share(row: dict) -> float:
    """Share of an image that its largest object takes."""
    return max(row["instance_areas"], default=0) / row["height"] / row["width"]


def example(row: dict, ious: dict[str, float], classes: list[str], side: int) -> list[Cell]:
    """An image, its truth and every shown system's labels."""
    name, truth = row["image_id"], decode_mask(row["class_mask"])
    kinds = ", ".join(classes[kind] for kind in np.unique(truth) if 0 < kind < len(classes))
    cells = [
        Cell("Image", name, f"Image {name}.", photo(fit(decode_image(row["image"]), side))),
        Cell("Truth", f"{name}: {kinds}", f"Truth of {name}: {content(truth, classes)}.", mask(truth, side)),
    ]
    for system in SHOWN:
        labels, caption = decode_mask(row["labels"][system]), f"{name}, IoU {shown(points(ious[system]))} %"
        alt = f"{SYSTEMS[system].name} on {caption}: {content(labels, classes)}."
        cells.append(Cell(SYSTEMS[system].name, caption, alt, mask(labels, side)))
    return cells


def growing(row: dict, numbers: list[int], classes: list[str], side: int) -> list[tuple[Cell, Cell]]:
    """For each number of proposals: their windows on the image, new ones orange, and DeconvNet's labels from them."""
    name, image, truth, cells = row["image_id"], decode_image(row["image"]), decode_mask(row["class_mask"]), []
    places = np.rint(row["windows"] * (side / max(truth.shape))).astype(int)
    for before, number, data in zip([0, *numbers], numbers, row["growth"], strict=False):
        picture, labels = fit(image, side), decode_mask(data)
        for index, (x, y, width, height) in enumerate(places[:number].tolist()):
            look = ((190, 190, 190), 1) if index < before else ((255, 140, 0), 2)
            cv2.rectangle(picture, (x, y), (x + width, y + height), *look)
        title = f"{min(number, len(places))} proposal{'s' * (number > 1)}"
        caption = f"{name}, IoU {shown(points(image_iou(truth, labels)))} %"
        alt = f"{title}, {caption}: {content(labels, classes)}."
        window = Cell(title, name, f"The windows of {title} on {name}.", photo(picture))
        cells.append((window, Cell("Labels", caption, alt, mask(labels, side))))
    return cells


def sheet(rows: list[list[Cell]]) -> bytes:
    """Pictures row by row under their titles, as one PNG for other documents."""
    buffer = io.BytesIO()
    with rc_context(STYLE):
        figure = Figure(figsize=(2 * len(rows[0]), 1.8 * len(rows)), layout="constrained")
        panels = figure.subplots(len(rows), len(rows[0]), squeeze=False)
        for index, cell in enumerate(cells := sum(rows, [])):
            axes = panels.flat[index]
            axes.imshow(Image.open(io.BytesIO(base64.b64decode(cell.source.partition(",")[2]))).convert("RGB"))
            if index < len(rows[0]) or cell.title != cells[index - len(rows[0])].title:
                axes.set_title(cell.title, fontsize=9)
            axes.axis("off")
        figure.savefig(buffer, format="png", dpi=100, metadata={"Software": None})
    return buffer.getvalue()


def crop(image: np.ndarray, window: np.ndarray, side: int) -> np.ndarray:
    """The part of an image in a window that meets it, black outside, as the net sees it: uint8 (side, side, 3)."""
    x, y, width, height = window
    padded = np.pad(image, ((height, height), (width, width), (0, 0)))
    return cv2.resize(padded[y + height : y + 2 * height, x + width : x + 2 * width], (side, side))


@torch.inference_mode()
def activations(net: nets.DeconvNet, picture: np.ndarray) -> dict[str, np.ndarray]:
    """Maps float32 (C, H, W) that every layer behind fc7 makes of a picture (S, S, 3), in the net's order."""
    kept, modules = {}, dict(net.named_children())

    def keep(name: str):
        def hook(_, inputs, output=None):  # unpooling is no module: it is what comes before a block's first layer
            kept[name] = (inputs[0] if output is None else output)[0].numpy()

        return hook

    hooks = [modules[f"deconv{number}_1"].register_forward_pre_hook(keep(f"unpool{number}")) for number in BLOCKS]
    hooks += [module.register_forward_hook(keep(name)) for name, module in modules.items() if name != "encoder"]
    net(torch.from_numpy(picture).permute(2, 0, 1)[None].float())
    for hook in hooks:
        hook.remove()
    return kept


def layers(net: nets.DeconvNet, row: dict, classes: list[str], side: int) -> list[Cell]:
    """The window of the largest object, then of every layer the channel with the largest mean, of the scores the
    object's class."""
    largest = int(np.argmax(row["instance_areas"]))
    picture = crop(decode_image(row["image"]), row["object_windows"][largest], net.encoder.size.input_size)
    kind = row["instance_classes"][largest]
    name, what = classes[kind], f"{classes[kind]}, {row['image_id']}"
    cells = [Cell("Input", what, f"Window around an object: {what}.", photo(fit(picture, side)))]
    for layer, maps in activations(net, picture).items():
        channel = kind if layer == "score" else int(maps.mean((1, 2)).argmax())
        title = f"{layer}, {maps.shape[2]}{TIMES}{maps.shape[1]}"
        caption = f"of {name}" if layer == "score" else f"channel {channel} of {len(maps)}"
        caption += f", {100 * (maps[channel] > 0).mean():.0f} % above 0"
        cells.append(Cell(title, caption, f"{title}, {caption}.", heat(maps[channel], side)))
    return cells


def read_reports(folder: Path, classes: list[str]) -> dict[str, pd.DataFrame | dict]:
    """Every report by its name without suffix, checked to be there and to be of `classes`."""
    tables = {}
    for name in (*EVALUATED, *(f"{stage}.csv" for stage in ("proposals", "crops_stage1", "crops_stage2", *TRAINED))):
        path = folder / name
        if not path.is_file():
            raise InputError(f"{path}: missing; run `dvc repro {'evaluate' if name in EVALUATED else path.stem}`")
        tables[path.stem] = json.loads(path.read_text()) if path.suffix == ".json" else pd.read_csv(path)
    for name, column in (("confusion", "truth"), ("confusion", "predicted"), ("per_class", "class")):
        if strange := set(tables[name][column]) ^ set(classes):
            raise InputError(
                f"{folder / name}.csv: {column}: its classes are not dataset.classes of params.yaml, see "
                f"{min(strange)}; run `dvc repro evaluate`"
            )
    if lacking := SYSTEMS.keys() - tables["metrics"].keys():
        raise InputError(f"{folder / 'metrics.json'}: lacks {min(lacking)}; run `dvc repro evaluate`")
    return tables


def read_images(options, split: str, ids: set[str]) -> dict[str, dict]:
    """Rows of the data set with those ids, with `labels` of every shown system, `growth`, and int32 (n, 4) `windows`
    of the proposals and `object_windows`."""
    frame = load(float, "crops.context"), load(bool, "crops.square")
    least, found = load(int, "infer.deconvnet.min_side"), {}
    for shard in sorted(options.dataset.glob(f"{split}-*.parquet")):
        rows = shards.read(shard, ["image_id"])["image_id"].to_pylist()
        picks = [index for index, name in enumerate(rows) if name in ids]
        labels = {name: (options.labels if SYSTEMS[name].crf else options.scores) / name / shard.name for name in SHOWN}
        labels = {name: scores.read(path, shard, ["image_id", "labels"]) for name, path in labels.items()}
        growth = shards.read(options.scores / "deconvnet" / shard.name, ["growth"]).take(picks)["growth"].to_pylist()
        boxes = by_image(shards.read(options.proposals / shard.name))
        for index, grown, row in zip(picks, growth, shards.read(shard).take(picks).to_pylist(), strict=True):
            places = windows(boxes.get(row["image_id"], np.zeros((0, 4))), *frame)
            found[row["image_id"]] = row | {
                "labels": {name: table[index]["labels"] for name, table in labels.items()},
                "growth": grown,
                "windows": places[places[:, 2:].min(1) >= least],
                "object_windows": windows(row["instance_boxes"], *frame),
            }
    if lost := ids - found.keys():
        raise InputError(f"{options.images}: has {min(lost)}, which {options.dataset} lacks; run `dvc repro evaluate`")
    return found


def versions(about: dict) -> pd.DataFrame:
    """Of the code that made the model, of Python, and of the packages that numbers depend on."""
    found = {"code of the model": about["code"][:12], "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return pd.DataFrame(found.items(), columns=["", "version"])


def render(**context) -> str:
    """stages/report.html filled in."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters |= {"shown": shown, "signed": signed, "points": points, "gain": gain}
    page = environment.get_template("report.html").render(context)
    return re.sub(r"(?<=[\d–]) %", "\N{NO-BREAK SPACE}%", page)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m stages.report", description=__doc__)
    parser.add_argument("--dataset", type=Path, required=True, help="folder of the data set's shards")
    parser.add_argument("--proposals", type=Path, required=True, help="folder of the proposals' shards")
    parser.add_argument("--scores", type=Path, required=True, help="folder of the systems' scores")
    parser.add_argument("--labels", type=Path, required=True, help="folder of the CRF's labels")
    parser.add_argument("--images", type=Path, required=True, help="evaluate's table of single images")
    parser.add_argument("--model", type=Path, required=True, help="DeconvNet, whose layers are shown")
    parser.add_argument("--reports", type=Path, required=True, help="folder of the stages' reports")
    parser.add_argument("--out", type=Path, required=True, help="the page, HTML")
    parser.add_argument("--pictures", type=Path, help="folder for gallery.png and growth.png")
    options = parser.parse_args(arguments)
    params, split = load(Params, "report"), load(str, "evaluate.split")
    classes, numbers = list(load(list[str], "dataset.classes")), list(load(list[int], "infer.growth"))
    torch.set_num_threads(1)  # sums in one order: the page's bytes do not depend on the machine's cores

    if not numbers:
        raise InputError(
            "params.yaml: infer.growth: empty; list numbers of proposals, as the repository's params.yaml does"
        )
    tables = read_reports(options.reports, classes)
    net, about = nets.load(options.model)
    images = shards.read(options.images).to_pandas()
    galleries, candidates = choose(images, params.examples), best_first(images, "deconvnet")[:CANDIDATES]
    rows = read_images(options, split, set(candidates).union(*galleries.values()))
    ious = {name: own.set_index("system")["mean_iou"] for name, own in images.groupby("image_id")}

    grown = max((rows[name] for name in candidates), key=growth_gain)
    filled = min((rows[name] for name in candidates), key=lambda row: abs(object_share(row) - 1 / 3))
    cells = {
        name: [example(rows[image], ious[image], classes, params.side) for image in ids]
        for name, ids in galleries.items()
    }
    steps = growing(grown, numbers, classes, params.side)
    log = Path("data/times.jsonl")
    table = results(tables["per_class"], tables["metrics"], classes)
    gains = claims(tables["metrics"], tables["growth"], tables["boundary"])
    page = render(
        systems=SYSTEMS, final=BEST, paper=PAPER, split=split, classes=classes, dash=DASH,
        voc=tuple(classes) == VOC_CLASSES,
        unseen=split == "val" and load(str, "crops.split") == "trainaug",
        palette=["#" + bytes(shade).hex() for shade in [*PALETTE[: len(classes)], PALETTE[VOID]]],
        metrics=tables["metrics"], growth=tables["growth"].to_dict("list"), results=table, tops=tops(table),
        boundary=tables["boundary"].to_dict("list"),
        claims=gains, verdicts={letter: verdict(own) for letter, own in gains.items()},
        measured=[growth_curve("DeconvNet and the number of proposals", tables["growth"]),
                  by_size("Size of objects", tables["sizes"]),
                  around_boundaries("Around boundaries", tables["boundary"])],
        trained=[training(title, tables[name]) for name, title in TRAINED.items() if len(tables[name])],
        inputs=[recall("Recall of the proposals", tables["proposals"]),
                balance("Balance of classes, stage 1", tables["crops_stage1"]),
                balance("Balance of classes, stage 2", tables["crops_stage2"])],
        confusion=row_shares(tables["confusion"], BEST, classes), summary=listed(summary(tables["metrics"])),
        galleries=cells, growing=steps,
        layers=layers(net, filled, classes, params.side) if object_share(filled) else [],
        parameters=Path("params.yaml").read_text(encoding="utf-8"), versions=listed(versions(about)),
        times=listed(times(log.read_text(encoding="utf-8").splitlines() if log.is_file() else [])),
    )  # fmt: skip
    with whole(options.out) as file:
        file.write_text(page, encoding="utf-8")
    if options.pictures:
        for name, pictures in (("gallery", cells["Typical"]), ("growth", [*map(list, zip(*steps, strict=True))])):
            with whole(options.pictures / f"{name}.png") as file:
                file.write_bytes(sheet(pictures))
    print(f"{options.out}: {len(page) / 1e6:.1f} MB")


if __name__ == "__main__":
    run(main)
