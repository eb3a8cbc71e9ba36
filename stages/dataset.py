"""VOC 2012 and SBD archives -> data/dataset/{train,val,test}-NNN.parquet: every image with its masks, nothing unpacked.

What a row holds and which image belongs to which split: see deconvnet/voc.py. With `dataset.kind: folders` the images
come from folders of one's own: see deconvnet/folders.py. Rows are sorted by split and id, so the shards' bytes do not
depend on the archives' order. The folder appears whole; after a kill the same command continues
with the shards that are missing.
"""

import argparse
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa

from deconvnet import folders, provenance, tables, voc
from deconvnet.archives import Archive
from deconvnet.errors import InputError
from deconvnet.files import file_hash, whole
from deconvnet.progress import progress
from experiment import params as parameters
from experiment.cli import run
from experiment.machine import cores


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m stages.dataset", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--input",
        type=Path,
        required=True,
        help="VOC 2012 trainval, a tar; of kind `folders`, the folder of their lists",
    )
    parser.add_argument("--sbd", type=Path, required=True, help="SBD, a tar.gz; an empty file: VOC alone")
    parser.add_argument("--test", type=Path, required=True, help="VOC 2012 test, a tar; an empty file: none")
    parser.add_argument("--out", type=Path, required=True, help="folder of the shards")
    options = parser.parse_args(arguments)
    params = parameters.load()
    settings, classes = params.dataset, params.dataset.classes
    if settings.kind == "folders":
        inputs = [options.input / f"{key}.sha256" for key in sorted(params.folders)]
        sources = find(options.input, params.folders)
        read = functools.partial(folders.read_row, classes=classes, labels=settings.labels, longest=settings.longest)
    else:
        inputs = [options.input, options.sbd, options.test]
        archives = [opened(path) for path in inputs]
        if not archives[0]:
            raise InputError(f"{options.input}: empty; give fetch.voc_trainval an address in params.yaml")
        sources = voc.find(*archives)
        read = functools.partial(voc.read_row, classes=len(classes))
    counts = voc.count_images(sources)
    for name, expected in params.dataset.counts.items():
        if counts[name] != expected:
            raise InputError(
                f"{', '.join(map(str, inputs))}: {name} has {counts[name]} images, but dataset.counts.{name} in "
                f"params.yaml is {expected}; correct the number or the data"
            )
    mark = provenance.fingerprint(__file__, settings, *map(file_hash, inputs))
    planned = voc.plan(sources, params.dataset.shard_images)
    build(options.out, planned, read, mark)
    found = ", ".join(f"{counts[name]:,} {name}" for name in ("trainaug", "val", "test") if counts[name])
    print(f"{options.out}: {found} images in {len(planned)} shards")


def find(lists: Path, places: dict[str, str]) -> list[folders.Source]:
    """The images that the lists of `stages.folders` name, in the folders `places` of params.yaml."""
    found = {}
    for key, place in places.items():
        try:
            lines = (lists / f"{key}.sha256").read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise InputError(f"{lists / key}.sha256: {error.strerror}; run `dvc repro folders@{key}`") from None
        folder = Path(place) if Path(place).is_dir() else Path(place).parent
        found[key] = [folders.File(folder / line[66:], line[:64]) for line in lines]
    splits = {split: folders.read_list(found[split][0]) for split in ("train", "val")}
    return folders.find(found["images"], found["masks"], found.get("objects"), splits)


def opened(path: Path) -> Archive | None:
    """The archive; None for an empty file, which means "not used"."""
    return Archive(path) if not path.is_file() or path.stat().st_size else None


def build(folder: Path, planned: dict[str, list], read: Callable[..., dict], mark: str) -> None:
    """Write the planned shards into `folder`, but for those that an interrupted run of the same `mark` left whole.

    read: makes a row of a source. The sources of a row are what `planned` holds.
    """
    total = sum(map(len, planned.values()))
    with (
        whole(folder, continues=mark) as out,
        ThreadPoolExecutor(cores()) as pool,
        progress(total=total, unit="image", desc="dataset") as bar,
    ):
        out.mkdir(exist_ok=True)
        reused = {name for name in planned if tables.footer(out / name)}
        for path in out.iterdir():
            if path.name not in reused:
                path.unlink()
        if reused:
            print(f"{folder}: {len(reused)} of {len(planned)} shards reused from an interrupted run", flush=True)
        written = None
        for name, members in planned.items():
            bar.set_postfix_str(name.removesuffix(".parquet"), refresh=False)
            if name in reused:
                bar.update(len(members))
                continue
            rows = []
            for row in pool.map(read, members):
                rows.append(row)
                bar.update()
            if written:
                written.result()  # one shard is written while the next is read: two in memory, no more
            written = pool.submit(write, out / name, rows)
        if written:
            written.result()
        if {path.name for path in out.iterdir()} != set(planned):
            raise InputError(f"{folder}: another process is making it, too; wait for its end, then run again")


def write(path: Path, rows: list[dict]) -> None:
    tables.write(path, pa.Table.from_pylist(rows, voc.SCHEMA))


if __name__ == "__main__":
    run(main)
