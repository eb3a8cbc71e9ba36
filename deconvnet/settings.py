"""Every setting of the method, typed and checked; the defaults are the paper's numbers.

Sources: P the paper, with its section · R the released code · E Zitnick, Dollar, EdgeBoxes, ECCV 2014 · F Long,
Shelhamer, Darrell, CVPR 2015 · ours chosen here. This module imports nothing heavy, so every command can check a whole
parameter file in no time.

A field's type is its check (`deconvnet.fields`); `__post_init__` raises ValueError for what spans several fields.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from deconvnet.fields import Distinct, Name, Range

Splits = Literal["train", "val", "test"]
# Each has an upper bound, beyond which it would only fill the memory or never end.
Count = Annotated[int, Range(0, 1_000_000_000)]
Some = Annotated[int, Range(1, 1_000_000_000)]  # steps, images, px
Batch = Annotated[int, Range(1, 4096)]
Boxes = Annotated[int, Range(1, 100_000)]
Examples = Annotated[int, Range(1, 10_000_000)]
Seed = Annotated[int, Range(0, 2**31 - 1)]
Factor = Annotated[float, Range(0, 1000)]
Epsilon = Annotated[float, Range(0, 1)]
Width = Annotated[int, Range(1, 10_000)]  # px
MOST = 1_000_000_000  # weights of one layer


@dataclass(frozen=True)
class Dataset:
    """VOC 2012 with SBD's annotations (P 6.1), or images and masks in folders of one's own."""

    classes: list[Annotated[str, Name()]]  # names by class id; 0 is the background
    shard_images: Annotated[int, Range(1, 1_000_000)] = 256  # images in a shard, the unit of fan-out and transfer; ours
    counts: dict[str, Count] = dataclasses.field(default_factory=dict)  # images expected
    kind: Literal["voc", "folders"] = "voc"
    input: str | None = None  # the archive or the lists that it is made from: for DVC alone
    # of folders: a mask's numbers by class or `void`, `others` for all that are not named; {}: a number is a class id
    labels: dict[str, list[Annotated[int, Range(0, 65535)] | Literal["others"]]] = dataclasses.field(
        default_factory=dict
    )
    longest: Annotated[int, Range(32, 65535)] | None = None  # px, of folders: larger images are reduced so far

    COUNTS = ("voc_train", "val", "trainaug", "trainval_aug", "test")

    def __post_init__(self):
        if not 2 <= len(self.classes) <= 255 or len(set(self.classes)) != len(self.classes):
            raise ValueError(f"classes: {len(self.classes)} names are not allowed; allowed: 2 to 255 different names")
        if unknown := set(self.counts) - set(self.COUNTS):
            raise ValueError(f"counts: {', '.join(sorted(unknown))}: unknown key; allowed: {', '.join(self.COUNTS)}")
        if self.labels:
            if {*self.labels} - {"void"} != {*self.classes} or "void" in self.classes:
                raise ValueError(
                    f"labels: allowed: a list of numbers for each of {', '.join(self.classes)}, and `void`"
                )
            numbers = [number for own in self.labels.values() for number in own]
            if twice := [number for number in numbers if numbers.count(number) > 1]:
                raise ValueError(f"labels: {twice[0]} is named twice; allowed: once")


@dataclass(frozen=True)
class Recall:
    """How the proposals are judged; the boxes themselves do not depend on it."""

    split: Literal["train", "val"] = "val"  # whose objects are looked for
    min_area: Some = 400  # px; smaller objects are not counted; ours
    boxes: Annotated[list[Boxes], Distinct()] = (10, 50, 100, 500, 2000)  # proposals per image
    iou: Annotated[list[Annotated[float, Range(0, 1)]], Distinct()] = (0.5, 0.7)  # overlaps that count as found


@dataclass(frozen=True)
class EdgeBoxes:
    """Object proposals (P 6.1; E)."""

    edges: Literal["structured", "gradient"] = "structured"  # structured forest (needs a model file) or Lab gradients
    boxes: Boxes = 2000  # at most, per image; P 6.1
    alpha: Annotated[float, Range(0, 0.95)] = 0.65  # step of the sliding windows, as IoU; E
    beta: Annotated[float, Range(0, 1)] = 0.75  # threshold of non-maximum suppression, as IoU; E
    min_score: Factor = 0.01  # E
    min_box_area: Some = 1000  # px; E
    max_aspect_ratio: Annotated[float, Range(1, 1000)] = 3.0  # E
    recall: Recall = Recall()


@dataclass(frozen=True)
class ObjectCrops:
    """Stage 1: a window around every annotated object (P 4.2)."""

    per_class: Examples = 10_000  # examples of each class; P 6.1: 0.2 M over 20 classes


@dataclass(frozen=True)
class ProposalCrops:
    """Stage 2: a window around every proposal that overlaps an object (P 4.2)."""

    per_class: Examples = 135_000  # P 6.1: 2.7 M over 20 classes
    min_iou: Annotated[float, Range(0, 1)] = 0.5  # of a proposal with an object's tight box; P 6.1


@dataclass(frozen=True)
class Crops:
    """Training windows."""

    split: Literal["trainaug", "trainval_aug"] = "trainaug"  # trainval_aug for a submission to the test server, P 6.2
    # window side / box side, P 6.1; whole: no boxes, the one window of an image is the image, in training and inference
    context: Annotated[float, Range(1, 10)] | Literal["whole"] = 1.2
    square: bool = True  # R: the windows printed in its issues #3 and #11 are square; P does not say
    max_copies: Some | None = None  # of a window in an epoch, though its class then has fewer; ours
    seed: Seed = 2015
    stage1: ObjectCrops = ObjectCrops()
    stage2: ProposalCrops = ProposalCrops()


def pair(side: int | Sequence[int], name: str = "size") -> tuple[int, int]:
    """Height and width: a side twice, or the two that are given. Raises ValueError for another number of them."""
    sides = (side, side) if isinstance(side, int) else tuple(side)
    if len(sides) != 2:
        raise ValueError(f"{name}: {list(sides)} is not allowed; allowed: a side in px, or height and width")
    return sides


@dataclass(frozen=True)
class Size:
    """How large a net is. The defaults are VGG-16's own."""

    width: Annotated[int, Range(1, 1024)] = 64  # channels of conv1_1
    fc_width: Annotated[int, Range(1, 65536)] = 4096  # channels of fc6 and fc7
    # px, side of a crop, or height and width
    input_size: Annotated[int, Range(32, 2048)] | list[Annotated[int, Range(32, 2048)]] = 224

    def __post_init__(self):
        if any(side % 32 for side in pair(self.input_size, "input_size")):
            raise ValueError(f"input_size: {self.input_size} is not a multiple of 32, the stride of five poolings")
        if (weights := 8 * self.width * math.prod(self.fc_kernel) * self.fc_width) > MOST:
            raise ValueError(f"fc_width: fc6 would have {weights:,} weights; allowed: {MOST:,}, of VGG-16 102,760,448")

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of a crop, px."""
        return pair(self.input_size)

    @property
    def fc_kernel(self) -> tuple[int, int]:
        """Height and width of fc6's kernel, which covers the whole of pool5: 7 and 7 for an input of 224."""
        height, width = self.shape
        return height // 32, width // 32


@dataclass(frozen=True)
class Run:
    """One training run by SGD. The defaults are stage 1's."""

    steps: Some = 20_000  # R; P 6.1: about 20 K
    batch: Batch = 64  # crops per step over all devices: micro_batch x accumulation x devices; P 6.1
    micro_batch: Batch = 64  # crops that a device computes at once; ours
    batch_norm_crops: Annotated[int, Range(2, 4096)] | None = 8  # that batch norm sees at once; null: micro_batch; R
    lr: Annotated[float, Range(1e-12, 1e30)] = 0.01  # P 6.1
    warmup_steps: Count = 0  # of a linear warm-up
    # steps, R; plateau: of held-out accuracy, P 6.1; cosine: no drops, but a cosine down to 0
    drop_at: list[Some] | Literal["plateau", "cosine"] = (9000, 18000)
    held_out_crops: Some = 2000  # at most, for validation; ours
    validate_every: Some = 1000  # steps; ours
    checkpoint_minutes: Annotated[float, Range(0, 100_000)] = 10  # between checkpoints; ours
    momentum: Annotated[float, Range(0, 0.9999)] = 0.9  # P 6.1
    weight_decay: Annotated[float, Range(0, 1)] = 5e-4  # P 6.1
    encoder_lr: Factor = 1.0  # times lr, for VGG-16's convolutions; 0: frozen; ours
    drop: Annotated[float, Range(1e-6, 1)] = 0.1  # factor of a drop of the learning rate; P 6.1
    patience: Some = 3  # validations without a better accuracy that make a plateau; ours
    held_out: Annotated[float, Range(0, 0.9)] = 0.02  # share of the training images kept for validation; 0: none; ours
    statistics_passes: Annotated[int, Range(1, 10_000)] = 16  # passes of 28 crops before a validation; ours, as R's 501
    precision: Literal["bf16", "float32"] = "bf16"  # of arithmetic; weights are float32; P: float32
    compile: bool = False
    memory_gb: Annotated[float, Range(0, 1_000_000)] = 12.0  # for decoded images: 10,582 of 500x375 need 10
    seed: Seed = 2015

    def __post_init__(self):
        if self.batch_norm_crops and self.micro_batch % self.batch_norm_crops:
            raise ValueError(
                f"micro_batch: {self.micro_batch} is no multiple of batch_norm_crops {self.batch_norm_crops}"
            )
        steps = self.drop_at if isinstance(self.drop_at, tuple) else ()
        if any(one >= other for one, other in zip(steps, steps[1:], strict=False)):
            raise ValueError(f"drop_at: {list(steps)} is not allowed; allowed: different steps, ascending")
        if self.drop_at == "plateau" and not self.held_out:
            raise ValueError("drop_at: plateau needs validation, but held_out is 0; name steps, or hold images out")
        if self.devices(1) == 0:
            raise ValueError(
                f"batch: {self.batch} does not divide into equal micro-batches of at most micro_batch "
                f"{self.micro_batch}; change one of them"
            )

    def micro_batch_for(self, devices: int) -> int:
        """The micro-batch on so many devices: micro_batch, or a device's share of the batch where that is less.

        0 where the batch does not divide among them into equal micro-batches of whole batch-norm groups.
        """
        micro_batch = min(self.micro_batch, max(self.batch // devices, 1))
        if self.batch % (micro_batch * devices) or self.batch_norm_crops and micro_batch % self.batch_norm_crops:
            return 0
        return micro_batch

    def check_batch_norm(self, eps: float | None, name: str) -> None:
        """Raise ValueError where batch norm would see a single crop, which has no variance. name: of the run."""
        if eps is not None and (self.batch_norm_crops or min(self.micro_batch, self.batch)) < 2:
            key = "batch" if self.batch < 2 else "micro_batch"
            raise ValueError(f"{name}.{key}: 1 crop is too few for batch norm; allowed: 2 or more, or no batch norm")

    def devices(self, available: int) -> int:
        """The largest number of devices, at most `available`, among which the batch divides."""
        return next((number for number in range(available, 0, -1) if self.micro_batch_for(number)), 0)


SHARED = ("momentum", "weight_decay", "encoder_lr", "drop", "patience", "held_out", "statistics_passes", "precision",
          "compile", "memory_gb", "seed")  # fmt: skip


@dataclass(frozen=True)
class Pretraining:
    """The encoder: VGG-16's ILSVRC weights passed on (P 3.1), or learned on crops where they are not at hand (ours)."""

    size: Size = Size()
    convention: Literal["imagenet1k_v1", "imagenet1k_features", "caffe_bgr"] = "imagenet1k_v1"  # of the weights' input
    batch_norm_eps: Epsilon = 1e-5  # ours
    resized: Annotated[int, Range(64, 4096)] | list[Annotated[int, Range(64, 4096)]] = 250  # px, as in Training
    background: Annotated[float, Range(0, 0.9)] = 0.1  # share of windows without an object among the crops; ours
    run: Run = Run(micro_batch=64, batch_norm_crops=None, lr=0.05, warmup_steps=500, drop_at=(12000, 18000))

    def __post_init__(self):
        if any(a < b for a, b in zip(pair(self.resized, "resized"), self.size.shape, strict=True)):
            raise ValueError(f"resized: {self.resized} is less than size.input_size {self.size.input_size}")
        self.run.check_batch_norm(self.batch_norm_eps, "run")


@dataclass(frozen=True)
class Training:
    """DeconvNet's two stages (P 4.2, 6.1)."""

    batch_norm_eps: Epsilon | None = 1e-9  # R; null trains without batch norm, the claim of P 4.1
    unpooling: Literal["switches", "bilinear", "transposed"] = "switches"  # P 3.2.1; the others for claim (g)
    decoder_start: Literal["gaussian", "he"] = "gaussian"  # of std 0.01, R; by He's rule it bears a higher rate; ours
    # px, a side or height and width; a random crop of the net's input size is taken; P 6.1
    resized: Annotated[int, Range(64, 4096)] | list[Annotated[int, Range(64, 4096)]] = 250
    flip: bool = True  # mirror half of the crops; P 6.1
    stage1: Run = Run()
    stage2: Run = Run(steps=40_000, drop_at=(10000, 20000, 30000))  # R; P 6.1: about 40 K

    def __post_init__(self):
        pair(self.resized, "resized")
        self.stage1.check_batch_norm(self.batch_norm_eps, "stage1")
        self.stage2.check_batch_norm(self.batch_norm_eps, "stage2")


@dataclass(frozen=True)
class Reestimation:
    """Batch-norm statistics of the final DeconvNet, averaged anew over training crops (R)."""

    passes: Annotated[int, Range(1, 1_000_000)] = 501  # R
    batch: Annotated[int, Range(2, 4096)] = 28  # crops per pass; R


@dataclass(frozen=True)
class FcnTraining:
    """FCN-8s on whole images (F)."""

    batch_norm_eps: Epsilon | None = None  # as published
    skip_scales: list[Factor] | Literal["derived"] = "derived"  # pool4's, pool3's; F: 0.01, 0.0001
    dropout: Annotated[float, Range(0, 0.99)] = 0.5  # after fc6 and fc7; F
    canvas: list[Annotated[int, Range(32, 8192)]] = (500, 500)  # px, height and width; R pads at the bottom and right
    scale: Annotated[float, Range(0.1, 4)] = 1.0  # of the images and the canvas that the net sees; F: 1
    flip: bool = True  # mirror half of the images
    run: Run = Run(steps=26_500, batch=20, micro_batch=10, batch_norm_crops=None, lr=1e-4, drop_at=(),
                   held_out_crops=200)  # fmt: skip

    @property
    def seen(self) -> tuple[int, int]:
        """Height and width of the canvas that the net sees, px."""
        return tuple(max(1, round(side * self.scale)) for side in self.canvas)

    def __post_init__(self):
        if self.skip_scales != "derived" and len(self.skip_scales) != 2:
            raise ValueError("skip_scales: allowed: derived, or two numbers: pool4's factor and pool3's")
        if len(self.canvas) != 2:
            raise ValueError("canvas: allowed: two numbers of px: height and width")
        self.run.check_batch_norm(self.batch_norm_eps, "run")


@dataclass(frozen=True)
class WindowInference:
    """DeconvNet on an image's proposals (P 5.1)."""

    proposals: Boxes = 50  # the best of an image; P 5.1
    aggregation: Literal["maximum", "average"] = "maximum"  # over the windows, 0 outside of each; P 5.1 offers both
    clip: bool = False  # negative scores to 0 first; R: true, as its maximum starts from 0
    min_side: Count = 0  # px; proposals whose window has a shorter side are passed over; R: 112
    batch: Batch = 128  # windows that the device computes at once; ours


@dataclass(frozen=True)
class Inference:
    splits: Annotated[list[Splits], Distinct()] = ("val",)
    precision: Literal["bf16", "float32"] = "bf16"
    deconvnet: WindowInference = WindowInference()
    growth: Annotated[list[Boxes], Distinct()] = (1, 5, 10, 25, 50, 100)  # proposals after which labels are kept too
    fcn_batch: Batch = 8  # images that the device computes at once


@dataclass(frozen=True)
class Ensemble:
    """EDeconvNet: DeconvNet and FCN-8s together (P 5.2)."""

    method: Literal["mean", "product"] = "mean"  # of probabilities, P 5.2; R: of scores clipped at 0


@dataclass(frozen=True)
class Crf:
    """The fully connected CRF (Krahenbuhl, Koltun, NIPS 2011) with the release's numbers; P gives none."""

    iterations: Annotated[int, Range(1, 1000)] = 10  # of mean-field inference; R
    normalization: Literal["none", "symmetric"] = "none"  # of both kernels; R: none; pydensecrf's own is symmetric
    smoothness_sxy: Annotated[float, Range(0.1, 1000)] = 3.0  # px, standard deviation of the kernel over positions; R
    smoothness_weight: Factor = 3.0  # R
    appearance_sxy: Annotated[float, Range(0.1, 1000)] = 20.0  # px, of the kernel over positions and colours; R
    appearance_srgb: Annotated[float, Range(0.1, 1000)] = 3.0  # of 0..255; R
    appearance_weight: Factor = 5.0  # R


@dataclass(frozen=True)
class Evaluation:
    split: Literal["train", "val"] = "val"
    # px, areas at which one size of objects ends and the next begins; the evaluation's are COCO's two
    sizes: Annotated[list[Some], Distinct(ascending=True)] = (1024, 9216)
    boundary: Annotated[list[Width], Distinct(ascending=True)] = (1, 2, 4, 8, 16)  # px, of bands; the first is shown
