"""Labels or scores of a split -> the archive that VOC's evaluation server takes.

Members: results/VOC2012/Segmentation/{competition}_{split}_cls/{image_id}.png, palette PNGs of VOC's 21 classes without
void, of the images' sizes, every image once, in the data set's order. comp5 is for training on VOC's data alone, comp6
for any other (SBD and ILSVRC are such). Equal labels give equal bytes.
"""

import argparse
import gzip
import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from deconvnet import contents, scores, tables
from deconvnet.errors import InputError
from deconvnet.files import whole
from deconvnet.images import PALETTE, VOC_CLASSES, decode_mask
from deconvnet.progress import progress
from experiment.cli import run
from experiment.params import load


def pair(dataset: Path, labels: Path, split: str) -> list[tuple[Path, Path]]:
    """The split's shards in the data set and in the labels, as many there as here. Raises InputError."""
    remedy = f"add {split} to infer.splits in params.yaml and run `dvc repro`"
    inputs = sorted(dataset.glob(f"{split}-*.parquet"))
    if not inputs:
        first = "give fetch.voc_test an address, " if split == "test" else ""
        raise InputError(f"{dataset}: no {split} images; {first}{remedy}")
    names = [path.name for path in inputs]
    there = {path.name for path in labels.glob(f"{split}-*.parquet")}
    if wrong := sorted(there ^ set(names)):
        reason = f"not in {dataset}; delete it, or run `dvc repro`" if wrong[0] in there else f"missing shard; {remedy}"
        raise InputError(f"{labels / wrong[0]}: {reason}")
    return [(path, labels / path.name) for path in inputs]


def smallest(mask: np.ndarray) -> bytes:
    """uint8 (H, W) -> a PNG in VOC's palette, half as large as the tables' own: it is made once and uploaded."""
    image = Image.fromarray(mask)
    image.putpalette(PALETTE.ravel().tolist())
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def pack(path: Path, masks: dict[str, bytes]) -> None:
    """Write masks, PNG by member name, as a gzipped tar whose bytes depend on them alone."""
    with (
        open(path, "wb") as file,
        gzip.GzipFile("", "wb", fileobj=file, mtime=0) as stream,
        tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for name, data in progress(masks.items(), unit="image", desc="pack"):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def check(path: Path, sizes: dict[str, tuple[int, int]]) -> None:
    """Raise InputError where an archive is not what the server takes: (height, width) by member name, in order."""
    with tarfile.open(path, "r:gz") as archive:
        members = archive.getmembers()
        if [member.name for member in members] != list(sizes):
            raise InputError(f"{path}: {len(members)} members that are not the {len(sizes)} wanted; write it again")
        for member, size in zip(members, sizes.values(), strict=True):
            image = Image.open(archive.extractfile(member))
            mask = np.asarray(image)
            if image.mode != "P" or image.getpalette() != PALETTE.ravel().tolist():
                raise InputError(f"{member.name}: not a PNG in VOC's palette; write it again")
            if mask.shape != size:
                found, wanted = (f"{width}x{height} px" for height, width in (mask.shape, size))
                raise InputError(f"{member.name}: labels of {found}, but the image has {wanted}; run `dvc repro`")
            if mask.max() >= len(VOC_CLASSES):
                raise InputError(f"{member.name}: label {mask.max()}, but the server knows 0 to 20; run `dvc repro`")


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiment.submission", description=__doc__.splitlines()[0])
    parser.add_argument("--labels", type=Path, required=True, help="folder of labels or scores: of one system")
    parser.add_argument("--dataset", type=Path, required=True, help="folder of the data set's shards")
    parser.add_argument("--out", type=Path, required=True, help="archive to write, .tgz")
    parser.add_argument("--split", choices=["test", "val"], default="test", help="val for a trial; test by default")
    parser.add_argument("--competition", choices=["comp5", "comp6"], default="comp6", help="comp6 by default")
    parser.add_argument("--params", type=Path, default="params.yaml", help="parameter file; params.yaml by default")
    options = parser.parse_args(arguments)
    if options.out.is_dir():
        raise InputError(f"{options.out}: a folder; name the archive to write as --out")
    if load(options.params).dataset.classes != VOC_CLASSES:
        raise InputError(f"{options.params}: dataset.classes: not VOC's 21 in their order; the server takes no others")
    folder = f"results/VOC2012/Segmentation/{options.competition}_{options.split}_cls"
    masks, sizes = {}, {}
    for inputs, labels in pair(options.dataset, options.labels, options.split):
        images = tables.read(inputs, ["image_id", "height", "width"], contents.DATASET).to_pylist()
        for image, row in zip(images, scores.read(labels, inputs, ["image_id", "labels"]), strict=True):
            if (name := f"{folder}/{image['image_id']}.png") in sizes:
                raise InputError(f"{inputs}: {image['image_id']} is in an earlier shard, too; run `dvc repro dataset`")
            try:
                masks[name] = smallest(decode_mask(row["labels"]))
            except ValueError as error:
                raise InputError(f"{labels}: {image['image_id']}: {error}; run `dvc repro`") from None
            sizes[name] = image["height"], image["width"]
    with whole(options.out) as temporary:
        pack(temporary, masks)
        check(temporary, sizes)
    print(f"{options.out}: {len(masks)} images in {folder}/")


if __name__ == "__main__":
    run(main)
