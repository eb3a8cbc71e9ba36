"""docs/experiments.md: its tables are what DVC says, and its commands do in a small world what it says."""

import csv
import itertools
import json
import os
import re
import shutil
from pathlib import Path

import networkx
import pytest
import yaml
from dvc.repo import Repo

from tests.pipeline import call, clone, commit, git, repro, worked
from tests.workflow.test_graph import different, tree

REPOSITORY = Path(__file__).parents[2]
DOCUMENT = (REPOSITORY / "docs/experiments.md").read_text()
CODE = ("deconvnet", "experiment", "stages", "demo/world", "workflow/Snakefile", "workflow/rules")
CRF = {f"crf@{system}" for system in ("fcn8s", "deconvnet", "edeconvnet")}


@pytest.fixture
def world(built, tmp_path):
    return clone(built, tmp_path / "repository")


def leaves(node, name=""):
    """Dotted names of what is no section."""
    if not isinstance(node, dict):
        return [name]
    return [leaf for key, value in node.items() for leaf in leaves(value, f"{name}.{key}".lstrip("."))]


def what_reruns(world) -> tuple[dict[str, list[str]], dict[str, set[str]]]:
    """From DVC, with every parameter and every file of code changed: for each of these the stages that list it, and
    for each stage those after it."""
    before = yaml.safe_load((world / "params.yaml").read_text())
    after = {section: different(value, tied=()) if section != "root" else value for section, value in before.items()}
    for name, file in before["fetch"].items():
        after["fetch"][name] |= {key: file[key] for key in ("by", "file")}  # parts of commands and paths
    after["dataset"]["input"] = before["dataset"]["input"]
    (world / "params.yaml").write_text(yaml.safe_dump(after))
    files = git(world.parent, "ls-files", *CODE).split()
    for name in files:
        with open(world.parent / name, "a") as file:
            file.write("# a comment\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(world)
        repo = Repo()
        status = repo.status()
        graph = networkx.relabel_nodes(repo.index.graph, lambda stage: stage.addressing)
        following = {stage.addressing: networkx.ancestors(graph, stage.addressing) for stage in repo.index.stages}
    keys = leaves(yaml.safe_load((REPOSITORY / "demo/params.yaml").read_text()))
    stages = {name: [] for name in [*keys, *files] if name != "root" and not name.endswith((".by", ".file", ".input"))}
    for stage in following:
        deps = {dep: what for entry in status.get(stage, []) for dep, what in entry.get("changed deps", {}).items()}
        listed = [*deps.pop("params.yaml", {}), *(os.path.relpath(world / dep, world.parent) for dep in deps)]
        for name in stages:  # a section or a folder that is listed stands for all in it
            if any(name == own or name.startswith((f"{own}.", f"{own}/")) for own in listed):
                stages[name].append(stage)
    return stages, following


def merged(stages: dict[str, list[str]], separator: str) -> dict[tuple[str, ...], list[str]]:
    """Stages -> what reruns them, a section or folder in the place of its contents where they all rerun the same."""
    rows, done = {}, set()
    for name, own in stages.items():
        if name in done:
            continue
        for end in [match.start() for match in re.finditer(re.escape(separator), name)] + [len(name)]:
            inside = [each for each in stages if each == name or each.startswith(name[:end] + separator)]
            if all(stages[each] == own for each in inside):
                break
        done |= {*inside}
        rows.setdefault(tuple(own), []).append(f"`{name[:end]}`")
    return rows


def words(chosen, every: list[str]) -> str:
    """Stages as the tables have them: `crf` for all of its systems; those that are missing where that is shorter."""

    def listed(own) -> str:
        names = []
        for kind, members in itertools.groupby(every, lambda stage: stage.partition("@")[0]):
            members = list(members)
            found = [stage for stage in members if stage in own]
            names += [kind] if found == members else found
        return ", ".join(names)

    missing = [stage for stage in every if stage not in chosen]
    return min(listed(chosen) or "none", f"all but {listed(missing)}" if missing else "all", key=len)


def tables(stages: dict[str, list[str]], following: dict[str, set[str]]) -> str:
    every = [stage for stage in following if stage != "report"]
    lines = ["| parameter | reruns | then, where results differ |", "|---|---|---|"]
    parameters = {name: own for name, own in stages.items() if "/" not in name}
    for own, names in merged(parameters, ".").items():
        first = [stage for stage in own if stage != "report"]
        then = set().union(*(following[stage] for stage in own)) - {*own, "report"}
        lines.append(f"| {', '.join(names)} | {words(first, every) if first else 'report'} | {words(then, every)} |")
    lines += ["", "| file | starts |", "|---|---|"]
    files = {name: own for name, own in stages.items() if "/" in name}
    lines += [f"| {', '.join(names)} | {words(own, [*following])} |" for own, names in merged(files, "/").items()]
    return "\n".join(lines)


def test_what_reruns(world):
    stages, following = what_reruns(world)

    def all_of(name):
        return {*stages[name]}.union(*(following[stage] for stage in stages[name]))

    for name in stages:
        if name.startswith("crf."):
            assert all_of(name) == CRF | {"evaluate", "report"}
        if name.startswith(("report.", "stages/report.")):
            assert all_of(name) == {"report"}
    training = {"pretrain", "train_stage1", "train_stage2", "reestimate", "train_fcn"}
    assert not all_of("infer.deconvnet.proposals") & training
    assert training <= all_of("crops.stage1.per_class")
    found = tables(stages, following)
    assert found in DOCUMENT, f"docs/experiments.md: its tables must be\n\n{found}\n"


def ran(printed: str) -> list[str]:
    return re.findall(r"^Running stage '(.*)':", printed, re.M)


def test_a_comment_makes_nothing_anew_and_training_comes_from_the_run_cache(world, built):
    lock = yaml.safe_load((world / "dvc.lock").read_text())
    del lock["stages"]["train_stage1"]  # as if the parameters had been others in between
    (world / "dvc.lock").write_text(yaml.safe_dump(lock))
    (world / "data/models/stage1.pt").unlink()
    assert "Stage 'train_stage1' is cached - skipping run" in repro(world, "train_stage1")

    before = {path: path.read_bytes() for path in [*tree(world / "data"), *tree(world / "reports")]}
    shutil.copytree(built / "data/checkpoints", world / "data/checkpoints")
    for name in ("crf", "train"):
        with open(world.parent / f"stages/{name}.py", "a") as file:
            file.write(f"# {world}\n")  # no other test's comment, whose result the run cache would have
    printed = repro(world)
    assert {*ran(printed)} == CRF | {"train_stage1", "train_stage2"}
    assert printed.count("resuming after step ") == 2
    assert not worked(world, "crf")
    assert before == {path: path.read_bytes() for path in before}


@pytest.fixture
def both(world):
    """The small world with an experiment in the root, too, as the project has it: the same, but nothing computed."""
    shutil.copy(world / "dvc.yaml", world.parent)
    params = (world / "params.yaml").read_text()
    (world.parent / "params.yaml").write_text(params.replace("root: ..", "root: ."))
    commit(world.parent, "a root")
    git(world.parent, "config", "user.name", "test")
    git(world.parent, "config", "user.email", "test@example.org")
    return world.parent


def rows_of(table: str) -> dict[str, dict[str, str]]:
    """The table that `dvc exp show` prints, by experiment."""
    lines = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in table.splitlines()]
    head = next(cells for cells in lines if cells[:1] == ["Experiment"])
    rows = [dict(zip(head, cells, strict=True)) for cells in lines if len(cells) == len(head) and cells != head]
    return {re.sub(r".*\[(.*)\]", r"\1", row["Experiment"]): row for row in rows}


def test_the_documents_commands(both):
    blocks = re.findall(r"^```sh\n(.*?)^```$", DOCUMENT, re.M | re.S)
    folder = both

    def run(block):
        nonlocal folder
        done = call(folder, "bash", "-euo", "pipefail", "-c", f"{block}\npwd", COLUMNS="400")
        assert done.returncode == 0, block + done.stdout + done.stderr
        *lines, where = done.stdout.splitlines()
        folder = Path(where)
        return "".join(f"{line}\n" for line in lines)

    one, back, several, aside, compare, keep, apply, own = blocks
    printed = run(one)
    assert ran(printed) == ["ensemble", "crf@edeconvnet", "evaluate"]
    assert re.search(r"reports/mean_iou.json +mean_iou.edeconvnet +0\.\d+ +0\.\d+ +-?0\.\d+\n", printed)
    assert re.search(r"params.yaml +ensemble.method +mean +product\n", printed)
    run(back)
    assert not git(both, "status", "--porcelain")
    assert "up to date" in call(folder, "dvc", "status").stdout

    printed = run(several)
    assert sorted(ran(printed)) == sorted([*CRF, "evaluate"] * 2)
    table = rows_of(printed)
    column = "crf.iterations"
    assert {name: row[column] for name, row in table.items()} == {
        "workspace": "5", "main": "5", "crf-1": "3", "crf-2": "8", "product": "5"
    }  # fmt: skip
    assert ran(run(aside)) == ["evaluate"]
    assert not git(both, "status", "--porcelain")

    printed = run(compare)
    assert re.search(r"params.yaml +crf.iterations +5 +3\n", printed)
    assert (
        "could not be loaded" in (folder / "dvc_plots/index.html").read_text()
    )  # it says so where there is no network
    check_plots(folder)

    assert set(ran(run(keep))) <= {"report"}  # which the run cache may have
    assert "up to date" in call(folder, "dvc", "status").stdout
    assert "iterations: 3" in git(both, "show", "HEAD:demo/params.yaml")
    mean = json.loads((folder / "reports/mean_iou.json").read_text())["mean_iou"]
    columns = [name for name in table["crf-1"] if name.startswith("mean_iou.")]  # those that are not the same in all
    assert "mean_iou.edeconvnet" in columns
    for column in columns:
        assert float(table["crf-1"][column]) == pytest.approx(mean[column.removeprefix("mean_iou.")], abs=1e-5)  # shown
    run(apply)
    status = call(folder, "dvc", "status").stdout
    assert re.findall(r"^\S+:$", status, re.M) == ["report:"]
    assert "iterations: 8" in (folder / "params.yaml").read_text()
    git(both, "checkout", "-q", ".")

    printed = run(own)
    assert folder == both / "mine"
    assert ran(printed)[-1] == "report"
    assert "up to date" in call(folder, "dvc", "status").stdout


def check_plots(folder: Path) -> None:
    """All plots have data of both, and those of the classes are the two tables, in bars beside each other."""
    plots = json.loads(call(folder, "dvc", "plots", "diff", "HEAD", "crf-1", "--json").stdout)
    assert not plots.get("errors")
    data = {name.rpartition("::")[2]: plot for name, plot in plots["data"].items()}
    for plot in yaml.safe_load((folder / "dvc.yaml").read_text())["plots"]:
        for name in plot:
            assert [each["revisions"] for each in data[name]] == [["HEAD", "crf-1"]]
    content = data["IoU of the classes, EDeconvNet+CRF"][0]["content"]
    assert content["mark"] == {"type": "bar"} and content["encoding"]["yOffset"]["field"] == "rev"
    x, y = (content["encoding"][axis]["field"] for axis in "xy")
    drawn = {(row["rev"], row[y]): row[x] for row in content["data"]["values"]}
    expected = {}
    for name in ("HEAD", "crf-1"):
        commit = git(folder, "for-each-ref", "--format=%(objectname)", f"refs/exps/**/{name}").strip() or name
        table = csv.DictReader(git(folder, "show", f"{commit}:demo/reports/per_class.csv").splitlines())
        expected |= {(name, row["class"]): row["edeconvnet_crf"] for row in table}
    assert drawn == expected and len(drawn) == 2 * 11
