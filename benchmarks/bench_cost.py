"""Predicted seconds of a training step on this CPU against measured ones, at three sizes, one thread.

Both are the thread's own time, so that neighbours disturb neither much. The steps are the loop's own, on drawn images.
"""

import dataclasses
from pathlib import Path

import torch

from benchmarks import world
from benchmarks.bench_train import Ours, data
from deconvnet import cost, roofline
from deconvnet.settings import Size
from deconvnet.steps import training_census
from deconvnet.training.flops import fastest
from experiment.check import trainings
from experiment.params import load

SIZES = ((16, 256, 64, 32), (32, 512, 96, 16), (64, 512, 128, 8))  # width, fc, input in px, crops; all at once


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    demo, device = load(world.REPOSITORY / "demo/params.yaml"), torch.device("cpu")
    _, table = data(folder, demo)
    machine = roofline.measure(device, (demo.train.stage2.precision,))
    print(f"{machine.flops['bf16'] / 1e9:.0f} GFLOP/s in bf16, {machine.bandwidth / 1e9:.1f} GB/s")
    for width, fc, side, crops in SIZES:
        size = Size(width=width, fc_width=fc, input_size=side)
        params = dataclasses.replace(
            demo, pretrain=dataclasses.replace(demo.pretrain, size=size, resized=side * 9 // 8),
            train=dataclasses.replace(demo.train, resized=side * 9 // 8),
        )  # fmt: skip
        run = dataclasses.replace(demo.train.stage2, batch=crops, micro_batch=crops, batch_norm_crops=None)
        _, spec, shape = trainings(params)["train_stage2"]
        step = training_census(run, spec, shape)
        predicted = roofline.predict(step, machine)
        ours = Ours(params, run, table, folder)
        measured = fastest(lambda ours=ours: ours(1), device, 5)
        print(f"width {width}, fc {fc}, {crops} x {side} px, {cost.gigabytes(step.bytes)} moved: predicted "
              f"{predicted:.3f} s, measured {measured:.3f} s, {predicted / measured:.2f} of it (0.7 to 1.3 are "
              "wanted)")  # fmt: skip
