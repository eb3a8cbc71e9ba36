"""Training crops per second against a plain port: eager float32 DeconvNet with MaxUnpool2d, a DataLoader of 2 workers
with Pillow and torchvision transforms.

    python -m benchmarks.bench_train                    # CPU: demo size, both turn by turn in one run
    python -m benchmarks.bench_train --paper            # a GPU: full size, batch 64, bf16, without the port
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as T
from PIL import Image
from torch import nn

from stages.batches import Batches, Pictures, cut
from stages.images import VOID, decode_image, decode_mask
from stages.nets.deconvnet import DeconvNet
from stages.nets.vgg import Size
from stages.trainer import flops_per_crop, peak_flops, pixel_loss
from tests.world import crop_table, write_dataset


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
        self.rows, self.table, self.resized, self.size = {row["image_id"]: row for row in rows}, table, resized, size

    def __len__(self):
        return len(self.table)

    def __getitem__(self, index):
        row = self.table.iloc[index]
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


def synchronise():
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def main(_=None, arguments=()):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--paper", action="store_true", help="full size, batch 64; wants a GPU")
    parser.add_argument("--batch", type=int, help="crops a step")
    parser.add_argument("--steps", type=int, default=20, help="timed steps a round")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, ours and the port in turn")
    parser.add_argument("--no-compile", action="store_true", help="with --paper: eager")
    options = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size, resized = (Size(64, 4096, 224), 250) if options.paper else (Size(16, 256, 64), 72)
    batch = options.batch or (64 if options.paper else 32)
    classes = 21 if options.paper else 11

    with tempfile.TemporaryDirectory() as folder:
        rows = write_dataset(Path(folder), images=64)
        table = pd.concat([crop_table(rows)] * 40, ignore_index=True)
        pictures = Pictures(Path(folder), set(table["image_id"]), classes, 4.0, device)
    batches = Batches(pictures, table, "scene", (resized,) * 2, (size.input_size,) * 2, True, 0, 0.05, 100, device)
    net = DeconvNet(size, classes, 1e-5).to(device, memory_format=torch.channels_last)
    forward = torch.compile(net) if options.paper and not options.no_compile else net
    optimiser = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, fused=True)
    data_time = 0.0

    def ours(first):
        nonlocal data_time
        for step in range(first, first + options.steps):
            begin = time.perf_counter()
            images, labels = batches.train(step, batch, slice(None))
            data_time += time.perf_counter() - begin
            with torch.autocast(device.type, torch.bfloat16):
                loss = pixel_loss(forward(images), labels)
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()

    port = None if options.paper else Port(size.width, size.fc_width, size.input_size, classes).to(device)
    if port:
        plain = torch.optim.SGD(port.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
        loader = torch.utils.data.DataLoader(
            PortData(rows, table, resized, size.input_size),
            batch,
            shuffle=True,
            num_workers=2,
            drop_last=True,
            persistent_workers=True,
        )
        stream = iter(loader)

        def theirs():
            nonlocal stream
            for _ in range(options.steps):
                try:
                    images, labels = next(stream)
                except StopIteration:
                    stream = iter(loader)
                    images, labels = next(stream)
                plain.zero_grad()
                F.cross_entropy(port(images.to(device)), labels.to(device), ignore_index=VOID).backward()
                plain.step()

    rates = {"ours": [], "port": []}
    ours(0)  # warm up: kernels are chosen, or compiled
    if port:
        theirs()
    synchronise()
    data_time = 0.0
    for turn in range(options.rounds):
        for name, work in (
            ("ours", lambda turn=turn: ours((turn + 1) * options.steps)),
            *([("port", theirs)] if port else []),
        ):
            begin = time.perf_counter()
            work()
            synchronise()
            rates[name].append(options.steps * batch / (time.perf_counter() - begin))
    best = max(rates["ours"])
    flops, peak = flops_per_crop(net, batches.size), peak_flops(device, "bf16")
    print(
        f"{device}, {torch.get_num_threads()} threads, width {size.width}, fc {size.fc_width}, "
        f"input {size.input_size}, batch {batch}, bf16"
    )
    print(
        f"ours: {best:.1f} crops/s (rounds {', '.join(f'{rate:.1f}' for rate in rates['ours'])}), "
        f"{flops * best / peak:.1%} of {peak / 1e12:.2f} TFLOP/s"
    )
    if device.type == "cpu":
        share = data_time / (options.rounds * options.steps * batch / np.mean(rates["ours"]))
        print(f"data path: {share:.1%} of a step")
    else:
        rows = torch.arange(batch) % len(batches.images)
        arguments = [
            batches.windows[rows].to(device),
            (resized,) * 2,
            torch.zeros(batch, 2, dtype=torch.int64, device=device),
        ]
        begin = time.perf_counter()
        for _ in range(20):
            cut(
                pictures.pixels,
                batches.images[rows].to(device),
                *arguments,
                batches.size,
                torch.zeros(batch, dtype=torch.bool, device=device),
            )
        synchronise()
        print(
            f"data path: {(time.perf_counter() - begin) / 20 * best / batch:.1%} of a step; "
            f"peak memory {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"
        )
    if port:
        theirs_best = max(rates["port"])
        print(f"port: {theirs_best:.1f} crops/s (rounds {', '.join(f'{rate:.1f}' for rate in rates['port'])})")
        print(f"ratio: {best / theirs_best:.2f} (wanted: 1.5)")


if __name__ == "__main__":
    main(arguments=sys.argv[1:])
