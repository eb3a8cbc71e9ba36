import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pytest
import yaml

from stages import crops, dataset, fetch, proposals, shapes
from stages.cli import InputError
from stages.config import Range, load, read

REPOSITORY = Path(__file__).parents[1]


@dataclass(frozen=True)
class Inner:
    rate: Annotated[float, Range(0, 1)]


@dataclass(frozen=True)
class Params:
    number: Annotated[int, Range(1)]
    kind: Literal["a", "b"]
    inner: Inner
    flags: list[bool] = field(default_factory=list)
    name: str | None = None

    def __post_init__(self):
        if self.kind == "b" and self.number == 7:
            raise ValueError("number: 7 is not allowed with kind b; allowed: any other")


GOOD = {"number": 3, "kind": "a", "inner": {"rate": 0.5}}


def written(tmp_path, values, suffix="yaml"):
    path = tmp_path / f"params.{suffix}"
    path.write_text(yaml.safe_dump({"crops": values}))
    return path


def test_reads_and_converts(tmp_path):
    path = written(tmp_path, GOOD | {"flags": [True], "name": "x", "inner": {"rate": 1}})
    assert load(Params, "crops", path) == Params(3, "a", Inner(1.0), (True,), "x")
    assert load(Inner, "crops.inner", path) == Inner(1.0)
    path.write_text("crops: {rate: 1e-4}")  # YAML 1.1 reads this as text
    assert load(Inner, "crops", path) == Inner(1e-4)


def test_json_stands_in_for_yaml(tmp_path):
    path = tmp_path / "params.json"
    path.write_text('{"crops": {"rate": 0.25}}')
    assert load(Inner, "crops", path) == Inner(0.25)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"numbr": 3}, "crops.numbr: unknown key (value 3); allowed: number, kind, inner, flags, name"),
        ({"number": None}, "crops.number: None is not allowed; allowed: a whole number 1 or more"),
        ({"number": 0}, "crops.number: 0 is not allowed; allowed: a whole number 1 or more"),
        ({"number": True}, "crops.number: True is not allowed; allowed: a whole number 1 or more"),
        ({"number": 2.5}, "crops.number: 2.5 is not allowed; allowed: a whole number 1 or more"),
        ({"number": "3"}, "crops.number: '3' is not allowed; allowed: a whole number 1 or more"),
        ({"kind": "c"}, 'crops.kind: \'c\' is not allowed; allowed: "a", "b"'),
        ({"inner": {"rate": 1.5}}, "crops.inner.rate: 1.5 is not allowed; allowed: a number from 0 to 1"),
        ({"inner": {"rate": float("nan")}}, "crops.inner.rate: nan is not allowed; allowed: a number from 0 to 1"),
        ({"inner": {}}, "crops.inner.rate: missing; needed: a number from 0 to 1"),
        ({"inner": 4}, "crops.inner: 4 is not allowed; allowed: the keys rate"),
        ({"flags": [True, 1]}, "crops.flags[1]: 1 is not allowed; allowed: true or false"),
        ({"flags": True}, "crops.flags: True is not allowed; allowed: a list, each: true or false"),
        ({"name": 1}, "crops.name: 1 is not allowed; allowed: text or null"),
        ({"kind": "b", "number": 7}, "crops: number: 7 is not allowed with kind b; allowed: any other"),
    ],
)
def test_names_file_key_value_and_what_is_allowed(tmp_path, change, message):
    path = written(tmp_path, GOOD | change)
    with pytest.raises(InputError, match=f"^{re.escape(f'{path}: {message}')}$"):
        load(Params, "crops", path)


def test_file_and_sections(tmp_path):
    path = tmp_path / "params.yaml"
    with pytest.raises(InputError, match="No such file.*experiment folder"):
        read(path)
    path.write_text("crops: [")
    with pytest.raises(InputError, match="not valid YAML"):
        read(path)
    path.write_text("cropz: {}")
    with pytest.raises(InputError, match=r"cropz: unknown section.*crops, dataset"):
        read(path)
    path.write_text("root: .")
    with pytest.raises(InputError, match="crops: missing section"):
        load(Params, "crops", path)


@pytest.mark.parametrize("folder", [".", "demo"])
def test_the_repositorys_own_parameters_are_valid(folder):
    path = REPOSITORY / folder / "params.yaml"
    names = load(dataset.Params, "dataset", path).classes
    for section, cls in (("proposals", proposals.Params), ("crops", crops.Params)):
        load(cls, section, path)
    for key, value in read(path)["fetch"].items():
        kinds = {"voc_trainval": shapes.VocParams, "sbd": shapes.SbdParams}
        load(kinds[key] if value["by"] == "shapes" else fetch.Params, f"fetch.{key}", path)
    assert names[0] == "background"
    assert len(names) == (21 if folder == "." else len(shapes.CLASSES))
    if folder == "demo":
        assert names == shapes.CLASSES
