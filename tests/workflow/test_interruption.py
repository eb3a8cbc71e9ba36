"""A pipeline that is killed again and again ends as one that never was.

`make test` kills the tiny world's at a few random moments; all of it, every stage and some more, several minutes:

    python -m tests.workflow.test_interruption [SEED]
"""

import contextlib
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import torch
import yaml

from deconvnet.files import whole
from tests.pipeline import REPOSITORY, bytes_of, clone, environment, repro, write_repository

SHARDED = ["proposals", "infer@fcn8s", "infer@deconvnet", "ensemble", "crf@edeconvnet"]
CHECKPOINTS = {"pretrain": "pretrain", "train_stage1": "stage1", "train_stage2": "stage2", "train_fcn": "fcn8s"}


@dataclass
class Kill:
    stage: str
    number: signal.Signals = signal.SIGKILL
    whom: str = "all"  # or one process of them: dvc, snakemake, worker
    working: bool = False  # not at any moment: when the stage's module is running, in training after a checkpoint


def started(session: int) -> list[psutil.Process]:
    """The processes of one `dvc repro`, those that outlive it included."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return sorted(found, key=lambda process: process.pid)


def one(session: int, whom: str) -> psutil.Process | None:
    for process in started(session):
        with contextlib.suppress(psutil.Error):
            words = process.cmdline()[1:3]
            if words[:1] in (["-m"], ["-P"]) and "stages" in words[1] and whom == "worker":
                return process
            if words and Path(words[0]).name == whom:
                return process
    return None


class Patient:
    """An experiment whose `dvc repro` is interrupted, and what must hold of it all the time."""

    def __init__(self, experiment: Path, chance: random.Random):
        self.experiment, self.chance = experiment, chance
        self.log = experiment.parent / "repro.log"
        self.sessions: list[int] = []
        self.kills = 0
        self.complete: dict[str, int] = {}  # shard that was whole when everything was killed -> times it was computed
        self.trained: dict[str, int] = {}  # folder of checkpoints -> step of the one that a kill left
        self.mended: Counter[str] = Counter()

    def attempt(self, pending: list[Kill], *arguments: str) -> tuple[Kill | None, int, str]:
        """One `dvc repro`: the kill of `pending` that ended it, its exit status and what it printed."""
        aimed, due, tick = None, 0.0, 0.0
        with open(self.log, "w+") as log:
            process = subprocess.Popen(["dvc", "repro", *arguments], cwd=self.experiment, env=environment(),
                                       stdout=log, stderr=subprocess.STDOUT, start_new_session=True)  # fmt: skip
        self.sessions.append(process.pid)
        begin, struck = time.monotonic(), None
        while process.poll() is None:
            time.sleep(0.01)
            assert time.monotonic() < begin + 600, self.log.read_text()
            stage = (re.findall(r"^Running stage '(.*)':", self.log.read_text(), re.M) or [""])[-1]
            if aimed is None or aimed.stage != stage:  # a stage that ends before its moment gets away this time
                aimed = next((kill for kill in pending if kill.stage == stage), None)
                quick = arguments or stage.startswith(("fetch", "dataset", "crops", "evaluate"))
                due = time.monotonic() + self.chance.uniform(0, 1.5 if quick else 5)  # about what the stage takes
                tick = time.time()
            if aimed and (self.at_work(aimed, tick) if aimed.working else time.monotonic() > due):
                victim = one(process.pid, aimed.whom)
                if aimed.whom == "all":
                    os.killpg(process.pid, aimed.number)
                elif victim:
                    victim.send_signal(aimed.number)
                if aimed.whom == "all" or victim:
                    struck = aimed
                    self.kills += 1
                    pending.remove(aimed)
                    break
        try:
            status = process.wait(60)
        except subprocess.TimeoutExpired:
            left = [(left.pid, left.status(), left.cmdline()) for left in started(process.pid)]
            pytest.fail(f"{struck} did not end it: {left}\n{self.log.read_text()}")
        return struck, status, self.log.read_text()

    def at_work(self, kill: Kill, since: float) -> bool:
        if kill.stage in CHECKPOINTS:
            checkpoint = self.checkpoint(CHECKPOINTS[kill.stage])
            return checkpoint.exists() and checkpoint.stat().st_mtime > since
        return "%|" in self.log.read_text().rpartition("Running stage")[2]  # a progress bar

    def checkpoint(self, folder: str) -> Path:
        return self.experiment / "data/checkpoints" / folder / "checkpoint.pt"

    def computed(self) -> Counter[str]:
        """How often each shard was computed to its end."""
        lines = [json.loads(path.read_text())["arguments"] for path in (self.experiment / "data/times").glob("*.json")]
        outs = [line[line.index("--out") + 1] for line in lines if "--out" in line]
        return Counter(out for out in outs if re.search(r"-\d+\.parquet$", out))

    def remember(self) -> None:
        """After everything was killed: what must not be computed again."""
        computed = self.computed()
        folders = [self.experiment / "data" / name for name in ("proposals", "scores", "labels")]
        found = [path for folder in folders for path in folder.rglob("*-*.parquet")]
        self.complete = {str(path.relative_to(self.experiment)): 0 for path in found if path.name[0] != "."}
        self.complete = {path: computed[path] for path in self.complete}
        for folder in CHECKPOINTS.values():
            if self.checkpoint(folder).exists():
                self.trained[folder] = torch.load(self.checkpoint(folder), weights_only=True)["step"]

    def check(self, printed: str) -> None:
        """Nothing that was whole at the last kill was computed again; training went on from its checkpoint."""
        computed = self.computed()
        assert {path: computed[path] for path in self.complete} == self.complete, printed
        for step, folder in re.findall(r"resuming after step (\d+) of data/checkpoints/(\w+)/", printed):
            assert int(step) >= self.trained.pop(folder, 0), printed
        for folder in self.trained:
            stage = next(stage for stage, own in CHECKPOINTS.items() if own == folder)
            again = f"of data/checkpoints/{folder}/checkpoint.pt: starting afresh"
            assert again not in printed, (stage, printed)

    def mend(self, printed: str) -> None:
        """What DVC writes in place and a kill may leave half-written; the advice is in the documents."""
        if "dvc.lock' is invalid" in printed or "dvc.lock' validation failed" in printed:
            (self.experiment / "dvc.lock").unlink()
            self.mended["dvc.lock"] += 1
        elif "Unable to read RWLock-file" in printed:
            (self.experiment / ".dvc/tmp/rwlock").unlink()
            self.mended["rwlock"] += 1
        else:
            pytest.fail(printed)


def survive(experiment: Path, kills: list[Kill], chance: random.Random, every: Sequence[str] = ()) -> Patient:
    """Run the pipeline to its end through the kills; of `every` stage that got away each time, run it again for it."""
    patient, pending, missed, whole = Patient(experiment, chance), list(kills), list(every), False
    while not whole or missed:
        again = ["--force", "--single-item", missed[0]] if whole else []
        pending = [Kill(missed[0])] if whole else pending
        begin = time.monotonic()
        struck, status, printed = patient.attempt(pending, *again)
        patient.check(printed)
        said = f"{struck.whom} {struck.number.name} in {struck.stage}" if struck else "to the end"
        print(f"{time.monotonic() - begin:5.1f} s, exit {status}: {said}", flush=True)
        if struck:
            whole, missed = False, [stage for stage in missed if stage != struck.stage]
            if struck.whom == "all":
                while started(patient.sessions[-1]):
                    time.sleep(0.02)
            if not any(map(started, patient.sessions)):
                patient.remember()
            if struck.number != signal.SIGKILL:
                assert "Traceback" not in printed
        elif status:
            patient.mend(printed)
            print(f"        mended: {dict(patient.mended)}", flush=True)
        else:
            whole = True
    end = time.monotonic() + 20
    while any(map(started, patient.sessions)) and time.monotonic() < end:
        time.sleep(0.1)
    assert not [process.cmdline() for session in patient.sessions for process in started(session)]
    return patient


def everything(experiment: Path) -> dict[str, bytes]:
    """All that the pipeline has made, without what differs from run to run: how long the commands took."""
    page = (experiment / "reports/index.html").read_bytes()
    files = [path for name in ("data", "reports") for path in (experiment / name).rglob("*") if path.is_file()]
    found = {str(path.relative_to(experiment)): path.read_bytes() for path in files}
    others = ("data/times", "data/checkpoints", "data/live")
    found = {name: data for name, data in found.items() if not name.startswith(others)}
    found["reports/index.html"] = re.sub(rb"<h3>Times</h3>.*<h3>Parameters</h3>", b"", page, flags=re.S)
    lock = (experiment / "dvc.lock").read_text().replace(hashlib.md5(page).hexdigest(), "")
    return found | {"dvc.lock": lock.replace(f"size: {len(page)}\n", "").encode()}


def same(experiment: Path, built: Path) -> None:
    ours, theirs = everything(experiment), everything(built)
    assert set(ours) == set(theirs)  # temporaries would be among them
    assert [name for name in ours if ours[name] != theirs[name]] == []


def test_killed_at_random_it_ends_the_same(built, tmp_path):
    seed = random.randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    stages = list(yaml.safe_load((built / "dvc.lock").read_text())["stages"])
    kills = [Kill(stage) for stage in chance.sample(stages, 3)]
    kills += [
        Kill(chance.choice(list(CHECKPOINTS)), working=True),
        Kill(chance.choice(SHARDED), whom="worker"),
        Kill(chance.choice(SHARDED), whom=chance.choice(["dvc", "snakemake"])),
        Kill(chance.choice(SHARDED), signal.SIGINT, working=True),
        Kill(chance.choice(SHARDED), signal.SIGTERM, working=True),
    ]
    experiment = write_repository(tmp_path / "repository")
    survive(experiment, kills, chance)
    same(experiment, built)


def test_shards_of_a_killed_rebuild_never_pass_for_others(built, tmp_path):
    world = clone(built, tmp_path / "repository")  # a checkout: file times say nothing
    folder, module = world / "data/proposals", world.parent / "stages/proposals.py"
    before, names = bytes_of(folder), {f"data/proposals/{path.name}" for path in (built / "data/proposals").iterdir()}
    params, code = (world / "params.yaml").read_text(), module.read_text()

    def computed():
        counts = Patient(world, random.Random()).computed()
        return {name: counts[name] for name in names}

    for path in (module, world.parent / "workflow/Snakefile"):
        path.write_text(path.read_text() + "# a comment\n")
    assert "Running stage 'proposals'" in repro(world, "proposals")
    assert computed() == dict.fromkeys(names, 0)

    (world / "params.yaml").write_text(params.replace("beta: 0.75", "beta: 0.7"))
    process = subprocess.Popen(["dvc", "repro", "proposals"], cwd=world, env=environment(), start_new_session=True,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    with contextlib.suppress(FileNotFoundError):  # a shard goes while it is read: that is the moment, too
        while bytes_of(folder) == before:
            assert process.poll() is None
            time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    half = bytes_of(folder)
    assert any(half.get(path) == data for path, data in before.items()), "none is left: not midway"

    then = computed()
    module.write_text(code + "ANOTHER = 1\n")
    repro(world, "proposals")
    assert computed() == {name: count + 1 for name, count in then.items()}
    assert not any(bytes_of(folder)[path] in (before[path], half.get(path)) for path in before)
    (world / "params.yaml").write_text(params)
    module.write_text(code)
    repro(world, "proposals")
    assert bytes_of(folder) == before
    assert computed() == {name: count + 2 for name, count in then.items()}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_stage_in_one_line(tmp_path, number):
    code = """
import time
from deconvnet.files import whole
from experiment.cli import run
def main(_):
    with whole("out") as file:
        file.touch()
        print("ready", flush=True)
        time.sleep(60)
run(main)"""
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=environment(PYTHONPATH=str(REPOSITORY)),
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.communicate()[1] == "interrupted; the same command continues\n"
    assert process.returncode == -number
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("module", ["stages.proposals", "experiment.predict"])
def test_ctrl_c_during_the_imports_ends_in_silence(tmp_path, module):
    held = "import signal; print('ready', flush=True); signal.pause()"  # stands for a library that takes seconds
    for library in ("pandas", "torch", "numpy", "cv2"):
        (tmp_path / f"{library}.py").write_text(held)
    python = environment(PYTHONPATH=f"{tmp_path}:{REPOSITORY}")
    process = subprocess.Popen([sys.executable, "-P", "-m", module], cwd=tmp_path, env=python,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate()[1] == ""
    assert process.returncode == -signal.SIGINT


def test_what_a_killed_process_left_goes_with_the_next_that_writes(tmp_path):
    (tmp_path / ".table.1.tmp").mkdir()
    (tmp_path / ".table.1.tmp/half").touch()
    (tmp_path / ".table.2.tmp").touch()
    (tmp_path / ".other.1.tmp").touch()  # perhaps of a process that lives
    with whole(tmp_path / "table") as file:
        file.touch()
    assert {path.name for path in tmp_path.iterdir()} == {"table", ".other.1.tmp"}


def test_a_pool_ends_with_its_killed_parent(tmp_path):
    code = """
import os, time
from concurrent.futures import ProcessPoolExecutor
from deconvnet.crf import end_with_parent
with ProcessPoolExecutor(2, initializer=end_with_parent) as pool:
    print(os.getpid(), *pool._processes or [pool.submit(os.getpid).result()], flush=True)
    time.sleep(60)"""
    process = subprocess.Popen([sys.executable, "-c", code], env=environment(PYTHONPATH=str(REPOSITORY)),
                               stdout=subprocess.PIPE, text=True, start_new_session=True)  # fmt: skip
    assert len(process.stdout.readline().split()) == 2
    process.kill()
    process.wait()
    psutil.wait_procs(started(process.pid), timeout=20)
    assert started(process.pid) == []


def survive_everywhere(experiment: Path, built: Path, seed: int) -> str:
    """Killed in every stage, and some more; returns what it took."""
    chance = random.Random(seed)
    stages = list(yaml.safe_load((built / "dvc.lock").read_text())["stages"])
    kills = [Kill(stage) for stage in stages]
    kills += [Kill(stage, working=True) for stage in [*CHECKPOINTS, *chance.sample(SHARDED, 2)]]
    kills += [Kill(chance.choice(SHARDED), whom=whom) for whom in ("worker", "worker", "snakemake", "dvc")]
    kills += [Kill(chance.choice([*CHECKPOINTS]), whom=whom) for whom in ("worker", "snakemake", "dvc")]
    for number in (signal.SIGINT, signal.SIGTERM):
        kills += [Kill(stage, number, working=True) for stage in ("dataset", chance.choice(SHARDED))]
    chance.shuffle(kills)
    begin = time.monotonic()
    patient = survive(write_repository(experiment), kills, chance, stages)
    same(patient.experiment, built)
    seconds = time.monotonic() - begin
    return f"seed {seed}: {patient.kills} kills, {len(patient.sessions)} runs, {seconds:.0f} s, {dict(patient.mended)}"


def main(seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        built = write_repository(Path(folder, "built"))
        begin = time.monotonic()
        repro(built)
        print(f"{time.monotonic() - begin:.0f} s without a kill", flush=True)
        print(survive_everywhere(Path(folder, "repository"), built, seed))


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else random.randrange(2**32))
