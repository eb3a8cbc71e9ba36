"""Parameters: a section of params.yaml read into a frozen dataclass, strictly.

Each stage module declares its section as a dataclass beside the code that uses it. A field's type is its check:

    @dataclass(frozen=True)
    class Params:
        boxes: Annotated[int, Range(1)]             # the comment gives the unit and the source
        edges: Literal["structured", "gradient"]

    params = load(Params, "proposals")

An unknown or missing key, a wrong type and a value out of range raise `InputError` with one line that names the
file, the key, the value and what is allowed. `__post_init__` may raise ValueError for what spans several fields.
"""

import dataclasses
import json
import math
import re
import types
import typing
from pathlib import Path

from stages.cli import InputError

# Top-level keys of params.yaml that are no stage's section: where the code lies, seen from the experiment folder.
SHARED = {"root"}

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


def load(cls: type[T], section: str, path: str | Path = "params.yaml") -> T:
    """Read `section` of the parameter file (YAML, or JSON by its suffix) as an instance of `cls`.

    A dotted section descends: "train.stage1".
    """
    value = read(path)
    for key in (keys := section.split(".")):
        if not isinstance(value, dict) or key not in value:
            raise InputError(f"{path}: {section}: missing section; add it, or start from the repository's params.yaml")
        value = value[key]
    return _convert(cls, value, path, ".".join(keys))


def read(path: str | Path = "params.yaml") -> dict:
    """The parameter file as plain values. Its top-level keys must be `root` or the name of a module in stages/."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; run inside an experiment folder, one with a params.yaml") from None
    if str(path).endswith(".json"):
        values = json.loads(text)
    else:
        import yaml  # here, so that a bare GPU machine without PyYAML can be given JSON

        try:
            values = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: holds no sections; start from the repository's params.yaml")
    known = SHARED | {module.stem for module in Path(__file__).parent.glob("[a-z]*.py")}
    for key in values:
        if key not in known:
            sections = ", ".join(sorted(known))
            raise InputError(
                f"{path}: {key}: unknown section; a section is named after a module in stages/: {sections}"
            )
    return values


def _convert(kind, value, path, key):
    """`value` as the type `kind`, or an InputError that names `path`, `key`, the value and what is allowed."""

    def wrong() -> InputError:
        return InputError(f"{path}: {key}: {value!r} is not allowed; allowed: {_describe(kind)}")

    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _convert_fields(kind, value, path, key)
    if origin is typing.Annotated:
        converted = _convert(arguments[0], value, path, key) if _fits(arguments[0], value) else None
        checks = [check for check in arguments[1:] if isinstance(check, Range)]
        if converted is None or not all(check.low <= converted <= check.high for check in checks):
            raise wrong()
        return converted
    if origin in (types.UnionType, typing.Union):
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
        return {name: _convert(arguments[1], item, path, f"{key}.{name}") for name, item in value.items()}
    return float(value) if kind is float else value


def _convert_fields(cls, value, path, key):
    fields = {field.name: field for field in dataclasses.fields(cls)}
    allowed = ", ".join(fields)
    if not isinstance(value, dict):
        raise InputError(f"{path}: {key}: {value!r} is not allowed; allowed: the keys {allowed}")
    for name in value:
        if name not in fields:
            raise InputError(f"{path}: {key}.{name}: unknown key (value {value[name]!r}); allowed: {allowed}")
    hints = typing.get_type_hints(cls, include_extras=True)
    converted = {}
    for name, field in fields.items():
        if name in value:
            converted[name] = _convert(hints[name], value[name], path, f"{key}.{name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise InputError(f"{path}: {key}.{name}: missing; needed: {_describe(hints[name])}")
    try:
        return cls(**converted)
    except ValueError as error:
        raise InputError(f"{path}: {key}: {error}") from None


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
        return bool(numeric) and not isinstance(value, bool) and math.isfinite(float(value))
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, type(None) if kind is None else kind)


def _describe(kind) -> str:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return " ".join([_describe(arguments[0]), *(str(check) for check in arguments[1:])])
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
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    return names[kind]
