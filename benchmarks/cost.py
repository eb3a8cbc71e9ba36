"""What the trainings and the inference of an experiment ask of a device, and what common GPUs would make of it.

    python -m benchmarks.cost                                      # the paper's, on every GPU of the table
    python -m benchmarks.cost --params demo/params.yaml --device "RTX 3090" here

Counted on tensors without values: no GPU is needed. Times are predictions: those of GPUs from data sheets and assumed
efficiencies, those of `here` from a few seconds of measuring.
"""

import argparse
from pathlib import Path

import torch

from deconvnet import cost, roofline
from deconvnet.census import Census
from deconvnet.roofline import Device
from deconvnet.steps import inference_census
from experiment.check import train_costs, trainings
from experiment.cli import run
from experiment.params import Params, load


def operators(census: Census, crops: int) -> list[str]:
    """Lines of text: where the bytes of `crops` crops go."""
    lines = [f"{'operator':36}{'kernels':>8}{'MB a crop':>11}{'rereads':>9}{'GFLOP a crop':>14}"]
    for name, part in [*census.operators().items(), ("all", census)]:
        megabytes, again = part.bytes / crops / 1e6, part.rereads / crops / 1e6
        if megabytes >= 1 or part is census:
            lines.append(f"{name:36}{part.kernels:8,}{megabytes:11.1f}{again:9.1f}{part.flops / crops / 1e9:14.2f}")
    return lines


def predictions(params: Params, names: list[str]) -> list[str]:
    """Lines of text: of each device and training, crops per second, time and memory; windows per second."""
    lines = [f"{'device':18}{'training':14}{'crops/s':>9}{'time':>10}{'memory':>9}"]
    infer = params.infer
    _, spec, size = trainings(params)["train_stage2"]
    for name in names:
        device, kind = _device(params, name)
        for stage, price in train_costs(params, kind, 1).items():
            memory = price.device_bytes + (0 if kind == "cpu" else cost.UNCOUNTED)
            room = "" if kind == "cpu" or memory < device.memory else "  too much for it"
            lines.append(f"{name:18}{stage:14}{price.rate(device):9,.1f}{cost.duration(price.seconds(device)):>10}"
                         f"{cost.gigabytes(memory):>9}{room}")  # fmt: skip
        forward = inference_census(spec, size, infer.deconvnet.batch, infer.precision)
        image = roofline.predict(forward, device) / infer.deconvnet.batch * infer.deconvnet.proposals
        lines.append(f"{name:18}inference: {1 / image:.2g} images/s of {infer.deconvnet.proposals} windows, the net "
                     "alone")  # fmt: skip
    return lines


def _device(params: Params, name: str) -> tuple[Device, str]:
    """The device, and the type that its census is made for."""
    if name != "here":
        return roofline.GPUS[name], "cuda"
    here = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precisions = {plan.precision for plan, *_ in trainings(params).values()} | {params.infer.precision}
    return roofline.measure(here, tuple(sorted(precisions))), here.type


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cost", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--params", type=Path, default="params.yaml", help="parameter file; params.yaml by default")
    parser.add_argument(
        "--device", nargs="+", choices=(*roofline.GPUS, "here"), default=[*roofline.GPUS], metavar="NAME",
        help=f"here, or of {', '.join(roofline.GPUS)}; all of these by default",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    params = load(options.params)
    costs, plans = train_costs(params, "cuda", 1), trainings(params)
    print("A step on one GPU, counted:")
    for stage, price in costs.items():
        print(f"  {stage}: {cost.in_words(price.step, plans[stage][0].batch)}")
    _, spec, size = plans["train_stage2"]
    number, batch = params.infer.deconvnet.proposals, params.infer.deconvnet.batch
    image = inference_census(spec, size, batch, params.infer.precision)
    print(f"  an image's {number} windows, {batch} at once: {cost.operations(image.flops / batch * number)}, "
          f"{cost.gigabytes(image.bytes / batch * number)} moved; {cost.gigabytes(image.peak)} live")  # fmt: skip
    print("\nWhere the bytes of a step of train_stage2 go (rereads: what kernels read once more):")
    print("\n".join(operators(costs["train_stage2"].step, plans["train_stage2"][0].batch)))
    print(f"\nPredicted, not measured; {roofline.ASSUMED}:")
    print("\n".join(predictions(params, options.device)))


if __name__ == "__main__":
    run(main)
