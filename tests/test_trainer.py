"""Training on a few small pictures: golden losses, resumption, several processes, overfitting, what goes wrong."""

import argparse
import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
import torch

from stages import nets, pretrain, reestimate, shards, train, train_fcn, trainer
from stages.batches import Batches, Pictures
from stages.cli import InputError
from stages.nets.deconvnet import DeconvNet
from stages.nets.layers import BatchNorm
from stages.nets.vgg import Classifier, Size
from stages.trainer import Place, Run, Trainer
from tests.world import CPU, crop_table, write_dataset

ROOT = Path(__file__).parent.parent
SIZE = {"width": 4, "fc_width": 16, "input_size": 64}
RUN = {
    "steps": 8, "batch": 8, "micro_batch": 4, "batch_norm_crops": None, "lr": 0.05, "momentum": 0.9,
    "weight_decay": 5e-4, "warmup_steps": 2, "drop_at": [6], "drop": 0.1, "patience": 1, "held_out": 0.25,
    "held_out_crops": 6, "validate_every": 4, "checkpoint_every": 3, "precision": "float32", "compile": False,
    "memory_gb": 1, "seed": 7,
}  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the tests' nets are too small for two, and others may be busy
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An experiment folder with a data set, crops, an untrained encoder and parameters."""
    table = crop_table(write_dataset(tmp_path / "dataset", images=12))
    shards.write(tmp_path / "crops.parquet", pa.Table.from_pandas(table, preserve_index=False))
    (tmp_path / "vgg16.pth").touch()
    torch.manual_seed(3)
    net = Classifier(Size(**SIZE), 4, 1e-5)
    nets.save(tmp_path / "encoder.pt", net.spec, net.state_dict(), {})
    write_params(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_params(folder, **changes):
    run = RUN | changes
    params = {
        "dataset": {"classes": ["background", "red", "green", "blue"]},
        "pretrain": {
            "size": SIZE, "convention": "imagenet1k_v1", "batch_norm_eps": 1e-5, "resized": 72, "background": 0.2,
            "run": run,
        },
        "train": {"batch_norm_eps": 1e-5, "resized": 72, "flip": True, "stage1": run, "stage2": run},
        "train_fcn": {
            "batch_norm_eps": None, "skip_scales": [1, 1], "dropout": 0.5, "canvas": [96, 96], "flip": True, "run": run,
        },
        "reestimate": {"passes": 5, "batch": 6, "resized": 72, "memory_gb": 1, "seed": 7},
    }  # fmt: skip
    (folder / "params.json").write_text(json.dumps(params))


def arguments(name, init="encoder.pt"):
    line = f"--dataset dataset --crops crops.parquet --out {name}.pt --last {name}-last.pt --curves {name}.csv"
    return f"{line} --metrics {name}.json --checkpoints checkpoints/{name} --params params.json --init {init}".split()


def weights(path):
    return nets.read(path)["state"]


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_golden_losses(folder):
    """The first 20 losses stand in tests/golden_losses.txt; `GOLDEN=write pytest tests/test_trainer.py` renews them."""
    write_params(folder, steps=20, validate_every=1)
    train.main(["stage1", *arguments("a")])
    losses = pd.read_csv("a.csv")["loss"].tolist()
    golden = ROOT / "tests/golden_losses.txt"
    if os.environ.get("GOLDEN") == "write":
        golden.write_text("".join(f"{loss:.6g}\n" for loss in losses))
    # 1e-3: kernels differ among kinds of CPU; on one machine the losses are equal, which the next test holds
    assert losses == pytest.approx([float(line) for line in golden.read_text().split()], rel=1e-3)
    assert losses[-1] < losses[0]


def test_same_seed_same_files_and_another_seed_others(folder):
    train.main(["stage1", *arguments("a")])
    train.main(["stage1", *arguments("b")])
    assert (folder / "a.pt").read_bytes() == (folder / "b.pt").read_bytes()
    assert (folder / "a.csv").read_bytes() == (folder / "b.csv").read_bytes()
    write_params(folder, seed=8)
    train.main(["stage1", *arguments("c")])
    assert not equal(weights("a-last.pt"), weights("c-last.pt"))
    saved = nets.read("a.pt")
    assert (
        saved["about"]["parameters"]["lr"] == 0.05
        and len(saved["about"]["data"]) == 64
        and saved["about"]["metrics"]["mean_iou"] > 0
    )


KILL = """
import os, signal, sys
from stages import train, trainer
step = trainer.Trainer._train_step
def killed(self):
    if self.step == {at}:
        os.kill(os.getpid(), signal.{signal})
    step(self)
trainer.Trainer._train_step = killed
train.main(sys.argv[1:])
"""


@pytest.mark.parametrize("kind, latest", [("SIGKILL", 7), ("SIGTERM", 6)])
def test_a_killed_run_resumes_to_the_same_result(folder, kind, latest, capsys):
    at = random.randint(1, latest)
    train.main(["stage2", *arguments("whole")])
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILL.format(at=at, signal=kind), "stage2", *arguments("killed")]
    killed = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert killed.returncode == (-9 if kind == "SIGKILL" else 143), killed.stderr
    assert not (folder / "killed.pt").exists()
    train.main(["stage2", *arguments("killed")])
    assert ("resuming after step" in capsys.readouterr().out) == (kind == "SIGTERM" or at >= RUN["checkpoint_every"])
    for name in ("{}.pt", "{}-last.pt"):
        assert equal(weights(name.format("whole")), weights(name.format("killed"))), f"killed at step {at}"
    assert (folder / "whole.csv").read_bytes() == (folder / "killed.csv").read_bytes()


def test_a_finished_run_is_not_repeated_but_for_a_change_that_matters(folder, monkeypatch, capsys):
    train.main(["stage2", *arguments("a")])
    whole = {name: (folder / name).read_bytes() for name in ("a.pt", "a-last.pt", "a.csv", "a.json")}
    for name in whole:
        (folder / name).unlink()  # as DVC does before it runs a stage
    steps = []
    step = Trainer._train_step
    monkeypatch.setattr(Trainer, "_train_step", lambda self: (steps.append(self.step), step(self)))
    train.main(["stage2", *arguments("a")])
    assert not steps
    assert {name: (folder / name).read_bytes() for name in whole} == whole
    monkeypatch.setattr(shards, "code", lambda module: "of another module")
    train.main(["stage2", *arguments("a")])
    assert "of another run, which differs in code" in capsys.readouterr().out
    assert len(steps) == RUN["steps"]


@pytest.mark.parametrize("batch, micro_batch, groups, devices, wanted", [
    (64, 32, 8, 1, 32), (64, 32, 8, 2, 32), (64, 32, 8, 4, 16), (64, 32, 8, 8, 8), (20, 10, None, 4, 5),
    (64, 32, 8, 16, None), (20, 10, None, 8, None), (64, 24, 8, 1, None),
])  # fmt: skip
def test_a_batch_is_spread_over_the_devices(batch, micro_batch, groups, devices, wanted):
    run = Run(**RUN | {"batch": batch, "micro_batch": micro_batch, "batch_norm_crops": groups})
    if wanted:
        assert run.on(devices) == wanted
    else:
        with pytest.raises(InputError, match=f"batch: {batch} on {devices} devices does not divide"):
            run.on(devices)


def test_two_processes_train_as_one(folder):
    write_params(folder, validate_every=1)
    train.main(["stage1", *arguments("one")])
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "-m",
        "stages.train",
        "stage1",
        *arguments("two"),
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "8 = 4 x 1 accumulation x 2 devices" in done.stdout
    one, two = pd.read_csv("one.csv"), pd.read_csv("two.csv")
    assert two["loss"].tolist() == pytest.approx(one["loss"].tolist(), rel=1e-4)
    for name, tensor in weights("one-last.pt").items():
        if "running" not in name and "batches" not in name:  # those are averaged over the ranks, not taken in turn
            torch.testing.assert_close(weights("two-last.pt")[name], tensor, rtol=1e-3, atol=1e-4)


def overfit(folder, eps):
    """Pixel accuracy on 8 crops after 120 steps of nothing else."""
    table = crop_table(write_dataset(folder / "dataset", images=12)).assign(copies=1)
    pictures = Pictures(folder / "dataset", set(table["image_id"]), 4, 1.0, CPU)
    batches = Batches(pictures, table, "scene", (64, 64), (64, 64), False, 0, 0.25, 8, CPU)
    batches.train_rows = batches.train_rows[:8]
    run = Run(
        **RUN
        | {"steps": 120, "lr": 0.2, "micro_batch": 8, "drop_at": [100], "validate_every": 120, "checkpoint_every": 1000}
    )
    torch.manual_seed(0)
    net = DeconvNet(Size(8, 64, 64), 4, eps)
    options = argparse.Namespace(
        **{name: folder / f"{eps}.{name}" for name in ("out", "curves", "metrics", "checkpoints")}, last=None
    )
    Trainer(net, batches, run, Place(CPU), options, {}).train()
    images, labels = batches.train(0, 8, slice(None))
    with torch.no_grad():
        return trainer.summary(trainer.confusion_matrix(net.train()(images).argmax(1), labels, 4))["accuracy"]


def test_overfits_eight_crops_and_needs_batch_norm_for_it(tmp_path):
    """Claim (d) of the paper: without batch normalisation training ends in a poor optimum."""
    with_norm, without = overfit(tmp_path, 1e-5), overfit(tmp_path, None)
    print(f"pixel accuracy on 8 crops: {with_norm:.4f} with batch norm, {without:.4f} without")
    assert with_norm > 0.98
    assert without < with_norm - 0.2


def test_pretrain_fcn_and_reestimate(folder):
    options = arguments("encoder2")[:-2]
    pretrain.main([*options, "--vgg16", "vgg16.pth"])
    assert nets.read("encoder2.pt")["spec"]["kind"] == "classifier"
    train_fcn.main(arguments("fcn", init="encoder2.pt"))
    assert isinstance(nets.load("fcn.pt")[0], nets.FCN)
    train.main(["stage1", *arguments("s1", init="encoder2.pt")])
    train.main(["stage2", *arguments("s2", init="s1.pt")])
    files = "--dataset dataset --crops crops.parquet --model s2.pt"
    reestimate.main([*files.split(), "--out", "d.pt", "--params", "params.json"])
    before, after = weights("s2.pt"), weights("d.pt")
    for name in before:
        assert torch.equal(before[name], after[name]) != ("running" in name or "batches" in name), name


def test_reestimated_statistics_are_plain_averages(folder):
    table = shards.read("crops.parquet").to_pandas()
    pictures = Pictures(folder / "dataset", set(table["image_id"]), 4, 1.0, CPU)
    batches = Batches(pictures, table, "scene", (72, 72), (64, 64), True, 0, 0, 0, CPU)
    net = DeconvNet(Size(**SIZE), 4, 1e-5)
    reestimate.reestimate(net, batches, passes=5, batch=6)
    first = net.encoder.conv1_1
    with torch.no_grad():
        maps = [first.conv(net.encoder.normalise(batches.train(step, 6, slice(None))[0])) for step in range(5)]
    expected = torch.stack([m.mean((0, 2, 3)) for m in maps]).mean(0)
    torch.testing.assert_close(first.norm.running_mean, expected, rtol=1e-4, atol=1e-4)


def test_a_vgg16_file_is_passed_on(folder):
    import torchvision

    params = json.loads((folder / "params.json").read_text())
    params["pretrain"]["size"] = {"width": 64, "fc_width": 8, "input_size": 64}
    (folder / "params.json").write_text(json.dumps(params))
    torch.manual_seed(0)
    state = torchvision.models.vgg16(num_classes=2).features.state_dict()
    state = {f"features.{name}": tensor for name, tensor in state.items()}
    state |= {"classifier.0.weight": torch.randn(8, 512 * 4), "classifier.0.bias": torch.randn(8)}
    state |= {"classifier.3.weight": torch.randn(8, 8), "classifier.3.bias": torch.randn(8)}
    torch.save(state, "vgg16.pth")
    pretrain.main([*arguments("e")[:-2], "--vgg16", "vgg16.pth"])
    net = train.initial(Path("e.pt"), 4, 1e-5)
    assert torch.equal(net.encoder.conv5_3.conv.weight, state["features.28.weight"])
    assert torch.equal(net.encoder.fc6.conv.weight.flatten(), state["classifier.0.weight"].flatten())
    assert isinstance(net.encoder.conv5_3.norm, BatchNorm)


@pytest.mark.parametrize(("every", "fails", "kept"), [(3, 5, 3), (1, 3, 2), (1, 1, None)])
def test_nan_stops_and_keeps_the_last_good_checkpoint(folder, monkeypatch, every, fails, kept):
    """A checkpoint whose weights gave no finite loss is not good: the one before takes its place."""
    write_params(folder, checkpoint_every=every, drop_at=[], warmup_steps=0)
    whole = Batches.train

    def spoiled(self, step, *rest):
        images, labels = whole(self, step, *rest)
        return images * (float("nan") if step == fails else 1), labels

    monkeypatch.setattr(Batches, "train", spoiled)
    stays = "no checkpoint yet" if kept is None else "checkpoint.pt stays"
    message = rf"loss is nan at step {fails}, learning rate 0\.05, last finite loss \d\S+; .*{stays}; lower lr"
    with pytest.raises(InputError, match=message):
        train.main(["stage1", *arguments("a")])
    checkpoint = folder / "checkpoints/a/checkpoint.pt"
    assert (torch.load(checkpoint)["step"] if checkpoint.exists() else None) == kept
    assert not (folder / "a.pt").exists()


def test_a_learning_rate_that_is_too_high_stops(folder):
    write_params(folder, checkpoint_every=1, warmup_steps=0, lr=1e30)
    with pytest.raises(InputError, match=r"loss is (nan|inf) at step 1, learning rate 1e\+30"):
        train.main(["stage1", *arguments("a")])
    assert not (folder / "checkpoints/a/checkpoint.pt").exists()


def test_out_of_memory_says_what_to_lower(folder, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Trainer, "_train_step", full)
    with pytest.raises(InputError, match=r"out of memory on cpu at step 0: lower micro_batch, now 4"):
        train.main(["stage1", *arguments("a")])


def test_checkpoint_of_another_run_is_left_alone(folder, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_finish", lambda *_, **__: None)  # as if killed after the last checkpoint
        train.main(["stage1", *arguments("a")])
        write_params(folder, memory_gb=2, checkpoint_every=4)
        train.main(["stage1", *arguments("a")])
    assert "resuming after step 6" in capsys.readouterr().out
    write_params(folder, lr=0.01)
    train.main(["stage1", *arguments("a")])
    assert "of another run, which differs in parameters.lr: starting afresh" in capsys.readouterr().out
    train.main(["stage1", *arguments("b")])
    assert (folder / "a.pt").read_bytes() == (folder / "b.pt").read_bytes()


def test_a_model_of_another_class_count_names_the_layers(folder):
    train.main(["stage1", *arguments("a")])
    params = json.loads((folder / "params.json").read_text())
    params["dataset"]["classes"] += ["more"]
    (folder / "params.json").write_text(json.dumps(params))
    with pytest.raises(InputError, match=r"a\.pt: of another network or class count: score.weight 4x4x1x1"):
        train.main(["stage2", *arguments("b", init="a.pt")])


def test_batch_must_divide(folder):
    write_params(folder, micro_batch=5)
    with pytest.raises(InputError, match="batch: 8 on 1 devices does not divide .* at most micro_batch 5"):
        train.main(["stage1", *arguments("a")])


def test_missing_files(folder):
    with pytest.raises(InputError, match="pre-trained from scratch"):
        pretrain.main([*arguments("e")[:-2], "--vgg16", "absent.pth"])
    with pytest.raises(InputError, match="absent.pt: no such model"):
        train.main(["stage1", *arguments("a", init="absent.pt")])


def test_an_image_larger_than_the_canvas(folder):
    params = json.loads((folder / "params.json").read_text())
    params["train_fcn"]["canvas"] = [40, 96]
    (folder / "params.json").write_text(json.dumps(params))
    with pytest.raises(InputError, match="does not fit train_fcn.canvas 40x96"):
        train_fcn.main(arguments("fcn"))


def test_learning_rate_schedules():
    net = torch.nn.Conv2d(3, 3, 1)
    steps = Trainer.__new__(Trainer)
    steps.run, steps.lr_factor = Run(**RUN | {"drop_at": [4, 6], "warmup_steps": 1}), 1.0
    rates = []
    for steps.step in range(8):
        rates.append(steps._lr())
    assert rates == pytest.approx([0.025, 0.05, 0.05, 0.05, 0.005, 0.005, 0.0005, 0.0005])
    optimiser = trainer.sgd(net, steps.run)
    assert [(g["lr_scale"], g["weight_decay"], len(g["params"])) for g in optimiser.param_groups] == [
        (1, 5e-4, 1),
        (2, 0, 1),
    ]
    with pytest.raises(ValueError, match="no multiple of batch_norm_crops"):
        replace(steps.run, batch_norm_crops=3)


def test_plateau_drops_where_accuracy_stops_rising(folder):
    write_params(folder, drop_at="plateau", steps=12, validate_every=1, lr=1e-9, warmup_steps=0)
    train.main(["stage1", *arguments("a")])
    assert pd.read_csv("a.csv")["lr"].min() < 1e-10


def test_help_explains_itself(capsys):
    with pytest.raises(SystemExit):
        train.main(["--help"])
    out = capsys.readouterr().out
    assert "torchrun" in out and "--checkpoints" in out
