"""Fetch one file of an experiment: section `fetch.KEY` of params.yaml -> its `file`, with size and checksums verified.

Run in an experiment folder. A file that is there and whole is left alone, so a copy got by hand may be saved under its
name. Mirrors are tried in turn, and what has arrived is continued by a later run: see deconvnet/download.py. An empty
list of addresses means that the file is not used: then `file` is empty.
"""

import argparse
import dataclasses

from deconvnet.download import Expected, fetch
from deconvnet.errors import InputError
from deconvnet.files import whole
from experiment import params as parameters
from experiment.cli import run


def main(arguments: list[str]) -> None:
    summary, _, rest = __doc__.partition("\n\n")
    keys = [field.name for field in dataclasses.fields(parameters.Fetch)]
    parser = argparse.ArgumentParser(prog="python -m stages.fetch", description=summary, epilog=rest)
    parser.add_argument("key", metavar="KEY", choices=keys, help=f"a key of `fetch` in params.yaml: {', '.join(keys)}")
    key = parser.parse_args(arguments).key
    params = getattr(parameters.load().fetch, key)
    if not isinstance(params, parameters.Fetched):
        raise InputError(f"params.yaml: fetch.{key}.by: {params.by}, not stages/fetch.py; `dvc repro` runs it")
    if not params.addresses:
        with whole(params.file) as empty:
            empty.touch()
        print(f"{params.file}: not used, since fetch.{key}.addresses is empty; left as an empty file")
        return
    expected = Expected(params.bytes, params.md5, params.sha256, params.git_blob)
    fetch(params.file, params.addresses, expected, remedy=f"put its path first in fetch.{key}.addresses in params.yaml")


if __name__ == "__main__":
    run(main)
