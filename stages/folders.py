"""One folder or list of one's own -> data/folders/KEY.sha256: the files in it, as `sha256sum` lists them.

DVC runs this where something in the folder has changed, and `dataset` where that changed the list; `dataset` reads the
files themselves, where they lie. An experiment whose images come in archives has no such folders.
"""

import argparse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from deconvnet.errors import InputError
from deconvnet.files import file_hash, list_files, whole
from deconvnet.progress import progress
from experiment import params as parameters
from experiment.cli import run
from experiment.machine import cores


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m stages.folders", description=__doc__.splitlines()[0])
    parser.add_argument("key", metavar="KEY", help="a key of `folders` in params.yaml")
    parser.add_argument("--out", type=Path, required=True, help="the list")
    options = parser.parse_args(arguments)
    params = parameters.load()
    if options.key not in params.folders:
        raise InputError(f"params.yaml: folders.{options.key}: missing; allowed: {', '.join(params.folders) or 'none'}")
    place = params.folders[options.key]
    files = list_files(Path(place))
    with ThreadPoolExecutor(cores()) as pool:
        hashes = progress(pool.map(file_hash, files), total=len(files), unit="file", desc=options.key)
        lines = [f"{digest}  {file.name}\n" for digest, file in zip(hashes, files, strict=True)]
    with whole(options.out) as file:
        file.write_text("".join(lines), encoding="utf-8")
    print(f"{options.out}: {len(files):,} file{'s' * (len(files) > 1)} of {place}")


if __name__ == "__main__":
    run(main)
