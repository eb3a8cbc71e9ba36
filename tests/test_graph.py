"""One graph: dvc.yaml, the Snakemake rules, the stage modules and params.yaml name the same things, and nothing that
a stage does not name matters to what it makes."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from stages import config, shards
from tests.pipeline import call

REPOSITORY = Path(__file__).parents[1]
DVC = {
    name: body.get("do", body) for name, body in yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"].items()
}
PARAMS = [yaml.safe_load((folder / "params.yaml").read_text()) for folder in (REPOSITORY, REPOSITORY / "demo")]
RULES = {path.stem: path for path in (REPOSITORY / "workflow/rules").glob("*.smk")}


def started(stage: str) -> tuple[str, str | None]:
    """What the stage's command runs: the module in stages/, and the system, None where it names none."""
    command = DVC[stage]["cmd"]
    if found := re.search(r" snakemake .* stage=(\w+)(?: system=(\S+))?$", command):
        return found.groups()
    return re.search(r" python -m stages\.(\S+)(?: (stage\d|\$\S+))?", command).groups()


def modules(stage: str) -> set[str]:
    """The modules behind a stage: `fetch` runs one of two, as each file's parameters say."""
    name, _ = started(stage)
    return {file["by"] for params in PARAMS for file in params["fetch"].values()} if name == "${item.by}" else {name}


def test_demo_is_a_copy():
    assert (REPOSITORY / "demo/dvc.yaml").read_bytes() == (REPOSITORY / "dvc.yaml").read_bytes()


@pytest.mark.parametrize("stage", DVC)
def test_a_stage_has_its_modules_name_and_its_section(stage):
    module, system = started(stage)
    assert stage in (module, f"{module}_{system}") or (stage, module) == ("fetch", "${item.by}")
    section = stage if stage == "fetch" else module
    assert all(section in params for params in PARAMS)
    assert any(key == section or key.startswith(f"{section}.") for key in listed(stage))


def test_nothing_else_has_a_section_or_a_rule():
    used = set.union(*map(modules, DVC))
    for params in PARAMS:
        assert set(params) - config.SHARED == used - {"shapes"}  # what it draws is in `fetch`
    assert set(RULES) == {started(stage)[0] for stage, body in DVC.items() if "snakemake" in body["cmd"]}


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


@pytest.mark.parametrize("stage", DVC)
def test_a_stage_lists_the_modules_that_it_runs_on_and_no_other(stage):
    deps = {dep.removeprefix("${root}/") for dep in DVC[stage]["deps"] if dep.startswith("${root}/stages/")}
    for module in modules(stage):
        used = {str(path.relative_to(REPOSITORY)) for path in shards.closure(REPOSITORY / f"stages/{module}.py")}
        used = {"stages/nets" if path.startswith("stages/nets/") else path for path in used}
        used |= {f"stages/{module}.html"} & {f"stages/{path.name}" for path in (REPOSITORY / "stages").iterdir()}
        assert {dep.replace("${item.by}", module) for dep in deps} == used - {"stages/__init__.py"}


@pytest.mark.parametrize("stage", DVC)
def test_a_stage_that_makes_shards_lists_its_rules_and_training_does_not(stage):
    """How training is started is no part of what it computes: a change in workflow/ must not cost days."""
    module, _ = started(stage)
    fanned_out = module in RULES and f"rule {module}_shard:" in RULES[module].read_text()
    expected = {"${root}/workflow/Snakefile", f"${{root}}/workflow/rules/{module}.smk"} if fanned_out else set()
    assert {dep for dep in DVC[stage]["deps"] if "/workflow/" in dep} == expected
    persist = [out for out in DVC[stage]["outs"] if isinstance(out, dict) and [*out.values()][0].get("persist")]
    assert len(persist) == (fanned_out or stage == "fetch")


def test_stages_know_neither_dvc_nor_snakemake_nor_each_other():
    stages = set.union(*map(modules, DVC))
    for path in (REPOSITORY / "stages").rglob("*.py"):
        if path.stem == "predict":  # no stage of the DAG: it puts several of them together
            continue
        assert not {file.stem for file in shards.closure(path)} - {path.stem} & stages, path
        imports = " ".join(line for line in path.read_text().splitlines() if "import" in line.split())
        assert not {"dvc", "snakemake"} & set(re.split(r"[\s.,]+", imports)), path


def test_training_runs_on_a_bare_gpu_machine():
    """One with torch, torchvision, numpy, pandas, pyarrow, opencv and tqdm alone."""
    absent = ["dvc", "hypothesis", "pydensecrf", "requests", "scipy", "sklearn", "snakemake", "yaml"]
    code = f"import sys\nfor name in {absent}: sys.modules[name] = None\n"
    code += "\n".join(f"import stages.{module}" for module in ("pretrain", "train", "train_fcn", "reestimate"))
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)


def listed(stage: str) -> list[str]:
    """The parameters that the stage lists; all sections where it lists the whole file."""
    keys = DVC[stage]["params"]
    return [*PARAMS[0]] if keys == [{"params.yaml": None}] else keys


@pytest.mark.parametrize("stage", DVC)
def test_parameters_that_a_stage_lists_exist_and_are_read(stage):
    files = [REPOSITORY / f"stages/{module}.py" for module in modules(stage)]
    files += [RULES[module] for module in modules(stage) if module in RULES]
    code = "\n".join(path.read_text() for path in files)
    read = [re.sub(r"{\w+}", "*", key) for key in re.findall(r'load\([^"]+"([\w.{}]+)"', code)]
    for key in listed(stage):
        for params in PARAMS:
            value = params
            for part in key.replace("${key}", "sbd").split("."):
                assert part in value, key
                value = value[part]
        if stage != "report":  # which shows them all
            assert any(covers(name.split("."), key.split(".")) for name in read), key


def covers(name: list[str], key: list[str]) -> bool:
    """Whether what is read and what is listed lie one in the other; `*` is any name."""
    return all("*" in (a, b) or a == b or b == "${key}" for a, b in zip(name, key, strict=False))


# One stage of those that differ in a system's name alone, but inference twice: with proposals and without.
SANDBOXES = [name for name in DVC if name not in ("fetch", "infer", "crf")]
SANDBOXES += ["fetch@sbd", "infer@deconvnet", "infer@fcn8s", "crf@edeconvnet"]


@pytest.mark.parametrize("stage", SANDBOXES)
def test_nothing_that_a_stage_does_not_list_matters(stage, built, tmp_path):
    """The stage's command in a folder with what it lists alone, every other parameter changed, makes the same bytes."""
    locked = yaml.safe_load((built / "dvc.lock").read_text())["stages"][stage]
    world = tmp_path / built.name
    (world / "data").mkdir(parents=True)
    for path in [dep["path"] for dep in locked["deps"]]:
        copy(built / path, world / path)
    for path in ("stages/__init__.py", *(f"workflow/{name}" for name in ("Snakefile", "profiles", "rules"))):
        copy(built.parent / path, tmp_path / path)
    for path in (built.parent / "stages").glob("*.py"):  # a section of params.yaml must be a module's name
        if not (other := tmp_path / "stages" / path.name).exists():
            other.write_text("raise ImportError('a module that the stage does not list')\n")
    params = yaml.safe_load((built / "params.yaml").read_text())
    changed = different(params)
    for key in locked["params"]["params.yaml"]:
        *parents, last = key.split(".")
        target, source = changed, params
        for part in parents:
            target, source = target[part], source[part]
        target[last] = source[last]
    (world / "params.yaml").write_text(yaml.safe_dump(changed))
    if stage == "report":  # a log, and no input: the times of commands that the page shows, but for its own
        log = (built / "data/times.jsonl").read_text().splitlines(keepends=True)
        (world / "data/times.jsonl").write_text("".join(line for line in log if '"stages.report"' not in line))
    before = files(tmp_path)
    done = call(world, "sh", "-c", locked["cmd"], PYTHONDONTWRITEBYTECODE="1")
    assert done.returncode == 0, done.stdout + done.stderr
    outs = {str(path.relative_to(built)) for out in locked["outs"] for path in tree(built / out["path"])}
    assert outs
    for name in sorted(outs):
        assert (world / name).read_bytes() == (built / name).read_bytes(), name
    logs = (".snakemake/", "data/checkpoints/", "data/times.jsonl")
    new = {str(path.relative_to(world)) for path in files(tmp_path) - before}
    assert {name for name in new if not name.startswith(logs)} == outs


def different(value):
    """Another value of the same kind, which is allowed where this one is."""
    if isinstance(value, dict):
        return {name: different(each) for name, each in value.items()}
    if isinstance(value, list):
        return [different(each) for each in value[:1]] or [1]
    if isinstance(value, bool):
        return not value
    if value is None:
        return 2
    if isinstance(value, str):
        if re.fullmatch(r"\de-\d", value):  # a number to YAML 1.2, text to YAML 1.1
            return f"{value}0"
        words = {"bf16": "float32", "val": "train", "trainaug": "trainval_aug", "imagenet1k_v1": "imagenet1k_features"}
        return words.get(value, f"{value}x")
    return (2 * value or 1) if isinstance(value, int) else value / 2


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
