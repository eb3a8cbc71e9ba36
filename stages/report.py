"""Everything that was computed -> one HTML page, readable without a network, without images and without colour."""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from deconvnet import contents, scores, tables
from deconvnet.boxes import inside, proposed, windows
from deconvnet.errors import InputError
from deconvnet.files import together, whole
from deconvnet.images import PALETTE, VOC_CLASSES, VOID, decode_mask, decode_row
from deconvnet.nets import files
from deconvnet.systems import FINAL, GROWING, SYSTEMS
from experiment.cli import run
from experiment.params import DrawnVoc, Params, load
from experiment.report import activations, charts, claims, galleries, paper, reading
from experiment.report import tables as shown
from experiment.report.numbers import DASH, percent
from experiment.report.page import render

CANDIDATES = 50  # DeconvNet's best images, of which the growing and the activated one are chosen
EVALUATED = ("metrics.json", "per_class.csv", "confusion.csv", "sizes.csv", "boundary.csv", "growth.csv",
             "intervals.csv")  # fmt: skip
TRAINED = {
    "pretrain": "Pre-training of the encoder",
    "train_stage1": "DeconvNet, stage 1",
    "train_stage2": "DeconvNet, stage 2",
    "train_fcn": "FCN-8s",
}


def read_reports(folder: Path, classes: list[str]) -> dict[str, pd.DataFrame | dict]:
    """Every report by its name without suffix. Raises InputError where one is missing or not of `classes`."""
    found = {}
    for name in (*EVALUATED, *(f"{stage}.csv" for stage in ("proposals", "crops_stage1", "crops_stage2", *TRAINED))):
        path = folder / name
        stage = "evaluate" if name in EVALUATED else path.stem
        if not path.is_file():
            raise InputError(f"{path}: missing; run `dvc repro {stage}`")
        found[path.stem] = reading.report(path, stage)
    for name, column in (("confusion", "truth"), ("confusion", "predicted"), ("per_class", "class")):
        if strange := set(found[name][column]) ^ set(classes):
            raise InputError(
                f"{folder / name}.csv: {column}: its classes are not dataset.classes of params.yaml, see "
                f"{min(strange)}; run `dvc repro evaluate`"
            )
    return found


def read_images(options, params: Params, ids: set[str]) -> dict[str, dict]:
    """Rows of the data set by image id, with what the pictures need.

    More than the data set's columns: `labels` of every shown system, `growth`, int32 (n, 4) `windows` of the proposals
    and `object_windows`. Raises InputError where the data set lacks an image.
    """
    frame, least, found = (params.crops.context, params.crops.square), params.infer.deconvnet.min_side, {}
    folders = {key: options.scores if SYSTEMS[key].has_scores else options.labels for key in galleries.SHOWN}
    for shard in sorted(options.dataset.glob(f"{params.evaluate.split}-*.parquet")):
        names = tables.read(shard, ["image_id"], contents.DATASET)["image_id"].to_pylist()
        picks = [index for index, name in enumerate(names) if name in ids]
        labels = {
            key: scores.read(folder / key / shard.name, shard, ["image_id", "labels"])
            for key, folder in folders.items()
        }
        growth = tables.read(options.scores / GROWING / shard.name, ["growth"], contents.SCORES).take(picks)
        growth = growth["growth"].to_pylist()
        boxes = proposed(options.proposals / shard.name)
        labelled = contents.LABELLED.within(instance_classes=(0, len(params.dataset.classes) - 1))
        for index, grown, row in zip(
            picks,
            growth,
            tables.read(shard, [*contents.PICTURE, *contents.OBJECTS], labelled).take(picks).to_pylist(),
            strict=True,
        ):
            own = boxes.get(row["image_id"], np.zeros((0, 4)))
            if not all(inside(part, row["height"], row["width"]) for part in (own, np.array(row["instance_boxes"]))):
                raise InputError(f"{shard}: {row['image_id']}: boxes beyond the image; run `dvc repro`")
            check_picture(row, [labels[key][index]["labels"] for key in labels], grown, params)
            places = windows(own, *frame)
            found[row["image_id"]] = row | {
                "labels": {key: table[index]["labels"] for key, table in labels.items()},
                "growth": grown,
                "windows": places[places[:, 2:].min(1) >= least],
                "object_windows": windows(row["instance_boxes"], *frame),
            }
    if lost := ids - found.keys():
        raise InputError(f"{options.images}: has {min(lost)}, which {options.dataset} lacks; run `dvc repro evaluate`")
    return found


def check_picture(row: dict, labels: list[bytes], growth: list[bytes] | None, params: Params) -> None:
    """Raise InputError where what is drawn of an image is not of its size or has other classes."""
    numbers, classes = len(params.infer.growth), len(params.dataset.classes)
    if len(growth or ()) != numbers:
        raise InputError(f"{row['image_id']}: {len(growth or ())} growing labels, but infer.growth has {numbers}; "
                         "run `dvc repro`")  # fmt: skip
    _, truth, _ = decode_row(row, classes)
    for data in (*labels, *growth):
        try:
            mask = decode_mask(data)
            if mask.shape != truth.shape or mask.max() >= classes:
                raise ValueError(
                    f"labels of {mask.shape[1]}x{mask.shape[0]} px, up to {mask.max()}; it is of another "
                    f"size than {truth.shape[1]}x{truth.shape[0]} or has more than {classes} classes"
                )
        except ValueError as error:
            raise InputError(f"{row['image_id']}: {error}; run `dvc repro`") from None


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m stages.report", description=__doc__)
    parser.add_argument("--dataset", type=Path, required=True, help="folder of the data set's shards")
    parser.add_argument("--proposals", type=Path, required=True, help="folder of the proposals' shards")
    parser.add_argument("--scores", type=Path, required=True, help="folder of the systems that have scores")
    parser.add_argument("--labels", type=Path, required=True, help="folder of the systems that have labels alone")
    parser.add_argument("--images", type=Path, required=True, help="evaluate's table of single images")
    parser.add_argument("--model", type=Path, required=True, help="DeconvNet, whose layers are shown")
    parser.add_argument("--reports", type=Path, required=True, help="folder of the stages' reports")
    parser.add_argument("--out", type=Path, required=True, help="the page, HTML")
    parser.add_argument("--pictures", type=Path, help="folder for gallery.png and growth.png")
    options = parser.parse_args(arguments)
    params = load()
    side, classes, numbers = params.report.side, list(params.dataset.classes), list(params.infer.growth)
    torch.set_num_threads(1)  # sums in one order: the page's bytes do not depend on the machine's cores

    reports = read_reports(options.reports, classes)
    metrics, growth, boundary = reports["metrics"], reports["growth"], reports["boundary"]
    net, about = files.load(options.model)
    columns = ["image_id", "system", "mean_iou", "pixel_accuracy"]
    images = tables.read(options.images, columns, contents.IMAGES).to_pandas()
    chosen = galleries.choose(images, params.report.examples)
    candidates = galleries.best_first(images, GROWING)[:CANDIDATES]
    rows = read_images(options, params, set(candidates).union(*chosen.values()))
    ious = {name: own.set_index("system")["mean_iou"] for name, own in images.groupby("image_id")}

    grown = max((rows[name] for name in candidates), key=lambda row: galleries.growth_gain(row, len(classes)))
    filled = min((rows[name] for name in candidates), key=lambda row: abs(galleries.object_share(row) - 1 / 3))
    examples = {
        name: [galleries.example(rows[image], ious[image], classes, side) for image in ids]
        for name, ids in chosen.items()
    }
    steps = galleries.growing(grown, numbers, classes, side)
    drops = {
        "pretrain": params.pretrain.run.drop_at,
        "train_stage1": params.train.stage1.drop_at,
        "train_stage2": params.train.stage2.drop_at,
        "train_fcn": params.train_fcn.run.drop_at,
    }
    table = shown.results(reports["per_class"], metrics, classes)
    gains = claims.gains(metrics, growth, boundary)
    verdicts = {letter: claims.verdict(letter, own) for letter, own in gains.items()}
    page = render(
        systems=SYSTEMS, final=FINAL, paper=paper.TABLE, split=params.evaluate.split, classes=classes, dash=DASH,
        voc=tuple(classes) == VOC_CLASSES, drawn=isinstance(params.fetch.voc_trainval, DrawnVoc),
        unseen=params.evaluate.split == "val" and params.crops.split == "trainaug",
        palette=["#" + bytes(shade).hex() for shade in [*PALETTE[: len(classes)], PALETTE[VOID]]],
        metrics=metrics, growth=growth.to_dict("list"), boundary=boundary.to_dict("list"),
        results=table, tops=shown.tops(table), claims=gains, verdicts=verdicts, tally=claims.tally(verdicts),
        measured=[charts.growth_curve(f"{SYSTEMS[GROWING].name} and the number of proposals", growth),
                  charts.by_size("Size of objects", reports["sizes"]),
                  charts.around_boundaries("Around boundaries", boundary)],
        trained=[charts.training(title, reports[name], drops[name])
                 for name, title in TRAINED.items() if len(reports[name])],
        pretrained=len(reports["pretrain"]) > 0,
        inputs=[charts.recall("Recall of the proposals", reports["proposals"]),
                charts.balance("Balance of classes, stage 1", reports["crops_stage1"]),
                charts.balance("Balance of classes, stage 2", reports["crops_stage2"])],
        confusion=shown.row_shares(reports["confusion"], FINAL, classes), summary=shown.listed(shown.summary(metrics)),
        intervals=shown.intervals(reports["intervals"]),
        galleries=examples, columns=2 + len(galleries.SHOWN), growing=steps,
        layers=activations.layers(net, filled, classes, side) if galleries.object_share(filled) else [],
        parameters=Path("params.yaml").read_text(encoding="utf-8"), code=about.get("provenance", {}).get("code", ""),
    )  # fmt: skip
    with together():
        with whole(options.out) as file:
            file.write_text(page, encoding="utf-8")
        if options.pictures:
            shown_steps = [*map(list, zip(*steps, strict=True))]
            for name, pictures in (("gallery", examples["Typical"]), ("growth", shown_steps)):
                with whole(options.pictures / f"{name}.png") as file:
                    file.write_bytes(galleries.sheet(pictures))
    print(f"{SYSTEMS[FINAL].name} {percent(metrics[FINAL]['mean_iou'])} % mean IoU, report: {options.out.resolve()}")


if __name__ == "__main__":
    run(main)
