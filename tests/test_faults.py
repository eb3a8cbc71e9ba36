"""What happens to the machine: power, disk, memory, clock. Kills: tests/workflow/test_interruption.py."""

import contextlib
import datetime
import multiprocessing
import os
import resource
import time
import traceback
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from deconvnet import tables
from deconvnet.errors import InputError
from deconvnet.files import together, whole
from deconvnet.inference.photos import read_photo
from deconvnet.nets import files
from deconvnet.nets.vgg import Classifier
from deconvnet.settings import Size
from deconvnet.training.checkpoints import Checkpoints
from experiment import cli, training
from stages import crops
from tests.deconvnet.test_files import recorded  # noqa: F401
from tests.stages.test_crops_stage import world  # noqa: F401

CROPS = ["stage1", "--dataset", "dataset", "--out", "out/a.parquet", "--balance", "out/b.csv", "--render", "out/c.png"]


def table(folder):
    tables.write(folder / "a", pa.table({"x": np.arange(1000)}))


def model(folder):
    net = Classifier(Size(4, 8, 64), 3, None)
    files.save(folder / "a", net.spec, net.state_dict(), {})


def checkpoint(folder):
    checkpoints = Checkpoints(folder)
    checkpoints.save({"step": 1, "net": torch.zeros(9)})
    checkpoints.wait()


def report(folder):
    training.write_curves(folder / "a", pd.DataFrame({"step": [1]}))


@pytest.mark.parametrize("write", [table, model, checkpoint, report])
def test_content_is_on_the_disk_before_its_name_and_the_name_before_the_end(tmp_path, recorded, write):  # noqa: F811
    write(tmp_path)
    [file] = [path.name for path in tmp_path.iterdir()]
    assert [call for call, _ in recorded] == ["fsync", "replace", "fsync"]
    assert recorded[0][1].startswith(f".{file}.") and recorded[1][1] == file and recorded[2][1] == tmp_path.name


def test_the_checkpoint_before_is_kept_until_the_next_is_on_the_disk(tmp_path, recorded):  # noqa: F811
    checkpoint(tmp_path)
    recorded.clear()
    checkpoints = Checkpoints(tmp_path)
    checkpoints.load()
    checkpoints.save({"step": 2, "net": torch.zeros(9)})
    checkpoints.wait()
    calls = [(call, name.split(".")[1] if name[0] == "." else name) for call, name in recorded]
    assert calls[:2] == [("fsync", "checkpoint"), ("replace", "previous.pt")]
    assert calls.index(("replace", "checkpoint.pt")) > 1 and calls[-1] == ("fsync", tmp_path.name)


@contextlib.contextmanager
def limited(size: int):
    """RLIMIT_FSIZE: a file that would grow beyond `size` bytes fails as on a full disk."""
    most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, most))


@pytest.mark.parametrize("write", [table, model, checkpoint, report])
def test_a_disk_that_fills_in_the_middle_of_a_file(tmp_path, write):
    write(tmp_path)
    [file] = tmp_path.iterdir()
    data = file.read_bytes()
    for limit in sorted({0, 1, len(data) // 2, len(data) - 1}):
        if write is checkpoint:
            file.unlink(missing_ok=True)
        with limited(limit), pytest.raises(InputError, match="nothing half-written is left: make room"):
            cli.call(lambda _: write(tmp_path), [])
        assert [path.read_bytes() for path in tmp_path.iterdir()] == ([] if write is checkpoint else [data])


def test_a_disk_that_fills_at_every_file_of_a_stage_in_turn(world, monkeypatch):  # noqa: F811
    """Of a stage that writes three files none appears, whichever of them does not fit."""
    crops.main(CROPS)
    first = {path.name: path.read_bytes() for path in Path("out").iterdir()}
    assert len(first) == 3
    for path in Path("out").iterdir():
        path.write_text("old")
    for size in sorted(map(len, first.values())):
        with limited(size - 1), pytest.raises(InputError, match="make room"):
            cli.call(crops.main, CROPS)
        assert {path.name: path.read_text() for path in Path("out").iterdir()} == dict.fromkeys(first, "old")


def test_a_full_disk_at_every_step_of_several_files(tmp_path, monkeypatch):
    """Whichever of the calls to the disk fails, no file is half-written and no temporary is left."""
    real, calls = {name: getattr(os, name) for name in ("fsync", "replace", "open")}, []

    def failing(name, at):
        def call(*arguments, **more):
            calls.append(name)
            if len(calls) == at:
                raise OSError(28, "No space left on device")
            return real[name](*arguments, **more)

        return call

    for at in range(1, 20):
        calls.clear()
        for name in real:
            monkeypatch.setattr(f"deconvnet.files.os.{name}", failing(name, at))
        try:
            with together():
                for file in ("a", "b"):
                    with whole(tmp_path / file) as temporary:
                        temporary.write_text("new")
            done = True
        except OSError:
            done = False
        finally:
            for name in real:
                monkeypatch.setattr(f"deconvnet.files.os.{name}", real[name])
        assert {path.read_text() for path in tmp_path.iterdir()} <= {"new"}
        assert {path.name for path in tmp_path.iterdir()} <= {"a", "b"}
        if done and len(calls) < at:
            return
    pytest.fail("it never came to its end")


def starved(picture: Path) -> str:
    """What reading a picture says to a process that may use 100 MB more than now."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + (100 << 20),) * 2)
    try:
        cli.call(lambda _: read_photo(picture), [])
    except InputError as error:
        return str(error)
    except BaseException:
        return traceback.format_exc()
    return "read"


def test_memory_that_ends_is_one_line(tmp_path):
    """A picture of 200 MB does not fit."""
    cv2.imwrite(str(tmp_path / "large.png"), np.zeros((8000, 8000, 3), np.uint8))
    with ProcessPoolExecutor(
        1, multiprocessing.get_context("spawn")
    ) as fresh:  # which has no freed memory to use again
        said = fresh.submit(starved, tmp_path / "large.png").result()
    assert said.startswith("out of memory; nothing half-written is left"), said


def test_a_clock_that_jumps_changes_no_byte(world, monkeypatch):  # noqa: F811
    crops.main(CROPS)
    first = {path.name: path.read_bytes() for path in Path("out").iterdir()}
    ticks = iter([2e9, 0.0, 5e9, 1.0] * 100)
    monkeypatch.setattr(time, "time", lambda: next(ticks))
    monkeypatch.setattr(time, "time_ns", lambda: int(next(ticks)))
    crops.main(CROPS)
    assert {path.name: path.read_bytes() for path in Path("out").iterdir()} == first
    Path("data").mkdir(exist_ok=True)
    monkeypatch.setattr(cli, "_ends", [time.monotonic()])
    for _ in range(2):
        cli.record(["x"])
    assert datetime.datetime.now(datetime.UTC) and len(list(Path("data/times").iterdir())) == 2
