"""The files that a training resumes from.

    checkpoint.pt       the latest: weights, momentum, schedule, curves, and the name of the best weights
    previous.pt         the one before, for where the latest is damaged or led to a loss that is not finite
    best-00001000.pt    the best weights by held-out mean IoU, named by their step

Best weights count only through a checkpoint that names them: those of a part of the run that was lost to a kill, and
is computed anew, are never taken for its own.
"""

import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from deconvnet.errors import InputError
from deconvnet.files import sync, whole
from deconvnet.nets import files


class Damaged(Exception):
    """A file is not what was written; the message names it and says how."""


class Checkpoints:
    """The checkpoints in `folder`. All processes of a training load them, the first one writes them."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.latest, self.previous = folder / "checkpoint.pt", folder / "previous.pt"
        self.step: int | None = None  # of the checkpoint that this process wrote last
        self._names: dict[Path, str | None] = {}  # the best weights that each checkpoint names, as far as is known
        self.source = self.latest  # what `load` took
        self._writer, self._writing = ThreadPoolExecutor(1), None

    def load(self, check: Callable[[dict, Path], None] = lambda state, path: None) -> tuple[dict | None, str]:
        """The newest checkpoint that is whole, or None, and a line about damage, empty if there is none.

        check: raises InputError for a checkpoint, or for {"net": the best weights}, whose content does not hold.
        """
        lines = []
        for path in (self.latest, self.previous):
            if not path.exists():
                continue
            try:
                state = _read(path)
                if "step" not in state:
                    raise Damaged(f"{path}: not a checkpoint")
                check(state, path)
                if name := state.get("best_file"):
                    if not re.fullmatch(r"best-\d{8,}\.pt", str(name)):
                        raise Damaged(f"{path}: names {name!r} as its best weights")
                    check({"net": _read(self.folder / name), "provenance": state.get("provenance")}, self.folder / name)
            except (Damaged, InputError) as error:
                lines.append(str(error))
                continue
            self.source, self._names = path, {path: state.get("best_file")}
            if lines:
                lines.append(f"continuing from {path.name}, after step {state['step']}")
            return state, "; ".join(lines)
        return None, "; ".join([*lines, "starting afresh"] if lines else [])

    def load_best(self, name: str) -> dict:
        """The state dict of a file of best weights, on the CPU. Raises Damaged."""
        return _read(self.folder / name)

    def save(self, state: dict) -> None:
        """Write a checkpoint, keep the one before, and remove the best weights that neither names.

        It is written in a thread; what `state` holds must not change any more.
        """
        self.wait()
        self._writing = self._writer.submit(self._save, state)

    def wait(self) -> None:
        """Wait for what is being written, and raise its errors."""
        if self._writing:
            writing, self._writing = self._writing, None
            writing.result()

    def _save(self, state: dict) -> None:
        with whole(self.latest) as file:
            files.dump(state, file)
            if self.source == self.latest and self.latest.exists():
                sync(file)  # now, so that the time without a checkpoint.pt is short
                os.replace(self.latest, self.previous)
                self._names[self.previous] = self._names.get(self.latest)
        self.source, self.step = self.latest, state["step"]
        self._names[self.latest] = state.get("best_file")
        self._remove_unnamed()

    def save_best(self, step: int, state: dict) -> str:
        """Write the best weights, those after `step`; return the name for the next checkpoint."""
        self.wait()  # it may remove files that it does not name
        path = self.folder / f"best-{step:08d}.pt"
        with whole(path) as file:
            files.dump(state, file)
        return path.name

    def finish(self, state: dict) -> None:
        """Write the last checkpoint of a run; the one before is of no more use."""
        self.save(state)
        self.wait()
        self.previous.unlink(missing_ok=True)
        self._names.pop(self.previous, None)
        self._remove_unnamed()

    def forget(self, step: int) -> None:
        """Restore the previous checkpoint if the one saved at `step` led to a loss that is not finite."""
        self.wait()
        if self.step == step:
            if self.previous.exists():
                os.replace(self.previous, self.latest)
            else:
                self.latest.unlink()

    def _remove_unnamed(self) -> None:
        for path in self.folder.glob("best-*.pt"):
            if path.name not in self._names.values():
                path.unlink()


def _verify(path: Path) -> None:
    """Raises Damaged unless the file's checksums hold, which torch.load does not look at."""
    try:
        files.check_zip(path)
    except FileNotFoundError:
        raise Damaged(f"{path}: missing") from None
    except Exception as error:  # what damage does to a zip file's tables is no closed list
        raise Damaged(f"{path}: damaged ({' '.join(str(error).split())[:100]})") from None


def _read(path: Path) -> dict:
    """The dictionary of a file, on the CPU. Raises Damaged."""
    _verify(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise Damaged(f"{path}: damaged ({' '.join(str(error).split())[:100]})") from None
    if not isinstance(state, dict):
        raise Damaged(f"{path}: not a checkpoint")
    return state
