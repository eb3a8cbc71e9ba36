"""The wheel holds the library alone and works with what its metadata names."""

import email
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Blocks every distribution but those given and what they need, as if the rest were not installed.
BLOCK = """
import importlib.metadata, importlib.abc, re, sys

def needed(names):
    found, waiting = set(), list(names)
    while waiting:
        name = re.sub("[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        found.add(name)
        try:
            wanted = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        waiting += [re.match("[A-Za-z0-9._-]+", line)[0] for line in wanted if "extra ==" not in line]
    return found

allowed = needed(sys.argv[1].split(","))
owners = importlib.metadata.packages_distributions()
blocked = {module for module, names in owners.items()
           if not any(re.sub("[-_.]+", "-", name).lower() in allowed for name in names)}
blocked |= {"experiment", "stages", "demo"}

class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked - {"deconvnet"}:
            raise ModuleNotFoundError(f"{name} is no dependency of the wheel", name=name)

sys.meta_path.insert(0, Block())
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built by setuptools as pip would have it, without the network."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "deconvnet", "stages", "experiment"):
        (source / name).symlink_to(ROOT / name)
    code = f"from setuptools import build_meta; print(build_meta.build_wheel({str(folder)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / done.stdout.split()[-1]


@pytest.fixture(scope="module")
def installed(wheel):
    """The wheel's content where `pip install --no-deps --target` would put it."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(wheel.parent / "site")
    return wheel.parent / "site"


def requirements(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("dist-info/METADATA"))
        found = email.message_from_bytes(archive.read(name)).get_all("Requires-Dist")
    return [re.match("[A-Za-z0-9._-]+", line)[0] for line in found if "extra" not in line]


def run(installed, wheel, code):
    """Run `code` on the installed wheel, outside of the repository, with its requirements alone."""
    code = f"{BLOCK}\nsys.path[:] = [p for p in sys.path if p != {str(ROOT)!r}]\n{code}"
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"PYTHONPATH": str(installed)}
    return subprocess.run(
        [sys.executable, "-c", code, ",".join(requirements(wheel))], cwd=installed.parent, env=env, text=True,
        capture_output=True,
    )  # fmt: skip


def test_it_holds_every_module_of_the_library_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "deconvnet").rglob("*.py")}
    assert names == modules | {"deconvnet/kernels/cpu.cpp"}


def test_a_prediction_with_its_requirements_alone(wheel, installed):
    done = run(installed, wheel, """
import numpy as np, torch
from deconvnet import Predictor, build, save
import deconvnet
assert "/site/deconvnet/" in deconvnet.__file__, deconvnet.__file__
size = {"width": 4, "fc_width": 16, "input_size": 64}
about = {"classes": ["background", "thing"], "windows": {"context": 1.2, "square": True}, "canvas": [64, 64]}
for kind in ("deconvnet", "fcn"):
    net = build({"kind": kind, "size": size, "classes": 2, "eps": None})
    save(f"{kind}.pt", net.spec, net.state_dict(), about)
image = np.random.default_rng(0).integers(0, 255, (80, 90, 3), np.uint8)
result = Predictor("deconvnet.pt", fcn="fcn.pt")(image)
result.save("labels.png")
print(result.labels.shape)
""")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[-2] == "(80, 90)"


def test_every_module_imports_but_for_the_extras(wheel, installed):
    done = run(installed, wheel, """
import importlib, pathlib
for path in sorted(pathlib.Path("site/deconvnet").rglob("*.py")):
    name = ".".join(path.relative_to("site").with_suffix("").parts).removesuffix(".__init__")
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        print(name, error.name.partition(".")[0])
""")  # fmt: skip
    assert done.returncode == 0, done.stderr
    # `pip install deconvnet[crf]`, `deconvnet[data]`
    assert set(done.stdout.splitlines()) <= {"deconvnet.crf pydensecrf", "deconvnet.download requests"}, done.stdout


def test_the_blocking_itself(wheel, installed):
    # jinja2 is not among them: PyTorch needs it
    for name in ("yaml", "dvc", "scipy", "pydensecrf", "matplotlib", "snakemake", "requests", "stages"):
        done = run(installed, wheel, f"import {name}")
        assert "is no dependency of the wheel" in done.stderr, name
