"""The training loop: SGD, schedule, several devices, validation, checkpoints, curves, model files.

A run is a function of its parameters and its data. What a step sees depends on (seed, step) alone, so a checkpoint
holds weights, momentum, schedule and curves, no random state; killed at any moment, the same command ends the same.
Under `torchrun --nproc-per-node N` the batch is spread over N devices (NCCL; gloo on CPUs).
"""

import argparse
import copy
import dataclasses
import hashlib
import json
import math
import os
import signal
import sys
import time
from pathlib import Path
from typing import Annotated, Literal

import pandas as pd
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.flop_counter import FlopCounterMode

from stages import nets, shards
from stages.batches import Batches
from stages.cli import InputError, progress, whole
from stages.config import Range
from stages.images import VOID
from stages.nets.layers import BatchNorm, set_batch_norm_crops


@dataclasses.dataclass(frozen=True)
class Run:
    """Parameters of one training run."""

    steps: Annotated[int, Range(1)]
    batch: Annotated[int, Range(1)]  # crops a step, over all devices: micro_batch x accumulation x devices
    micro_batch: Annotated[int, Range(1)]  # crops that a device computes at once
    batch_norm_crops: Annotated[int, Range(2)] | None  # crops that batch norm normalises over; null: micro_batch
    lr: Annotated[float, Range(0)]
    momentum: Annotated[float, Range(0, 1)]
    weight_decay: Annotated[float, Range(0)]
    warmup_steps: Annotated[int, Range(0)]  # of a linear warm-up
    drop_at: list[int] | Literal["plateau"]  # steps at which lr drops; plateau: where held-out accuracy stops rising
    drop: Annotated[float, Range(0, 1)]  # factor of a drop
    patience: Annotated[int, Range(1)]  # validations without a better accuracy that make a plateau
    held_out: Annotated[float, Range(0, 1)]  # share of the training images
    held_out_crops: Annotated[int, Range(1)]  # at most
    validate_every: Annotated[int, Range(1)]  # steps
    checkpoint_every: Annotated[int, Range(1)]  # steps
    precision: Literal["bf16", "float32"]
    compile: bool
    memory_gb: Annotated[float, Range(0)]  # for decoded images
    seed: Annotated[int, Range(0)]

    def __post_init__(self):
        if self.batch_norm_crops and self.micro_batch % self.batch_norm_crops:
            raise ValueError(
                f"micro_batch: {self.micro_batch} is no multiple of batch_norm_crops {self.batch_norm_crops}"
            )

    def on(self, devices: int) -> int:
        """The micro-batch on so many devices: micro_batch, or a device's share of the batch where that is less."""
        micro_batch = min(self.micro_batch, max(self.batch // devices, 1))
        if self.batch % (micro_batch * devices) or self.batch_norm_crops and micro_batch % self.batch_norm_crops:
            groups = f", in groups of batch_norm_crops {self.batch_norm_crops}" if self.batch_norm_crops else ""
            raise InputError(
                f"batch: {self.batch} on {devices} devices does not divide into equal micro-batches of at most "
                f"micro_batch {self.micro_batch}{groups}; change one of them or the number of devices"
            )
        return micro_batch


@dataclasses.dataclass(frozen=True)
class Place:
    """The device of this process, and which of how many processes it is."""

    device: torch.device
    rank: int = 0
    world: int = 1


def place() -> Place:
    """Join the process group of torchrun, if there is one, and take this process's device."""
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
        torch.backends.cudnn.benchmark = True
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    device = torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return Place(device)
    dist.init_process_group("nccl" if cuda else "gloo")
    return Place(device, dist.get_rank(), dist.get_world_size())


def parser(module: str, description: str) -> argparse.ArgumentParser:
    """The arguments that every training stage takes."""
    parser = argparse.ArgumentParser(prog=f"python -m stages.{module}", description=description)
    parser.add_argument("--dataset", type=Path, required=True, help="folder of the data set's shards")
    parser.add_argument("--crops", type=Path, required=True, help="table of windows, parquet")
    parser.add_argument("--out", type=Path, required=True, help="model with the best held-out mean IoU")
    parser.add_argument("--last", type=Path, help="model after the last step")
    parser.add_argument("--curves", type=Path, required=True, help="training curves, CSV")
    parser.add_argument("--metrics", type=Path, required=True, help="held-out metrics of the best model, JSON")
    parser.add_argument("--checkpoints", type=Path, required=True, help="folder to resume from, removed at the end")
    parser.add_argument("--params", type=Path, default="params.yaml", help="parameter file (YAML or JSON)")
    return parser


def data_hash(*paths: Path) -> str:
    """Hash of tables and of folders of tables, from the content hashes in their footers."""
    files = [file for path in paths for file in (sorted(path.glob("*.parquet")) if path.is_dir() else [path])]
    return hashlib.sha256("".join(shards.footer(file).get("content", "") for file in files).encode()).hexdigest()


class Trainer:
    """Trains `net` on `batches`. Every process of a group makes one; rank 0 writes.

    options: the parsed arguments of `parser`. made_from: what else the result depends on (parameters, hashes), kept in
    the model files and compared on resumption.
    """

    def __init__(
        self, net: nn.Module, batches: Batches, run: Run, where: Place, options: argparse.Namespace, made_from: dict
    ):
        run = dataclasses.replace(run, micro_batch=run.on(where.world))
        self.made_from = made_from | {"parameters": dataclasses.asdict(run), "spec": net.spec}
        self.run, self.batches, self.where, self.options = run, batches, where, options
        self.accumulation = run.batch // (run.micro_batch * where.world)
        assert run.batch == run.micro_batch * self.accumulation * where.world
        self.net = net.to(where.device, memory_format=torch.channels_last)
        set_batch_norm_crops(net, run.batch_norm_crops)
        # Ranks normalise with their own statistics, as micro-batches do; `_share_statistics` averages what they keep.
        self.model = DistributedDataParallel(net, broadcast_buffers=False) if where.world > 1 else net
        self.forward = torch.compile(self.model) if run.compile else self.model
        self.optimiser = sgd(net, run)
        self.pending: list[Tensor] = []  # losses of steps not looked at yet
        self.losses: list[float] = []  # of the steps since the last row of the curves
        self.step, self.rows, self.lr_factor = 0, [], 1.0
        self.best = {"mean_iou": -1.0}
        self.top_accuracy, self.stale = -1.0, 0
        self.saved_at: int | None = None  # step of the checkpoint that this process wrote last
        self.signalled = self.terminated = False  # by SIGTERM: this process; all of them, agreed on in `_look`
        # every step on a CPU, where looking costs nothing; on a GPU it waits for the queue of kernels to drain
        self.look_every = 1 if where.device.type == "cpu" else 20

    def train(self) -> dict | None:
        """Run to the end, write model files, curves and metrics; return the metrics (rank 0, else None)."""
        run, where = self.run, self.where
        self._say(
            f"batch {run.batch} = {run.micro_batch} x {self.accumulation} accumulation x {where.world} devices; "
            f"batch norm over {run.batch_norm_crops or run.micro_batch}; {len(self.batches.train_rows)} crops "
            f"an epoch, {len(self.batches.validation_rows)} held out; {where.device}, {run.precision}"
        )
        self._resume()
        previous = signal.signal(signal.SIGTERM, lambda *_: setattr(self, "signalled", True))
        begin, first = time.monotonic(), self.step
        flops, peak = (
            (flops_per_crop(self.net, self.batches.size), peak_flops(where.device, run.precision))
            if not where.rank
            else (0, 1)
        )
        bar = progress(total=run.steps, initial=self.step, unit="step", disable=where.rank > 0)
        try:
            while self.step < run.steps:
                self._train_step()
                self.step += 1
                validates = self.step % run.validate_every == 0 or self.step == run.steps
                saves = self.step % run.checkpoint_every == 0
                if validates or saves or self.step % self.look_every == 0:
                    self._look()
                    rate = (self.step - first) * run.batch / (time.monotonic() - begin)
                    bar.set_postfix_str(
                        f"loss {self.losses[-1]:.4f}, {rate:.1f} crops/s, "
                        f"{flops * rate / where.world / peak:.0%} of peak",
                        refresh=False,
                    )
                    bar.update(self.step - bar.n)
                if validates:
                    self._validate()
                if saves or self.terminated:
                    self._save_checkpoint()
                if self.terminated:
                    self._say(f"stopped by SIGTERM after step {self.step}; the same command continues")
                    sys.exit(128 + signal.SIGTERM)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
                raise
            raise InputError(
                f"out of memory on {where.device} at step {self.step}: lower micro_batch, now {run.micro_batch} "
                f"(accumulation then rises by itself), or memory_gb, now {run.memory_gb:g}"
            ) from None
        finally:
            bar.close()
            signal.signal(signal.SIGTERM, previous)
        return self._finish(rate=(run.steps - first) * run.batch / (time.monotonic() - begin))

    def _train_step(self) -> None:
        run, where = self.run, self.where
        for group in self.optimiser.param_groups:
            group["lr"] = self._lr() * group["lr_scale"]
        # dropout: a seed for each step and rank
        torch.manual_seed((run.seed * 1_000_003 + self.step) * where.world + where.rank)
        self.net.train()
        total = torch.zeros((), device=where.device)
        for index in range(self.accumulation):
            start = (index * where.world + where.rank) * run.micro_batch
            images, labels = self.batches.train(self.step, run.batch, slice(start, start + run.micro_batch))
            if where.world > 1:
                self.model.require_backward_grad_sync = index == self.accumulation - 1
            with torch.autocast(where.device.type, torch.bfloat16, enabled=run.precision == "bf16"):
                loss = pixel_loss(self.forward(images), labels)
            (loss / self.accumulation).backward()
            total += loss.detach() / self.accumulation
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.pending.append(total)

    def _lr(self) -> float:
        drops = sum(self.step >= at for at in self.run.drop_at) if self.run.drop_at != "plateau" else 0
        warm = min(1.0, (self.step + 1) / (self.run.warmup_steps + 1))
        return self.run.lr * warm * self.lr_factor * self.run.drop**drops

    def _look(self) -> None:
        """Fetch the losses since the last look; agree on them, and on SIGTERM, among the ranks."""
        values = torch.stack([*self.pending, torch.tensor(float(self.signalled), device=self.where.device)])
        if self.where.world > 1:
            dist.all_reduce(values)
            values /= self.where.world
        *losses, terminated = values.tolist()
        self.terminated, self.pending = terminated > 0, []
        for back, loss in zip(range(len(losses), 0, -1), losses, strict=True):
            if not math.isfinite(loss):
                self._forget_checkpoint(of=self.step - back)
                kept = f"{self.checkpoint} stays" if self.checkpoint.exists() else "no checkpoint yet"
                finite = self.losses or [row["loss"] for row in self.rows[-1:]]  # the mean of the curves' last row
                last = f"{finite[-1]:.6g}" if finite else "none"
                raise InputError(
                    f"loss is {loss} at step {self.step - back}, "
                    f"learning rate {self.optimiser.param_groups[0]['lr']:g}, last finite loss {last}; {kept}; "
                    "lower lr or raise warmup_steps"
                )
            self.losses.append(loss)

    @torch.no_grad()
    def _validate(self) -> None:
        """Held-out metrics, a row of the curves, the plateau's state; keeps the weights if they are the best so far."""
        run, where = self.run, self.where
        self._share_statistics()
        self.net.eval()
        classes = self.net.spec["classes"]
        confusion = torch.zeros(classes, classes, dtype=torch.float64, device=where.device)
        total = torch.zeros((), dtype=torch.float64, device=where.device)
        for images, labels in self.batches.validation(run.micro_batch, where.rank, where.world):
            with torch.autocast(where.device.type, torch.bfloat16, enabled=run.precision == "bf16"):
                logits = self.net(images)
            total += pixel_loss(logits, labels) * len(labels)
            confusion += confusion_matrix(logits.argmax(1), labels, classes)
        if where.world > 1:
            dist.all_reduce(total)
            dist.all_reduce(confusion)
        scores = {"loss": float(total) / len(self.batches.validation_rows)} | summary(confusion.cpu())
        loss = sum(self.losses) / len(self.losses)
        row = {"step": self.step, "lr": self.optimiser.param_groups[0]["lr"], "loss": loss}
        self.rows.append(row | {f"held_out_{name}": value for name, value in scores.items()})
        self.losses = []
        if scores["accuracy"] > self.top_accuracy:
            self.top_accuracy, self.stale = scores["accuracy"], 0
        else:
            self.stale += 1
        if run.drop_at == "plateau" and self.stale >= run.patience:
            self.lr_factor, self.stale = self.lr_factor * run.drop, 0
        if scores["mean_iou"] > self.best["mean_iou"]:
            self.best = scores | {"step": self.step}
            if where.rank == 0:
                with whole(self.options.checkpoints / "best.pt") as file:
                    torch.save(self.net.state_dict(), file)
        if where.rank == 0:
            self._write_curves()

    def _share_statistics(self) -> None:
        """Average the ranks' running batch-norm statistics; being means, they may be averaged at any time."""
        if self.where.world > 1:
            for module in self.net.modules():
                if isinstance(module, BatchNorm):
                    for statistic in (module.running_mean, module.running_var):
                        dist.all_reduce(statistic)
                        statistic /= self.where.world

    @property
    def checkpoint(self) -> Path:
        return self.options.checkpoints / "checkpoint.pt"

    @property
    def previous(self) -> Path:
        return self.options.checkpoints / "previous.pt"

    # What a checkpoint holds beside the weights and the momentum.
    STATE = ("step", "rows", "losses", "lr_factor", "best", "top_accuracy", "stale")

    def _save_checkpoint(self) -> None:
        self._share_statistics()
        if self.where.rank == 0:
            self.previous.unlink(missing_ok=True)
            if self.checkpoint.exists():
                os.link(self.checkpoint, self.previous)
            self.saved_at = self.step
            self._write_checkpoint(optimiser=self.optimiser.state_dict())

    def _write_checkpoint(self, **more) -> None:
        state = {name: getattr(self, name) for name in self.STATE} | {"made_from": self.made_from}
        with whole(self.checkpoint) as file:
            torch.save(state | {"net": self.net.state_dict()} | more, file)

    def _forget_checkpoint(self, of: int) -> None:
        """Put the checkpoint before in the place of the one after step `of`, whose weights gave no finite loss."""
        if self.where.rank == 0 and self.saved_at == of:
            if self.previous.exists():
                os.replace(self.previous, self.checkpoint)
            else:
                self.checkpoint.unlink()

    def _resume(self) -> None:
        if not self.checkpoint.exists():
            return
        saved = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        # How the work is laid out may change in mid-run, but not which crops batch norm sees at once.
        free = {f"parameters.{name}" for name in ("memory_gb", "checkpoint_every", "compile")}
        if self.run.batch_norm_crops:
            free.add("parameters.micro_batch")
        before = dict(_flat(saved["made_from"]))
        differing = [name for name, value in _flat(self.made_from) if name not in free and before.get(name) != value]
        if differing:
            self._say(f"{self.checkpoint}: of another run, which differs in {', '.join(differing)}: starting afresh")
            return
        nets.load_state(self.net, saved["net"], self.checkpoint)
        if "optimiser" in saved:  # else the run had come to its end
            self.optimiser.load_state_dict(saved["optimiser"])
        for name in self.STATE:
            setattr(self, name, saved[name])
        self._say(f"resuming after step {self.step} of {self.checkpoint}")

    def _finish(self, rate: float) -> dict | None:
        if self.where.world > 1:
            dist.barrier()
        if self.where.rank > 0:
            return None
        about = {"module": type(self.net).__name__, **self.made_from}
        best = torch.load(self.options.checkpoints / "best.pt", map_location="cpu", weights_only=True)
        nets.save(self.options.out, self.net.spec, best, about | {"metrics": self.best})
        if self.options.last:
            last = {name: tensor.cpu() for name, tensor in self.net.state_dict().items()}
            scores = {name.removeprefix("held_out_"): value for name, value in self.rows[-1].items()}
            nets.save(self.options.last, self.net.spec, last, about | {"metrics": scores})
        self._write_curves()
        # the rate is no part of the metrics: it would differ from run to run
        write_metrics(self.options.metrics, {self.options.out.stem: round(self.best["mean_iou"], 4)})
        # Kept, without the momentum: where DVC calls for the stage again and nothing that matters has changed (a
        # comment), the result is at hand.
        self._write_checkpoint()
        self.previous.unlink(missing_ok=True)
        self._say(", ".join(f"{name} {value:.4g}" for name, value in self.best.items()) + f"; {rate:.1f} crops/s")
        return self.best

    def _write_curves(self) -> None:
        with whole(self.options.curves) as file:
            pd.DataFrame(self.rows).to_csv(file, index=False, float_format="%.6g")

    def _say(self, line: str) -> None:
        if self.where.rank == 0:
            print(line, flush=True)


def sgd(net: nn.Module, run: Run) -> torch.optim.SGD:
    """SGD with the release's rules: a bias learns twice as fast and does not decay. Batch norm's shift is a bias."""
    biases = [parameter for name, parameter in net.named_parameters() if name.endswith("bias")]
    weights = [parameter for name, parameter in net.named_parameters() if not name.endswith("bias")]
    groups = [
        {"params": weights, "lr_scale": 1.0, "weight_decay": run.weight_decay},
        {"params": biases, "lr_scale": 2.0, "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, lr=run.lr, momentum=run.momentum, fused=True)


def write_metrics(path: Path, held_out: dict[str, float]) -> None:
    """The file for `dvc metrics`: mean IoU on held-out crops, by model, so that the name stands alone in its tables."""
    with whole(path) as file:
        file.write_text(json.dumps({"held_out": held_out}, indent=2) + "\n", encoding="utf-8")


def pixel_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Softmax loss of (B, C, ...) logits and (B, ...) labels, the mean over all labels that are not void."""
    labels = labels.long()
    total = F.cross_entropy(logits.float(), labels, ignore_index=VOID, reduction="sum")
    return total / (labels != VOID).sum().clamp(min=1)


def confusion_matrix(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """int64 (classes, classes) counts, truth by row, prediction by column; void left out."""
    valid = labels != VOID
    pairs = labels[valid].long() * classes + predicted[valid]
    return torch.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def summary(confusion: Tensor) -> dict[str, float]:
    """`accuracy` of all pixels and `mean_iou` over the classes that occur in truth or prediction."""
    hits = confusion.diag()
    union = confusion.sum(0) + confusion.sum(1) - hits
    return {"accuracy": float(hits.sum() / confusion.sum()), "mean_iou": float((hits / union)[union > 0].mean())}


def flops_per_crop(net: nn.Module, size: tuple[int, int]) -> float:
    """Floating-point operations of a forward and backward pass of one crop of `size`, counted without computing."""
    ghost = copy.deepcopy(net).to("meta").train()
    with FlopCounterMode(display=False) as counter:
        ghost(torch.empty(2, 3, *size, device="meta")).sum().backward()  # 2: batch norm wants more than one value
    return counter.get_total_flops() / 2


def peak_flops(device: torch.device, precision: str) -> float:
    """Operations a second of a large matrix product on `device`, measured here and now."""
    side = 8192 if device.type == "cuda" else 2048
    matrix = torch.randn(side, side, device=device, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    times = []
    for _ in range(4):
        begin = time.perf_counter()
        matrix @ matrix
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return 2 * side**3 / min(times)


def _flat(values: dict, prefix: str = ""):
    """(dotted name, value) of every leaf of nested dictionaries."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", list(value) if isinstance(value, tuple) else value
