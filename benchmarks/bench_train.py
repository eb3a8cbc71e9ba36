"""Training crops per second of the loop that `stages.train` runs, stage 2, against a plain port.

The port is an eager float32 DeconvNet with MaxUnpool2d, fed by a DataLoader of 2 workers with Pillow and torchvision.

    python -m benchmarks.bench_train                    # the demo's size and settings, both turn by turn in one run
    python -m benchmarks.bench_train --paper            # the paper's, for a GPU: without the port
"""

import argparse
import dataclasses
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import pyarrow as pa
import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as T
from PIL import Image
from torch import nn

from benchmarks import world
from deconvnet import tables
from deconvnet.batches import Batches
from deconvnet.crops import find_windows
from deconvnet.images import VOID, decode_image, decode_mask
from deconvnet.nets.deconvnet import DeconvNet
from deconvnet.pixels import ImageStore
from deconvnet.training import devices
from deconvnet.training.flops import flops_per_crop, peak_flops
from deconvnet.training.loop import Trainer
from demo.world.scenes import scene
from experiment.params import Params, load


class Port(nn.Module):
    """DeconvNet as one would write it down: float32, NCHW, MaxPool2d with indices, MaxUnpool2d, ConvTranspose2d."""

    def __init__(self, width, fc, size, classes):
        super().__init__()

        def layers(convolution, channels, *rest):
            return nn.Sequential(
                *(
                    nn.Sequential(convolution(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU())
                    for i, o in zip((channels, *rest[:-1]), rest, strict=True)
                )
            )

        def fully(module, channels):
            return nn.Sequential(module, nn.BatchNorm2d(channels), nn.ReLU())

        w = width
        down = [
            (3, w, w),
            (w, 2 * w, 2 * w),
            (2 * w, 4 * w, 4 * w, 4 * w),
            (4 * w, 8 * w, 8 * w, 8 * w),
            (8 * w, 8 * w, 8 * w, 8 * w),
        ]
        up = [
            (8 * w, 8 * w, 8 * w, 8 * w),
            (8 * w, 8 * w, 8 * w, 4 * w),
            (4 * w, 4 * w, 4 * w, 2 * w),
            (2 * w, 2 * w, w),
            (w, w, w),
        ]
        self.down = nn.ModuleList(layers(nn.Conv2d, *block) for block in down)
        self.fc = nn.Sequential(
            fully(nn.Conv2d(8 * w, fc, size // 32), fc), fully(nn.Conv2d(fc, fc, 1), fc),
            fully(nn.ConvTranspose2d(fc, 8 * w, size // 32), 8 * w),
        )  # fmt: skip
        self.up = nn.ModuleList(layers(nn.ConvTranspose2d, *block) for block in up)
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


class PortData(torch.utils.data.Dataset):
    """One crop at a time: decode, pad, crop, resize, random crop, flip, normalise."""

    def __init__(self, rows, table, resized, size):
        self.rows, self.crops = {row["image_id"]: row for row in rows}, table.to_dict("records")
        self.resized, self.size = resized, size

    def __len__(self):
        return len(self.crops)

    def __getitem__(self, index):
        row = self.crops[index]
        source = self.rows[row["image_id"]]
        image = T.to_image(Image.fromarray(decode_image(source["image"])))
        labels = torch.from_numpy(decode_mask(source["class_mask"]).copy())[None]
        box = [int(row[name]) for name in ("y", "x", "side_y", "side_x")]
        pad = [200] * 4
        image = T.crop(T.pad(image, pad), box[0] + 200, box[1] + 200, *box[2:])
        labels = T.crop(T.pad(labels, pad, fill=VOID), box[0] + 200, box[1] + 200, *box[2:])
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

    def __init__(self, params: Params, run, table: pd.DataFrame, folder: Path):
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
            trainer._train_step()
            trainer.step += 1
            if trainer.step % trainer.sync_every == 0:
                trainer._sync_losses()

    def load_batches(self, steps: int) -> None:
        """The data path of `steps` steps alone."""
        run = self.trainer.run
        for step in range(steps):
            for start in range(0, run.batch, run.micro_batch):
                self.trainer.batches.train(step, run.batch, slice(start, start + run.micro_batch))


class Theirs:
    """The same training, by the port."""

    def __init__(self, params: Params, run, table: pd.DataFrame, rows: list[dict]):
        size = params.pretrain.size
        self.net = Port(size.width, size.fc_width, size.input_size, len(params.dataset.classes))
        self.optimiser = torch.optim.SGD(self.net.parameters(), run.lr, run.momentum, weight_decay=run.weight_decay)
        data = PortData(rows, table, params.train.resized, size.input_size)
        self.loader = torch.utils.data.DataLoader(
            data, run.batch, shuffle=True, num_workers=2, drop_last=True, persistent_workers=True,
            multiprocessing_context="forkserver",  # a fork would inherit locks of pyarrow's and OpenMP's threads
        )  # fmt: skip
        self.batches = iter(self.loader)

    def __call__(self, steps: int) -> None:
        for _ in range(steps):
            try:
                images, labels = next(self.batches)
            except StopIteration:
                self.batches = iter(self.loader)
                images, labels = next(self.batches)
            self.optimiser.zero_grad()
            F.cross_entropy(self.net(images), labels, ignore_index=VOID).backward()
            self.optimiser.step()


def seconds(work, steps: int) -> float:
    synchronise()
    begin = time.perf_counter()
    work(steps)
    synchronise()
    return time.perf_counter() - begin


def main(folder: Path, arguments=()) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--paper", action="store_true", help="the paper's parameters; wants a GPU")
    parser.add_argument("--batch", type=int, help="crops per step, in place of the parameters'")
    parser.add_argument("--micro-batch", type=int, help="crops at once, in place of the parameters'")
    parser.add_argument("--compile", action="store_true", help="by torch.compile")
    parser.add_argument("--steps", type=int, default=20, help="timed steps per round")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, ours and the port's in turn")
    options = parser.parse_args(arguments)
    params = load(world.REPOSITORY / ("params.yaml" if options.paper else "demo/params.yaml"))
    changes = {name: value for name in ("batch", "micro_batch", "compile") if (value := getattr(options, name))}
    run = dataclasses.replace(params.train.stage2, **changes)

    scenes = {f"2010_{number:06d}": scene(0, f"2010_{number:06d}") for number in range(64)}
    rows = [world.row(name, "train", each.image, each.class_mask, each.instance_mask) for name, each in scenes.items()]
    tables.write(folder / "train-000.parquet", pa.Table.from_pylist(rows))
    windows, _ = find_windows(folder, "trainaug", params.crops.context, params.crops.square)
    table = pd.concat([windows.assign(copies=1)] * 40, ignore_index=True)  # epochs as long as a run

    ours = Ours(params, run, table, folder)
    theirs = None if options.paper else Theirs(params, run, table, rows)
    trainer = ours.trainer
    device, run = trainer.worker.device, trainer.run
    rates = {"ours": [], "port": []}
    for turn in range(options.rounds + 1):
        for name, work in (("ours", ours), ("port", theirs)):
            if work:
                rate = options.steps * run.batch / seconds(work, options.steps)
                rates[name] += [rate] if turn else []  # first a warm-up: kernels are chosen, or compiled
    memory = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else 0
    best = max(rates["ours"])
    flops, peak = flops_per_crop(trainer.net, trainer.batches.size), peak_flops(device, run.precision)
    share = seconds(ours.load_batches, options.steps) / options.steps * best / run.batch
    size = params.pretrain.size
    print(f"{device}, {torch.get_num_threads()} threads; width {size.width}, fc {size.fc_width}, input "
          f"{size.input_size}; batch {run.batch} = {run.micro_batch} x {trainer.accumulation}, batch norm over "
          f"{run.batch_norm_crops or run.micro_batch}, {run.precision}{', compiled' * run.compile}")  # fmt: skip
    print(f"ours: {best:.1f} crops/s (rounds {', '.join(f'{rate:.1f}' for rate in rates['ours'])}), "
          f"{flops * best / peak:.1%} of {peak / 1e12:.2f} TFLOP/s; making batches alone takes {share:.1%} of a step"
          + (f"; peak memory {memory:.1f} GiB" if memory else ""))  # fmt: skip
    if theirs:
        port = max(rates["port"])
        print(f"port: {port:.1f} crops/s (rounds {', '.join(f'{rate:.1f}' for rate in rates['port'])}); ours is "
              f"{best / port:.2f} times as fast (at least 1.5 is wanted)")  # fmt: skip


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        main(Path(place), sys.argv[1:])
