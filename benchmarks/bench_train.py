"""Training crops per second of the loop that `stages.train` runs, stage 2, against plain PyTorch.

The plain training is what a good engineer writes in a day: bfloat16 by autocast, channels-last, convolutions for the
deconvolutions of stride 1, fused SGD, micro-batches of as many crops as batch norm sees, a DataLoader of 2 workers on
images that are decoded once, and `torch.compile` where it helps. Both compute the same step: eps, groups, accumulation,
crops of the same kind.

    python -m benchmarks train     # on a CPU: the demo's size, and full width at 128 px; turn by turn in one run
    python -m benchmarks gpu       # on a GPU: the paper's parameters (benchmarks/bench_gpu.py)
"""

import dataclasses
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pyarrow as pa
import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as T
from torch import nn

from benchmarks import world
from deconvnet import tables
from deconvnet.batches import Batches
from deconvnet.crops import find_windows
from deconvnet.images import VOID, decode_image, decode_mask
from deconvnet.nets.deconvnet import DeconvNet
from deconvnet.pixels import ImageStore
from deconvnet.settings import Run, Size
from deconvnet.training import devices
from deconvnet.training.flops import flops_per_crop, peak_flops
from deconvnet.training.loop import Trainer
from demo.world.scenes import scene
from experiment.params import Params, load

ROUNDS, SECONDS = 4, 6  # rounds of so long, ours and the plain one's in turn


class Plain(nn.Module):
    """DeconvNet in PyTorch's own layers."""

    def __init__(self, size: Size, classes: int, eps: float):
        super().__init__()

        def layers(*channels):
            return nn.Sequential(
                *(
                    nn.Sequential(nn.Conv2d(i, o, 3, padding=1, bias=False), nn.BatchNorm2d(o, eps), nn.ReLU(True))
                    for i, o in zip(channels, channels[1:], strict=False)
                )
            )

        def fully(module, channels):
            return nn.Sequential(module, nn.BatchNorm2d(channels, eps), nn.ReLU(True))

        w, fc, kernel = size.width, size.fc_width, size.fc_kernel
        down = [(3, w, w), (w, 2 * w, 2 * w), (2 * w, *[4 * w] * 3), (4 * w, *[8 * w] * 3), (8 * w, *[8 * w] * 3)]
        up = [[8 * w] * 4, (*[8 * w] * 3, 4 * w), (*[4 * w] * 3, 2 * w), (2 * w, 2 * w, w), [w] * 3]
        self.down, self.up = (nn.ModuleList(layers(*block) for block in blocks) for blocks in (down, up))
        self.fc = nn.Sequential(
            fully(nn.Conv2d(8 * w, fc, kernel, bias=False), fc), fully(nn.Conv2d(fc, fc, 1, bias=False), fc),
            fully(nn.ConvTranspose2d(fc, 8 * w, kernel, bias=False), 8 * w),
        )  # fmt: skip
        self.pool, self.unpool = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)
        self.score = nn.Conv2d(w, classes, 1)

    def forward(self, x):
        indices = []
        for block in self.down:
            x, switches = self.pool(block(x))
            indices.append(switches)
        x = self.fc(x)
        for block in self.up:
            x = block(self.unpool(x, indices.pop()))
        return self.score(x)


class PlainData(torch.utils.data.Dataset):
    """One crop at a time from decoded images: pad, crop, resize, random crop, flip, normalise."""

    def __init__(self, rows: list[dict], table: pd.DataFrame, resized: int, size: int):
        self.images = {}
        for row in rows:
            image = torch.from_numpy(decode_image(row["image"])).permute(2, 0, 1)
            self.images[row["image_id"]] = image, torch.from_numpy(decode_mask(row["class_mask"]).copy())[None]
        self.crops, self.resized, self.size = table.to_dict("records"), resized, size

    def __len__(self):
        return len(self.crops)

    def __getitem__(self, index):
        row = self.crops[index]
        image, labels = self.images[row["image_id"]]
        top, left, height, width = (int(row[name]) for name in ("y", "x", "side_y", "side_x"))
        edges = [max(-left, 0), max(-top, 0), max(left + width - image.shape[2], 0),
                 max(top + height - image.shape[1], 0)]  # fmt: skip
        top, left = max(top, 0), max(left, 0)
        image = T.crop(T.pad(image, edges), top, left, height, width)
        labels = T.crop(T.pad(labels, edges, fill=VOID), top, left, height, width)
        image = T.resize(image, [self.resized] * 2, antialias=False)
        labels = T.resize(labels, [self.resized] * 2, T.InterpolationMode.NEAREST)
        y, x = torch.randint(0, self.resized - self.size + 1, (2,)).tolist()
        image, labels = T.crop(image, y, x, self.size, self.size), T.crop(labels, y, x, self.size, self.size)
        if torch.rand(()) < 0.5:
            image, labels = image.flip(-1), labels.flip(-1)
        image = T.normalize(image.float() / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        return image, labels[0].long()


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Ours:
    """Stage 2's training as `stages.train` has it, a number of steps at a time."""

    def __init__(self, params: Params, run: Run, table: pd.DataFrame, folder: Path):
        classes, size = len(params.dataset.classes), params.pretrain.size
        worker = devices.join()
        store = ImageStore(folder, set(table["image_id"]), classes, run.memory_gb, worker.device)
        batches = Batches(
            store, table, "scene", (params.train.resized,) * 2, (size.input_size,) * 2, flip=params.train.flip,
            seed=run.seed, fraction=0, limit=1, device=worker.device,
        )  # fmt: skip
        torch.manual_seed(run.seed)
        net = DeconvNet(size, classes, params.train.batch_norm_eps)
        self.trainer = Trainer(net, batches, run, worker, {}, folder / "checkpoints")

    def __call__(self, steps: int) -> None:
        """What `Trainer` does in `steps` steps without a validation or checkpoint among them."""
        trainer = self.trainer
        for _ in range(steps):
            trainer.pending.append(trainer.compute_gradients())
            trainer.update()
            trainer.step += 1
            if trainer.step % trainer.sync_every == 0:
                trainer.fetch_losses()


class Theirs:
    """The same training in plain PyTorch; compiled by `torch.compile` if asked for."""

    def __init__(
        self, params: Params, run: Run, table: pd.DataFrame, rows: list[dict], compiled: bool = False, workers: int = 2
    ):
        size, self.run = params.pretrain.size, run
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.manual_seed(run.seed)
        net = Plain(size, len(params.dataset.classes), params.train.batch_norm_eps)
        self.net = net.to(self.device, memory_format=torch.channels_last)
        self.forward = torch.compile(self.net) if compiled else self.net
        self.optimiser = torch.optim.SGD(
            net.parameters(), run.lr, run.momentum, weight_decay=run.weight_decay, fused=True
        )
        data = PlainData(rows, table, params.train.resized, size.input_size)
        self.crops = run.batch_norm_crops or run.micro_batch
        self.loader = torch.utils.data.DataLoader(
            data, self.crops, shuffle=True, num_workers=workers, drop_last=True, persistent_workers=True,
            pin_memory=self.device.type == "cuda",
            multiprocessing_context="forkserver",  # a fork would inherit locks of pyarrow's and OpenMP's threads
        )  # fmt: skip
        self.batches = iter(self.loader)

    def __call__(self, steps: int) -> None:
        accumulation = self.run.batch // self.crops
        for _ in range(steps):
            self.optimiser.zero_grad()
            for _ in range(accumulation):
                images, labels = self._next()
                with torch.autocast(self.device.type, torch.bfloat16):
                    loss = F.cross_entropy(self.forward(images), labels, ignore_index=VOID)
                (loss / accumulation).backward()
            self.optimiser.step()

    def _next(self):
        try:
            images, labels = next(self.batches)
        except StopIteration:
            self.batches = iter(self.loader)
            images, labels = next(self.batches)
        images = images.to(self.device, non_blocking=True, memory_format=torch.channels_last)
        return images, labels.to(self.device, non_blocking=True)


def measure(works: dict, batch: int, rounds: int = ROUNDS, seconds: float = SECONDS) -> dict[str, float]:
    """Crops per second of each of `works`, in turn for some seconds each; the best of its rounds, after a warm-up."""
    rates = dict.fromkeys(works, 0.0)
    for turn in range(rounds + 1):
        for name, work in works.items():
            synchronise()
            begin, steps = time.perf_counter(), 0
            while time.perf_counter() - begin < seconds:
                work(1)
                steps += 1
                synchronise()
            if turn:
                rates[name] = max(rates[name], steps * batch / (time.perf_counter() - begin))
    return rates


def data(folder: Path, params: Params, images: int = 64) -> tuple[list[dict], pd.DataFrame]:
    """Rows of drawn images in a shard of `folder`, and a crop table of them for epochs as long as a run."""
    scenes = {f"2010_{number:06d}": scene(0, f"2010_{number:06d}") for number in range(images)}
    rows = [world.row(name, "train", each.image, each.class_mask, each.instance_mask) for name, each in scenes.items()]
    tables.write(folder / "train-000.parquet", pa.Table.from_pylist(rows))
    windows, _ = find_windows(folder, "trainaug", params.crops.context, params.crops.square)
    return rows, pd.concat([windows.assign(copies=1)] * 40, ignore_index=True)


def main(folder: Path) -> None:
    demo = load(world.REPOSITORY / "demo/params.yaml")
    rows, table = data(folder, demo)
    wide = Size(width=64, fc_width=512, input_size=128)
    for name, size, batch, crops, wanted in (
        ("the demo's size", demo.pretrain.size, 32, 16, 1.5), ("full width at 128 px", wide, 16, 8, 1.3)
    ):  # fmt: skip
        params = dataclasses.replace(
            demo, pretrain=dataclasses.replace(demo.pretrain, size=size, resized=size.input_size * 9 // 8),
            train=dataclasses.replace(demo.train, resized=size.input_size * 9 // 8),
        )  # fmt: skip
        run = dataclasses.replace(demo.train.stage2, batch=batch, micro_batch=batch, batch_norm_crops=crops)
        threads = torch.get_num_threads()
        peak = peak_flops(torch.device("cpu"), run.precision)
        eager, compiled = (Theirs(params, run, table, rows, compiled=each) for each in (False, True))
        ours = Ours(params, run, table, folder)
        lanes = torch.get_num_threads()

        def with_threads(work, number):
            def call(steps):
                torch.set_num_threads(number)
                work(steps)

            return call

        works = {
            "ours": with_threads(ours, lanes), "eager": with_threads(eager, threads),
            "compiled": with_threads(compiled, threads),
        }  # fmt: skip
        try:
            works["compiled"](1)
        except torch._dynamo.exc.BackendCompilerFailed as error:
            print(f"{name}: torch.compile fails on the plain net: {str(error).splitlines()[1]}")
            del works["compiled"]
        rates = measure(works, batch)
        with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as neighbour:
            beside = measure(works, batch, rounds=1)
            neighbour.kill()
        torch.set_num_threads(threads)
        flops = flops_per_crop(ours.trainer.net, ours.trainer.batches.size)
        plain = {work: rate for work, rate in rates.items() if work != "ours"}
        better = max(plain, key=plain.get)
        print(f"{name}: width {size.width}, fc {size.fc_width}, {size.input_size} px, batch {batch}, batch norm over "
              f"{crops}, {run.precision}; {threads} threads, a large product {peak / 1e9:.0f} GFLOP/s")  # fmt: skip
        print(f"  ours {rates['ours']:.1f} crops/s, {flops * rates['ours'] / peak:.0%} of that rate; plain PyTorch "
              f"{', '.join(f'{work} {rate:.1f}' for work, rate in plain.items())}: ours is "
              f"{rates['ours'] / plain[better]:.2f} times as fast as {better} (wanted: {wanted})")  # fmt: skip
        print(f"  kept beside one other busy process (ours: at least 50 % is wanted): "
              f"{', '.join(f'{work} {beside[work] / rates[work]:.0%}' for work in works)}", flush=True)  # fmt: skip
        del eager, compiled, ours
