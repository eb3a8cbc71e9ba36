"""What a fingerprint depends on, and what not."""

from pathlib import Path

import pyarrow as pa
import pytest

from deconvnet import provenance, tables
from deconvnet.errors import InputError
from deconvnet.settings import Crops, ObjectCrops

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project of a stage, a library of two modules, and plumbing."""
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    files = {
        "stages/__init__.py": '"""Stages."""\n',
        "stages/one.py": "import numpy\nfrom deconvnet import errors, net\nX = net.f(1)\n",
        "deconvnet/__init__.py": "EXPORTS = {}\n",
        "deconvnet/errors.py": "class InputError(Exception): pass\n",
        "deconvnet/net/__init__.py": "from deconvnet.net.layer import g\ndef f(x):\n    return g(x) + 1\n",
        "deconvnet/net/layer.py": "def g(x):\n    return 2 * x\n",
        "deconvnet/other.py": "Y = 1\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def names(paths, root):
    return {str(path.relative_to(root)) for path in paths}


def test_closure_is_what_is_imported_directly_or_not_but_no_plumbing(project):
    found = names(provenance.closure(project / "stages/one.py"), project)
    assert found == {"stages/one.py", "deconvnet/net/__init__.py", "deconvnet/net/layer.py"}


def test_what_the_project_s_own_stages_depend_on():
    found = names(provenance.closure(REPOSITORY / "stages/proposals.py"), REPOSITORY)
    assert found == {"stages/proposals.py"} | {
        f"deconvnet/{name}.py" for name in ("boxes", "images", "proposals", "tables")
    }
    for path in (REPOSITORY / "stages").glob("[!_]*.py"):
        assert not names(provenance.closure(path), REPOSITORY) & provenance.PLUMBING
    assert {path for path in provenance.PLUMBING if not (REPOSITORY / path).exists()} <= {"experiment/check.py"}


BEFORE = """
import argparse

def f(x, say):
    if x < 0:
        raise ValueError(f"{x} is negative")
    print("half", x)
    say(f"x is {x}")
    parser.add_argument("--x", help="a number", type=int)
    bar = progress(x, desc="working")
    bar.set_postfix_str("one")
    return [x + 1]
"""
SAME = '''
"""A module."""

import argparse  # why

def f(x, say):
    """What it does."""
    if x < 0:  # checked
        raise ValueError(
            f"{x} must not be negative, but be {abs(x)} say"
        )
    print("done", x, flush=True)
    say("x")
    parser.add_argument("--x", help="another", type=int)
    bar = progress(x, desc="still")
    bar.set_postfix_str("two", refresh=False)
    return [(x + 1)]
'''


def test_words_are_no_part_of_the_code(project):
    module = project / "stages/one.py"
    module.write_text(BEFORE)
    first = provenance.code(module)
    module.write_text(SAME)
    assert provenance.code(module) == first


@pytest.mark.parametrize(
    "old, new",
    [
        ("x + 1", "x + 2"),
        ("x < 0", "x <= 0"),
        ("ValueError(", "KeyError("),
        ("type=int", "type=float"),
        ('"--x"', '"--y"'),
        ("progress(x", "progress(-x"),
        ("[x + 1]", "(x + 1,)"),
        ("raise ValueError(f", "g(ValueError(f"),
    ],
)
def test_whatever_is_computed_is(project, old, new):
    module = project / "stages/one.py"
    module.write_text(BEFORE)
    first = provenance.code(module)
    assert BEFORE.count(old) == 1
    changed = BEFORE.replace(old, new)
    module.write_text(changed.replace('negative")', 'negative"))') if "g(Val" in new else changed)
    assert provenance.code(module) != first


def test_an_edit_of_an_imported_module_counts_and_one_of_plumbing_does_not(project):
    stage = project / "stages/one.py"
    first = provenance.code(stage)
    (project / "deconvnet/errors.py").write_text("class InputError(ValueError): pass\n")
    (project / "deconvnet/other.py").write_text("Y = 2\n")
    assert provenance.code(stage) == first
    (project / "deconvnet/net/layer.py").write_text("def g(x):\n    return 3 * x\n")
    assert provenance.code(stage) != first


def test_parameters_and_inputs_count(project):
    stage = project / "stages/one.py"
    first = provenance.fingerprint(stage, {"a": 1}, "in")
    assert provenance.fingerprint(stage, {"a": 1}, "in") == first
    assert provenance.fingerprint(stage, {"a": 2}, "in") != first
    assert provenance.fingerprint(stage, {"a": 1}, "other") != first
    assert provenance.fingerprint(stage, {"a": 1}) != first
    assert provenance.fingerprint(stage, Crops(), "in") == provenance.fingerprint(stage, Crops(), "in")
    other = Crops(stage1=ObjectCrops(per_class=1))  # a change deep inside
    assert provenance.fingerprint(stage, other, "in") != provenance.fingerprint(stage, Crops(), "in")


def test_content_is_that_of_the_rows_and_of_no_fingerprint(tmp_path):
    for folder, rows, mark in (("a", [1, 2], "f"), ("b", [1, 2], "g"), ("c", [1, 3], "f")):
        for number, row in enumerate(rows):
            tables.write(tmp_path / f"{folder}/train-{number}.parquet", pa.table({"x": [row]}), mark)
    a, b, c = (provenance.content(tmp_path / name) for name in "abc")
    assert a == b != c
    assert provenance.content(tmp_path / "a/train-0.parquet", tmp_path / "a/train-1.parquet") == a
    (tmp_path / "b/train-1.parquet").chmod(0o644)
    (tmp_path / "b/train-1.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="b/train-1.parquet: missing or damaged"):
        provenance.content(tmp_path / "b")
    with pytest.raises(InputError, match="none.parquet: missing or damaged"):
        provenance.content(tmp_path / "none.parquet")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty: missing or damaged"):
        provenance.content(tmp_path / "empty")


def test_files_by_name(tmp_path):
    (tmp_path / "vgg").write_bytes(b"abc")
    # sha256 of "abc", as FIPS 180-2 prints it
    assert provenance.files(vgg=tmp_path / "vgg") == {
        "vgg": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    }
