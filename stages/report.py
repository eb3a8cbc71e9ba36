"""Everything that was computed -> one HTML page, readable without a network, without images and without colour."""

import argparse
import os
from collections.abc import Iterator
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
from experiment.machine import cores
from experiment.params import DrawnVoc, Params, load
from experiment.report import activations, browser, cards, charts, claims, galleries, paper, reading
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
    try:
        reading.check_agreement(found, classes)
    except (ValueError, KeyError) as error:
        raise InputError(f"{folder}: {error}; run `dvc repro evaluate`") from None
    return found


def read_shards(options, params: Params) -> Iterator[tuple[str, list[dict]]]:
    """Each shard's name and its rows of the data set, with `labels` of every system, PNG bytes by key."""
    labelled = contents.LABELLED.within(instance_classes=(0, len(params.dataset.classes) - 1))
    for shard in sorted(options.dataset.glob(f"{params.evaluate.split}-*.parquet")):
        labels = {}
        for key, system in SYSTEMS.items():
            folder = (options.scores if system.has_scores else options.labels) / key
            labels[key] = scores.read(folder / shard.name, shard, ["image_id", "labels"])
        rows = tables.read(shard, [*contents.PICTURE, *contents.OBJECTS], labelled).to_pylist()
        yield (
            shard.name,
            [
                row | {"labels": {key: own[index]["labels"] for key, own in labels.items()}}
                for index, row in enumerate(rows)
            ],
        )


def read_images(options, params: Params, ids: set[str]) -> dict[str, dict]:
    """Rows of `read_shards` by image id, with what the pictures need.

    More than these: `growth`, int32 (n, 4) `windows` of the proposals and `object_windows`. Raises InputError where the
    data set lacks an image.
    """
    frame, least, found = (params.crops.context, params.crops.square), params.infer.deconvnet.min_side, {}
    for name, rows in read_shards(options, params):
        picks = [index for index, row in enumerate(rows) if row["image_id"] in ids]
        growth = tables.read(options.scores / GROWING / name, ["growth"], contents.SCORES).take(picks)
        boxes = proposed(options.proposals / name)
        for row, grown in zip((rows[index] for index in picks), growth["growth"].to_pylist(), strict=True):
            own = boxes.get(row["image_id"], np.zeros((0, 4)))
            if not all(inside(part, row["height"], row["width"]) for part in (own, np.array(row["instance_boxes"]))):
                where = f"{options.dataset / name}: {row['image_id']}"
                raise InputError(f"{where}: boxes beyond the image; run `dvc repro`")
            check_picture(row, list(row["labels"].values()), grown, params)
            size, objects = (row["height"], row["width"]), row["instance_boxes"]
            places = windows(own, *frame, size)
            found[row["image_id"]] = row | {
                "growth": grown,
                "windows": places[places[:, 2:].min(1) >= least],
                "object_windows": np.broadcast_to(windows(objects, *frame, size), (len(objects), 4)),
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
    parser.add_argument("--fcn", type=Path, help="FCN-8s, for its card")
    parser.add_argument("--reports", type=Path, required=True, help="folder of the stages' reports")
    parser.add_argument("--out", type=Path, required=True, help="the page, HTML")
    parser.add_argument("--browser", type=Path, help="folder of every evaluated image, with a page of its own")
    parser.add_argument("--cards", type=Path, help="the models' cards, Markdown; needs --fcn")
    parser.add_argument("--pictures", type=Path, help="folder for gallery.png and growth.png")
    options = parser.parse_args(arguments)
    params = load()
    side, classes, numbers = params.report.side, list(params.dataset.classes), list(params.infer.growth)
    torch.set_num_threads(1)  # sums in one order: the page's bytes do not depend on the machine's cores

    reports = read_reports(options.reports, classes)
    metrics, growth, boundary = reports["metrics"], reports["growth"], reports["boundary"]
    net, about = files.load(options.model)
    images = tables.read(options.images, None, contents.IMAGES).to_pandas()
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
    verdicts = {
        letter: claims.verdict(letter, own, claims.lowest(letter, reports["intervals"]))
        for letter, own in gains.items()
    }
    page = render(
        "page.html", systems=SYSTEMS, final=FINAL, paper=paper.TABLE, split=params.evaluate.split, classes=classes,
        dash=DASH, voc=tuple(classes) == VOC_CLASSES, drawn=isinstance(params.fetch.voc_trainval, DrawnVoc),
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
        confusions={key: shown.row_shares(reports["confusion"], key, classes) for key in [FINAL, *SYSTEMS]},
        browser=options.browser and os.path.relpath(options.browser, options.out.parent),
        cards=options.cards and os.path.relpath(options.cards, options.out.parent),
        summary=shown.listed(shown.summary(metrics)),
        intervals=shown.intervals(reports["intervals"]),
        galleries=examples, columns=2 + len(galleries.SHOWN), growing=steps,
        layers=activations.layers(net, filled, classes, side) if galleries.object_share(filled) else [],
        parameters=Path("params.yaml").read_text(encoding="utf-8"), code=about.get("provenance", {}).get("code", ""),
    )  # fmt: skip
    with together():
        with whole(options.out) as file:
            file.write_text(page, encoding="utf-8")
        if options.browser:
            rows = (row for _, own in read_shards(options, params) for row in own)
            browser.write(options.browser, rows, images, classes, cores())
        if options.cards:
            models = {"deconvnet": {"spec": net.spec, "state": net.state_dict(), "about": about}}
            text = cards.cards(
                models | {"fcn8s": files.read(options.fcn)}, params, metrics, reports["per_class"],
                shown.intervals(reports["intervals"]), len(reports["pretrain"]) > 0,
            )  # fmt: skip
            with whole(options.cards) as file:
                file.write_text(text, encoding="utf-8")
        if options.pictures:
            shown_steps = [*map(list, zip(*steps, strict=True))]
            for name, pictures in (("gallery", examples["Typical"]), ("growth", shown_steps)):
                with whole(options.pictures / f"{name}.png") as file:
                    file.write_bytes(galleries.sheet(pictures))
    print(f"{SYSTEMS[FINAL].name} {percent(metrics[FINAL]['mean_iou'])} % mean IoU, report: {options.out.resolve()}")


if __name__ == "__main__":
    run(main)
