"""What a training is made from: code, data, files and settings. One description for all training stages.

It is kept in checkpoints and model files. A checkpoint is resumed only by a run of the same description.
"""

import dataclasses
import json
from pathlib import Path

from deconvnet import provenance
from deconvnet.settings import Run

# How the work is laid out. It may change in mid-run.
LAYOUT = ("memory_gb", "checkpoint_minutes", "compile")


def describe(module: str | Path, tables: list[Path], files: dict[str, Path], settings: dict) -> dict:
    """The origin of a training but for its run and its net, which `Trainer` adds.

    module: `__file__` of what builds the net and the batches; its code and that of all it imports counts. tables: the
    data set's folder and the crop table. files: other inputs by name (initial weights). settings: every other value
    that the result depends on. Raises InputError for a missing table.
    """
    return {
        "code": provenance.code(module),
        "data": provenance.content(*tables),
        "files": provenance.files(**files),
        "settings": _plain(settings),
    }


def complete(origin: dict, run: Run, spec: dict) -> dict:
    """`origin` with the run's settings and the net's spec."""
    return _plain(origin | {"run": dataclasses.asdict(run), "spec": spec})


def differences(before: object, now: dict) -> list[str]:
    """Dotted names of what differs between two origins in a way that changes the result."""
    free = {f"run.{name}" for name in LAYOUT}
    if now["run"]["batch_norm_crops"]:
        free.add("run.micro_batch")  # loss and batch norm go over groups of batch_norm_crops, whatever the micro-batch
    one, other = (dict(_flat(values)) if isinstance(values, dict) else {} for values in (before, now))
    return [name for name in {**other, **one} if name not in free and one.get(name, ...) != other.get(name, ...)]


def is_plain(values: object) -> bool:
    """Whether `values` can be compared: dictionaries, lists, text and numbers, nothing else."""
    try:
        json.dumps(values)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def _plain(values: dict) -> dict:
    return json.loads(json.dumps(values))


def _flat(values: dict, prefix: str = ""):
    """(dotted name, value) of every leaf of nested dictionaries."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
