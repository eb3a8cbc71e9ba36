"""A small repository whose experiment `demo` runs in a minute, for the tests of the DAG."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).parents[1]


def write_repository(folder: Path) -> Path:
    """The project under git, its experiment of 4 + 6 + 4 images and four steps a training; returns the experiment."""
    folder.mkdir()
    for name in ("deconvnet", "experiment", "stages", "workflow", "demo/world"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", ".snakemake"))
    for name in (".dvc", "demo/.dvc"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("cache", "tmp", "config.local"))
    for name in (".dvcignore", ".gitignore", "Makefile", "demo/.dvcignore"):
        shutil.copy(REPOSITORY / name, folder / name)
    experiment = folder / "demo"
    shutil.copy(REPOSITORY / "dvc.yaml", experiment)
    params = yaml.safe_load((REPOSITORY / "demo/params.yaml").read_text())
    params["fetch"]["voc_trainval"] |= {"train": 4, "val": 4}
    params["fetch"]["sbd"] |= {"train": 4, "val": 2, "shared_train": 1, "shared_val": 1}
    params["dataset"] |= {"shard_images": 5, "counts": {"trainaug": 10}}
    params["proposals"] |= {"boxes": 50}
    params["proposals"]["recall"]["boxes"] = [10, 50]
    params["crops"]["stage1"]["per_class"] = params["crops"]["stage2"]["per_class"] = 30
    tiny(params)
    (experiment / "params.yaml").write_text(yaml.safe_dump(params))
    git(folder, "init", "-q", "-b", "main")
    commit(folder, "as written")
    return experiment


def tiny(params: dict) -> None:
    """Nets of width 4 and trainings of four steps, in the place of what a parameter file has."""
    params["pretrain"]["size"] |= {"width": 4, "fc_width": 16}
    for section in (params["pretrain"]["run"], *params["train"].values(), params["train_fcn"]["run"]):
        if isinstance(section, dict):
            section |= {"steps": 4, "batch": 4, "micro_batch": 4, "batch_norm_crops": 2, "drop_at": []}
            section |= {"validate_every": 4, "checkpoint_minutes": 0, "lr": 0.01, "warmup_steps": 2}
    params["training"] |= {"held_out": 0.3, "statistics_passes": 1}
    params["reestimate"] |= {"passes": 2, "batch": 4}
    params["infer"]["growth"] = [1, 5]
    params["infer"]["deconvnet"]["proposals"] = 5


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    return subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout


def commit(folder: Path, message: str) -> None:
    git(folder, "add", "--all")
    git(folder, "commit", "-q", "-m", message)


def clone(built: Path, folder: Path) -> Path:
    """A git clone of the repository around `built` (an experiment), with its artifacts; returns its experiment.

    It shares the cache, so whoever damages cached files must not take this one.
    """
    git(built, "clone", "-q", str(built.parent), str(folder))
    experiment = folder / built.name
    for project in (folder, experiment):
        (project / ".dvc/config.local").write_text(f"[cache]\n    dir = {built.parent / '.dvc/cache'}\n")
    done = call(experiment, "dvc", "checkout", "--quiet")
    assert done.returncode == 0, done.stderr
    return experiment


def call(folder: Path, *command: str, **more: str) -> subprocess.CompletedProcess:
    """Run a command as a user with the environment activated and nothing else set but `more`."""
    return subprocess.run(command, cwd=folder, env=environment(**more), capture_output=True, text=True, check=False)


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "SNAKEMAKE_PROFILE")}
    # a thread a process: two busy processes of two threads on two cores would stand in each other's way
    return kept | {"PATH": f"{Path(sys.executable).parent}:{kept['PATH']}", "OMP_NUM_THREADS": "1"} | more


def repro(folder: Path, *arguments: str, **more: str) -> str:
    """What a successful `dvc repro` printed."""
    done = call(folder, "dvc", "repro", *arguments, **more)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def worked(experiment: Path, *words: str) -> list[dict]:
    """The runs of a stage's module that came to an end (data/times): worked(experiment, "proposals", "shard")."""
    entries = [json.loads(path.read_text()) for path in sorted((experiment / "data/times").glob("*.json"))]
    return [entry for entry in entries if [entry["module"], *entry["arguments"]][: len(words)] == [*words]]


def bytes_of(folder: Path) -> dict[Path, bytes]:
    """Every table below `folder`."""
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*.parquet"))}
