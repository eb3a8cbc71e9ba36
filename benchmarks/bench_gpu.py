"""The paper's parameters on a GPU: crops per second, eager, compiled and plain; where a step's time goes; inference.

make bench-gpu                              # about six minutes on one GPU
python -m benchmarks.bench_gpu --small      # the same program at a small size, on any machine: to try it out
"""

import argparse
import dataclasses
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import world
from benchmarks.bench_train import Ours, Theirs, data, measure, synchronise
from deconvnet import cost, roofline
from deconvnet.inference.models import ready
from deconvnet.nets.deconvnet import DeconvNet
from deconvnet.settings import Size
from deconvnet.steps import training_census
from deconvnet.training.flops import flops_per_crop, peak_flops
from experiment.machine import cores
from experiment.params import load


def split(work, steps: int = 3) -> list[str]:
    """Lines of text: the kernels that take most of a step's time on the device."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
    with profile(activities=activities) as seen:
        work(steps)
        synchronise()
    times, calls = Counter(), Counter()
    for event in seen.events():
        on_device = str(event.device_type).endswith("CUDA")
        if on_device == torch.cuda.is_available():
            times[event.name] += event.device_time if on_device else event.self_cpu_time_total
            calls[event.name] += 1
    total = sum(times.values())
    lines = [f"  {total / steps / 1e3:.2f} ms of kernels a step, {sum(calls.values()) / steps:.0f} kernels"]
    for name, spent in times.most_common(25):
        lines.append(f"  {spent / total:6.1%} {spent / steps / 1e3:8.3f} ms {calls[name] / steps:6.1f}x  {name[:90]}")
    return lines


def main(folder: Path, arguments=()) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="width 8 and 64 px, on any machine")
    options = parser.parse_args(arguments)
    if not (options.small or torch.cuda.is_available()):
        print("no GPU here: nothing measured (--small tries the program out)")
        return
    params = load(world.REPOSITORY / "params.yaml")
    run, infer, seconds, rounds = params.train.stage2, params.infer.deconvnet, 8.0, 3
    if options.small:
        size = Size(width=8, fc_width=32, input_size=64)
        params = dataclasses.replace(
            params, pretrain=dataclasses.replace(params.pretrain, size=size),
            train=dataclasses.replace(params.train, resized=72),
        )  # fmt: skip
        run = dataclasses.replace(run, batch=16, micro_batch=16)
        infer, seconds, rounds = dataclasses.replace(infer, batch=8), 0.5, 1
    rows, table = data(folder, params)
    ours = Ours(params, run, table, folder)
    trainer = ours.trainer
    device = trainer.worker.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    peak = peak_flops(device, run.precision)
    flops = flops_per_crop(trainer.net, trainer.batches.size)
    print(
        f"{name}, PyTorch {torch.__version__}, large product {peak / 1e12:.1f} TFLOP/s in {run.precision}, {cores()} "
        f"cores; batch {run.batch}, {trainer.part} at once, batch norm over {run.batch_norm_crops}",
        flush=True,
    )

    def say(label: str, rate: float) -> None:
        memory = torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else 0
        print(
            f"{label}: {rate:,.0f} crops/s, {flops * rate / peak:.1%} of that product's rate, memory {memory:.1f} GB",
            flush=True,
        )

    say("ours, eager", measure({"": ours}, run.batch, rounds, seconds)[""])
    counted = training_census(run, trainer.net.spec, trainer.batches.size)
    print(f"  counted: {cost.in_words(counted, run.batch)}")
    machine = roofline.measure(device, (run.precision,))
    print(
        f"  predicted from the counts: {run.batch / roofline.predict(counted, machine):,.0f} crops/s; "
        f"memory {machine.bandwidth / 1e9:,.0f} GB/s copied"
    )
    print("\n".join(split(ours)), flush=True)
    begin = time.perf_counter()
    for step in range(trainer.step, trainer.step + 20):
        for start in range(0, run.batch, trainer.part):
            trainer.batches.train(step, run.batch, slice(start, start + trainer.part))
    synchronise()
    print(f"  making batches alone: {20 * run.batch / (time.perf_counter() - begin):,.0f} crops/s", flush=True)
    losses = [f"{loss:.3f}" for loss in (trainer.losses[0], trainer.losses[-1])]
    print(f"  loss {' -> '.join(losses)} in {len(trainer.losses)} steps of a net from scratch", flush=True)
    del ours, trainer
    for label, make in (
        ("ours, compiled", lambda: Ours(params, dataclasses.replace(run, compile=True), table, folder)),
        ("plain PyTorch, eager", lambda: Theirs(params, run, table, rows, workers=max(cores() - 2, 1))),
        ("plain PyTorch, compiled", lambda: Theirs(params, run, table, rows, True, max(cores() - 2, 1))),
    ):
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        try:
            say(label, measure({"": make()}, run.batch, rounds, seconds)[""])
        except Exception as error:  # one that fails must not take the others' results away
            print(f"{label}: failed: {' '.join(str(error).split())[:300]}", flush=True)

    net = DeconvNet(params.pretrain.size, len(params.dataset.classes), params.train.batch_norm_eps).eval()
    net = ready(net, device, params.infer.precision)
    windows = torch.rand(infer.batch, 3, *[params.pretrain.size.input_size] * 2, device=device) * 255

    def forward(steps: int) -> None:
        with torch.inference_mode():
            for _ in range(steps):
                net(windows)

    rate = measure({"": forward}, infer.batch, rounds, seconds / 2)[""]
    print(
        f"inference, the net alone: {rate:,.0f} windows/s of {infer.batch} at once, "
        f"{rate / infer.proposals:.1f} images/s of {infer.proposals}"
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        main(Path(place), sys.argv[1:])
