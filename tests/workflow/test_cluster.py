"""The pipeline on a real SLURM of one node, which tests/workflow/slurm.sh sets up here where it can."""

import re
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from filelock import FileLock

from tests.pipeline import bytes_of, call, clone, environment, worked

REPOSITORY = Path(__file__).parents[2]
PROFILE = yaml.safe_load((REPOSITORY / "workflow/profiles/slurm/config.yaml").read_text())
CONF = Path("/etc/slurm/slurm.conf")


def slurm(action: str) -> subprocess.CompletedProcess:
    done = subprocess.run([REPOSITORY / "tests/workflow/slurm.sh", action], capture_output=True, text=True, check=False)
    done.stderr = done.stderr.removeprefix("error: ").strip()
    return done


@pytest.fixture
def alone(tmp_path_factory):
    """The only SLURM of pytest's processes on this machine."""
    with FileLock(tmp_path_factory.getbasetemp().parent / "slurm.lock"):
        yield


@pytest.fixture
def node(alone):
    done = slurm("start")
    if done.returncode == 77:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr
    yield
    done = slurm("stop")
    assert done.returncode == 0, done.stderr
    assert not CONF.exists()


def test_the_profile_says_what_every_job_may_have():
    text = "".join(path.read_text() for path in (REPOSITORY / "workflow/rules").glob("*.smk"))
    rules = re.split(r"^rule (\w+):", text, flags=re.MULTILINE)[1:]
    submitted = {name for name, body in zip(rules[::2], rules[1::2], strict=True) if "localrule: True" not in body}
    assert set(PROFILE["set-threads"]) == submitted
    assert set(PROFILE["set-resources"]) <= submitted


def test_a_site_s_own_slurm_is_left_alone(alone):
    if CONF.exists() or slurm("stop").returncode == 77:
        pytest.skip(slurm("stop").stderr or f"{CONF} is there")
    CONF.write_text("ClusterName=site\n")
    try:
        for action in ("start", "stop"):
            done = slurm(action)
            assert done.returncode == 77
            assert f"{CONF}: another SLURM's" in done.stderr
            assert CONF.read_text() == "ClusterName=site\n"
    finally:
        CONF.unlink()


def profile(folder: Path, partition: str = "main", **changes) -> dict[str, str]:
    """The environment that selects the tracked profile, in haste and with `changes`."""
    changed = PROFILE | {"slurm-init-seconds-before-status-checks": 1, "slurm-keep-successful-logs": True}
    del changed["slurm-array-jobs"]  # the tests read the numbers of single jobs
    changed |= {"quiet": ["host"]} | changes
    changed["default-resources"] = PROFILE["default-resources"] | {"slurm_partition": partition}
    changed["set-threads"] = PROFILE["set-threads"] | {"proposals_shard": 4, "train": 1}
    return write_profile(folder, changed)


def write_profile(folder: Path, settings: dict) -> dict[str, str]:
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    return {"SNAKEMAKE_PROFILE": str(folder)}


def jobs(printed: str) -> list[dict[str, str]]:
    """What SLURM knows about the jobs whose numbers Snakemake printed."""
    numbers = re.findall(r"submitted with SLURM jobid (\d+)", printed)
    shown = [subprocess.check_output(["scontrol", "show", "job", number], text=True) for number in numbers]
    return [dict(re.findall(r"(\S+?)=(\S*)", job)) for job in shown]


def queue(until, seconds: float = 60) -> list[str]:
    """Numbers of the jobs in SLURM's queue, once there are some for which `until` holds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        numbers = subprocess.check_output(["squeue", "--noheader", "--format", "%i"], text=True).split()
        if until(numbers):
            return numbers
        time.sleep(0.1)
    raise AssertionError(f"after {seconds} s the queue was {numbers}")


def begun(experiment: Path, *command: str, **more: str) -> subprocess.Popen:
    return subprocess.Popen(
        command, cwd=experiment, env=environment(**more), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_slurm_computes_the_same_bytes_whatever_happens_to_its_jobs(node, built, tmp_path):
    world, local = clone(built, tmp_path / "cluster"), clone(built, tmp_path / "local")
    wanted, shards = bytes_of(world / "data/proposals"), sorted((world / "data/proposals").iterdir())
    proposals = ("timeout", "300", "dvc", "repro", "--force", "--single-item", "proposals")
    for shard in shards[:2]:
        shard.unlink()

    # a partition that the cluster does not have
    done = call(world, *proposals, **profile(tmp_path / "unknown", "nowhere", retries=0))
    assert done.returncode != 0
    assert "sbatch: error: invalid partition specified: nowhere" in done.stderr
    assert "Traceback" not in done.stderr

    # jobs cancelled before they start
    subprocess.run(["scontrol", "update", "PartitionName=main", "State=DOWN"], check=True)
    run = begun(world, *proposals, **profile(tmp_path / "once", retries=0))
    subprocess.run(["scancel", *queue(until=lambda numbers: len(numbers) == 2)], check=True)
    printed, _ = run.communicate()
    subprocess.run(["scontrol", "update", "PartitionName=main", "State=UP"], check=True)
    assert run.returncode != 0
    assert "SLURM status is: 'CANCELLED'" in printed
    assert [path.name for path in (world / "data/proposals").iterdir()] == [shards[2].name]

    # all well: two shards, two jobs without a GPU
    done = call(world, *proposals, **profile(tmp_path / "slurm"))
    assert done.returncode == 0, done.stderr
    assert [(job["JobState"], job["NumCPUs"], "TresPerJob" in job) for job in jobs(done.stderr)] == [
        ("COMPLETED", "4", False),
        ("COMPLETED", "4", False),
    ]
    assert bytes_of(world / "data/proposals") == wanted
    assert len(worked(world, "proposals", "shard")) == 2
    assert subprocess.check_output(["git", "diff", "dvc.lock", "reports"], cwd=world) == b""

    # the same as one array of jobs, which is what the profile asks for; Snakemake is as quiet as on one machine
    for shard in shards[:2]:
        shard.unlink()
    settings = {name: PROFILE[name] for name in ("quiet", "slurm-array-jobs")}
    done = call(world, *proposals, **profile(tmp_path / "array", **settings))
    assert done.returncode == 0, done.stderr
    assert bytes_of(world / "data/proposals") == wanted
    assert len(worked(world, "proposals", "shard")) == 4
    assert "Job stats" not in done.stdout + done.stderr

    # a job that fails: what it said is shown
    shards[0].unlink()
    module = world.parent / "stages/proposals.py"
    code = module.read_text()
    module.write_text(
        code.replace("    params = ", "    raise SystemExit('error: a job that fails')\n    params = ", 1)
    )
    done = call(world, *proposals, **profile(tmp_path / "failing", retries=0, quiet=PROFILE["quiet"]))
    module.write_text(code)
    assert done.returncode != 0
    assert "error: a job that fails" in done.stderr, done.stderr
    assert call(world, *proposals, **profile(tmp_path / "slurm")).returncode == 0

    # training, a GPU job, ended in its midst: submitted again, it goes on from its checkpoint
    for experiment in (world, local):
        params = yaml.safe_load((experiment / "params.yaml").read_text())
        params["train"]["stage1"] |= {"steps": 60, "validate_every": 60}
        (experiment / "params.yaml").write_text(yaml.safe_dump(params))
    training = ("timeout", "300", "dvc", "repro", "--no-run-cache", "--single-item", "train_stage1")
    run = begun(world, *training, **profile(tmp_path / "slurm"))
    checkpoint = world / "data/checkpoints/stage1/checkpoint.pt"
    subprocess.run(["scancel", *queue(until=lambda _: checkpoint.exists())], check=True)
    printed, _ = run.communicate()
    assert run.returncode == 0, printed
    assert [(job["JobState"], job["NumCPUs"], job["TresPerJob"]) for job in jobs(printed)] == [
        ("CANCELLED", "1", "gres:gpu:1"),
        ("COMPLETED", "1", "gres:gpu:1"),
    ]
    second = max((world / ".snakemake/slurm_logs/rule_train").glob("*.log"), key=lambda path: int(path.stem))
    assert "resuming after step" in second.read_text()
    # on a CPU the sums depend on the threads
    done = call(local, *training, **write_profile(tmp_path / "thread", {"cores": 1}))
    assert done.returncode == 0, done.stderr
    for made in ("data/models/stage1.pt", "reports/train_stage1.csv", "reports/train_stage1.json", "dvc.lock"):
        assert (world / made).read_bytes() == (local / made).read_bytes(), made
