"""Labels of every system and true masks -> IoU by class, by object size, at boundaries, by number of proposals.

What is counted and how: deconvnet/evaluation.py and deconvnet/metrics.py.
"""

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pyarrow as pa

from deconvnet import contents, scores, tables
from deconvnet.bootstrap import interval, mean_ious, parts
from deconvnet.errors import InputError
from deconvnet.evaluation import SIZES, Counts, by_size, by_width, count
from deconvnet.files import together, whole
from deconvnet.images import VOID, decode_mask
from deconvnet.metrics import accuracy, ious, mean
from deconvnet.progress import progress
from deconvnet.settings import Evaluation
from deconvnet.systems import FINAL, GROWING, SYSTEMS
from experiment.cli import run
from experiment.machine import cores
from experiment.params import load
from experiment.report.numbers import DIGITS, percent

SCHEMA = pa.schema(
    {
        "image_id": pa.string(),
        "system": pa.string(),
        "mean_iou": pa.float32(),  # over the classes in the image's truth or prediction; null: all is void
        "pixel_accuracy": pa.float32(),
        # pixels by class, from which any mean IoU and its interval follow (deconvnet/bootstrap.py)
        "right": pa.list_(pa.int32()),
        "true": pa.list_(pa.int32()),
        "predicted": pa.list_(pa.int32()),
    }
)
# Whose mean IoU is compared with whose, with an interval.
COMPARED = (
    ("deconvnet", "fcn8s"), ("edeconvnet", "fcn8s"), ("edeconvnet", "deconvnet"), ("fcn8s_crf", "fcn8s"),
    ("deconvnet_crf", "deconvnet"), ("edeconvnet_crf", "edeconvnet"), ("edeconvnet_crf", "fcn8s_crf"),
    ("edeconvnet_crf", "deconvnet_crf"), ("deconvnet", "stage1"),
)  # fmt: skip


def read_mask(data: bytes, where: str, ids: int, shape: tuple[int, int] | None = None, void: int = 0) -> np.ndarray:
    """PNG -> uint8 (H, W). Raises InputError for another shape and for a value from `ids` on; `void`: 1 allows 255."""
    try:
        mask = decode_mask(data)
    except ValueError as error:
        raise InputError(f"{where}: {error}; run `dvc repro`") from None
    if shape and mask.shape != shape:
        sizes = f"{mask.shape[1]}x{mask.shape[0]} px, but the class mask {shape[1]}x{shape[0]}"
        raise InputError(f"{where}: has {sizes}; run `dvc repro`")
    top = int((mask + np.uint8(void)).max(initial=0)) - void  # with void: 255 becomes 0, and the rest one more
    if top >= ids:
        allowed = f"0 to {ids - 1}" + (" and 255" if void else "")
        raise InputError(f"{where}: id {top} is not allowed; allowed: {allowed}; run `dvc repro`")
    return mask


def shard_names(dataset: Path, folders: dict[str, Path], split: str) -> list[str]:
    """Names of the split's shards. Raises InputError where there are none or a system's folder has others."""
    names = sorted(path.name for path in dataset.glob(f"{split}-*.parquet"))
    if not names:
        raise InputError(f"{dataset}: no shard of {split}; run `dvc repro dataset`, or change evaluate.split")
    for folder in folders.values():
        found = {path.name for path in folder.glob(f"{split}-*.parquet")}
        if missing := sorted(set(names) - found):
            raise InputError(f"{folder / missing[0]}: missing shard; name {split} in infer.splits and run `dvc repro`")
        if extra := sorted(found - set(names)):
            raise InputError(f"{folder / extra[0]}: not a shard of {dataset}; delete it")
    return names


def evaluate(
    dataset: Path, folders: dict[str, Path], classes: int, growth: int, settings: Evaluation
) -> tuple[Counts, pa.Table, int]:
    """Counts of the split, a table of SCHEMA, and the number of images without a proposal.

    folders: each system's shards. growth: how many label maps of a growing number of proposals GROWING has. One shard
    is in memory at a time; each thread decodes and counts one image.
    """
    names = shard_names(dataset, folders, settings.split)
    labelled = contents.LABELLED.within(instance_classes=(0, classes - 1))
    columns = ["image_id", "class_mask", "instance_mask", "instance_classes", "instance_boxes", "instance_areas"]

    def one(name: str, row: dict, labelled: tuple[dict, ...]) -> Counts:
        where = f"{dataset / name}: {row['image_id']}"
        class_mask = read_mask(row["class_mask"], f"{where}: class mask", classes, void=1)
        instance_mask = read_mask(row["instance_mask"], f"{where}: instance mask", VOID, class_mask.shape, void=1)
        labels, grown = [], []
        for folder, source in zip(folders.values(), labelled, strict=True):
            where = f"{folder / name}: {row['image_id']}: labels"
            labels.append(read_mask(source["labels"], where, classes, class_mask.shape))
            if "growth" in source:
                if len(source["growth"]) != growth:
                    raise InputError(
                        f"{where} after {len(source['growth'])} numbers of proposals, but infer.growth has {growth}; "
                        "run `dvc repro`"
                    )
                grown = [read_mask(data, where, classes, class_mask.shape) for data in source["growth"]]
        return count(row, class_mask, instance_mask, labels, grown, classes, settings)

    total, images, without = None, {name: [] for name in SCHEMA.names}, 0
    with ThreadPoolExecutor(cores()) as pool, progress(unit="image", desc=f"evaluate {settings.split}") as bar:
        for name in names:
            rows = tables.read(dataset / name, columns, labelled).to_pylist()
            shards = []
            for system, folder in folders.items():
                more = ["windows", "growth"] if system == GROWING else []
                shards.append(scores.read(folder / name, dataset / name, ["image_id", "labels", *more]))
            outputs = list(zip(*shards, strict=True))
            without += sum(source.get("windows") == 0 for sources in outputs for source in sources)
            for row, counts in zip(rows, pool.map(partial(one, name), rows, outputs), strict=True):
                total = counts if total is None else Counts(*map(np.add, total, counts))
                matrices = counts.confusion.sum(1)  # (S, C, C)
                images["image_id"] += [row["image_id"]] * len(folders)
                images["system"] += folders
                images["mean_iou"] += mean(ious(matrices, predicted=True)).tolist()
                images["pixel_accuracy"] += accuracy(matrices).tolist()
                for column, counted in zip(("right", "true", "predicted"), parts(matrices).swapaxes(0, 1), strict=True):
                    images[column] += counted.tolist()
                bar.update()
    if total is None:
        raise InputError(f"{dataset}: no image in the shards of {settings.split}; run `dvc repro dataset`")
    arrays = [pa.array(images[field.name], field.type, from_pandas=True) for field in SCHEMA]  # nan becomes null
    return total, pa.Table.from_arrays(arrays, schema=SCHEMA), without


def intervals(images: pa.Table, systems: list[str]) -> pd.DataFrame:
    """Mean IoU of every system and the differences of COMPARED, each with the ends of its 95 % interval.

    images: of SCHEMA, those of one image together, in the order of `systems`.
    """
    counted = np.stack([np.stack(images[name].to_pylist()) for name in ("right", "true", "predicted")], 1)
    counted = counted.reshape(-1, len(systems), *counted.shape[1:])  # (N, S, 3, C)
    counted = counted[np.argsort(images["image_id"].to_numpy()[:: len(systems)])]  # whatever the shards
    whole_split = mean_ious(counted.sum(0, keepdims=True), 1)[0]  # one draw of all there is
    drawn = mean_ious(counted)
    rows = [(system, "", whole_split[at], *interval(drawn[:, at])) for at, system in enumerate(systems)]
    for more, less in COMPARED:
        one, other = systems.index(more), systems.index(less)
        between = interval(drawn[:, one] - drawn[:, other])
        rows.append((more, less, whole_split[one] - whole_split[other], *between))
    return pd.DataFrame(rows, columns=["system", "minus", "mean_iou", "low", "high"]).set_index("system").round(DIGITS)


def summarise(
    counts: Counts, systems: list[str], classes: list[str], widths: list[int], growth: list[int]
) -> tuple[pd.DataFrame, dict[str, pd.DataFrame]]:
    """The headline, a row per system, and the tables of the reports by name; fractions rounded to DIGITS.

    widths: of boundary bands, px. growth: the numbers of proposals.
    """
    matrices = counts.confusion.sum(1)  # (S, C, C)
    per_class = ious(matrices)  # (S, C)
    sizes = pd.DataFrame(by_size(counts.overlap), pd.Index(systems, name="system"), SIZES)
    boundary = pd.DataFrame(by_width(counts.confusion).T, pd.Index(widths, name="width"), systems)
    headline = pd.DataFrame({"mean_iou": mean(per_class), "pixel_accuracy": accuracy(matrices)}, sizes.index)
    headline = headline.join(sizes).assign(boundary=boundary.iloc[0])
    grown = pd.DataFrame({"mean_iou": mean(ious(counts.growth)), "pixel_accuracy": accuracy(counts.growth)},
                         pd.Index(growth, name="proposals"))  # fmt: skip
    cells = pd.MultiIndex.from_product([systems, classes, classes], names=["system", "truth", "predicted"])
    reports = {
        "per_class": pd.DataFrame(per_class.T, pd.Index(classes, name="class"), systems),
        "confusion": pd.Series(matrices.ravel(), cells, name="pixels"),
        "sizes": sizes,
        "boundary": boundary,
        "growth": grown,
    }
    return headline.round(DIGITS), {name: report.round(DIGITS) for name, report in reports.items()}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m stages.evaluate", description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", type=Path, required=True, help="folder of the data set's shards")
    parser.add_argument("--scores", type=Path, required=True, help="folder of the systems that have scores")
    parser.add_argument("--labels", type=Path, required=True, help="folder of the systems that have labels alone")
    parser.add_argument("--reports", type=Path, required=True, help="folder of the JSON and CSV files to write")
    parser.add_argument("--images", type=Path, required=True, help="table of single images to write")
    options = parser.parse_args(arguments)
    params = load()
    classes, growth, settings = params.dataset.classes, params.infer.growth, params.evaluate
    folders = {key: (options.scores if SYSTEMS[key].has_scores else options.labels) / key for key in SYSTEMS}
    cv2.setNumThreads(1)  # the images share the cores
    counts, images, without = evaluate(options.dataset, folders, len(classes), len(growth), settings)

    headline, reports = summarise(counts, list(folders), list(classes), list(settings.boundary), list(growth))
    reports["intervals"] = intervals(images, list(folders))
    objects = dict(zip(SIZES, counts.objects.tolist(), strict=True))
    metrics = {"images": len(images) // len(folders), "images_without_proposals": without, "objects": objects}
    values = headline.astype(object).where(headline.notna(), None)  # JSON has no nan
    mean_iou = {"mean_iou": values["mean_iou"].to_dict()}  # DVC's tables have a column for every number in it
    with together():
        for name, report in reports.items():
            with whole(options.reports / f"{name}.csv") as file:
                report.to_csv(file)
        tables.write(options.images, images)
        for name, content in (("metrics", metrics | values.to_dict("index")), ("mean_iou", mean_iou)):
            with whole(options.reports / f"{name}.json") as file:
                file.write_text(json.dumps(content, indent=2) + "\n")

    names = {key: system.name for key, system in SYSTEMS.items()}
    print(f"in %; boundary: within {settings.boundary[0]} px of one")
    print(headline.map(percent).rename_axis(None).rename(index=names).to_string())
    low, high = reports["intervals"].loc[FINAL].query("minus == ''")[["low", "high"]].iloc[0]
    print(
        f"{SYSTEMS[FINAL].name} {percent(headline['mean_iou'][FINAL])} % mean IoU, 95 % interval over images "
        f"{percent(low)} to {percent(high)}, on {metrics['images']} images of "
        f"{settings.split}" + (f", of which {without} have no proposal" if without else "")
    )


if __name__ == "__main__":
    run(main)
