import re
from dataclasses import dataclass, field
from typing import Annotated, Literal

import pytest

from deconvnet.errors import InputError
from deconvnet.fields import Range, parse


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


def test_reads_and_converts():
    found = parse(Params, GOOD | {"flags": [True], "name": "x", "inner": {"rate": 1}}, "params.yaml", "crops")
    assert found == Params(3, "a", Inner(1.0), (True,), "x")
    assert isinstance(found.inner.rate, float)
    assert parse(Inner, {"rate": "1e-4"}, "params.yaml", "crops") == Inner(1e-4)  # YAML 1.1 reads 1e-4 as text
    assert parse(Params, GOOD, "params.yaml", "crops").flags == []


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
def test_names_file_key_value_and_what_is_allowed(change, message):
    with pytest.raises(InputError, match=f"^{re.escape(f'params.yaml: {message}')}$"):
        parse(Params, GOOD | change, "params.yaml", "crops")


@dataclass(frozen=True)
class Cat:
    kind: Literal["cat"]
    lives: int


@dataclass(frozen=True)
class Dog:
    kind: Literal["dog", "hound"]
    name: str


@dataclass(frozen=True)
class Pets:
    pet: Cat | Dog
    other: Cat | None = None


def test_one_of_several_dataclasses_is_told_by_its_first_field():
    assert parse(Pets, {"pet": {"kind": "cat", "lives": 9}}, "f", "k") == Pets(Cat("cat", 9))
    found = parse(Pets, {"pet": {"kind": "hound", "name": "Rex"}, "other": None}, "f", "k")
    assert found == Pets(Dog("hound", "Rex"))


@pytest.mark.parametrize(
    ("pet", "message"),
    [
        ({"kind": "dog", "lives": 9}, "f: k.pet.lives: unknown key (value 9); allowed: kind, name"),
        ({"kind": "dog"}, "f: k.pet.name: missing; needed: text"),
        ({"kind": "cow"}, 'f: k.pet.kind: \'cow\' is not allowed; allowed: "cat" or "dog", "hound"'),
        ({"kind": ["cat"]}, 'f: k.pet.kind: [\'cat\'] is not allowed; allowed: "cat" or "dog", "hound"'),
        ({"lives": 9}, 'f: k.pet.kind: missing; needed: "cat" or "dog", "hound"'),
        ("cat", "f: k.pet: 'cat' is not allowed; allowed: the keys kind, lives or the keys kind, name"),
    ],
)
def test_none_of_several_dataclasses(pet, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        parse(Pets, {"pet": pet}, "f", "k")


@dataclass(frozen=True)
class Defaults:
    size: int = 64  # what a Python user gets; a file must name it
    empty: tuple = ()
    none: int | None = None


def test_a_default_counts_in_python_alone_unless_it_is_empty():
    assert parse(Defaults, {"size": 64}, "f", "k") == Defaults()
    with pytest.raises(InputError, match="^f: k.size: missing; needed: a whole number$"):
        parse(Defaults, {}, "f", "k")
