"""What goes wrong around `dvc repro`: words that help, nothing lost, and the next run works."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.pipeline import bytes_of, call, clone, environment, repro

UP_TO_DATE = "Data and pipelines are up to date."


@pytest.fixture(scope="module")
def world(built, tmp_path_factory):
    return clone(built, tmp_path_factory.mktemp("troubles") / "repository")


@pytest.fixture
def rwlock(world):
    path = world / ".dvc/tmp/rwlock"
    yield path
    path.unlink(missing_ok=True)


def writes(world: Path, pid: int) -> str:
    """An entry of DVC's list of who writes what: the process `pid` is writing stage 1's crops."""
    entry = {str(world / "data/crops/stage1.parquet"): {"pid": pid, "cmd": "dvc repro"}}
    return json.dumps({"write": entry, "read": {}})


def fails(world: Path, *command: str) -> str:
    done = call(world, *command)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    return done.stderr


def test_a_killed_run_leaves_locks_that_the_next_one_removes(world, rwlock):
    gone = subprocess.Popen(["true"])
    gone.wait()
    rwlock.write_text(writes(world, gone.pid))
    done = call(world, "dvc", "repro", "crops_stage1")
    assert UP_TO_DATE in done.stdout
    assert "had been killed. Auto removed it from the lock file" in done.stderr


def test_a_lock_that_dvc_cannot_judge_is_named_and_may_be_removed(world, rwlock):
    rwlock.write_text(writes(world, os.getpid()))  # the dead run's number, given to another process since
    assert f"you can manually remove '{rwlock}'" in fails(world, "dvc", "repro", "crops_stage1")
    rwlock.write_text("")  # the disk was full
    assert "Unable to read RWLock-file '.dvc/tmp/rwlock'" in fails(world, "dvc", "repro", "crops_stage1")
    rwlock.unlink()
    assert UP_TO_DATE in repro(world, "crops_stage1")


def test_of_two_runs_at_once_one_says_who_is_in_its_way(world, rwlock):
    params = (world / "params.yaml").read_text()
    (world / "params.yaml").write_text(params.replace("context: 1.2", "context: 1.3"))
    arguments = {"cwd": world, "env": environment(), "stdout": subprocess.PIPE, "text": True}
    first = subprocess.Popen(["dvc", "repro", "crops_stage1"], **arguments)
    while str(world / "data/crops/stage1.parquet") not in (rwlock.read_text() if rwlock.exists() else ""):
        assert first.poll() is None
        time.sleep(0.02)
    said = fails(world, "dvc", "repro", "crops_stage1")
    assert "is busy, it is being blocked by" in said or "Unable to acquire lock" in said
    assert first.wait() == 0
    assert UP_TO_DATE in repro(world, "crops_stage1")


def alone(world: Path, script: str) -> None:
    """Run a shell script that may mount things, which nobody else sees and which are gone when it ends."""
    private = ["unshare", "--map-root-user", "--mount"]
    if not shutil.which("unshare") or call(world, *private, "mount", "-t", "tmpfs", "none", "data").returncode:
        pytest.skip("this machine lets nobody mount a small disk: unshare --map-root-user --mount fails")
    done = call(world, *private, "sh", "-ec", script)
    assert done.returncode == 0, done.stdout + done.stderr


FULL_DISK = """
mount -t tmpfs -o size=16k none data/proposals    # two of three shards
dvc repro proposals > full 2>&1 && exit 1
ls -A data/proposals > made
mount -o remount,size=1m none data/proposals
dvc repro proposals > again 2>&1
cp -r data/proposals kept
"""


def test_a_disk_that_fills_in_the_middle_of_a_stage(built, world):
    alone(world, FULL_DISK)
    full, again = ((world / name).read_text() for name in ("full", "again"))
    made = (world / "made").read_text().split()
    (lacking,) = {path.name for path in (built / "data/proposals").iterdir()} - set(made)
    assert re.search(rf"error: data/proposals/{lacking}: .*No space left on device; nothing half-written is left", full)
    assert len(made) == 2
    assert len(re.findall(r"\.parquet: \d+ proposals for", again)) == 1
    assert bytes_of(world / "kept") == bytes_of(built / "data/proposals")


BAD_CACHE = """
mount -t tmpfs -o size=$(( 2 * $(du -sk {cache} | cut -f1) ))k none cache
cp -r {cache}/. cache
mount -o remount,ro none cache
dvc checkout data/scores/deconvnet
cp -rL data/scores/deconvnet linked
dvc repro crops_stage1 > readonly 2>&1 && exit 1
mount -o remount,rw none cache
cat /dev/zero > cache/ballast || true
dvc repro crops_stage1 > full 2>&1 && exit 1
rm cache/ballast
dvc repro crops_stage1 > again
cp -r cache kept
"""


def test_a_cache_that_is_read_only_or_full(built, tmp_path):
    world = clone(built, tmp_path / "repository")
    (world / "cache").mkdir()
    (world / ".dvc/config.local").write_text(f"[cache]\n dir = {world}/cache\n")
    params = (world / "params.yaml").read_text()
    (world / "params.yaml").write_text(params.replace("context: 1.2", "context: 1.3"))
    shutil.rmtree(world / "data/scores/deconvnet")  # a read-only cache is good enough for what needs no writing
    alone(world, BAD_CACHE.format(cache=built.parent / ".dvc/cache"))
    assert bytes_of(world / "linked") == bytes_of(built / "data/scores/deconvnet")
    readonly, full, again = ((world / name).read_text() for name in ("readonly", "full", "again"))
    assert f"Read-only file system: '{world}/cache/" in readonly
    assert "ERROR: failed to reproduce 'crops_stage1': [Errno 28] No space left on device" in full
    assert "Running stage 'crops_stage1'" in again
    for file in (world / "kept/files/md5").glob("*/*"):
        assert hashlib.md5(file.read_bytes()).hexdigest() == (file.parent.name + file.name).removesuffix(".dir")
