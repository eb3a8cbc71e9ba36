"""Make an experiment of your own images and masks: a folder with a params.yaml that suits them, ready for `dvc repro`.

Every image and mask is read as the stage `dataset` will read it, and what is wrong is said before anything is written.
docs/own-data.md goes through an example.
"""

import argparse
import json
import math
import os
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from deconvnet import folders
from deconvnet.errors import InputError
from deconvnet.fields import parse
from deconvnet.files import list_files, whole
from deconvnet.images import VOID, decode_mask
from deconvnet.progress import progress
from deconvnet.settings import Dataset
from experiment.cli import run
from experiment.machine import cores, gpus

ROOT = Path(__file__).resolve().parents[1]
SIDE = 500  # px, longer side of VOC's images, which the paper's numbers in px are for
CONFIG = """[core]
    analytics = false
    check_update = false
[cache]
    type = "reflink,hardlink,symlink,copy"
"""


@dataclass
class Seen:
    """What the images and masks turned out to be."""

    classes: Sequence[str]
    splits: dict[str, list[str]]  # ids
    sizes: list[tuple[int, int]] = field(default_factory=list)  # height and width, px, of every image as it is used
    largest: tuple[int, int] = (0, 0)  # of the files
    objects: Counter = field(default_factory=Counter)  # by split and class id
    images: Counter = field(default_factory=Counter)  # that show a class, by split and class id
    annotated: list[str] = field(default_factory=list)  # training images with an object

    @property
    def canvas(self) -> tuple[int, int]:
        """Height and width that hold every image, px; the least that a canvas may have is 32."""
        return tuple(max(32, *(size[axis] for size in self.sizes)) for axis in (0, 1))

    @property
    def shape(self) -> str:
        """The images' sizes in words."""
        sizes = {f"{width}x{height}" for height, width in self.sizes}
        several = f"{len(sizes)} sizes, within {self.canvas[1]}x{self.canvas[0]}"
        return f"images of {several if len(sizes) > 1 else min(sizes)} px"

    @property
    def typical(self) -> int:
        """Median of the images' longer sides, px."""
        return int(np.median([max(size) for size in self.sizes]))


def main(arguments: list[str]) -> None:
    summary, _, rest = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(prog="python -m experiment.new", description=summary, epilog=rest)
    parser.add_argument("folder", type=Path, help="the new experiment's folder, which must not be there yet")
    parser.add_argument("--images", type=Path, required=True, help="folder of pictures that Pillow reads")
    parser.add_argument("--masks", type=Path, required=True, help="folder of masks, of the pictures' names")
    parser.add_argument("--objects", type=Path, help="folder of object masks; without, objects are connected parts")
    names = parser.add_mutually_exclusive_group(required=True)
    names.add_argument("--classes", nargs="+", metavar="NAME", help="by the masks' numbers, background (0) first")
    names.add_argument(
        "--labels", nargs="+", metavar="NAME=N,N", help="the masks' numbers by class, background first: "
        "background=0,others car=7,8 void=9"
    )  # fmt: skip
    parser.add_argument("--lists", type=Path, help="folder of train.txt and val.txt, names of images, one a line")
    parser.add_argument("--share", type=float, default=0.2, help="of the images for val, without --lists; 0.2")
    parser.add_argument("--seed", type=int, default=2015, help="of the random split, without --lists; 2015")
    parser.add_argument("--longest", type=int, default=640, help="px that larger images are reduced to; 640")
    parser.add_argument("--offline", action="store_true", help="no downloads: a small encoder, trained on your crops")
    options = parser.parse_args(arguments)
    if options.folder.exists() or options.folder.is_symlink():
        raise InputError(f"{options.folder}: is there already; name a new folder, or remove that one")
    if options.seed < 0:
        raise InputError(f"--seed: {options.seed} is not allowed; allowed: 0 or more")
    if not 0 < options.share < 1:
        raise InputError(f"--share: {options.share:g} is not allowed; allowed: between 0 and 1")
    labels = parse_labels(options.labels or [])
    classes = options.classes or [name for name in labels if name != "void"]
    values = {"classes": classes, "labels": labels, "shard_images": 256, "kind": "folders"}
    parse(Dataset, values, "--labels" if labels else "--classes", "dataset")
    if not 32 <= options.longest <= 8192:
        raise InputError(f"--longest: {options.longest} is not allowed; allowed: 32 to 8192 px")
    places = {"images": options.images, "masks": options.masks}
    places |= {"objects": options.objects} if options.objects else {}
    found = {role: [folders.File(path) for path in list_files(place)] for role, place in places.items()}
    splits = read_lists(options.lists) if options.lists else draw_lists(found["images"], options.share, options.seed)
    sources = folders.find(found["images"], found["masks"], found.get("objects"), splits)
    seen = look(sources, splits, classes, labels, options.longest)
    values = choose(seen, options.offline, gpus() > 0)
    write(options.folder, values, seen, labels, places)
    print("\n".join(describe(seen, len(found["images"]), "objects" in found)))
    print(f"\n{options.folder}: made; look at {options.folder / 'params.yaml'}. Then:\n\n    cd {options.folder}")
    if _git(options.folder):
        print('    git add . && git commit -m "My experiment"')
    print("    dvc repro\n\nWhat it will need (python -m experiment.check, in that folder):\n", flush=True)
    os.chdir(options.folder)
    from experiment import check  # here: it imports PyTorch

    check.main([])


def parse_labels(words: list[str]) -> dict[str, list[int | str]]:
    """NAME=N,N words as the numbers by name. Raises InputError."""
    labels = {}
    for word in words:
        name, _, numbers = word.rpartition("=")
        values = numbers.split(",")
        if not name or name in labels or not all(re.fullmatch("others|[0-9]{1,9}", value) for value in values):
            raise InputError(
                f"--labels: {word!r} is not allowed; allowed: NAME=NUMBERS, such as car=7,8, each name once"
            )
        labels[name] = [value if value == "others" else int(value) for value in values]
    return labels


def read_lists(place: Path) -> dict[str, list[str]]:
    """The ids in train.txt and val.txt of a folder."""
    return {split: folders.read_list(folders.File(place / f"{split}.txt")) for split in ("train", "val")}


def draw_lists(images: list[folders.File], share: float, seed: int) -> dict[str, list[str]]:
    """All pictures by chance: round(share) of them, but one at least, for val. Raises InputError for less than 3."""
    ids = sorted({file.path.stem for file in images if file.path.suffix.lower() in folders.picture_suffixes()})
    if len(ids) < 3:
        raise InputError(f"{images[0].path.parent}: {len(ids)} pictures that Pillow reads; three are the least")
    order = np.random.default_rng(seed).permutation(ids).tolist()
    count = min(max(round(share * len(ids)), 1), len(ids) - 2)
    return {"train": sorted(order[count:]), "val": sorted(order[:count])}


def look(
    sources: list[folders.Source], splits: dict[str, list[str]], classes: Sequence[str], labels: dict, longest: int
) -> Seen:
    """Read every image and mask. Raises InputError for one that `dataset` would refuse, and where none has a class."""
    seen = Seen(classes, splits)

    def read(source: folders.Source):
        row = folders.read_row(source, classes, labels, longest)
        with Image.open(source.image.path) as image:
            size = (image.height, image.width)
        present = np.unique(decode_mask(row["class_mask"]))
        return size, (row["height"], row["width"]), row["instance_classes"].tolist(), present

    with ThreadPoolExecutor(cores()) as pool:
        rows = progress(pool.map(read, sources), total=len(sources), unit="image", desc="reading")
        for source, (file_size, size, kinds, present) in zip(sources, rows, strict=True):
            seen.sizes.append(size)
            seen.largest = max(seen.largest, file_size, key=max)
            seen.objects.update((source.split, kind) for kind in kinds)
            seen.images.update((source.split, int(kind)) for kind in present if kind != VOID)
            if kinds and source.split == "train":
                seen.annotated.append(source.image_id)
    if not seen.annotated:
        what = "" if labels else "; where 255 is your class, say so: --labels background=0 NAME=255"
        raise InputError(f"{sources[0].mask.path.parent}: no mask of a training image shows a class{what}")
    return seen


def choose(seen: Seen, offline: bool, gpu: bool) -> dict:
    """Numbers of the parameter file for the images seen; each name is one of experiment/new.yaml."""
    import pandas as pd

    from deconvnet.batches import held_out  # here: it imports PyTorch

    train, classes = len(seen.splits["train"]), len(seen.classes) - 1
    scale = seen.typical / SIDE
    # Steps: those of demo/ and small/, tried with 660 and about 1,000 images; fewer for fewer images, but not for long.
    share = min(max(math.sqrt(train / (660 if offline else 1000)), 0.3), 1) * (4 if gpu else 1)
    names = ("pretrain_steps", "stage1_steps", "stage2_steps", "fcn_steps")
    base = (900, 200, 2000, 600) if offline else (500, 300, 1800, 700)
    steps = {name: math.ceil(count * share / 10) * 10 for name, count in zip(names, base, strict=True)}
    annotated = pd.Series(seen.annotated)
    wanted = min(4, max(1, len(annotated) // 5))
    for held in (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6):
        count = int(held_out(annotated, held).sum())
        if wanted <= count < len(annotated):
            break
    else:
        raise InputError(
            f"{len(annotated)} training images with objects are too few to hold one out for validation; five are the "
            "least: name more in train"
        )
    pixels = sum(height * width for height, width in seen.sizes)
    decoded = pixels * 5 / 1e9
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    boxes = 2000 if seen.typical >= 400 else 500
    longer = max(seen.canvas)
    net = 1.0 if gpu or longer <= 320 else round(max(250 / longer, 0.1), 2)
    reduced = max(seen.largest) > max(map(max, seen.sizes))
    return steps | {
        "offline": offline, "device": "a machine with a GPU" if gpu else "a machine without a GPU",
        "steps_why": f"rule: {share:.2g} times those of {'demo/' if offline else 'small/'}, for {train:,} training "
                     f"images{' and a GPU (not tried on one)' if gpu else ''}",
        "warmup": min(20, min(steps.values()) // 5),
        "train": train, "val": len(seen.splits["val"]), "shard_images": min(max(math.ceil(train / 4), 4), 256),
        "longest": max(map(max, seen.sizes)) if reduced else "null",
        "longest_why": f"your largest image has {seen.largest[1]}x{seen.largest[0]} px" if reduced
                       else "yours are used as they are",
        "boxes": boxes, "recall_boxes": [n for n in (10, 50, 100, 500, 2000) if n <= boxes],
        "typical": seen.typical, "min_box_area": _rounded(1000 * scale**2), "min_area": _rounded(400 * scale**2),
        "sizes": [_rounded(1024 * scale**2), max(_rounded(9216 * scale**2), _rounded(1024 * scale**2) + 1)],
        "per_class1": max(math.ceil(steps["stage1_steps"] * 32 / classes / 10) * 10, 10),
        "per_class2": max(math.ceil(steps["stage2_steps"] * 32 / classes / 10) * 10, 10),
        "held_out": held, "held": f"{count:,} of your {len(annotated):,} with objects",
        "memory_gb": min(max(math.ceil(decoded * 1.1), 1), max(int(host / 2), 1)), "decoded_gb": f"{decoded:.2g}",
        "canvas": list(seen.canvas), "scale": net,
        "scale_why": "the net sees images as they are" if net == 1 else "the net sees 250 px, for speed without a GPU",
        "examples": min(6, len(seen.splits["val"])),
    }  # fmt: skip


def _rounded(number: float) -> int:
    """To two digits, 1 at least."""
    return max(int(float(f"{number:.2g}")), 1)


def write(folder: Path, values: dict, seen: Seen, labels: dict, places: dict[str, Path]) -> None:
    """The experiment's folder, whole or not at all."""
    import jinja2

    folder = Path(os.path.abspath(folder))
    inside = folder.is_relative_to(ROOT)
    defaults = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))["fetch"]
    used = () if values["offline"] else ("vgg16", "edge_model")
    fetch = {
        key: entry if key in used else {"by": entry["by"], "file": entry["file"], "addresses": []}
        for key, entry in defaults.items()
    }
    where = {role: os.path.abspath(place) for role, place in places.items()}  # as temporary workspaces need it
    where |= {"train": "train.txt", "val": "val.txt"}
    head = f"{len(seen.sizes):,} {seen.shape}, {len(seen.classes) - 1} classes and background."
    template = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    text = template.from_string((ROOT / "experiment/new.yaml").read_text(encoding="utf-8")).render(
        values, head=head, root=os.path.relpath(ROOT, folder) if inside else _text(str(ROOT)), fetch=_yaml(fetch),
        classes=_text(list(seen.classes)), labels=_text(labels) if labels else "",
        folders="".join(f"  {key}: {_text(place)}\n" for key, place in where.items()),
    )  # fmt: skip
    with whole(folder) as new:
        new.mkdir()
        (new / ".dvc").mkdir()
        (new / "params.yaml").write_text(text, encoding="utf-8")
        for split, ids in seen.splits.items():
            (new / f"{split}.txt").write_text("".join(f"{name}\n" for name in ids), encoding="utf-8")
        shutil.copy(ROOT / "dvc.yaml", new)
        shutil.copy(ROOT / ".dvcignore", new)
        config = CONFIG
        if inside:  # all experiments of the repository share one cache
            config += f"    dir = {os.path.relpath(ROOT / '.dvc/cache', folder / '.dvc')}\n"
        else:
            shutil.copy(ROOT / ".gitignore", new)
        if not _git(folder):
            config = config.replace("[core]\n", "[core]\n    no_scm = true\n")
        (new / ".dvc/config").write_text(config, encoding="utf-8")
        (new / ".dvc/.gitignore").write_text("/config.local\n/tmp\n/cache\n", encoding="utf-8")


def _text(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)  # which is YAML, and quotes every text


def _yaml(value: dict) -> str:
    lines = yaml.safe_dump(value, sort_keys=False, width=1000).splitlines()
    return "".join(f"  {line}\n" for line in lines)


def _git(folder: Path) -> bool:
    return any((parent / ".git").exists() for parent in folder.absolute().parents)


def describe(seen: Seen, files: int, own_objects: bool) -> list[str]:
    """Lines of text: what the images and masks are."""
    train, val = (len(seen.splits[split]) for split in ("train", "val"))
    lines = [f"{train:,} train and {val:,} val {seen.shape}"]
    if files > train + val:
        lines.append(f"{files - train - val:,} more files in the folder of images are not used")
    if max(seen.largest) > max(map(max, seen.sizes)):
        lines.append(f"the largest has {seen.largest[1]}x{seen.largest[0]} px: reduced (--longest)")
    parts = f"connected parts of a class, of {folders.LEAST} px or more, since there are no object masks (--objects)"
    lines.append(f"objects: {'those of your object masks' if own_objects else parts}")
    width = max(len("class"), *map(len, seen.classes))
    lines += ["", f"{'class':{width}}  train: images  objects    val: images  objects"]
    for kind, name in enumerate(seen.classes):
        numbers = [table[split, kind] for split in ("train", "val") for table in (seen.images, seen.objects)]
        cells = [f"{number:,}" if kind or not column % 2 else "" for column, number in enumerate(numbers)]
        lines.append(f"{name:{width}}  {cells[0]:>13}  {cells[1]:>7}  {cells[2]:>13}  {cells[3]:>7}".rstrip())
    missing = [name for kind, name in enumerate(seen.classes) if kind and not seen.objects["train", kind]]
    if missing:
        lines.append(f"warning: no training image has an object of {', '.join(missing)}: nothing will learn it")
    return lines


if __name__ == "__main__":
    run(main)
