"""What a process may use: a job's cores, the GPUs that CUDA would show."""

import os

import pytest

from experiment import machine

CARDS = """\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-aaaa)
  MIG 3g.20gb     Device  0: (UUID: MIG-bbbb)
  MIG 3g.20gb     Device  1: (UUID: MIG-cccc)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-dddd)
"""


@pytest.mark.parametrize(
    ("listed", "visible", "count"),
    [
        (CARDS, None, 2),  # the slices of a card are no cards
        (CARDS, "0", 1),
        (CARDS, "0,1", 2),
        (CARDS, "1,-1,0", 1),  # CUDA reads up to the first negative number
        (CARDS, "-1", 0),
        (CARDS, "", 0),
        (CARDS, "0,1,2,3", 2),
        ("", "0", 0),  # a driver without a card
    ],
)
def test_gpus_are_those_that_cuda_would_show(tmp_path, monkeypatch, listed, visible, count):
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{listed}END\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert machine.gpus() == count


def test_no_driver_no_gpu(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.gpus() == 0


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux alone binds a process to cores")
def test_cores_are_those_of_the_job():
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert machine.cores() == 1
    finally:
        os.sched_setaffinity(0, before)
    assert machine.cores() == len(before)
