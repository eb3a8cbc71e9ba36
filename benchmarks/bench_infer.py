"""What `stages.infer` does with DeconvNet, from shards to shards, against the net's own forward pass and a plain loop.

The demo's size on a CPU, a thread, as a shard has it where there are as many as cores; the paper's on a GPU. The net is
loaded already. The plain loop decodes, cuts, scores and aggregates; it keeps no growth and writes nothing.
"""

import contextlib
import io
import time
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F

from benchmarks import world
from deconvnet import tables
from deconvnet.boxes import by_image
from deconvnet.images import decode_image
from deconvnet.inference.devices import arithmetic
from deconvnet.inference.models import ready
from deconvnet.inference.shards import Plan, Shard, make
from deconvnet.inference.windows import select
from deconvnet.nets.deconvnet import DeconvNet
from demo.world.archives import ids, jpeg
from demo.world.scenes import scene
from experiment import machine
from experiment.params import Params, load
from stages import infer

ROUNDS = 4


def write_shards(folder: Path, count: int, number: int, paper: bool) -> list[Shard]:
    """Two shards of `count` drawn pictures, and `number` proposals of each, of 12 to 150 px in a picture of 200."""
    rng, shards = np.random.default_rng(0), []
    for part in range(2):
        images = [
            world.mosaic(index)[0] if paper else scene(0, ids(2010, count)[index]).image for index in range(count)
        ]
        names = [f"p{part}{index:03}" for index in range(count)]
        shard = Shard(*(folder / kind / f"val-{part:03}.parquet" for kind in ("dataset", "proposals", "scores")), count)
        tables.write(shard.dataset, pa.table({"image_id": names, "image": [jpeg(image) for image in images]}))
        boxes = []
        for name, image in zip(names, images, strict=True):
            height, width = image.shape[:2]
            sides = np.exp(rng.uniform(np.log(12), np.log(150), (number, 2))) * max(height, width) / 200
            corners = rng.uniform(-0.2, 0.8, (number, 2)) * [width, height]
            keys = "x", "y", "width", "height"
            boxes += [
                {"image_id": name, "rank": rank, "objectness": 1.0} | dict(zip(keys, box, strict=True))
                for rank, box in enumerate(np.concatenate([corners, sides], 1).tolist(), 1)
            ]
        tables.write(shard.proposals, pa.Table.from_pylist(boxes))
        shards.append(shard)
    return shards


def plain(net: torch.nn.Module, shards: list[Shard], params: Params, number: int) -> None:
    """What a script would do: pad the image, cut, resize, score one window, resize back, keep the maximum."""
    device, side = next(net.parameters()).device, params.pretrain.size.input_size
    for shard in shards:
        boxes = by_image(tables.read(shard.proposals))
        for row in tables.read(shard.dataset).to_pylist():
            image = decode_image(row["image"])
            border = 2 * max(image.shape)
            windows = select(boxes[row["image_id"]], params.crops.context, params.crops.square, 0, number)
            padded = torch.from_numpy(np.pad(image, ((border, border), (border, border), (0, 0)))).to(device)
            padded = padded.permute(2, 0, 1)[None].float()
            total = torch.zeros(net.spec["classes"], *padded.shape[2:], device=device)
            for x, y, w, h in (windows + [border, border, 0, 0]).tolist():
                crop = F.interpolate(padded[:, :, y : y + h, x : x + w], (side, side), mode="bilinear")
                with arithmetic(device, params.infer.precision):
                    out = net(crop)
                out = F.interpolate(out.float(), (h, w), mode="bilinear")[0]
                here = total[:, y : y + h, x : x + w]
                torch.maximum(here, out, out=here)
            total.argmax(0).cpu()


@torch.inference_mode()
def main(folder: Path, count: int = 4) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    paper, threads = device.type == "cuda", machine.cores() if device.type == "cuda" else 1
    count *= 8 if paper else 1
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    torch.backends.cudnn.benchmark = True
    params = load(world.REPOSITORY / ("params.yaml" if paper else "demo/params.yaml"))
    growth, batch, size = params.infer.growth, params.infer.deconvnet.batch, params.pretrain.size
    plan = Plan(params.infer, params.crops, params.train_fcn, growth)
    number = max(params.infer.deconvnet.proposals, *growth)
    shards = write_shards(folder, count, number, paper)
    unfolded, net = (DeconvNet(size, len(params.dataset.classes), params.train.batch_norm_eps).eval() for _ in range(2))
    unfolded.to(device, memory_format=torch.channels_last)
    ready(net, device, params.infer.precision)
    inputs = torch.rand(batch, 3, size.input_size, size.input_size, device=device).mul(255)
    inputs = inputs.contiguous(memory_format=torch.channels_last)

    def forward() -> None:
        """As many windows as the stage has, in its batches."""
        with arithmetic(device, params.infer.precision):
            for shard in shards:
                for begin in range(0, shard.count * number, batch):
                    net(inputs if paper else inputs[: shard.count * number - begin])

    def stage() -> None:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            make(net, Path("deconvnet.pt"), shards, plan, threads, write)

    def write(shard: Shard, rows: list[dict]) -> None:
        infer.write(shard, rows, "", Path("deconvnet.pt"), str(device))

    works = {"forward": forward, "stage": stage, "plain": lambda: plain(unfolded, shards, params, number)}
    wall, busy = ({name: [] for name in works} for _ in range(2))
    for _ in range(ROUNDS):  # in turn: other work on the machine comes and goes
        for name, work in works.items():
            begin = time.perf_counter(), time.process_time()
            work()
            if paper:
                torch.cuda.synchronize()
            wall[name].append(time.perf_counter() - begin[0])
            busy[name].append(time.process_time() - begin[1])
    windows = 2 * count * number
    for kind, seconds in (("time", wall), ("time of the CPU", busy))[: 1 if paper else 2]:
        best = {name: min(them) for name, them in seconds.items()}
        stage, forward_alone, loop = best["stage"], best["forward"], best["plain"]
        print(f"{kind}: stage {stage:.2f} s for {windows} windows of {2 * count} images, {windows / stage:.0f} a s; "
              f"forward alone {forward_alone:.2f} s, stage x{stage / forward_alone:.2f} of it (at most 1.2 is wanted); "
              f"plain loop {loop:.2f} s, x{loop / stage:.2f} of the stage (at least 3 is wanted)")  # fmt: skip
