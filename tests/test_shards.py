import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages import shards
from stages.cli import InputError, whole

ROWS = st.lists(
    st.tuples(st.text(max_size=3), st.binary(max_size=9), st.lists(st.integers(-5, 5), max_size=3)),
    min_size=1,
    max_size=9,
)


def table(rows):
    ids, data, numbers = zip(*rows, strict=True)
    return pa.table({"id": pa.array(ids), "data": pa.array(data), "numbers": pa.array(numbers, pa.list_(pa.int32()))})


@given(rows=ROWS, cut=st.integers(0, 9))
def test_bytes_depend_on_the_rows_alone(rows, cut, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    whole_table = table(rows)
    pieces = pa.concat_tables([whole_table.slice(0, cut), whole_table.slice(cut)])
    shards.write(folder / "a", whole_table, "f")
    shards.write(folder / "b", pieces, "f")
    assert (folder / "a").read_bytes() == (folder / "b").read_bytes()
    assert shards.read(folder / "a").equals(whole_table)


def test_footer_says_content_and_fingerprint(tmp_path):
    shards.write(tmp_path / "a", table([("x", b"1", [])]), "f")
    shards.write(tmp_path / "b", table([("x", b"1", [])]), "g")
    shards.write(tmp_path / "c", table([("x", b"2", [])]), "f")
    a, b, c = (shards.footer(tmp_path / name) for name in "abc")
    assert (a["fingerprint"], b["fingerprint"]) == ("f", "g")
    assert a["content"] == b["content"] != c["content"]
    (tmp_path / "d").write_bytes(b"PAR1 no")
    assert shards.footer(tmp_path / "d") == shards.footer(tmp_path / "none") == {}
    with pytest.raises(InputError, match="d: not a readable parquet file"):
        shards.read(tmp_path / "d")


def test_fingerprint_changes_with_code_parameters_and_inputs_but_not_with_comments(tmp_path):
    module = tmp_path / "module.py"
    module.write_text("def f(x):\n    return x + 1\n")
    first = shards.fingerprint(module, {"a": 1}, "in")
    assert shards.fingerprint(module, {"a": 2}, "in") != first
    assert shards.fingerprint(module, {"a": 1}, "other") != first
    module.write_text('"""What it does."""\n\n# why\ndef f(x):\n    """Doc."""\n    return (x + 1)\n')
    assert shards.fingerprint(module, {"a": 1}, "in") == first
    module.write_text("def f(x):\n    return x + 2\n")
    assert shards.fingerprint(module, {"a": 1}, "in") != first


def test_closure_is_the_module_and_what_it_imports():
    stages = Path(shards.__file__).parent
    names = {path.name for path in shards.closure(stages / "proposals.py")}
    assert names == {"boxes.py", "cli.py", "config.py", "images.py", "proposals.py", "shards.py", "__init__.py"}
    assert {path.name for path in shards.closure(stages / "cli.py")} == {"cli.py"}


def test_whole_leaves_the_old_file_or_the_new_one(tmp_path):
    target = tmp_path / "file"
    target.write_text("old")
    os.link(target, tmp_path / "cache")  # DVC's cache is a hard link away
    with pytest.raises(RuntimeError), whole(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    with whole(target) as temporary:
        temporary.write_text("new")
    assert (target.read_text(), (tmp_path / "cache").read_text()) == ("new", "old")
    assert {path.name for path in tmp_path.iterdir()} == {"file", "cache"}


def test_whole_folder(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/old").touch()
    with pytest.raises(RuntimeError), whole(tmp_path / "out") as temporary:
        temporary.mkdir()
        (temporary / "half").touch()
        raise RuntimeError
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["old"]
    with whole(tmp_path / "out") as temporary:
        temporary.mkdir()
        (temporary / "new").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["new"]


def _write_slowly(path):
    with whole(path) as temporary:
        temporary.write_bytes(np.zeros(1000).tobytes())
        time.sleep(60)


def test_a_killed_writer_leaves_only_a_temporary_name(tmp_path):
    process = multiprocessing.get_context("fork").Process(target=_write_slowly, args=(tmp_path / "file",))
    process.start()
    while not list(tmp_path.iterdir()):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    [left] = tmp_path.iterdir()
    assert left.name.startswith(".file.")
    assert left.suffix == ".tmp"


def test_a_folder_is_no_place_for_a_file(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/kept").touch()
    with (
        pytest.raises(InputError, match="out: is a folder, but a file is to be written"),
        whole(tmp_path / "out") as file,
    ):
        file.write_text("text")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "kept"]
