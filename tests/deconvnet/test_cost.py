"""Counted costs against hand arithmetic and against what a real training step keeps."""

import pytest
import torch

from deconvnet import cost, nets
from deconvnet.nets import switches
from deconvnet.nets.layers import batch_norms, set_batch_norm_crops
from deconvnet.settings import Run
from deconvnet.training.metrics import pixel_loss

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
    assert cost.forward_flops(SPECS["classifier"], (64, 64)) == forward
    run = Run(steps=10, batch=6, micro_batch=6, batch_norm_crops=None, held_out=0)
    # backward: as much again for the weights, and for the inputs, but not for the image
    image = 2 * 9 * 3 * 4 * 64**2
    assert cost.count(run, SPECS["classifier"], (64, 64), "cpu").flops == 60 * (3 * forward - image)


def test_the_papers_net():
    spec = {"kind": "deconvnet", "size": {"width": 64, "fc_width": 4096, "input_size": 224}, "classes": 21, "eps": 1e-9}
    assert cost.parameters(spec) == 251_805_653  # the release's
    found = cost.count(Run(held_out=0), spec, (224, 224), "cuda")
    assert found.crops == 1_280_000 and found.device_bytes == 12 * 251_805_653 + found.saved_bytes
    assert found.flops / found.crops == pytest.approx(196.3e9, rel=1e-3)  # as PyTorch counted the released layers


def test_validation_is_counted():
    spec = SPECS["deconvnet"]
    run = Run(steps=10, batch=8, micro_batch=8, held_out_crops=50, validate_every=4, statistics_passes=2)
    without = cost.count(Run(steps=10, batch=8, micro_batch=8, held_out=0), spec, (64, 64), "cpu")
    forward = cost.forward_flops(spec, (64, 64))
    # after steps 4, 8, 10; 2 passes of 28 crops for batch norm's statistics
    assert cost.count(run, spec, (64, 64), "cpu").flops - without.flops == pytest.approx(3 * (50 + 56) * forward)


def really_saved(spec, size, crops, precision, groups):
    """Bytes of the storages that a real forward pass saves, each once, weights and buffers not."""
    net = nets.build(spec).train()
    set_batch_norm_crops(net, groups)
    labels = torch.zeros(crops, *(() if spec["kind"] == "classifier" else size), dtype=torch.uint8)
    own = {tensor.data_ptr() for tensor in (*net.parameters(), *net.buffers())}
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            logits = net(torch.rand(crops, 3, *size) * 255)
        pixel_loss(logits, labels, groups)
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in saved}
    return sum(size for pointer, size in storages.items() if pointer not in own)


@pytest.mark.parametrize("precision", ["bf16", "float32"])
@pytest.mark.parametrize("kind", SPECS)
def test_memory_is_what_a_real_step_saves(kind, precision):
    size, groups = ((70, 90), None) if kind == "fcn" else ((64, 64), 2 if kind == "deconvnet" else None)
    real = really_saved(SPECS[kind], size, 4, precision, groups)
    counted = cost.saved_bytes(SPECS[kind], size, 4, precision, "cpu", groups)
    # PyTorch's shape of batch norm gives the saved mean and deviation 2 bytes in bf16, where its kernel has 4
    channels = sum(len(norm.weight) for norm in batch_norms(nets.build(SPECS[kind])).values())
    assert counted + (precision == "bf16") * 2 * 2 * (4 // (groups or 4)) * channels == real > 1e6


def test_memory_of_a_gpu_is_that_of_its_own_pooling(monkeypatch):
    """A GPU's switches take a byte; the CPU does the same here, and no GPU is needed for the count."""
    on_cpu = cost.saved_bytes(SPECS["deconvnet"], (64, 64), 4, "float32", "cpu")
    on_gpu = cost.saved_bytes(SPECS["deconvnet"], (64, 64), 4, "float32", "cuda")
    monkeypatch.setattr("deconvnet.nets.switches.pool", switches.corner_pool)
    assert on_gpu == really_saved(SPECS["deconvnet"], (64, 64), 4, "float32", None)
    assert on_gpu < on_cpu
    half = cost.saved_bytes(SPECS["deconvnet"], (64, 64), 4, "bf16", "cuda")
    assert 0.5 * on_gpu < half < 0.75 * on_gpu  # logits, loss and switches are no bf16
    assert not torch.is_autocast_enabled("cuda")


def test_the_line_at_the_start_of_a_training():
    net, run = nets.build(SPECS["deconvnet"]), Run(steps=100, batch=16, micro_batch=8, held_out=0)
    price = cost.count(run, net.spec, (64, 64), "cpu")
    line = cost.needs(run, net, (64, 64), torch.device("cpu"), rate=1e9)
    assert line == (
        f"needs about {cost.gigabytes(price.device_bytes)} of cpu's memory beside the images, "
        f"{cost.gigabytes(40 * price.parameters)} of disk, 100 steps of 16 crops, {cost.operations(price.flops)}: "
        f"about {cost.duration(price.flops / 0.33e9)} on this machine"
    )


def test_numbers_in_words():
    assert [cost.gigabytes(n) for n in (1, 35e6, 0.95e9, 7.44e9, 120e9)] == ["1 MB", "35 MB", "0.9 GB", "7.4 GB",
                                                                            "120 GB"]  # fmt: skip
    assert [cost.operations(n) for n in (2.546e17, 3.1e16, 1.4e15, 5e11)] == ["0.25 EFLOP", "31 PFLOP", "1.4 PFLOP",
                                                                             "0.5 TFLOP"]  # fmt: skip
    assert [cost.duration(n) for n in (0.1, 40, 720, 12600, 1.8e6)] == ["1 s", "40 s", "12 min", "3.5 h", "21 days"]
