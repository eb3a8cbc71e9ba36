"""Check an experiment's parameter file, and say what a run would need: disk, memory, operations, time on this machine.

Bytes per image and rates of the stages without a net were measured on VOC (docs/sharing.md, docs/scaling.md) and are
scaled by pixels and classes; nets are counted (deconvnet/cost.py). Sizes of images are read from data/dataset once it
is there; before, they follow from train_fcn.canvas. Times of nets are predicted (deconvnet/roofline.py).
"""

import argparse
import dataclasses
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from deconvnet import contents, cost, roofline, tables
from deconvnet.errors import InputError
from deconvnet.roofline import Device
from deconvnet.settings import Run, Size
from deconvnet.steps import inference_census
from deconvnet.systems import SYSTEMS
from experiment.cli import run
from experiment.machine import cores, gpus
from experiment.params import Params, load

VOC = 500 * 375  # px of a VOC image; what follows was measured on such ones, with 21 classes
IMAGE_BYTES = 102e3 / VOC  # per pixel: a row of data/dataset
BOX_BYTES = 9.7  # a proposal in data/proposals
SCORE_BYTES = 1.22e6 / (VOC * 21)  # per pixel and class: a row of data/scores
LABEL_BYTES = 3.2e3 / VOC  # per pixel: a row of data/labels
DECODED = 5  # bytes per pixel of an image and its masks in memory
DATASET_SECONDS = 1 / 100 / VOC  # per pixel, one core
PROPOSAL_SECONDS = 0.55 / VOC  # per pixel, one core
SCORE_SECONDS = 0.06 / (VOC * 21)  # per pixel and class, one core: compressing scores
CRF_SECONDS = 2 / (VOC * 21)  # per pixel and class, one core
CROP_BYTES, CROP_SECONDS = 1.6e9 / 24e6, 18 / 24e6  # per proposal, one core: drawing stage 2's windows


@dataclass(frozen=True)
class Images:
    """How many images there are by split, and how large they are on average."""

    train: int  # that crops are made of
    all: int
    inferred: int  # of the splits in infer.splits
    pixels: float  # per image


@dataclass(frozen=True)
class Need:
    """What one stage needs. None: not known before the data set is there."""

    stage: str
    disk: float | None = 0
    memory: float | None = 0  # of the host, or with a net of its device
    flops: float = 0
    seconds: float | None = 0
    note: str = ""


def count_images(params: Params, folder: Path) -> Images | None:
    """The data set's images: from its shards, else from dataset.counts, None where neither says.

    Raises InputError for an image that exceeds train_fcn.canvas: FCN-8s would fail on it, after days of training.
    """
    splits, pixels = {}, 0
    height, width = params.train_fcn.canvas
    for path in sorted(folder.glob("*.parquet")):
        table = tables.read(path, ["image_id", "height", "width"], contents.DATASET).to_pandas()
        for row in table[(table["height"] > height) | (table["width"] > width)].head(1).itertuples():
            raise InputError(
                f"{path}: {row.image_id}: {row.height}x{row.width} px do not fit train_fcn.canvas {height}x{width} in "
                "params.yaml; enlarge it"
            )
        split = path.name.partition("-")[0]
        splits[split] = splits.get(split, 0) + len(table)
        pixels += int((table["height"].astype(int) * table["width"]).sum())
    counts = params.dataset.counts
    if splits:
        train, total = splits.get("train", 0), sum(splits.values())
        area = pixels / total
    elif {params.crops.split, "val", "trainaug"} <= counts.keys():
        splits = {"train": counts["trainaug"], "val": counts["val"], "test": counts.get("test", 0)}
        train, total = counts[params.crops.split], sum(splits.values())
        area = height * width * (0.75 if height == width else 1)  # a square holds 4:3 upright and lying
    else:
        return None
    return Images(train, total, sum(splits.get(split, 0) for split in params.infer.splits), area)


def trainings(params: Params) -> dict[str, tuple[Run, dict, tuple[int, int]]]:
    """Of each training its run, its net's spec and the size of its crops, height and width in px."""
    size, classes = dataclasses.asdict(params.pretrain.size), len(params.dataset.classes)
    side = params.pretrain.size.shape
    encoder = {"kind": "classifier", "size": size, "classes": classes, "eps": params.pretrain.batch_norm_eps}
    deconvnet = {"kind": "deconvnet", "size": size, "classes": classes, "eps": params.train.batch_norm_eps,
                 "unpooling": params.train.unpooling}  # fmt: skip
    fcn = {"kind": "fcn", "size": size, "classes": classes, "eps": params.train_fcn.batch_norm_eps}
    return {
        "pretrain": (params.pretrain.run, encoder, side),
        "train_stage1": (params.train.stage1, deconvnet, side),
        "train_stage2": (params.train.stage2, deconvnet, side),
        "train_fcn": (params.train_fcn.run, fcn, params.train_fcn.seen),
    }


def train_costs(params: Params, device: str, devices: int) -> dict[str, cost.Cost]:
    """What each training needs on so many devices, "cuda" or "cpu", or as many as its batch divides among."""
    costs = {}
    for stage, (plan, spec, size) in trainings(params).items():
        if stage == "pretrain" and params.fetch.vgg16.addresses and params.pretrain.size == Size():
            continue  # VGG-16's weights are passed on
        usable = plan.devices(devices)
        plan = dataclasses.replace(plan, micro_batch=plan.micro_batch_for(usable))
        costs[stage] = cost.count(plan, spec, size, device, usable)
    return costs


def train_needs(params: Params, costs: dict[str, cost.Cost], machine: Device) -> list[Need]:
    """Of each training: checkpoints on disk, memory of the device, operations, seconds."""
    needs = []
    for stage, (plan, spec, _) in trainings(params).items():
        if stage not in costs:
            needs.append(Need(stage, 4 * cost.parameters(spec), note="VGG-16's weights, passed on"))
            continue
        price = costs[stage]
        memory = price.device_bytes + (0 if machine.samples else cost.UNCOUNTED)
        note = f"{price.steps:,} steps of {plan.batch} crops, {price.micro_batch} at once"
        needs.append(Need(stage, cost.KEPT * price.parameters, memory, price.flops, price.seconds(machine), note))
    return needs


def infer_needs(params: Params, images: Images, device: str, devices: int, machine: Device) -> list[Need]:
    """Re-estimation and the scores of every system with a net."""
    plans, infer = trainings(params), params.infer
    plan, spec, size = plans["train_stage2"]
    passes = params.reestimate.passes if spec["eps"] is not None else 0
    window = inference_census(spec, size, params.reestimate.batch, plan.precision)
    span = passes * roofline.predict(window, machine)
    needs = [Need("reestimate", 4 * cost.parameters(spec), 0, passes * window.flops, span)]
    _, fcn, canvas = plans["train_fcn"]
    stored = images.inferred * images.pixels * len(params.dataset.classes)
    for key, system in SYSTEMS.items():
        if system.net is None:
            continue
        if system.net == "fcn":
            at_once, batches = infer.fcn_batch, images.inferred / infer.fcn_batch
            batch = inference_census(fcn, canvas, at_once, infer.precision)
        else:
            number, at_once = infer.deconvnet.proposals, infer.deconvnet.batch
            number = max(number, *infer.growth) if key == "deconvnet" else number
            batches = images.inferred * (1 if params.crops.context == "whole" else number) / at_once
            batch = inference_census(spec, size, at_once, infer.precision)
        workers = devices if device == "cuda" else cores()
        span = (batches * roofline.predict(batch, machine) + stored * SCORE_SECONDS) / workers
        needs.append(Need(f"infer@{key}", stored * SCORE_BYTES, 0, batches * batch.flops, span))
    return needs


def other_needs(params: Params, images: Images) -> list[Need]:
    """The stages without a net."""
    pixels, boxes = images.all * images.pixels, images.all * params.proposals.boxes
    scored = images.inferred * images.pixels
    stored, at_once = scored * len(params.dataset.classes), cores()
    drawn = images.train * params.proposals.boxes
    needs = [
        Need("dataset", pixels * IMAGE_BYTES, seconds=pixels * DATASET_SECONDS / at_once),
        Need("proposals", boxes * BOX_BYTES, seconds=pixels * PROPOSAL_SECONDS / at_once),
        Need("crops", memory=drawn * CROP_BYTES, seconds=drawn * CROP_SECONDS),
    ]
    for key, system in SYSTEMS.items():
        if system.members:
            needs.append(Need(key, stored * SCORE_BYTES, seconds=2 * stored * SCORE_SECONDS / at_once))
        elif system.crf:
            needs.append(Need(key, scored * LABEL_BYTES, seconds=stored * CRF_SECONDS / at_once))
    return needs


def fetch_needs(params: Params) -> Need:
    """The files that the experiment starts from: as large as they are, or as the parameters say."""
    total, unknown = 0, []
    for name, source in vars(params.fetch).items():
        if Path(source.file).is_file():
            total += Path(source.file).stat().st_size
        elif getattr(source, "bytes", None):
            total += source.bytes
        elif getattr(source, "addresses", True):
            unknown.append(name)
    note = f"without {', '.join(unknown)}, whose size is not known yet" if unknown else ""
    return Need("fetch", total, seconds=None, note=note)


def table(needs: list[Need]) -> list[str]:
    """Lines of text: a row per stage."""
    rows = [("stage", "disk", "memory", "operations", "time here", "")]
    for need in needs:
        rows.append(
            (
                need.stage,
                cost.gigabytes(need.disk) if need.disk else "",
                cost.gigabytes(need.memory) if need.memory else "",
                cost.operations(need.flops) if need.flops else "",
                cost.duration(need.seconds) if need.seconds else "",
                need.note,
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return [
        "  ".join([row[0].ljust(widths[0]), *(row[i].rjust(widths[i]) for i in range(1, 5)), row[5]]).rstrip()
        for row in rows
    ]


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiment.check", description=__doc__.splitlines()[0])
    parser.add_argument("--params", type=Path, default="params.yaml", help="parameter file; params.yaml by default")
    options = parser.parse_args(arguments)
    params = load(options.params)
    print(f"{options.params}: every key is there and allowed\n")
    cuda = torch.cuda.is_available()
    device, devices = torch.device("cuda" if cuda else "cpu"), max(gpus(), 1) if cuda else 1
    precisions = {plan.precision for plan, *_ in trainings(params).values()} | {params.infer.precision}
    machine = roofline.measure(device, tuple(sorted(precisions)))
    trained = train_needs(params, train_costs(params, device.type, devices), machine)
    images = count_images(params, Path("data/dataset"))
    needs = [fetch_needs(params)]
    if images:
        others = other_needs(params, images)
        needs += [*others[:3], *trained, *infer_needs(params, images, device.type, devices, machine), *others[3:]]
    else:
        needs += trained
    _, deconvnet, _ = trainings(params)["train_stage2"]
    passing = (cost.CHECKPOINTS - cost.KEPT) * cost.parameters(deconvnet)  # of one training at a time
    disk = sum(need.disk for need in needs) + passing
    total = Need("all", disk, flops=sum(n.flops for n in needs), seconds=sum(n.seconds or 0 for n in needs))
    print("\n".join(table([*needs, total])))

    pictures = f"{images.all:,} images of {images.pixels:,.0f} px on average" if images else "images of unknown number"
    rate = ", ".join(f"{rate / 1e12:,.2g} TFLOP/s in {name}" for name, rate in machine.flops.items())
    print(f"\n{pictures}; {devices} x {device.type}, {rate}, {machine.bandwidth / 1e9:,.0f} GB/s; {cores()} cores")
    print(f"disk: all at once, with {cost.gigabytes(passing)} of checkpoints that go when a training ends; DVC's cache")
    print(
        "takes the results once more where the file system has no reflinks. memory: of a training, of its device, with"
    )
    print(f"{cost.gigabytes(cost.UNCOUNTED)} for CUDA and cuDNN, else of the host. time: nets predicted, the rest as")
    print("measured on VOC (docs/scaling.md); downloads are left out.")
    if not images:
        print(
            "The number of images is known from dataset.counts or once data/dataset is there; stages that grow with it"
        )
        print("are left out.")
    print("\n" + "\n".join(on_gpus(params)))
    for line in warnings(params, images, needs, disk, device):
        print(f"warning: {line}")


def on_gpus(params: Params) -> list[str]:
    """Lines of text: a census of each training's step on a GPU, and what common GPUs would make of it."""
    lines = [f"A step on one GPU, counted; crops a second, predicted, not measured ({roofline.ASSUMED}):"]
    alike: dict[tuple[str, str], list[str]] = {}
    for stage, price in train_costs(params, "cuda", 1).items():
        rates = [
            f"{name} {price.rate(gpu):,.0f}" for name, gpu in roofline.GPUS.items()
            if price.device_bytes + cost.UNCOUNTED < gpu.memory
        ]  # fmt: skip
        words = cost.in_words(price.step, price.crops // price.steps), ", ".join(rates) or "too large for each"
        alike.setdefault(words, []).append(stage)
    for (step, rates), stages in alike.items():
        lines += [f"  {', '.join(stages)}: {step}", f"    {rates}"]
    return lines


def warnings(params: Params, images: Images | None, needs: list[Need], disk: float, device: torch.device) -> list[str]:
    """What this machine lacks."""
    lines = []
    present = sum(path.stat().st_size for path in Path("data").rglob("*") if path.is_file())
    if disk - present > (free := shutil.disk_usage(".").free):
        lines.append(f"{cost.gigabytes(free)} of disk are free, {cost.gigabytes(disk - present)} are still wanted")
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    there = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else host
    for need in needs:
        at = there if need.flops else host
        if need.memory and need.memory > at:
            lines.append(f"{need.stage} wants {cost.gigabytes(need.memory)}, there are {cost.gigabytes(at)}: lower "
                         "its micro_batch")  # fmt: skip
    decoded = images.train * images.pixels * DECODED if images else 0
    allowed = params.training.memory_gb * 1e9
    if decoded > allowed:
        lines.append(
            f"decoded images take {cost.gigabytes(decoded)}, more than training.memory_gb: every batch decodes"
        )
    if min(decoded, allowed) > host:
        lines.append(f"decoded images take {cost.gigabytes(min(decoded, allowed))}, the host has "
                     f"{cost.gigabytes(host)}: lower training.memory_gb")  # fmt: skip
    return lines


if __name__ == "__main__":
    run(main)
