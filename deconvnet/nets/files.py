"""Model files.

A model file is a dictionary that `torch.load(weights_only=True)` reads: `spec` (all that `nets.build` needs), `state`
(the state dict, float32) and `about` (how it was made: settings, hashes of code and data, metrics; and what inference
needs beside the net: `classes`, their names; `windows`, `context` and `square` of DeconvNet's; `canvas` (px) and
`scale` of FCN's).
"""

import json
import zipfile
from pathlib import Path

import torch
from torch import nn

from deconvnet import nets
from deconvnet.errors import InputError
from deconvnet.files import whole


def save(path: str | Path, spec: dict, state: dict, about: dict) -> None:
    """Write a model file, whole or not at all. Equal arguments give equal bytes."""
    spec, about = json.loads(json.dumps([spec, about]))  # pickle shows which objects are one; these are all their own
    with whole(path) as temporary, open(temporary, "wb") as file:  # a file, not a name: torch writes the name into it
        torch.save({"spec": spec, "state": state, "about": about}, file)


def read(path: str | Path) -> dict:
    """The dictionary of a model file, its tensors on the CPU."""
    try:
        if zipfile.ZipFile(path).testzip():  # torch.load looks at no checksum
            raise ValueError("damaged; `chmod u+w`, `touch` and remove it, then `dvc pull` or `dvc repro`")
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path}: no such model; run the stage that trains it") from None
    except Exception as error:
        raise InputError(f"{path}: not a model file: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(saved, dict) or not {"spec", "state", "about"} <= saved.keys():
        raise InputError(f"{path}: not a model file of this project: it lacks spec, state or about")
    return saved


def load(path: str | Path) -> tuple[nn.Module, dict]:
    """The net of a model file, in evaluation mode, and its `about`."""
    saved = read(path)
    net = nets.build(saved["spec"])
    load_state(net, saved["state"], path)
    return net.eval(), saved["about"]


def load_state(net: nn.Module, state: dict, path: str | Path) -> None:
    """Put all of `state` into `net`; an InputError names the layers that differ."""
    wanted = net.state_dict()
    differing = [
        f"{name} {_shape(state, name)} (the net wants {_shape(wanted, name)})"
        for name in dict.fromkeys([*wanted, *state])
        if _shape(state, name) != _shape(wanted, name)
    ]
    if differing:
        more = f" and {len(differing) - 6} more" if len(differing) > 6 else ""
        raise InputError(f"{path}: of another network or class count: {'; '.join(differing[:6])}{more}")
    net.load_state_dict(state)


def _shape(state: dict, name: str) -> str:
    return "x".join(map(str, state[name].shape)) or "scalar" if name in state else "absent"
