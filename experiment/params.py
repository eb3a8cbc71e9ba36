"""The parameter file of an experiment, checked whole whenever anything starts.

Its sections are named after the stages that read them. `training` holds what all trainings share; a run may name any
of these keys too, and then its own value counts.
"""

import dataclasses
import json
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from deconvnet import settings
from deconvnet.errors import InputError
from deconvnet.fields import Range, parse, show
from deconvnet.files import read_plain

FOLDERS = ("images", "masks", "train", "val", "objects")  # folders, two lists of names, a folder that may lack
MOST = 256 * 1024  # bytes of a parameter file
RUNS = (("pretrain", "run"), ("train", "stage1"), ("train", "stage2"), ("train_fcn", "run"))
Shared = dataclasses.make_dataclass(
    "Shared",
    [(field.name, field.type) for field in dataclasses.fields(settings.Run) if field.name in settings.SHARED],
    frozen=True,
)


@dataclass(frozen=True)
class Fetched:
    """One file that the experiment starts from, downloaded or copied. What is known of it is checked (all of it)."""

    by: Literal["stages/fetch.py"]  # what makes it, seen from the root
    file: str  # where it goes, seen from the experiment folder
    addresses: list[str]  # mirrors, in the order in which they are tried; [] is "not used"
    bytes: Annotated[int, Range(1, 10**15)] | None = None
    md5: str | None = None
    sha256: str | None = None  # or its first digits, 8 at least
    git_blob: str | None = None  # what `git hash-object` says

    def __post_init__(self):
        _check_file(self.file)
        for address in self.addresses:
            if not address.strip() or re.match(r"(?!https?:|file:)[a-z][a-z0-9+.-]*://", address, re.IGNORECASE):
                raise ValueError(f"addresses: {show(address)} is not allowed; allowed: https://, http://, file:, path")
        for name, digits in (("md5", "32"), ("sha256", "8,64"), ("git_blob", "40")):
            value = getattr(self, name)
            if value is not None and not re.fullmatch(f"[0-9a-fA-F]{{{digits}}}", value):
                raise ValueError(f"{name}: {value!r} is not allowed; allowed: {digits.replace(',', ' to ')} hex digits")


@dataclass(frozen=True)
class DrawnVoc:
    """VOC's archive of the demo's world."""

    by: Literal["demo/world/archives.py"]
    file: str  # where the tar goes, seen from the experiment folder
    seed: settings.Seed
    train: Annotated[int, Range(1, 999_999)]  # images
    val: Annotated[int, Range(1, 999_999)]  # images

    def __post_init__(self):
        _check_file(self.file)


@dataclass(frozen=True)
class DrawnSbd:
    """SBD's archive of the demo's world."""

    by: Literal["demo/world/archives.py"]
    file: str  # where the tgz goes, seen from the experiment folder
    seed: settings.Seed
    train: Annotated[int, Range(0, 999_999)]  # images in SBD alone, listed in its train.txt
    val: Annotated[int, Range(0, 999_999)]  # images in SBD alone, listed in its val.txt
    shared_train: Annotated[int, Range(0, 999_999)]  # images of VOC's train that SBD has, too
    shared_val: Annotated[int, Range(0, 999_999)]  # images of VOC's val that SBD has, too

    def __post_init__(self):
        _check_file(self.file)
        if not self.train + self.val + self.shared_train + self.shared_val:
            raise ValueError("no images at all; allowed: at least one of train, val, shared_train, shared_val above 0")


@dataclass(frozen=True)
class Fetch:
    voc_trainval: Fetched | DrawnVoc
    voc_test: Fetched
    sbd: Fetched | DrawnSbd
    vgg16: Fetched
    edge_model: Fetched

    def __post_init__(self):
        voc, sbd = self.voc_trainval, self.sbd
        if not (isinstance(voc, DrawnVoc) and isinstance(sbd, DrawnSbd)):
            return
        if sbd.seed != voc.seed:
            raise ValueError(
                f"sbd.seed: {sbd.seed} is not voc_trainval.seed {voc.seed}: the images of both would differ"
            )
        for shared, own in (("shared_train", "train"), ("shared_val", "val")):
            if getattr(sbd, shared) > getattr(voc, own):
                raise ValueError(
                    f"sbd.{shared}: {getattr(sbd, shared)} is not allowed; allowed: at most voc_trainval.{own}, "
                    f"{getattr(voc, own)}"
                )


def _check_file(file: str) -> None:
    path = PurePosixPath(file)
    if not path.name or path.is_absolute() or ".." in path.parts or not file.isprintable():
        raise ValueError(f"file: {show(file)} is not allowed; allowed: the path of a file inside the experiment folder")


@dataclass(frozen=True)
class Report:
    examples: Annotated[int, Range(1, 1000)]  # images of each gallery: best, typical, worst
    side: Annotated[int, Range(32, 2048)]  # px, longer side of a picture


@dataclass(frozen=True)
class Params:
    """A whole parameter file."""

    root: str  # where stages/ and workflow/ lie, seen from the experiment folder
    fetch: Fetch
    dataset: settings.Dataset
    proposals: settings.EdgeBoxes
    crops: settings.Crops
    training: Shared
    pretrain: settings.Pretraining
    train: settings.Training
    reestimate: settings.Reestimation
    train_fcn: settings.FcnTraining
    infer: settings.Inference
    ensemble: settings.Ensemble
    crf: settings.Crf
    evaluate: settings.Evaluation
    report: Report
    folders: dict[str, str] = dataclasses.field(default_factory=dict)  # of kind `folders`: where they lie, by FOLDERS


def load(path: str | Path = "params.yaml") -> Params:
    """Read and check a parameter file, YAML or (by its suffix) JSON. Raises InputError for the first thing wrong."""
    values = read(path)
    sections = {field.name: field.type for field in dataclasses.fields(Params)}
    for name in values:
        if name not in sections:
            raise InputError(f"{path}: {name}: unknown section; allowed: {', '.join(sections)}")
    for name in sections:
        if name == "folders":
            values.setdefault(name, {})
        if name not in values:
            raise InputError(f"{path}: {name}: missing section; add it, or start from the repository's params.yaml")
    shared = parse(Shared, values["training"], str(path), "training")
    for section, run in RUNS:
        own = values[section].get(run) if isinstance(values[section], dict) else None
        if isinstance(own, dict):
            values[section] = values[section] | {run: vars(shared) | own}
    params = Params(**{name: parse(kind, values[name], str(path), name) for name, kind in sections.items()})
    _check_together(params, path)
    return params


def _check_together(params: Params, path: str | Path) -> None:
    """What spans several sections."""

    def refuse(key: str, reason: str):
        raise InputError(f"{path}: {key}: {reason}")

    if params.dataset.kind != "folders" and params.folders:
        refuse("folders", f"has {', '.join(params.folders)}, but dataset.kind is {params.dataset.kind}; set folders")
    if params.dataset.kind == "folders" and {*params.folders, "objects"} != {*FOLDERS}:
        refuse(
            "folders", f"has {', '.join(params.folders) or 'no key'}; allowed: {', '.join(FOLDERS)} (the last may lack)"
        )
    if len(params.evaluate.sizes) != 2:
        refuse("evaluate.sizes", f"{list(params.evaluate.sizes)} is not allowed; allowed: two areas in px, ascending")
    if params.evaluate.split not in params.infer.splits:
        refuse("evaluate.split", f"{params.evaluate.split} is not in infer.splits; add it there")
    for section, name in RUNS:
        run, key = getattr(getattr(params, section), name), f"{section}.{name}"
        for limit in ("warmup_steps", "validate_every"):
            if (value := getattr(run, limit)) > run.steps:
                refuse(f"{key}.{limit}", f"{value} is more than the run's {run.steps} steps; lower it")
        if isinstance(run.drop_at, tuple) and run.drop_at and run.drop_at[-1] >= run.steps:
            refuse(f"{key}.drop_at", f"{run.drop_at[-1]} is not before the run's {run.steps} steps end; lower it")
    if any(a < b for a, b in zip(settings.pair(params.train.resized), params.pretrain.size.shape, strict=True)):
        refuse("train.resized", f"{params.train.resized} is less than pretrain.size.input_size")
    if "test" in params.infer.splits and not params.fetch.voc_test.addresses:
        refuse("infer.splits", "test is named, but fetch.voc_test has no address; give it one")
    if params.proposals.edges == "structured" and not params.fetch.edge_model.addresses:
        refuse(
            "proposals.edges", "structured needs fetch.edge_model, which has no address; give it one, or set gradient"
        )


def read(path: str | Path = "params.yaml") -> dict:
    """The parameter file as plain values."""
    try:
        text = read_plain(path, MOST).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error})") from None
    except InputError as error:
        raise InputError(f"{error}; run inside an experiment folder, one with a params.yaml") from None
    language = "JSON" if str(path).endswith(".json") else "YAML"
    try:
        values = _json(text) if language == "JSON" else _yaml(text)
    except RecursionError:
        raise InputError(f"{path}: not valid {language}: nested too deep") from None
    except Exception as error:  # a value of a wrong tag raises what its reader happens to
        raise InputError(f"{path}: not valid {language}: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: holds no sections; start from the repository's params.yaml")
    return values


def _json(text: str):
    def unique(pairs: list) -> dict:
        for name, _ in pairs:
            if sum(name == other for other, _ in pairs) > 1:
                raise ValueError(f"the key {name!r} stands there twice")
        return dict(pairs)

    return json.loads(text, object_pairs_hook=unique)


def _yaml(text: str):
    """What the text holds, read as DVC reads it: by YAML 1.2, in which 010 is no octal number and 1:30 is text.

    Stricter: a number has no leading zero, which people read in two ways, and no key stands in a mapping twice.
    """
    import yaml  # here, so that a bare GPU machine without PyYAML can be given JSON

    class Loader(yaml.SafeLoader):
        yaml_implicit_resolvers = {}

        def construct_mapping(self, node, deep=False):
            names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            for key, _ in node.value:
                if key.value == "<<" or isinstance(key, yaml.ScalarNode) and names.count(key.value) > 1:
                    wrong = "merge keys are not read" if key.value == "<<" else f"the key {key.value!r} is there twice"
                    raise yaml.constructor.ConstructorError(None, None, wrong, key.start_mark)
            return super().construct_mapping(node, deep)

    for tag, pattern, first in (
        ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
        ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
        ("int", r"[-+]?(0|[1-9]\d*)", list("-+0123456789")),
        ("float", r"[-+]?((0|[1-9]\d*)(\.\d*)?|\.\d+)([eE][-+]?\d+)?", list("-+.0123456789")),
    ):
        Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(f"^(?:{pattern})$"), first)
    Loader.add_constructor("tag:yaml.org,2002:float", lambda loader, node: float(node.value))
    Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value))
    return yaml.load(text, Loader)  # a SafeLoader
