"""One graph: dvc.yaml, the Snakemake rules, the stage modules and params.yaml name the same things, dependencies point
one way, and nothing that a stage does not name matters to what it makes."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from deconvnet import provenance
from deconvnet.systems import SYSTEMS
from tests.pipeline import call

REPOSITORY = Path(__file__).parents[2]
DVC = {
    name: body.get("do", body) for name, body in yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"].items()
}
FOREACH = {
    name: body["foreach"]
    for name, body in yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"].items()
    if "foreach" in body
}
EXPERIMENTS = [path.parent for path in sorted(REPOSITORY.glob("*/params.yaml")) if path.parent.name != "claims"]
PARAMS = [yaml.safe_load((folder / "params.yaml").read_text()) for folder in (REPOSITORY, *EXPERIMENTS)]
RULES = {path.stem: path for path in (REPOSITORY / "workflow/rules").glob("*.smk")}


def started(stage: str) -> tuple[str, str | None]:
    """What the stage's command runs: the module in stages/, and the system, None where it names none."""
    command = DVC[stage]["cmd"]
    if found := re.search(r" snakemake .* stage=(\w+)(?: system=(\S+))?$", command):
        return found.groups()
    if "${item.by}" in command:
        return "fetch", None
    return re.search(r" python -m stages\.(\S+)(?: (stage\d|\$\S+))?", command).groups()


def files_of(stage: str) -> set[str]:
    """The file that a stage's command runs; `fetch` runs one of two, as each file's parameters say."""
    module, _ = started(stage)
    if module == "fetch":
        return {file["by"] for params in PARAMS for file in params["fetch"].values()}
    return {f"stages/{module}.py"}


def test_every_experiment_has_a_copy_of_the_dag():
    assert EXPERIMENTS
    for folder in EXPERIMENTS:
        assert (folder / "dvc.yaml").read_bytes() == (REPOSITORY / "dvc.yaml").read_bytes(), folder


@pytest.mark.parametrize("stage", DVC)
def test_a_stage_has_its_modules_name_and_its_section(stage):
    module, system = started(stage)
    assert stage in (module, f"{module}_{system}")
    assert all(module in params for params in PARAMS)
    assert any(key == module or key.startswith(f"{module}.") for key in listed(stage))


def test_nothing_else_has_a_section_or_a_rule():
    used = {started(stage)[0] for stage in DVC}
    for params in PARAMS:
        assert set(params) == used | {"root", "training"}
    assert {path.stem for path in (REPOSITORY / "stages").glob("[!_]*.py")} == used
    assert set(RULES) == {started(stage)[0] for stage, body in DVC.items() if "snakemake" in body["cmd"]}


def test_systems_are_those_of_the_library():
    assert FOREACH["infer"] == [key for key, system in SYSTEMS.items() if system.net]
    assert FOREACH["crf"] == [system.crf for system in SYSTEMS.values() if system.crf]
    assert [started("ensemble")[1]] == [key for key, system in SYSTEMS.items() if system.members]
    folders = {system.folder(key) for key, system in SYSTEMS.items()}
    assert {dep for dep in DVC["evaluate"]["deps"] if dep.startswith(("data/scores/", "data/labels/"))} == folders


def test_rules_are_named_after_their_modules_and_profiles_name_rules():
    rules = set()
    for name, path in RULES.items():
        found = re.findall(r"^rule (\w+):$", path.read_text(), re.M)
        assert set(found) <= {name, f"{name}_shard"}
        assert set(re.findall(r"-m stages\.(\w+)", path.read_text())) == {name}
        rules |= set(found)
    for path in (REPOSITORY / "workflow/profiles").glob("*/config.yaml"):
        profile = yaml.safe_load(path.read_text())
        for key in ("set-threads", "set-resources"):
            assert set(profile.get(key, {})) <= rules, path
        assert set(re.findall(r"\w+", profile.get("slurm-array-jobs", ""))) <= rules


@pytest.mark.parametrize("stage", DVC)
def test_a_stage_lists_the_modules_that_it_runs_on_and_no_other(stage):
    deps = {dep.removeprefix("${root}/") for dep in DVC[stage]["deps"] if dep.startswith("${root}/")}
    deps = {dep for dep in deps if not dep.startswith("workflow/")} - {"${item.by}"}
    entries = files_of(stage)
    used = {str(path.relative_to(REPOSITORY)) for entry in entries for path in provenance.closure(REPOSITORY / entry)}
    if "${root}/${item.by}" in DVC[stage]["deps"]:
        used -= entries
    if "${root}/workflow/Snakefile" in DVC[stage]["deps"]:  # what the rules import of the library
        rules = RULES[started(stage)[0]].read_text()
        used |= {f"{name.replace('.', '/')}.py" for name in re.findall(r"^from (deconvnet\.\w+) import", rules, re.M)}
    assert deps == used | {str(path.relative_to(REPOSITORY)) for path in templates(used)}


def templates(used: set[str]) -> list[Path]:
    """What lies beside a module under its name and is no Python: the report's page."""
    return [path for file in used if (path := (REPOSITORY / file).with_suffix(".html")).exists()]


@pytest.mark.parametrize("stage", DVC)
def test_a_stage_that_makes_shards_lists_its_rules_and_training_does_not(stage):
    """How training is started is no part of what it computes: a change in workflow/ must not cost days."""
    module, _ = started(stage)
    fanned_out = module in RULES and f"rule {module}_shard:" in RULES[module].read_text()
    expected = {"${root}/workflow/Snakefile", f"${{root}}/workflow/rules/{module}.smk"} if fanned_out else set()
    assert {dep for dep in DVC[stage]["deps"] if "/workflow/" in dep} == expected
    persist = [out for out in DVC[stage]["outs"] if isinstance(out, dict) and [*out.values()][0].get("persist")]
    assert len(persist) == (fanned_out or stage == "fetch")


def imported(path: Path) -> set[str]:
    """Dotted names of the modules that a file imports, also in its functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


ABOVE = {  # what the files of each package may not import: whatever stands above it
    "deconvnet": {"experiment", "stages", "workflow", "demo", "tests", "benchmarks", "dvc", "snakemake", "yaml"},
    "experiment": {"stages", "workflow", "demo", "tests", "benchmarks", "dvc", "snakemake"},
    "stages": {"workflow", "demo", "tests", "benchmarks", "dvc", "snakemake", "yaml"},
    "demo": {"stages", "workflow", "tests", "benchmarks", "dvc", "snakemake"},
}


@pytest.mark.parametrize("package", ABOVE)
def test_dependencies_point_one_way(package):
    paths = list((REPOSITORY / package).rglob("*.py"))
    assert paths
    for path in paths:
        assert not {name.split(".")[0] for name in imported(path)} & ABOVE[package], path
        if package == "stages":  # no stage imports another
            assert not {name for name in imported(path) if name.startswith("stages")}, path


def test_there_is_no_circle_and_no_giant():
    modules = {}
    for package in ABOVE:
        for path in (REPOSITORY / package).rglob("*.py"):
            assert len(path.read_text().splitlines()) <= 420, path
            modules[".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")] = path
    arrows = {
        name: {other for other in imported(path) if other in modules} - {name, name.rpartition(".")[0]}
        for name, path in modules.items()
    }

    def visit(name, trail):
        assert name not in trail, " -> ".join([*trail, name])
        if name not in done:
            for other in arrows[name]:
                visit(other, [*trail, name])
            done.add(name)

    done = set()
    for name in modules:
        visit(name, [])


def test_training_runs_on_a_bare_gpu_machine():
    """One with torch, torchvision, numpy, pandas, pyarrow, opencv, pillow and tqdm alone."""
    absent = ["dvc", "hypothesis", "pydensecrf", "requests", "scipy", "sklearn", "snakemake", "yaml", "jinja2",
              "matplotlib"]  # fmt: skip
    code = f"import sys\nfor name in {absent}: sys.modules[name] = None\n"
    code += "\n".join(f"import stages.{module}" for module in ("pretrain", "train", "train_fcn", "reestimate"))
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)


def test_snakemake_imports_no_pytorch():
    """Its process lives as long as its jobs, which import PyTorch themselves: two seconds and 300 MB for nothing."""
    modules = re.findall(r"^from stages import (\w+)", "\n".join(path.read_text() for path in RULES.values()), re.M)
    assert "infer" in modules
    code = "import sys\nsys.modules['torch'] = None\n" + "\n".join(f"import stages.{name}" for name in modules)
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)


def listed(stage: str) -> list[str]:
    """The parameters that the stage lists; all sections where it lists the whole file."""
    keys = DVC[stage]["params"]
    return [*PARAMS[0]] if keys == [{"params.yaml": None}] else keys


@pytest.mark.parametrize("stage", DVC)
def test_parameters_that_a_stage_lists_exist_and_are_read(stage):
    """That nothing else is read, `test_nothing_that_a_stage_does_not_list_matters` shows."""
    files = [REPOSITORY / name for name in files_of(stage)]
    files += [path for module, path in RULES.items() if module == started(stage)[0]]
    code = "\n".join(path.read_text() for path in files)
    read = [name.lower() for name in re.findall(r"\bparams((?:\.\w+)+)", code, re.IGNORECASE)]
    for key in listed(stage):
        for params in PARAMS:
            value = params
            for part in key.replace("${key}", "sbd").split("."):
                assert part in value, key
                value = value[part]
        # the report and fetch read them all, or by a name of the command line; `training` is in every run
        if stage not in ("report", "fetch") and key != "training":
            name = f".{key}"
            assert any(name == own or name.startswith(f"{own}.") or own.startswith(f"{name}.") for own in read), key


# One stage of those that differ in a system's name alone, but inference twice: with proposals and without.
# `folders` has no place in an experiment whose images come in archives.
SANDBOXES = [name for name in DVC if name not in ("fetch", "folders", "infer", "crf")]
SANDBOXES += ["fetch@sbd", "infer@deconvnet", "infer@fcn8s", "crf@edeconvnet"]


@pytest.mark.parametrize("stage", SANDBOXES)
def test_nothing_that_a_stage_does_not_list_matters(stage, built, tmp_path):
    """The stage's command in a folder with what it lists alone, every other parameter changed, makes the same bytes."""
    locked = yaml.safe_load((built / "dvc.lock").read_text())["stages"][stage]
    world = tmp_path / built.name
    (world / "data").mkdir(parents=True)
    for path in [dep["path"] for dep in locked["deps"]]:
        copy(built / path, world / path)
    for path in (*provenance.PLUMBING, *(f"workflow/{name}" for name in ("Snakefile", "profiles", "rules"))):
        copy(built.parent / path, tmp_path / path)
    for path in built.parent.rglob("*.py"):
        other = tmp_path / path.relative_to(built.parent)
        if not other.exists() and path.relative_to(built.parent).parts[0] in provenance.PACKAGES:
            other.parent.mkdir(parents=True, exist_ok=True)
            empty = provenance._is_empty(path)
            other.write_text("" if empty else "raise ImportError('a module that the stage does not list')\n")
    params = yaml.safe_load((built / "params.yaml").read_text())
    changed = different(params)
    for key in locked["params"]["params.yaml"]:
        *parents, last = key.split(".")
        target, source = changed, params
        for part in parents:
            target, source = target[part], source[part]
        target[last] = source[last]
    (world / "params.yaml").write_text(yaml.safe_dump(changed))
    before = files(tmp_path)
    done = call(world, "sh", "-c", locked["cmd"], PYTHONDONTWRITEBYTECODE="1")
    assert done.returncode == 0, done.stdout + done.stderr
    outs = {str(path.relative_to(built)) for out in locked["outs"] for path in tree(built / out["path"])}
    assert outs
    for name in sorted(outs):
        assert (world / name).read_bytes() == (built / name).read_bytes(), name
    logs = (".snakemake/", "data/checkpoints/", "data/live/", "data/times/")
    new = {str(path.relative_to(world)) for path in files(tmp_path) - before}
    assert {name for name in new if not name.startswith(logs)} == outs


OTHERS = {
    "gaussian": "he", "bf16": "float32", "val": "train", "trainaug": "trainval_aug",
    "imagenet1k_v1": "imagenet1k_features", "maximum": "average", "mean": "product", "symmetric": "none",
    "gradient": "structured", "switches": "bilinear",
}  # fmt: skip
TIED = {"by", "kind", "splits", "split", "input_size"}  # keys that the check of the whole file holds to other sections


def different(value, key: str = "", tied=TIED):
    """Another value of the same kind, which is allowed where this one is; `tied` keys stay."""
    if key in tied:
        return value
    if isinstance(value, dict):
        drawn = {
            name: value[name] for name in ("seed", "shared_train", "shared_val") if "by" in value and name in value
        }
        return {
            name: different(each, name, tied) for name, each in value.items()
        } | drawn  # both archives have one seed
    if isinstance(value, list):
        return [different(each, tied=tied) for each in value] or (["x"] if key == "addresses" else [1])
    if isinstance(value, bool):
        return not value
    if value is None:
        return 2
    if isinstance(value, str):
        if re.fullmatch(r"\de-\d", value):  # a number to YAML 1.2, text to YAML 1.1
            return f"{value}0"
        return OTHERS.get(value, f"{value}x")
    return 2 * value or 1 if isinstance(value, int) or value >= 1 else value / 2


def copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    else:
        shutil.copy(source, target)


def tree(path: Path) -> list[Path]:
    return [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]


def files(folder: Path) -> set[Path]:
    return set(tree(folder))
