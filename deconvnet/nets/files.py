"""Model files.

A model file is a dictionary that `torch.load(weights_only=True)` reads: `spec` (all that `nets.build` needs), `state`
(the state dict, float32) and `about` (how it was made: settings, hashes of code and data, metrics; and what inference
needs beside the net: `classes`, their names; `windows`, `context` and `square` of DeconvNet's; `canvas` (px) and
`scale` of FCN's).
"""

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from deconvnet import fields, nets
from deconvnet.errors import InputError
from deconvnet.fields import Name, Range
from deconvnet.files import whole


@dataclass(frozen=True)
class Windows:
    context: Annotated[float, Range(1, 10)] | Literal["whole"]
    square: bool


@dataclass(frozen=True)
class About:
    """What inference takes from `about`, where it is there; the rest is for people."""

    classes: list[Annotated[str, Name()]] | None = None
    windows: Windows | None = None
    canvas: list[Annotated[int, Range(32, 8192)]] | None = None
    scale: Annotated[float, Range(0.1, 4)] | None = None
    provenance: dict | None = None

    def __post_init__(self):
        if self.canvas is not None and len(self.canvas) != 2:
            raise ValueError("canvas: allowed: two numbers of px: height and width")


def save(path: str | Path, spec: dict, state: dict, about: dict) -> None:
    """Write a model file, whole or not at all. Equal arguments give equal bytes."""
    spec, about = json.loads(json.dumps([spec, about]))  # pickle shows which objects are one; these are all their own
    with whole(path) as temporary:
        dump({"spec": spec, "state": state, "about": about}, temporary)


def dump(content: dict, path: Path) -> None:
    """torch.save, which on a full disk ends in an error of its own: here in the disk's."""
    with open(path, "wb") as file:  # a file, not a name: torch writes the name into it
        try:
            torch.save(content, file)
        except RuntimeError as error:
            raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None


def read(path: str | Path) -> dict:
    """The dictionary of a model file, its tensors on the CPU, checked: a spec that builds, weights that are finite."""
    try:
        check_zip(path)
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: no such model; run the stage that trains it") from None
    except Exception as error:
        raise InputError(
            f"{path}: not a model file: {' '.join(str(error).split())[:200]}; `chmod u+w`, `touch` and remove it, then "
            "`dvc pull` or `dvc repro`"
        ) from None
    if not isinstance(saved, dict) or not {"spec", "state", "about"} <= saved.keys():
        raise InputError(f"{path}: not a model file of this project: it lacks spec, state or about")
    spec, state, about = (saved[name] for name in ("spec", "state", "about"))
    if not isinstance(state, dict) or not isinstance(about, dict):
        raise InputError(f"{path}: not a model file of this project: its state or about is no dictionary")
    try:
        net = nets.build_empty(spec)  # no memory yet: the sizes may be anything
    except (TypeError, InputError) as error:
        raise InputError(f"{path}: its spec builds no net ({error}); train it again") from None
    check_weights(state, path)
    # VGG-16's weights that `pretrain` passes on may be a part, and have no batch norm
    check_shapes(net, state, path, part=spec["kind"] == "classifier" and spec["eps"] is None)
    fields.parse(About, {name: about[name] for name in vars(About()) if name in about}, str(path), "about")
    return saved


def check_zip(path: str | Path) -> None:
    """Raise ValueError where a checksum does not hold, which torch.load does not look at, and for compressed parts."""
    if not Path(path).exists():
        raise FileNotFoundError
    if not Path(path).is_file():
        raise ValueError("not a plain file")
    with zipfile.ZipFile(path) as archive:
        if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
            raise ValueError("compressed, as torch.save leaves no file")
        if archive.testzip():
            raise ValueError("damaged")


def check_weights(state: dict, path: str | Path) -> None:
    """Raise InputError for what is no tensor of numbers, and for numbers that are not finite."""
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
            raise InputError(f"{path}: state: {name}: not a tensor; train it again")
        if tensor.is_complex() or tensor.is_quantized or tensor.is_floating_point() and not finite(tensor):
            raise InputError(f"{path}: {name}: holds values that are not finite numbers; train it again")


def finite(tensor: Tensor) -> bool:
    """Whether all values are, without memory of their number."""
    return not tensor.numel() or bool(torch.isfinite(torch.stack(tensor.aminmax())).all())


def load(path: str | Path) -> tuple[nn.Module, dict]:
    """The net of a model file, in evaluation mode, and its `about`."""
    saved = read(path)
    net = nets.build(saved["spec"])
    load_state(net, saved["state"], path)
    return net.eval(), saved["about"]


def load_state(net: nn.Module, state: dict, path: str | Path) -> None:
    """Put all of `state` into `net`; an InputError names the layers that differ."""
    check_shapes(net, state, path)
    net.load_state_dict(state)


def check_shapes(net: nn.Module, state: dict, path: str | Path, part: bool = False) -> None:
    """Raise InputError, with the layers that differ, where `state` is not of the net's names and shapes.

    part: it may lack some.
    """
    wanted = net.state_dict()
    differing = [
        f"{name} {_shape(state, name)} (the net wants {_shape(wanted, name)})"
        for name in dict.fromkeys([*wanted, *state])
        if _shape(state, name) != _shape(wanted, name) and not (part and name not in state)
    ]
    if differing:
        more = f" and {len(differing) - 6} more" if len(differing) > 6 else ""
        raise InputError(f"{path}: of another network or class count: {'; '.join(differing[:6])}{more}")


def _shape(state: dict, name: str) -> str:
    return "x".join(map(str, state[name].shape)) or "scalar" if name in state else "absent"
