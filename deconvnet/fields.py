"""Plain values (of a parameter file, of JSON) into frozen dataclasses, strictly.

A field's type is its check, with `Range`, `Distinct` and `Name`:

    @dataclass(frozen=True)
    class EdgeBoxes:
        boxes: Annotated[int, Range(1)] = 2000
        edges: Literal["structured", "gradient"] = "structured"

    edge_boxes = parse(EdgeBoxes, {"boxes": 1000, "edges": "gradient"}, "params.yaml", "proposals")

An unknown or missing key, a wrong type and a value out of range raise `InputError` with one line that names the file,
the key, the value and what is allowed. `__post_init__` may raise ValueError for what spans several fields. A default
counts only in Python: a file must name every key, so that whoever tracks the file tracks every number, but for keys
whose default is empty (None, (), {}). Where several dataclasses are allowed (`A | B`), the first field of each is a
Literal, by which they are told apart.
"""

import dataclasses
import json
import math
import re
import reprlib
import types
import typing

from deconvnet.errors import InputError

T = typing.TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Range:
    """Bounds of a number, both included."""

    low: float = -math.inf
    high: float = math.inf

    def __str__(self) -> str:
        if math.isinf(self.high):
            return f"{self.low} or more"
        return f"from {self.low} to {self.high}"

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high


@dataclasses.dataclass(frozen=True)
class Distinct:
    """Of a list: one or more values, none of them twice. ascending: each larger than the one before."""

    ascending: bool = False

    def __str__(self) -> str:
        return f"one or more different values{', ascending' if self.ascending else ''}"

    def holds(self, values: tuple) -> bool:
        if self.ascending and any(a >= b for a, b in zip(values, values[1:], strict=False)):
            return False
        return 0 < len(values) == len(set(values))


@dataclasses.dataclass(frozen=True)
class Name:
    """Of text: a name that can be shown: not empty, no control characters, no space at its ends, `longest` at most."""

    longest: int = 100

    def __str__(self) -> str:
        return f"of 1 to {self.longest} characters that can be shown, without a space at its ends"

    def holds(self, value: str) -> bool:
        return 0 < len(value) <= self.longest and value.isprintable() and value == value.strip()


def show(value: object) -> str:
    """A value for a message: short, however large it is."""
    return SHORT.repr(value)


SHORT = reprlib.Repr()
SHORT.maxstring = SHORT.maxother = SHORT.maxlong = 100
SHORT.maxlist = SHORT.maxtuple = SHORT.maxdict = 12
SHORT.maxlevel = 3


def parse(kind: type[T], value: object, source: str, key: str) -> T:
    """`value` as an instance of `kind`. `source` and `key` say in messages where the value comes from."""
    return _convert(kind, value, source, key)


def _convert(kind, value, path, key):
    """`value` as the type `kind`, or an InputError that names `path`, `key`, the value and what is allowed."""

    def wrong() -> InputError:
        return InputError(f"{path}: {key}: {show(value)} is not allowed; allowed: {_describe(kind)}")

    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _convert_fields(kind, value, path, key)
    if origin is typing.Annotated:
        converted = _convert(arguments[0], value, path, key) if _fits(arguments[0], value) else None
        if converted is None or not all(check.holds(converted) for check in arguments[1:]):
            raise wrong()
        return converted
    if origin in (types.UnionType, typing.Union):
        classes = [option for option in arguments if dataclasses.is_dataclass(option)]
        if len(classes) > 1 and isinstance(value, dict):
            return _convert_one_of(classes, value, path, key)
        for option in arguments:
            if _fits(option, value):
                return _convert(option, value, path, key)
        raise wrong()
    if origin is typing.Literal:
        if not any(value == option and type(value) is type(option) for option in arguments):
            raise wrong()
        return value
    if not _fits(kind, value):
        raise wrong()
    if origin in (list, tuple):
        return tuple(_convert(arguments[0], item, path, f"{key}[{index}]") for index, item in enumerate(value))
    if origin is dict:
        if strange := [name for name in value if not isinstance(name, str)]:
            raise InputError(f"{path}: {key}: {show(strange[0])}: not allowed as a key; allowed: text")
        return {name: _convert(arguments[1], item, path, f"{key}.{name}") for name, item in value.items()}
    return float(value) if kind is float else value


def _convert_fields(cls, value, path, key):
    fields = {field.name: field for field in dataclasses.fields(cls)}
    allowed = ", ".join(fields)
    if not isinstance(value, dict):
        raise InputError(f"{path}: {key}: {show(value)} is not allowed; allowed: the keys {allowed}")
    for name in value:
        if name not in fields:
            raise InputError(f"{path}: {key}.{name}: unknown key (value {show(value[name])}); allowed: {allowed}")
    hints = typing.get_type_hints(cls, include_extras=True)
    converted = {}
    for name, field in fields.items():
        if name in value:
            converted[name] = _convert(hints[name], value[name], path, f"{key}.{name}")
        elif not _may_be_absent(field):
            raise InputError(f"{path}: {key}.{name}: missing; needed: {_describe(hints[name])}")
    try:
        return cls(**converted)
    except ValueError as error:
        raise InputError(f"{path}: {key}: {error}") from None


def _convert_one_of(classes, value, path, key):
    """`value` as the one of several dataclasses whose first field, a Literal in each of them, has the value given."""
    name = dataclasses.fields(classes[0])[0].name
    kinds = [typing.get_type_hints(cls)[name] for cls in classes]
    if name not in value:
        raise InputError(f"{path}: {key}.{name}: missing; needed: {' or '.join(map(_describe, kinds))}")
    for cls, kind in zip(classes, kinds, strict=True):
        if _fits(kind, value[name]):
            return _convert_fields(cls, value, path, key)
    allowed = " or ".join(map(_describe, kinds))
    raise InputError(f"{path}: {key}.{name}: {show(value[name])} is not allowed; allowed: {allowed}")


def _may_be_absent(field: dataclasses.Field) -> bool:
    if field.default_factory is not dataclasses.MISSING:
        return not field.default_factory()
    return field.default is None or field.default == ()


def _fits(kind, value) -> bool:
    """Whether `value` has the outer type `kind`; what is inside is `_convert`'s to judge."""
    origin = typing.get_origin(kind)
    if origin is typing.Annotated:
        return _fits(typing.get_args(kind)[0], value)
    if origin is typing.Literal:
        return value in typing.get_args(kind)
    if dataclasses.is_dataclass(kind) or origin is dict:
        return isinstance(value, dict)
    if origin in (list, tuple):
        return isinstance(value, list)
    if kind is float:
        # YAML 1.1 (PyYAML) reads 1e-4 as text, YAML 1.2 (DVC's reader) as a number: take both.
        numeric = (
            isinstance(value, (int, float))
            or isinstance(value, str)
            and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value)
        )
        try:
            return bool(numeric) and not isinstance(value, bool) and math.isfinite(float(value))
        except OverflowError:  # a whole number of more than 308 digits
            return False
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, type(None) if kind is None else kind)


def _describe(kind) -> str:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        words = [_describe(arguments[0]), *(str(check) for check in arguments[1:])]
        return (", " if typing.get_origin(arguments[0]) is list else " ").join(words)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_describe(option) for option in arguments)
    if origin is typing.Literal:
        return ", ".join(json.dumps(option) for option in arguments)
    if dataclasses.is_dataclass(kind):
        return "the keys " + ", ".join(field.name for field in dataclasses.fields(kind))
    if origin in (list, tuple):
        return f"a list, each: {_describe(arguments[0])}"
    if origin is dict:
        return f"a mapping, each: {_describe(arguments[1])}"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null",
             dict: "a mapping"}  # fmt: skip
    return names[kind]
