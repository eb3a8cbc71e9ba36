"""What a training needs, against hand arithmetic."""

import pytest

from deconvnet import cost
from deconvnet.roofline import GPUS
from deconvnet.settings import Run
from deconvnet.steps import inference_census

SIZE = {"width": 4, "fc_width": 16, "input_size": 64}
SPECS = {
    "classifier": {"kind": "classifier", "size": SIZE, "classes": 3, "eps": None},
    "deconvnet": {"kind": "deconvnet", "size": SIZE, "classes": 3, "eps": 1e-5},
    "fcn": {"kind": "fcn", "size": SIZE, "classes": 3, "eps": None},
}
# Channels of the 13 convolutions at width 4, and how often the map has been halved before each.
CONVS = [(3, 4, 0), (4, 4, 0), (4, 8, 1), (8, 8, 1), (8, 16, 2), (16, 16, 2), (16, 16, 2), (16, 32, 3), (32, 32, 3),
         (32, 32, 3), (32, 32, 4), (32, 32, 4), (32, 32, 4)]  # fmt: skip


def test_parameters_and_operations_of_a_small_net_by_hand():
    weights = sum(9 * a * b + b for a, b, _ in CONVS)
    weights += 4 * 32 * 16 + 16 + 16 * 16 + 16 + 16 * 3 + 3  # fc6 of 2x2, fc7, score
    assert cost.parameters(SPECS["classifier"]) == weights
    forward = sum(2 * 9 * a * b * (64 >> halved) ** 2 for a, b, halved in CONVS)
    forward += 2 * (4 * 32 * 16 + 16 * 16 + 16 * 3)
    assert inference_census(SPECS["classifier"], (64, 64), 1).flops == forward
    run = Run(steps=10, batch=6, micro_batch=6, batch_norm_crops=None, held_out=0)
    # backward: as much again for the weights, and for the inputs, but not for the image
    image = 2 * 9 * 3 * 4 * 64**2
    assert cost.count(run, SPECS["classifier"], (64, 64), "cpu").flops == 60 * (3 * forward - image)


def test_the_papers_net():
    spec = {"kind": "deconvnet", "size": {"width": 64, "fc_width": 4096, "input_size": 224}, "classes": 21, "eps": 1e-9}
    assert cost.parameters(spec) == 251_805_653 - 16_704  # the release's, less its biases under batch norm
    found = cost.count(Run(held_out=0), spec, (224, 224), "cuda")
    assert found.crops == 1_280_000 and 12 * 251_788_949 < found.device_bytes < 12 * 251_788_949 + 8e9
    assert found.flops / found.crops == pytest.approx(196.3e9, rel=1e-3)  # as PyTorch counted the released layers


def test_validation_is_counted():
    spec = SPECS["deconvnet"]
    run = Run(steps=10, batch=8, micro_batch=8, held_out_crops=50, validate_every=4, statistics_passes=2)
    without = cost.count(Run(steps=10, batch=8, micro_batch=8, held_out=0), spec, (64, 64), "cpu")
    forward = inference_census(spec, (64, 64), 1).flops
    # after steps 4, 8, 10; 2 passes of 28 crops for batch norm's statistics
    assert cost.count(run, spec, (64, 64), "cpu").flops - without.flops == pytest.approx(3 * (50 + 56) * forward)


def test_devices_share_a_batch():
    one, two = (cost.count(Run(batch=16, micro_batch=8, held_out=0), SPECS["fcn"], (64, 64), "cuda", n) for n in (1, 2))
    assert one.flops == two.flops == 2 * two.step.flops * two.steps
    machine = GPUS["L4"]
    assert one.seconds(machine) == pytest.approx(one.crops / one.rate(machine))
    # each makes the update alone, but adds to no gradients that are there
    assert two.rate(machine) / one.rate(machine) == pytest.approx(2, rel=0.1)


def test_numbers_in_words():
    assert [cost.gigabytes(n) for n in (1, 35e6, 0.95e9, 7.44e9, 120e9)] == ["1 MB", "35 MB", "0.9 GB", "7.4 GB",
                                                                            "120 GB"]  # fmt: skip
    found = [cost.operations(n) for n in (2.546e17, 3.1e16, 1.4e15, 5e11, 3e9)]
    assert found == ["0.25 EFLOP", "31 PFLOP", "1.4 PFLOP", "0.5 TFLOP", "3 GFLOP"]
    assert [cost.duration(n) for n in (0.1, 40, 720, 12600, 1.8e6)] == ["1 s", "40 s", "12 min", "3.5 h", "21 days"]
