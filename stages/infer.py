"""Model and proposals -> class scores of whole images (paper 5.1), a table of stages/scores.py.

DeconvNet sees every proposal's window alone; its score maps are resized to their windows, put in the image's frame with
0 outside, and aggregated pixel by pixel. FCN-8s sees the whole image at once.
"""

import argparse
import fcntl
import functools
import os
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages import nets, scores, shards
from stages.batches import Pixels, cut
from stages.boxes import by_image, windows
from stages.cli import InputError, progress, run
from stages.config import Range, load
from stages.images import decode_image, encode_mask

LOCKS = []  # files that stay open, and locked, as long as the process lives
OPEN = 32  # images under way at once, at most: each holds its scores in memory


@dataclass(frozen=True)
class Windows:
    """DeconvNet's."""

    proposals: Annotated[int, Range(1)]  # the best of an image
    aggregation: Literal["maximum", "average"]  # over the windows, 0 outside of each
    clip: bool  # negative scores to 0 first
    min_side: Annotated[int, Range(0)]  # px; proposals whose window has a shorter side are passed over
    batch: Annotated[int, Range(1)]  # windows that the device computes at once


@dataclass(frozen=True)
class Params:
    splits: list[Literal["train", "val", "test"]]
    precision: Literal["bf16", "float32"]
    deconvnet: Windows
    growth: list[Annotated[int, Range(1)]]  # numbers of proposals whose labels are kept too: what each number brings
    fcn_batch: Annotated[int, Range(1)]  # images that the device computes at once


@dataclass(frozen=True)
class Frame:
    """How windows are made of boxes and images put on FCN-8s's canvas, as in training."""

    context: float  # crops.context
    square: bool  # crops.square
    canvas: tuple[int, int]  # train_fcn.canvas, px, height and width


def frame(path: str | Path = "params.yaml") -> Frame:
    """The parameters of training that inference must repeat."""
    names = {"context": float, "square": bool}
    return Frame(
        **{name: load(kind, f"crops.{name}", path) for name, kind in names.items()},
        canvas=load(list[int], "train_fcn.canvas", path),
    )


class Aggregate:
    """Score maps of windows, gathered in the frame of one image: (C, H, W), 0 where a window does not reach."""

    def __init__(self, classes: int, height: int, width: int, params: Windows, device: torch.device):
        self.params, self.count = params, 0
        start = 0.0 if params.aggregation == "average" else -torch.inf
        # classes innermost, as the nets' maps have them: resizing those was measured to be twice as fast on a CPU
        self.total = torch.full((height, width, classes), start, device=device).permute(2, 0, 1)
        self.covered = torch.zeros(height, width, dtype=torch.int32, device=device)

    def add(self, score_map: Tensor, window: tuple[int, int, int, int]) -> None:
        """Add a window's score map, float32 (C, S, S). window: x, y, side_x, side_y in px, anywhere."""
        self.count += 1
        x, y, side_x, side_y = window
        height, width = self.covered.shape
        left, right, top, bottom = max(x, 0), min(x + side_x, width), max(y, 0), min(y + side_y, height)
        if left >= right or top >= bottom:
            return
        resized = F.interpolate(score_map[None], (side_y, side_x), mode="bilinear")[0]  # (C, side_y, side_x)
        resized = resized[:, top - y : bottom - y, left - x : right - x]
        if self.params.clip:
            resized = resized.clamp(min=0)
        here = self.total[:, top:bottom, left:right]
        if self.params.aggregation == "average":
            here += resized
        else:
            torch.maximum(here, resized, out=here)
        self.covered[top:bottom, left:right] += 1

    def scores(self) -> Tensor:
        """float32 (C, H, W); all 0, which is background, before the first window."""
        if self.params.aggregation == "average":
            return self.total / max(self.count, 1)
        reached = self.covered == self.count if self.count else torch.zeros_like(self.covered, dtype=torch.bool)
        return torch.where(reached, self.total, self.total.clamp(min=0))  # somewhere a window's 0 takes part


def select(boxes: np.ndarray, params: Windows, frame: Frame, number: int) -> np.ndarray:
    """The windows int32 (n, 4), n at most `number`, of an image's proposals float32 (N, 4), best first."""
    found = windows(boxes, frame.context, frame.square)
    return found[found[:, 2:].min(1) >= params.min_side][:number]


@dataclass
class Picture:
    """An image some of whose windows are still to be scored."""

    image: np.ndarray
    windows: np.ndarray
    aggregate: Aggregate
    snapshots: dict[int, Tensor]  # scores by number of windows


@torch.inference_mode()
def by_windows(
    net: nn.Module, images: Iterable[tuple[np.ndarray, np.ndarray]], params: Windows, precision: str,
    growth: Sequence[int] = (),
) -> Iterator[tuple[Tensor, list[Tensor]]]:  # fmt: skip
    """Scores (C, H, W) of each image, uint8 (H, W, 3) RGB, from its windows int32 (n, 4), best first.

    Windows of several images share a batch. The second value has the scores after the first n windows for each n of
    `growth`; the scores themselves come from the first `params.proposals`.
    """
    device = next(net.parameters()).device
    wanted = {params.proposals, *growth}
    waiting: deque[Picture] = deque()
    queue: deque[tuple[Picture, tuple[int, int, int, int]]] = deque()

    def work(least: int) -> Iterator[tuple[Tensor, list[Tensor]]]:
        """Score windows while at least `least` are queued; yield the images that are done."""
        while len(queue) >= least:
            batch = [queue.popleft() for _ in range(min(params.batch, len(queue)))]
            places = np.array([window for _, window in batch])
            for (picture, window), score_map in zip(
                batch, score(net, [picture.image for picture, _ in batch], places, precision), strict=True
            ):
                picture.aggregate.add(score_map, window)
                if picture.aggregate.count in wanted:
                    picture.snapshots[picture.aggregate.count] = picture.aggregate.scores()
        while waiting and waiting[0].aggregate.count == len(waiting[0].windows):
            picture = waiting.popleft()
            last = picture.aggregate.scores()
            yield picture.snapshots.get(params.proposals, last), [picture.snapshots.get(n, last) for n in growth]

    for image, places in images:
        aggregate = Aggregate(net.spec["classes"], *image.shape[:2], params, device)
        waiting.append(Picture(image, places, aggregate, {}))
        queue.extend((waiting[-1], tuple(window)) for window in places.tolist())
        yield from work(least=params.batch if len(waiting) < OPEN else 1)
    yield from work(least=1)


def score(net: nn.Module, images: list[np.ndarray], windows: np.ndarray, precision: str) -> Tensor:
    """Score maps, float32 (B, C, S, S), of windows (B, 4), each of its image."""
    device, side = next(net.parameters()).device, net.encoder.size.input_size
    pixels, places = gather(images)
    pixels = Pixels(*(tensor.to(device) for tensor in vars(pixels).values()))
    windows = torch.from_numpy(windows).long().to(device)
    crops, _ = cut(
        pixels, places.to(device), windows, (side, side), torch.zeros_like(windows[:, :2]), (side, side),
        torch.zeros_like(windows[:, 0], dtype=torch.bool),
    )  # fmt: skip
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        maps = net(crops.contiguous(memory_format=torch.channels_last))  # (B, C, S, S)
    return maps.float()


def gather(images: list[np.ndarray]) -> tuple[Pixels, Tensor]:
    """Images (one object may come several times) end to end, without masks, and the index of each in them."""
    unique = {id(image): image for image in images}
    order = {key: number for number, key in enumerate(unique)}
    sizes = torch.tensor([image.shape[:2] for image in unique.values()])
    ends = 1 + sizes.prod(1).cumsum(0)
    colours = np.zeros((int(ends[-1]), 4), np.uint8)
    for image, end in zip(unique.values(), ends.tolist(), strict=True):
        colours[end - image.shape[0] * image.shape[1] : end, :3] = image.reshape(-1, 3)
    flat = torch.from_numpy(colours).view(torch.int32).squeeze(1)
    pixels = Pixels(flat, torch.zeros(1, dtype=torch.uint8), ends - sizes.prod(1), sizes)
    return pixels, torch.tensor([order[id(image)] for image in images])


@torch.inference_mode()
def whole_images(
    net: nn.Module, images: Iterable[np.ndarray], canvas: tuple[int, int], batch: int, precision: str
) -> Iterator[Tensor]:
    """Scores (C, H, W) of each image, uint8 (H, W, 3) RGB, seen at the top left of a black canvas (release).

    An image that is larger than the canvas is seen alone, as it is.
    """
    device = next(net.parameters()).device

    def forward(group: list[np.ndarray]) -> Iterator[Tensor]:
        sizes = np.array([image.shape[:2] for image in group])
        stack = np.zeros((len(group), *np.maximum(canvas, sizes.max(0)), 3), np.uint8)
        for place, image in zip(stack, group, strict=True):
            place[: image.shape[0], : image.shape[1]] = image
        inputs = torch.from_numpy(stack).to(device).permute(0, 3, 1, 2).float()  # (B, 3, H, W), channels last
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            logits = net(inputs).float()  # (B, C, H, W)
        for image, score_map in zip(group, logits, strict=True):
            yield score_map[:, : image.shape[0], : image.shape[1]]

    group = []
    for image in images:
        if image.shape[0] > canvas[0] or image.shape[1] > canvas[1]:
            yield from forward(group) if group else ()
            yield from forward([image])
            group = []
            continue
        group.append(image)
        if len(group) == batch:
            yield from forward(group)
            group = []
    yield from forward(group) if group else ()


def fingerprint(dataset: Path, proposals: Path | None, model: Path, growth: bool, params: Params, frame: Frame) -> str:
    """What a shard of scores is made from; batch sizes are no part of it. proposals: None for FCN-8s."""
    if proposals is None:
        own, paths = {"precision": params.precision, "canvas": frame.canvas}, [dataset]
    else:
        own = asdict(params.deconvnet) | {"batch": None, "context": frame.context, "square": frame.square}
        own |= {"precision": params.precision, "growth": params.growth if growth else None}
        paths = [dataset, proposals]
    return shards.fingerprint(__file__, own, *(shards.footer(path).get("content", "") for path in paths), _hash(model))


_hash = functools.cache(shards.file_hash)  # one model for all shards


def own_device() -> torch.device:
    """A GPU that no other process here infers on, while there is one; the CPU where there is none.

    Local jobs are given no GPU of their own (snakemake#281), so each locks one until it ends.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    torch.backends.cudnn.benchmark = True
    for number in range(torch.cuda.device_count()):
        lock = open(Path(tempfile.gettempdir(), f"deconvnet-{os.getuid()}-gpu-{number}.lock"), "w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        LOCKS.append(lock)
        return torch.device("cuda", number)
    return torch.device("cuda", os.getpid() % torch.cuda.device_count())


def load_net(path: Path, classes: list[str], device: torch.device) -> nn.Module:
    """The net of a model file on `device`. Raises InputError where its classes are not as many as `classes`."""
    net, _ = nets.load(path)
    if net.spec["classes"] != len(classes):
        raise InputError(
            f"{path}: scores {net.spec['classes']} classes, but dataset.classes in params.yaml has {len(classes)}; "
            "train on this data set, or name the model's"
        )
    return net.to(device, memory_format=torch.channels_last)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m stages.infer", description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="DeconvNet or FCN-8s")
    parser.add_argument("--dataset", type=Path, required=True, help="shard of the data set")
    parser.add_argument("--proposals", type=Path, required=True, help="shard of proposals; not read for FCN-8s")
    parser.add_argument("--out", type=Path, required=True, help="shard of scores")
    parser.add_argument("--growth", action="store_true", help="keep labels after infer.growth proposals, too")
    parser.add_argument("--threads", type=int, help="of a CPU; all by default")
    options = parser.parse_args(arguments)
    params, around = load(Params, "infer"), frame()
    if options.threads:
        torch.set_num_threads(options.threads)
    net = load_net(options.model, load(list[str], "dataset.classes"), own_device())
    rows = shards.read(options.dataset, ["image_id", "image"]).to_pylist()
    proposals = None if net.spec["kind"] == "fcn" else options.proposals
    # now: the code may be edited while it runs
    mark = fingerprint(options.dataset, proposals, options.model, options.growth, params, around)

    def images() -> Iterator[np.ndarray]:
        for row in rows:
            try:
                yield decode_image(row["image"])
            except ValueError as error:
                raise InputError(f"{options.dataset}: {row['image_id']}: {error}; run `dvc repro dataset`") from None

    growth = params.growth if options.growth else []
    if net.spec["kind"] == "fcn":
        found = [None] * len(rows)
        results = ((result, []) for result in whole_images(net, images(), around.canvas, params.fcn_batch,
                                                           params.precision))  # fmt: skip
    else:
        boxes = by_image(shards.read(options.proposals))
        most = max(params.deconvnet.proposals, *growth, 0)
        found = [select(boxes.get(row["image_id"], np.zeros((0, 4))), params.deconvnet, around, most) for row in rows]
        results = by_windows(net, zip(images(), found, strict=True), params.deconvnet, params.precision, growth)
        if empty := sum(not len(places) for places in found):
            print(f"{options.dataset}: {empty} of {len(rows)} images have no proposal: all background", flush=True)
    table = []
    for row, places, (result, grown) in zip(
        rows, found, progress(results, total=len(rows), unit="image", desc=options.out.stem), strict=True
    ):
        table.append(
            {
                "image_id": row["image_id"],
                "windows": None if places is None else min(len(places), params.deconvnet.proposals),
                "growth": [encode_mask(labels.argmax(0).byte().cpu().numpy()) for labels in grown],
            }
            | scores.encode(result.cpu().numpy())
        )
    shards.write(options.out, pa.Table.from_pylist(table, scores.SCHEMA), mark)


if __name__ == "__main__":
    run(main)
