"""Artifacts pushed to a folder and an S3 server, pulled by a colleague, damaged and repaired."""

import hashlib
import os
import re
import shutil
from pathlib import Path

import pytest
import yaml

from deconvnet import tables
from deconvnet.errors import InputError
from deconvnet.nets import files as models
from tests.pipeline import REPOSITORY, call, commit, git

KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
SHARING = re.findall(r"```sh\n(.*?)```", (REPOSITORY / "docs/sharing.md").read_text(), re.DOTALL)
UP_TO_DATE = "Data and pipelines are up to date."


def dvc(experiment: Path, *arguments: str) -> str:
    done = call(experiment, "dvc", *arguments, **KEYS)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def fails(experiment: Path, *arguments: str) -> str:
    done = call(experiment, "dvc", *arguments, **KEYS)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    return done.stderr


def colleague(repository: Path, folder: Path, remote: str | Path = "") -> Path:
    """A git clone with an empty cache of its own; returns its experiment."""
    git(repository, "clone", "-q", str(repository), str(folder))
    if remote:
        settings = f"[core]\n remote = r\n['remote \"r\"']\n url = {remote}\n verify = true\n"
        (folder / "demo/.dvc/config.local").write_text(settings)
    return folder / "demo"


def cache_of(built: Path) -> Path:
    """The built world's cache, never to be written. It serves as a remote: both have the same layout."""
    return built.parent / ".dvc/cache"


def files_of(experiment: Path) -> dict[str, bytes]:
    """Every artifact; checkpoints, live curves and times are none."""
    folders = [path for path in (experiment / "data").iterdir() if path.name not in ("checkpoints", "live", "times")]
    paths = [path for folder in folders for path in folder.glob("**/*.*")]
    paths += [path for path in (experiment / "reports").rglob("[!.]*") if path.is_file()]
    return {str(path.relative_to(experiment)): path.read_bytes() for path in paths}


def object_of(cache: Path, file: Path) -> Path:
    digest = hashlib.md5(file.read_bytes()).hexdigest()
    return cache / "files/md5" / digest[:2] / digest[2:]


def damage(file: Path) -> None:
    """Change a byte in the middle as a bad disk does: neither mode, size nor time tell."""
    before = file.stat()
    file.chmod(0o644)
    with open(file, "r+b") as stream:
        stream.seek(before.st_size // 2)
        byte = stream.read(1)[0]
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([byte ^ 1]))
    file.chmod(before.st_mode)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def documented(experiment: Path, word: str) -> str:
    """Run the one block of commands in docs/sharing.md that has `word`; what it printed."""
    (block,) = (block for block in SHARING if word in block)
    done = call(experiment, "sh", "-ec", block)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def owner(built, tmp_path):
    """A clone that has everything, through the built world's cache."""
    experiment = colleague(built.parent, tmp_path / "owner")
    (experiment / ".dvc/config.local").write_text(f"[cache]\n dir = {cache_of(built)}\n")
    return experiment


@pytest.fixture
def s3():
    """An S3 server on this machine, with a bucket: (address, set_open). set_open(False) makes it refuse every key."""
    boto3, requests = pytest.importorskip("boto3"), pytest.importorskip("requests")
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    keys = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "region_name": "us-east-1"}
    boto3.client("s3", endpoint_url=address, **keys).create_bucket(Bucket="deconvnet")

    def set_open(is_open):
        requests.post(f"{address}/moto-api/reset-auth", data="inf" if is_open else "0", timeout=10)

    yield address, set_open
    set_open(True)
    server.stop()


def make_remote(experiment: Path, url: str) -> None:
    """As docs/sharing.md has it, in the environment that there is."""
    done = call(experiment.parent, "make", "remote", f"URL={url}", "VENV=")
    assert done.returncode == 0, done.stderr


def share(owner: Path, folder: Path) -> Path:
    """Push everything; returns a colleague's clone."""
    commit(owner.parent, "a remote")
    dvc(owner, "push", "--run-cache")
    return colleague(owner.parent, folder)


def assert_all_is_there(experiment: Path, built: Path) -> None:
    assert files_of(experiment) == files_of(built)
    assert UP_TO_DATE in dvc(experiment, "repro")


def test_a_folder_holds_everything_and_damage_in_it_is_named_and_replaced(owner, built, tmp_path):
    make_remote(owner, str(tmp_path / "store"))
    experiment = share(owner, tmp_path / "colleague")
    damage(object_of(tmp_path / "store", built / "data/dataset/val-000.parquet"))
    said = fails(experiment, "pull")
    assert "Checkout failed for following targets:\ndata/dataset\n" in said
    intact = {name: data for name, data in files_of(built).items() if not name.startswith("data/dataset/")}
    assert files_of(experiment) == intact
    documented(owner, "--show-url")
    dvc(experiment, "pull")
    assert_all_is_there(experiment, built)


def test_an_s3_server_holds_everything_and_a_refused_key_harms_nothing(owner, built, tmp_path, s3):
    address, set_open = s3
    make_remote(owner, "s3://deconvnet/cache")
    dvc(owner, "remote", "modify", "store", "endpointurl", address)
    set_open(False)
    assert "Forbidden: An error occurred (403)" in fails(owner, "push")
    set_open(True)
    experiment = share(owner, tmp_path / "colleague")
    dvc(experiment, "pull")
    assert_all_is_there(experiment, built)


def test_a_colleague_with_the_data_alone_goes_on_from_there(built, tmp_path):
    experiment = colleague(built.parent, tmp_path / "colleague", cache_of(built))
    dvc(experiment, "pull", "data/dataset")
    params = yaml.safe_load((experiment / "params.yaml").read_text())
    params["crops"]["stage2"]["per_class"] -= 10
    (experiment / "params.yaml").write_text(yaml.safe_dump(params))
    lock = yaml.safe_load((experiment / "dvc.lock").read_text())
    del lock["stages"]["train_stage1"]  # as after other parameters here, while somebody pushed a run with these
    (experiment / "dvc.lock").write_text(yaml.safe_dump(lock))
    printed = dvc(experiment, "repro", "--pull", "--allow-missing", "crops_stage2", "train_stage1")
    assert re.findall(r"Running stage '(.*)'", printed) == ["crops_stage2"]
    assert "Stage 'train_stage1' is cached - skipping run" in printed
    assert (experiment / "data/models/stage1.pt").read_bytes() == (built / "data/models/stage1.pt").read_bytes()
    assert {path.name for path in (experiment / "data").iterdir()} <= {
        "crops", "dataset", "models", "proposals", "times", "weights"
    }  # fmt: skip


@pytest.mark.parametrize("name", [
    "data/dataset/val-000.parquet", "data/proposals/val-000.parquet", "data/scores/deconvnet/val-000.parquet",
    "data/crops/stage2.parquet", "data/models/deconvnet.pt",
])  # fmt: skip
def test_a_damaged_byte_is_noticed_where_it_is_read(built, tmp_path, name):
    file = tmp_path / Path(name).name
    shutil.copy(built / name, file)
    read = models.read if file.suffix == ".pt" else tables.read
    read(file)
    damage(file)
    with pytest.raises(InputError, match="`chmod u[+]w`, `touch` and remove it, then `dvc pull` or `dvc repro`"):
        read(file)


def test_damage_in_the_cache_is_named_and_repaired(built, tmp_path):
    experiment = colleague(built.parent, tmp_path / "own", cache_of(built))
    dvc(experiment, "pull", "data/dataset", "data/proposals", "data/crops/stage1.parquet")
    before = files_of(experiment)
    shard, table = experiment / "data/proposals/val-000.parquet", experiment / "data/crops/stage1.parquet"
    for file in (shard, table):  # linked: the objects in the cache are damaged too
        damage(file)
    assert files_of(experiment) != before
    said = documented(experiment, "-exec touch")
    assert "not in cache:       data/proposals" in said
    assert "not in cache:       data/crops/stage1.parquet" in said
    assert "Not in cache:\n" in said
    assert " data/proposals/val-000.parquet\n" in said
    assert files_of(experiment) == files_of(built)
    damage(shard)
    damage(table)
    documented(experiment, "rm data/proposals")
    table.chmod(0o644)
    table.touch()
    table.unlink()
    dvc(experiment, "repro", "--single-item", "crops_stage1")
    assert files_of(experiment) == files_of(built)
