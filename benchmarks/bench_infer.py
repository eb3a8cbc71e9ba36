"""Inference at the demo's size, against a plain loop over windows and against the network's forward pass alone."""

import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks import world
from deconvnet.inference.windows import by_windows, select
from deconvnet.nets.deconvnet import DeconvNet
from demo.world.archives import ids
from demo.world.scenes import scene
from experiment.params import load


def plain(net, pictures, precision) -> None:
    """What a script would do: pad the image, cut, resize, score one window, resize back, keep the maximum."""
    for image, windows in pictures:
        padded = torch.from_numpy(np.pad(image, ((200, 200), (200, 200), (0, 0)))).permute(2, 0, 1)[None].float()
        total = torch.zeros(net.spec["classes"], *padded.shape[2:])
        for x, y, w, h in (windows + [200, 200, 0, 0]).tolist():
            crop = F.interpolate(padded[:, :, y : y + h, x : x + w], (64, 64), mode="bilinear")
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                out = net(crop)
            out = F.interpolate(out.float(), (h, w), mode="bilinear")[0]
            here = total[:, y : y + h, x : x + w]
            torch.maximum(here, out, out=here)


@torch.inference_mode()
def main(folder: Path, count: int = 16) -> None:
    torch.set_num_threads(1)  # as a shard has it where there are as many shards as cores
    demo = load(world.REPOSITORY / "demo/params.yaml")
    settings, precision = demo.infer.deconvnet, demo.infer.precision
    net = DeconvNet(demo.pretrain.size, len(demo.dataset.classes), demo.train.batch_norm_eps).eval()
    net = net.to(memory_format=torch.channels_last)
    rng = np.random.default_rng(0)
    pictures = []
    for image_id in ids(2010, count):
        sides = np.exp(rng.uniform(np.log(12), np.log(150), (50, 2)))
        boxes = np.concatenate([rng.uniform(-0.2, 0.8, (50, 2)) * [200, 160], sides], 1)
        windows = select(boxes.astype(np.float32), demo.crops.context, demo.crops.square, settings.min_side, 50)
        pictures.append((scene(0, image_id).image, windows))
    inputs = torch.rand(settings.batch, 3, 64, 64).mul(255).contiguous(memory_format=torch.channels_last)
    batches = -(-count * 50 // len(inputs))

    def forward() -> None:
        for _ in range(batches):
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                net(inputs)

    def batched() -> None:
        for _ in by_windows(net, pictures, settings, precision):
            pass

    seconds = {}
    for name, work in {
        "forward": forward,
        "batched": batched,
        "plain": lambda: plain(net, pictures, precision),
    }.items():
        times = []
        for _ in range(4):
            begin = time.perf_counter()
            work()
            times.append(time.perf_counter() - begin)
        seconds[name] = min(times)
    rate, slower = count * 50 / seconds["batched"], seconds["plain"] / seconds["batched"]
    print(f"{count} images of 200x160, 50 windows each: {seconds['batched']:.1f} s, {rate:.0f} windows/s; plain loop "
          f"{seconds['plain']:.1f} s = x{slower:.2f} (at least 2 is wanted); forward alone {seconds['forward']:.1f} s, "
          f"stage x{seconds['batched'] / seconds['forward']:.2f} of it (at most 1.3 is wanted)")  # fmt: skip
