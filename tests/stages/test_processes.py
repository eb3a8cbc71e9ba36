"""Trainings under torchrun, on CPUs with gloo: the result of one process, whatever their number."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from stages import reestimate, train, train_fcn
from tests.world import (
    ROOT,
    arguments,
    equal,
    pretraining_arguments,
    reestimation_arguments,
    vgg16_file,
    weights,
    write_params,
)  # fmt: skip

# 32 = 8 x 4 accumulation, or x 2 on two processes; of 8 each takes 4. Batch norm and loss see groups of 4 in any case.
GROUPED = {"batch": 32, "micro_batch": 8, "batch_norm_crops": 4, "steps": 2, "validate_every": 1, "warmup_steps": 0,
           "drop_at": [], "statistics_passes": 5, "checkpoint_minutes": 0}  # fmt: skip


def torchrun(processes, module, *line):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    done = subprocess.run([*command, "-m", module, *line], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "destroy_process_group" not in done.stderr  # torch's warning about a group that was left standing
    return done.stdout


def close(one, other):
    """Two steps enlarge differences in rounding, most of all where batch norm sees four values."""
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        relative, absolute = (1e-2, 2e-3) if "running" in name else (1e-3, 1e-4)
        torch.testing.assert_close(
            other[name], tensor, rtol=relative, atol=absolute, msg=lambda m, at=name: f"{at}: {m}"
        )


@pytest.mark.parametrize("processes, used, micro_batch, accumulation", [(2, 2, 8, 2), (3, 2, 8, 2), (8, 8, 4, 1)])
def test_any_number_of_processes_trains_as_one(folder, processes, used, micro_batch, accumulation):
    write_params(folder, **GROUPED)
    train.main(["stage1", *arguments("one")])
    out = torchrun(processes, "stages.train", "stage1", *arguments("many"))
    assert f"32 = {micro_batch} x 1 lanes x {accumulation} accumulation x {used} devices" in out
    line = f"{used} of {processes} processes have work, the others end"
    assert out.count(line) == (used < processes)
    one, many = pd.read_csv("one.csv"), pd.read_csv("many.csv")
    losses = ["step", "lr", "loss", "held_out_loss"]
    pd.testing.assert_frame_equal(many[losses], one[losses], rtol=1e-4)
    assert many["held_out_accuracy"].tolist() == pytest.approx(one["held_out_accuracy"].tolist(), abs=3e-3)
    close(weights("one.pt"), weights("many.pt"))  # batch norm's statistics, too
    close(weights("one-last.pt"), weights("many-last.pt"))


def test_processes_share_one_copy_of_the_images(tmp_path):
    """Both see what the first one filled in, and a change of the second's; no file is left."""
    script = tmp_path / "script.py"
    script.write_text("""
from deconvnet.training import devices
worker = devices.join()
memory = worker.shared_memory(10, lambda flat: flat.__setitem__(slice(None), worker.rank + 7))
assert memory.tolist() == [7] * 10
worker.wait()
if worker.rank == 1:
    memory[3] = 1
worker.wait()
assert memory[3] == 1
devices.leave()
""")
    before = set(Path("/dev/shm").glob("deconvnet-*"))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert set(Path("/dev/shm").glob("deconvnet-*")) == before


def test_processes_resume(folder):
    """A run that one process began and a finished one: every process loads, the first writes."""
    write_params(folder, **GROUPED)
    torchrun(2, "stages.train", "stage1", *arguments("a"))
    before = weights("a.pt")
    (folder / "a.pt").unlink()
    assert "resuming after step 2" in torchrun(2, "stages.train", "stage1", *arguments("a"))
    assert equal(weights("a.pt"), before)


def test_fcn_on_three_processes(folder):
    """Batch 4 does not divide among 3, so the last one ends at once. The factors are the same on both of the others."""
    changes = {"batch": 4, "micro_batch": 2, "steps": 2, "validate_every": 2, "warmup_steps": 0, "drop_at": []}
    write_params(folder, {"train_fcn": {"skip_scales": "derived"}}, **changes)
    out = torchrun(3, "stages.train_fcn", *arguments("three"))
    assert "2 of 3 processes have work" in out and "4 = 2 x 1 lanes x 1 accumulation x 2 devices" in out
    train_fcn.main(arguments("one"))
    close(weights("one-last.pt"), weights("three-last.pt"))  # dropout, too: its seed is a crop's


def test_a_vgg16_file_is_passed_on_by_one_process(folder):
    write_params(folder, {"pretrain": {"size": {"width": 64, "fc_width": 8, "input_size": 64}}})
    state = vgg16_file("vgg16.pth")
    out = torchrun(3, "stages.pretrain", *pretraining_arguments("e"))
    assert out.count("holds 15 of 15 layers") == 1
    assert torch.equal(weights("e.pt")["encoder.conv5_3.conv.weight"], state["features.28.weight"])
    assert not list(folder.glob(".*.tmp"))


def test_reestimation_on_two_processes(folder):
    train.main(["stage1", *arguments("s2")])
    reestimate.main(reestimation_arguments("one.pt"))
    torchrun(2, "stages.reestimate", *reestimation_arguments("two.pt"))
    one, two = weights("one.pt"), weights("two.pt")
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-6, atol=1e-7)
