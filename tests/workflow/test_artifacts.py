"""The models that dvc.yaml registers: what the stages make, and one comes by its name out of another repository."""

import subprocess

import pytest
import yaml

from tests.pipeline import REPOSITORY, call, commit, git

DAG = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())


def test_artifacts_are_the_models_that_inference_takes():
    outs = [out for stage in DAG["stages"].values() for out in stage.get("do", stage)["outs"]]
    assert sorted(DAG["artifacts"]) == sorted(DAG["stages"]["infer"]["foreach"])
    for name, artifact in DAG["artifacts"].items():
        assert artifact["path"] == f"data/models/{name}.pt" and artifact["path"] in outs


@pytest.fixture
def repository(tmp_path):
    """A repository as this one: an experiment `demo`, a DVC project of its own, whose models are in a remote."""
    folder = tmp_path / "repository"
    demo = folder / "demo"
    remote = f"[core]\n    remote = store\n['remote \"store\"']\n    url = {tmp_path / 'store'}\n"
    for project in (folder, demo):
        (project / ".dvc").mkdir(parents=True)
        (project / ".dvc/config").write_text(remote)
    (demo / "dvc.yaml").write_text(yaml.safe_dump({"artifacts": DAG["artifacts"]}))
    for artifact in DAG["artifacts"].values():
        path = demo / artifact["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"the model of {path.name}")
    git(folder, "init", "-q", "-b", "main")
    for command in (["add", "data/models"], ["push"]):
        done = call(demo, "dvc", *command)
        assert done.returncode == 0, done.stderr
    commit(folder, "models")
    return folder


def test_a_model_by_its_name_and_by_its_path(repository, tmp_path):
    identity = {"GIT_COMMITTER_NAME": "test", "GIT_COMMITTER_EMAIL": "test@example.org"}
    done = call(repository, "gto", "register", "demo:fcn8s", "--version", "v1.0.0", **identity)
    assert done.returncode == 0, done.stderr
    clone, here = tmp_path / "clone", tmp_path / "elsewhere"
    subprocess.run(["git", "clone", "-q", repository, clone], check=True)
    here.mkdir()
    for command in (
        ("artifacts", "get", str(clone), "demo:fcn8s", "--out", "a.pt"),
        ("get", str(clone), "demo/data/models/deconvnet.pt", "--out", "b.pt"),
    ):
        done = call(here, "dvc", *command)
        assert done.returncode == 0, done.stdout + done.stderr
    assert (here / "a.pt").read_text() == "the model of fcn8s.pt"
    assert (here / "b.pt").read_text() == "the model of deconvnet.pt"
