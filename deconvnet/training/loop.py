"""The training loop: SGD steps over several devices, validation, checkpoints, curves.

A run is a function of its settings and its data. What a step sees depends on (seed, step) alone, so a checkpoint holds
weights, momentum, schedule and curves, but no random state; killed at any moment, the same call ends the same.
"""

import copy
import dataclasses
import math
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from deconvnet import kernels
from deconvnet.batches import Batches
from deconvnet.errors import InputError
from deconvnet.nets import files
from deconvnet.nets.layers import set_batch_norm_crops, set_seeds
from deconvnet.overlap import ahead
from deconvnet.progress import progress
from deconvnet.settings import Run
from deconvnet.training import devices, origin
from deconvnet.training.checkpoints import Checkpoints
from deconvnet.training.devices import Worker
from deconvnet.training.lanes import Lane, Lanes
from deconvnet.training.metrics import confusion_matrix, loss_sum, summary
from deconvnet.training.optimiser import Optimiser, Schedule
from deconvnet.training.statistics import CROPS, reestimate

# Of the curves. Without held-out images the last three are empty.
COLUMNS = ["step", "lr", "loss", "held_out_loss", "held_out_accuracy", "held_out_mean_iou"]


@dataclass(frozen=True)
class Result:
    """What a training leaves. State dicts are on the CPU; both are the last model's where no image is held out."""

    best: dict[str, Tensor]  # by held-out mean IoU; of equal ones, by held-out loss
    last: dict[str, Tensor]
    metrics: dict[str, float]  # of `best`: step, loss, accuracy, mean_iou on held-out crops; step alone without any
    last_metrics: dict[str, float]
    curves: pd.DataFrame  # COLUMNS; loss is the mean over the steps since the row before
    provenance: dict


class Trainer:
    """Trains `net` on `batches`. Every process of a group makes one; the first one writes.

    provenance: what the result depends on beside `run` and the net's spec (`origin.describe`), compared on resumption.
    checkpoints: the folder to resume from. watch: called with the curves so far after each of their rows. pretrained:
    names of the parameters that learn at `run.encoder_lr` times the rate.

    Raises InputError for a batch that does not divide among the processes.
    """

    def __init__(
        self, net: nn.Module, batches: Batches, run: Run, worker: Worker, provenance: dict, checkpoints: Path,
        watch: Callable[[pd.DataFrame], None] | None = None, pretrained: Collection[str] = (),
    ):  # fmt: skip
        micro_batch = run.micro_batch_for(worker.world)
        if not micro_batch:
            raise InputError(
                f"batch: {run.batch} on {worker.world} devices does not divide into equal micro-batches of at most "
                f"micro_batch {run.micro_batch}; change one of them or the number of devices"
            )
        run = dataclasses.replace(run, micro_batch=micro_batch)
        self.provenance = origin.complete(provenance, run, net.spec)
        self.run, self.batches, self.worker, self.watch = run, batches, worker, watch
        self.checkpoints = Checkpoints(checkpoints)
        self.net = net.to(worker.device, memory_format=torch.channels_last)
        set_batch_norm_crops(net, run.batch_norm_crops)
        self.optimiser, self.schedule = Optimiser(net, run, worker, pretrained), Schedule(run)
        # Crops that batch norm sees at once cannot be parted among lanes.
        self.lanes = Lanes(net, run.precision, worker.device, micro_batch // (run.batch_norm_crops or micro_batch))
        self.part = micro_batch // len(self.lanes.lanes)  # crops of a lane at once
        if run.compile:
            for lane in self.lanes.lanes:
                lane.net.compile()
        self.made: Iterator | None = None  # batches for a GPU, made ahead
        self.pending: list[Tensor] = []  # losses of steps that `fetch_losses` has not fetched yet
        self.losses: list[float] = []  # of the steps since the last row of the curves
        self.step, self.rows = 0, []
        self.best: dict[str, float] = {}  # metrics of the best weights
        self.best_file: str | None = None
        self.signalled = False  # by SIGTERM, this process
        self.terminated = self.due = False  # all processes: to end; to write a checkpoint. Agreed on in `fetch_losses`
        self.saved_at = time.monotonic()
        # every step on a CPU, where it costs nothing; on a GPU it waits until the queue of kernels is empty
        self.sync_every = 1 if worker.device.type == "cpu" else 20

    def train(self) -> Result | None:
        """Run to the end; return the result on the first process, None on the others.

        Ends the process with status 143 after a SIGTERM, with a checkpoint written. Raises InputError for a loss that
        is not finite and for memory that does not suffice.
        """
        run, worker = self.run, self.worker
        worker.say(
            f"batch {run.batch} = {self.part} x {len(self.lanes.lanes)} lanes x "
            f"{run.batch // run.micro_batch // worker.world} accumulation x {worker.world} devices; "
            f"batch norm over {run.batch_norm_crops or run.micro_batch}; {len(self.batches.train_rows)} crops an "
            f"epoch, {len(self.batches.validation_rows)} held out; {worker.device}, {run.precision}"
        )
        self._resume()
        before = signal.signal(signal.SIGTERM, lambda *_: setattr(self, "signalled", True))
        try:
            self._run_steps()
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
                raise
            raise InputError(
                f"out of memory on {worker.device} at step {self.step}: lower micro_batch, now {run.micro_batch} "
                f"(accumulation then rises by itself), or memory_gb, now {run.memory_gb:g}"
            ) from None
        finally:
            signal.signal(signal.SIGTERM, before)
        return self._finish()

    def _run_steps(self) -> None:
        run, worker = self.run, self.worker
        begin, first = time.monotonic(), self.step
        with progress(total=run.steps, initial=first, unit="step", disable=worker.rank > 0) as bar:
            while self.step < run.steps:
                try:
                    self._train_step()
                except torch.OutOfMemoryError:
                    if not self._halve():
                        raise
                    continue
                self.step += 1
                ends_row = self.step % run.validate_every == 0 or self.step == run.steps
                if ends_row or self.step % self.sync_every == 0:
                    self.fetch_losses()
                    rate = (self.step - first) * run.batch / (time.monotonic() - begin)
                    bar.set_postfix_str(
                        f"loss {self.losses[-1]:.4f}, {rate:.1f} crops/s", refresh=False,
                        step=self.step, loss=self.losses[-1], lr=self.schedule.rate(self.step - 1), rows=self.rows,
                    )  # fmt: skip
                    bar.update(self.step - bar.n)
                if ends_row:
                    self._end_row()
                if self.due:
                    self._save_checkpoint()
                if self.terminated:
                    self.checkpoints.wait()
                    worker.say(f"stopped by SIGTERM after step {self.step}; the same command continues")
                    devices.leave()
                    sys.exit(128 + signal.SIGTERM)

    def _train_step(self) -> None:
        self.pending.append(self.compute_gradients())
        self.update()

    def _halve(self) -> bool:
        """Compute half as many crops at once, where that leads to the same result; else False."""
        crops = self.run.batch_norm_crops
        if self.worker.world > 1 or not crops or self.part % (2 * crops):
            return False
        self.part //= 2
        self.made = None
        for lane in self.lanes.lanes:
            lane.gradients()  # of a step that is computed anew
        if self.worker.device.type == "cuda":
            torch.cuda.empty_cache()
        self.worker.say(f"out of memory at step {self.step}: now {self.part} crops at once, to the same result")
        return True

    def compute_gradients(self) -> Tensor:
        """The gradients of the step's crops, into the optimiser; the step's loss, of this process."""
        parts = range(self.worker.rank * self.part, self.run.batch, self.worker.world * self.part)  # their first crops
        lanes = self.lanes.lanes
        if self.made is None and self.worker.device.type == "cuda":
            self.made = ahead(self._batches(parts), 1)
        self.lanes.train()
        total = torch.zeros((), device=self.worker.device)
        for begin in range(0, len(parts), len(lanes)):
            for loss in self.lanes.map(self._train_part, parts[begin : begin + len(lanes)]):
                total += loss
            for index, lane in enumerate(lanes):
                self.optimiser.take(lane.gradients(), first=begin + index == 0)
        return total

    def update(self) -> None:
        """Change the net by the gradients."""
        self.optimiser.step(self.schedule.rate(self.step))
        self.lanes.refresh()

    def _batches(self, parts: range) -> Iterator[tuple[Tensor, Tensor]]:
        torch.cuda.set_device(self.worker.device)  # of the thread that makes them
        for step in range(self.step, self.run.steps):
            for start in parts:
                yield self.batches.train(step, self.run.batch, slice(start, start + self.part))

    def _train_part(self, lane: Lane, start: int) -> Tensor:
        """Gradients of the crops from `start` on, into the lane; their part in the step's loss."""
        run, first = self.run, self.step * self.run.batch + start
        if self.worker.device.type == "cuda":
            images, labels = next(self.made)
        else:
            images, labels = self.batches.train(self.step, run.batch, slice(start, start + self.part))
        set_seeds(lane.net, [run.seed * 2**32 + crop for crop in range(first, first + self.part)])
        loss = kernels.softmax_loss(lane.net(images), labels, run.batch_norm_crops) * (self.part / run.batch)
        loss.backward()
        return loss.detach()

    def fetch_losses(self) -> None:
        """Fetch the losses since the last call; agree on them, on SIGTERM and on checkpoints, among the processes."""
        due = self.worker.rank == 0 and time.monotonic() > self.saved_at + 60 * self.run.checkpoint_minutes
        flags = torch.tensor([float(self.signalled), float(due)], device=self.worker.device)
        *losses, terminated, due = self.worker.sum(torch.cat([torch.stack(self.pending), flags])).tolist()
        self.terminated, self.due, self.pending = terminated > 0, due + terminated > 0, []
        for back, loss in zip(range(len(losses), 0, -1), losses, strict=True):
            if not math.isfinite(loss):
                self._stop_at_loss(loss, self.step - back)
            self.losses.append(loss)

    def _stop_at_loss(self, loss: float, step: int) -> None:
        if self.worker.rank == 0:
            self.checkpoints.forget(step)
        latest = self.checkpoints.latest
        kept = f"{latest} stays" if latest.exists() else "no checkpoint"
        finite = self.losses or [row["loss"] for row in self.rows[-1:]]  # the mean of the curves' last row
        raise InputError(
            f"loss is {loss} at step {step}, learning rate {self.schedule.rate(step):g}, last finite loss "
            f"{f'{finite[-1]:.6g}' if finite else 'none'}; {kept}; "
            "lower lr or raise warmup_steps: with another value of either, training starts afresh"
        )

    def _end_row(self) -> None:
        """A row of the curves; with held-out images their metrics and, where they are the best so far, the weights."""
        run, worker = self.run, self.worker
        loss = sum(self.losses) / len(self.losses)
        row = {"step": self.step, "lr": self.schedule.rate(self.step - 1), "loss": loss}
        validates = len(self.batches.validation_rows) > 0
        if validates or self.step == run.steps:
            reestimate(self.lanes, self.batches, run.statistics_passes, CROPS, worker)
        if validates:
            scores = self._validate()
            row |= {f"held_out_{name}": value for name, value in scores.items()}
            self.schedule.validated(scores["accuracy"])
            # In the first steps background is everywhere and mean IoU always the same, while the loss falls.
            if not self.best or _rank(scores) > _rank(self.best):
                self.best = scores | {"step": self.step}
                if worker.rank == 0:
                    self.best_file = self.checkpoints.save_best(self.step, _copied(self.net.state_dict()))
        self.rows.append(row)
        self.losses = []
        if worker.rank == 0 and self.watch:
            self.watch(self._curves())

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        """loss, accuracy and mean_iou on the held-out crops."""
        worker, classes = self.worker, self.net.spec["classes"]
        self.lanes.train(False)

        def judge(lane: Lane, start: int) -> tuple[Tensor, Tensor]:
            images, labels = self.batches.validation(start, self.part)
            logits = lane.net(images)
            return loss_sum(logits, labels), confusion_matrix(logits.argmax(1), labels, classes)

        confusion = torch.zeros(classes, classes, dtype=torch.int64, device=worker.device)
        losses = torch.zeros(2, dtype=torch.float64, device=worker.device)
        starts = range(worker.rank * self.part, len(self.batches.validation_rows), worker.world * self.part)
        for sums, counts in self.lanes.map(judge, starts):
            losses += sums
            confusion += counts
        total, pixels = worker.sum(losses).tolist()
        return {"loss": total / max(pixels, 1)} | summary(worker.sum(confusion))

    # What a checkpoint holds beside weights, momentum and schedule.
    STATE = ("step", "rows", "losses", "best", "best_file", "provenance")

    def _state(self) -> dict:
        state = {name: copy.copy(getattr(self, name)) for name in self.STATE}
        return state | {"schedule": self.schedule.state(), "net": _copied(self.net.state_dict())}

    def _save_checkpoint(self) -> None:
        """Copy all that a checkpoint holds; it is written beside the training."""
        momentum = self.optimiser.momentum()
        if self.worker.rank == 0:
            self.checkpoints.save(self._state() | {"momentum": momentum})
        self.saved_at = time.monotonic()

    def _check(self, saved: dict, path: Path) -> None:
        """Raise InputError where a checkpoint of this run does not hold what it is resumed from."""
        if not origin.is_plain(saved.get("provenance")):
            raise InputError(f"{path}: its provenance is damaged")
        if origin.differences(saved.get("provenance"), self.provenance):
            return  # of another run: `_resume` says so
        if not isinstance(saved.get("net"), dict):
            raise InputError(f"{path}: holds no weights")
        files.check_weights(saved["net"], path)
        files.check_shapes(self.net, saved["net"], path)
        if "step" not in saved:  # best weights alone
            return
        if lacking := {*self.STATE, "schedule"} - saved.keys():
            raise InputError(f"{path}: lacks {min(lacking)}")
        momentum, step = saved.get("momentum"), saved["step"]
        if momentum is not None:
            files.check_weights({"momentum": momentum}, path)
            if momentum.shape != (self.optimiser.used,):
                raise InputError(f"{path}: momentum of {tuple(momentum.shape)} values, not {self.optimiser.used}")
        if not isinstance(step, int) or not 0 <= step <= self.run.steps or momentum is None and step < self.run.steps:
            raise InputError(f"{path}: step {step!r} of a run of {self.run.steps}")
        try:
            rows, best, schedule = list(saved["rows"]), dict(saved["best"]), dict(saved["schedule"])
            numbers = [*saved["losses"], *best.values(), *schedule.values(), *(v for row in rows for v in row.values())]
            whole = all(row.keys() <= set(COLUMNS) and {"step", "lr", "loss"} <= row.keys() for row in rows)
            whole = whole and not any(math.isnan(number) for number in numbers)
            whole = whole and (rows or step < self.run.steps) and schedule.keys() == self.schedule.state().keys()
            whole = whole and ({"loss", "mean_iou", "step"} <= best.keys() or not best and not saved["best_file"])
        except (TypeError, ValueError, AttributeError):
            whole = False
        if not whole:
            raise InputError(f"{path}: its curves, its best metrics or its schedule are damaged")

    def _resume(self) -> None:
        saved, damage = self.checkpoints.load(self._check)
        if damage:
            self.worker.say(damage)
        if saved is None:
            return
        source = self.checkpoints.source
        if differing := origin.differences(saved.get("provenance"), self.provenance):
            self.worker.say(f"{source}: of another run, which differs in {', '.join(differing)}: starting afresh")
            return
        files.load_state(self.net, saved["net"], source)
        if "momentum" in saved:  # else the run had come to its end
            self.optimiser.load_momentum(saved["momentum"])
        self.lanes.refresh()
        self.schedule.load_state(saved["schedule"])
        for name in set(self.STATE) - {"provenance"}:
            setattr(self, name, saved[name])
        self.worker.say(f"resuming after step {self.step} of {source}")

    def _finish(self) -> Result | None:
        self.worker.wait()  # the others may still be reading the checkpoint
        if self.worker.rank > 0:
            return None
        # Kept, without the momentum: where DVC calls for the stage again and nothing that matters has changed (a
        # comment), the result is at hand.
        self.checkpoints.finish(self._state())
        last = _copied(self.net.state_dict())
        best = self.checkpoints.load_best(self.best_file) if self.best_file else last
        metrics = self.best or {"step": self.step}
        self.worker.say(", ".join(f"{name} {value:.4g}" for name, value in metrics.items()))
        row = self.rows[-1]
        last_metrics = {name.removeprefix("held_out_"): row[name] for name in COLUMNS if name in row and name != "lr"}
        return Result(best, last, metrics, last_metrics, self._curves(), self.provenance)

    def _curves(self) -> pd.DataFrame:
        return pd.DataFrame(self.rows, columns=COLUMNS)


def _rank(scores: dict[str, float]) -> tuple[float, float]:
    return scores["mean_iou"], -scores["loss"]


def _copied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict on the CPU, in memory of its own."""
    return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}
