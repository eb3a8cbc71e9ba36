"""Curves of a training while it runs, for TensorBoard, in data/live.

    cd demo && tensorboard --logdir data/live

A training writes them where TensorBoard is installed, and nothing reads them: no result depends on them. They hold the
loss and the learning rate of every step (on a GPU of every 20th) and the held-out metrics of every validation. A
training that goes on from its checkpoint goes on with its curves.
"""

import shutil
from pathlib import Path

from tqdm import tqdm

from deconvnet import progress

FOLDER = Path("data/live")


def follow(arguments: list[str]) -> None:
    """Follow the training that a command with these arguments runs, if it runs one: what writes curves trains."""
    if "--curves" in arguments[:-1] and FOLDER.parent.is_dir():
        progress.followers.append(Curves(FOLDER / Path(arguments[arguments.index("--curves") + 1]).stem))


class Curves:
    """A training's curves, written to a folder as TensorBoard's event files."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.bar = self.writer = None  # of the training
        self.rows, self.written = [], 0
        self.lost = False  # nothing can be written

    def __call__(self, bar: tqdm, numbers: dict | None) -> None:
        """Write a step: its number `step`, `loss`, `lr`, and those `rows` of the curves that are new. None: the end."""
        if self.bar is None and numbers and "rows" in numbers:
            self.bar = bar
        if self.lost or bar is not self.bar:
            return
        try:
            self._write(numbers)
        except (ImportError, OSError) as error:
            self.lost = True
            if isinstance(error, OSError):
                print(f"{self.folder}: {error.strerror or error}; training goes on without live curves", flush=True)

    def _write(self, numbers: dict | None) -> None:
        if self.writer is None:
            from torch.utils.tensorboard import SummaryWriter  # takes seconds, and need not be installed

            if self.bar.initial == 0:
                shutil.rmtree(self.folder, ignore_errors=True)  # of an earlier training
            # TensorBoard forgets what a process that was killed wrote after the checkpoint from which this one goes on.
            self.writer = SummaryWriter(self.folder, purge_step=self.bar.initial + 1, flush_secs=10)
            self.rows = numbers["rows"]  # the list grows with the training
            self.written = sum(row["step"] <= self.bar.initial for row in self.rows)
        for row in self.rows[self.written :]:
            for name, value in row.items():
                if name.startswith("held_out_"):
                    self.writer.add_scalar(f"held out/{name.removeprefix('held_out_')}", value, row["step"])
            self.written += 1
        if numbers:
            self.writer.add_scalar("training/loss", numbers["loss"], numbers["step"])
            self.writer.add_scalar("training/learning rate", numbers["lr"], numbers["step"])
        else:
            self.writer.close()
