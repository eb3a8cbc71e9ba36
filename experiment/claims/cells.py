"""Cells of the claims: an experiment varied in one point and trained with one seed, in a folder of its own.

A cell is an experiment like any other. Its params.yaml is that of the experiment which it varies, with the changes of
all cells, the variant's own and the seed; what it shares of data/ is a link. The DAG's stages run in it as they are.
Its folder is kept beside DVC, so that an interrupted training goes on from its checkpoint.
"""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import yaml

from deconvnet import fields
from deconvnet.errors import InputError
from deconvnet.fields import Range
from deconvnet.files import whole
from experiment import params as parameters

ROOT = Path(__file__).parents[2]
CELLS = Path("data/cells")
REFERENCE = "both_stages"  # the variant that the others are held against


@dataclass(frozen=True)
class Rates:
    """Learning rates of stage 2 that each of `variants` tries, on held-out images; other variants take REFERENCE's."""

    steps: Annotated[int, Range(1)]
    seed: Annotated[int, Range(0)]
    tried: list[Annotated[float, Range(0)]]
    variants: list[str]


@dataclass(frozen=True)
class Measures:
    sizes: list[Annotated[int, Range(1)]]  # px, areas at which one size of objects ends and the next begins
    boundary: list[Annotated[int, Range(1)]]  # px, widths of bands at boundaries
    thin: Annotated[int, Range(3)]  # px, odd; parts of objects that are narrower count as thin

    def __post_init__(self):
        if self.thin % 2 == 0:
            raise ValueError(f"thin: {self.thin} is not allowed; allowed: an odd number of px")


@dataclass(frozen=True)
class Rule:
    """When a claim holds: see `deconvnet.comparison.verdict`."""

    margin: Annotated[float, Range(0, 100)]  # points of mean IoU that are worth the name
    rounds: Annotated[int, Range(100)]  # draws of the bootstrap


@dataclass(frozen=True)
class Claims:
    """The parameter file of the claims, but for its free parts: `common` and `variants`, changes of params.yaml."""

    root: str
    experiment: str  # folder of the experiment that is varied
    seeds: list[Annotated[int, Range(0)]]
    rates: Rates
    measures: Measures
    rule: Rule
    common: dict
    variants: dict


def load(path: str = "params.yaml") -> Claims:
    """Read and check the parameter file of the claims. Raises InputError for the first thing wrong."""
    values = parameters.read(path)
    kinds = {field.name: field.type for field in dataclasses.fields(Claims)}
    for name in sorted(kinds.keys() ^ values.keys()):
        raise InputError(
            f"{path}: {name}: {'unknown' if name in values else 'missing'} section; allowed: {', '.join(kinds)}"
        )
    for name, changes in [("common", values["common"]), ("variants", values["variants"])]:
        if not isinstance(changes, dict):
            raise InputError(f"{path}: {name}: {changes!r} is not allowed; allowed: sections and values")
    for name, changes in values["variants"].items():
        trained = changes.get("trained", ["stage1"]) if isinstance(changes, dict) else None
        if trained not in (["stage1"], ["stage2"]):
            raise InputError(
                f"{path}: variants.{name}: {changes!r} is not allowed; allowed: changes of params.yaml, and trained: "
                "[stage1] or [stage2]"
            )
    if values["variants"].get(REFERENCE) != {}:
        raise InputError(f"{path}: variants.{REFERENCE}: has to be there, as {{}}: the others are held against it")
    free = {name: values[name] for name in ("common", "variants")}
    claims = Claims(**free, **{name: fields.parse(kind, values[name], str(path), name)
                               for name, kind in kinds.items() if name not in free})  # fmt: skip
    if strange := [name for name in claims.rates.variants if name not in claims.variants]:
        raise InputError(f"{path}: rates.variants: {strange[0]} is none of variants: {', '.join(claims.variants)}")
    if REFERENCE not in claims.rates.variants:
        raise InputError(f"{path}: rates.variants: {REFERENCE} has to be there: the others take its rate")
    if not (Path(claims.experiment) / "params.yaml").is_file():
        raise InputError(f"{path}: experiment: {claims.experiment}: has no params.yaml; name an experiment's folder")
    return claims


def merged(values: dict, changes: dict) -> dict:
    """`values` with `changes`, section by section."""
    both = values | changes
    return both | {
        key: merged(values[key], changes[key])
        for key in values.keys() & changes.keys()
        if isinstance(values[key], dict) and isinstance(changes[key], dict)
    }


class Diverged(Exception):
    """A training whose loss was not finite: a result, too."""


class Cell:
    """The folder of a cell, made on first use.

    changes: of the experiment's params.yaml, after `common`. shared: paths under data/ that are links, each with its
    target, beside the data set, the proposals, the encoder and, where no change touches them, the crops.
    """

    def __init__(self, claims: Claims, name: str, changes: dict, shared: dict[str, Path] | None = None):
        self.folder = CELLS / name
        experiment = Path(claims.experiment)
        values = merged(merged(parameters.read(experiment / "params.yaml"), claims.common), changes)
        values["root"] = os.path.relpath(ROOT, self.folder)
        split = values["evaluate"]["split"]
        values["infer"] = values["infer"] | {"splits": [split]}
        own = ("crops",) if "crops" in changes | claims.common else ()
        shared = {
            name: experiment / "data" / name for name in ("dataset", "proposals", "crops", "weights") if name not in own
        } | (shared or {})
        (self.folder / "reports").mkdir(parents=True, exist_ok=True)
        with whole(self.folder / "params.yaml") as file:
            file.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
        self.params = parameters.load(self.folder / "params.yaml")
        for place, target in shared.items():
            if not Path(target).exists():
                raise InputError(f"{target}: missing; run `dvc repro` in {claims.experiment}, or here")
            link(self.folder / "data" / place, Path(target))

    def __truediv__(self, path: str) -> Path:
        return self.folder / path

    def workflow(self, stage: str, system: str = "") -> None:
        """Run a stage of workflow/ in the cell. Raises Diverged for a training whose loss was not finite."""
        options = ["--config", f"stage={stage}", *([f"system={system}"] if system else [])]
        self._run(["snakemake", "--snakefile", str(ROOT / "workflow/Snakefile"), *options])

    def module(self, name: str, *words: str) -> None:
        """Run `python -m stages.NAME WORDS` in the cell."""
        self._run([sys.executable, "-m", f"stages.{name}", *words])

    def _run(self, command: list[str]) -> None:
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(command, cwd=self.folder, env=environment, stderr=subprocess.PIPE)
        said = b""
        while part := os.read(process.stderr.fileno(), 65536):
            os.write(2, part)
            said = said[-10_000:] + part
        if status := process.wait():
            if re.search(rb"loss is (nan|-?inf) at step", said):
                raise Diverged
            sys.exit(status if status > 0 else 128 - status)  # it has said why


def link(path: Path, target: Path) -> None:
    """Make `path` a link to `target`, whatever it was."""
    target = target.absolute()
    if path.is_symlink() and path.readlink() == target:
        return
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


def crops(cell: Cell) -> None:
    """Cut the cell's own windows, of both stages."""
    for stage in ("stage1", "stage2"):
        proposals = ["--proposals", "data/proposals"] if stage == "stage2" else []
        cell.module("crops", stage, "--dataset", "data/dataset", *proposals, "--out", f"data/crops/{stage}.parquet",
                    "--balance", f"reports/crops_{stage}.csv", "--render", f"reports/crops_{stage}.png")  # fmt: skip


def variant(claims: Claims, name: str, seed: int) -> tuple[Cell, list[str]]:
    """The cell of a variant and a seed, and the stages that it trains."""
    chosen = json.loads(Path("data/rates.json").read_text())["chosen"]
    rate = chosen.get(name, chosen[REFERENCE])
    trained, changes = _changes(claims, name)
    stages = {stage: {"lr": rate} for stage in ("stage1", "stage2")}
    return Cell(claims, f"{name}-{seed}", merged({"train": stages, "training": {"seed": seed}}, changes)), trained


def rate(claims: Claims, name: str, lr: float) -> Cell:
    """The cell in which a variant's stage 2 tries a learning rate."""
    stage2 = {"lr": lr, "steps": claims.rates.steps, "validate_every": claims.rates.steps}
    tried = {"train": {"stage2": stage2}, "training": {"seed": claims.rates.seed}}
    return Cell(claims, f"rate-{name}-{lr:g}", merged(_changes(claims, name)[1], tried))


def _changes(claims: Claims, name: str) -> tuple[list[str], dict]:
    """The stages that a variant trains, and what it changes in params.yaml."""
    if name not in claims.variants:
        raise InputError(f"params.yaml: variants: has no {name}; allowed: {', '.join(claims.variants)}")
    changes = dict(claims.variants[name])
    return changes.pop("trained", ["stage1", "stage2"]), changes
