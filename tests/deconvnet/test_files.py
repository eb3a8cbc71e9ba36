import errno
import hashlib
import multiprocessing
import os
import signal
import time

import numpy as np
import pytest

from deconvnet import files
from deconvnet.errors import InputError
from deconvnet.files import file_hash, remove_unfinished, together, whole


@pytest.fixture
def recorded(monkeypatch):
    """What `whole` asks of the disk from now on: ("fsync" or "replace", name) in this order."""
    calls, fsync, replace = [], os.fsync, os.replace

    def synced(descriptor):
        calls.append(("fsync", os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))))
        fsync(descriptor)

    def replaced(source, target):
        calls.append(("replace", os.path.basename(target)))
        replace(source, target)

    monkeypatch.setattr(files.os, "fsync", synced)
    monkeypatch.setattr(files.os, "replace", replaced)
    return calls


def test_a_power_failure_leaves_the_old_file_or_the_new_one(tmp_path, recorded):
    """The content is on the disk before the name, and the name before it is said to be there."""
    (tmp_path / "file").write_text("old")
    with whole(tmp_path / "file") as temporary:
        temporary.write_text("new")
        assert recorded == []
    assert recorded == [("fsync", temporary.name), ("replace", "file"), ("fsync", tmp_path.name)]


def test_a_folder_s_own_names_are_on_the_disk_before_it_appears(tmp_path, recorded):
    with whole(tmp_path / "out") as temporary:
        temporary.mkdir()
        with whole(temporary / "inner") as file:
            file.write_text("text")
    assert recorded == [
        ("fsync", file.name), ("replace", "inner"), ("fsync", temporary.name),
        ("fsync", temporary.name), ("replace", "out"), ("fsync", tmp_path.name),
    ]  # fmt: skip


def test_nothing_is_renamed_after_an_error(tmp_path, recorded):
    with pytest.raises(RuntimeError), whole(tmp_path / "file") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert recorded == []


@pytest.mark.parametrize("number, goes_on", [(errno.EINVAL, True), (errno.ENOTSUP, True), (errno.EIO, False)])
def test_a_file_system_that_cannot_sync_is_no_error_a_failing_disk_is(tmp_path, monkeypatch, number, goes_on):
    def refused(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.os, "fsync", refused)
    try:
        with whole(tmp_path / "file") as temporary:
            temporary.write_text("new")
    except OSError:
        assert not goes_on
    assert (tmp_path / "file").exists() is goes_on
    assert len(list(tmp_path.iterdir())) == goes_on


def test_a_full_disk_names_the_file(tmp_path):
    with pytest.raises(OSError, match="No space left") as caught, whole(tmp_path / "file"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert caught.value.filename == str(tmp_path / "file")


def test_what_a_kill_left_is_found_by_who_continues_and_removed_by_all_others(tmp_path):
    def interrupted(mark):
        with pytest.raises(KeyboardInterrupt), whole(tmp_path / "out", continues=mark) as temporary:
            temporary.mkdir(exist_ok=True)
            (temporary / "piece").touch()
            files._remove, remove = lambda path: None, files._remove  # a kill runs no clean-up
            try:
                raise KeyboardInterrupt
            finally:
                os.rename(temporary, tmp_path / "kept")
                files._remove = remove
        os.rename(tmp_path / "kept", temporary)

    interrupted("one")
    with whole(tmp_path / "out", continues="one") as temporary:
        assert [path.name for path in temporary.iterdir()] == ["piece"]
    interrupted("one")
    with whole(tmp_path / "out", continues="two") as temporary:
        assert not temporary.exists()
        temporary.mkdir()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_signal_removes_what_is_unfinished_but_not_what_can_be_continued(tmp_path):
    with whole(tmp_path / "file") as file, whole(tmp_path / "out", continues="mark") as folder:
        file.write_text("half")
        folder.mkdir()
        remove_unfinished()
        assert not file.exists()
        assert folder.exists()
        file.write_text("whole")  # so that leaving succeeds


def test_file_hash(tmp_path):
    (tmp_path / "a").write_bytes(b"abc" * 100_000)
    assert file_hash(tmp_path / "a") == hashlib.sha256(b"abc" * 100_000).hexdigest()


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


def test_files_made_together_appear_when_all_are_made(tmp_path, recorded):
    (tmp_path / "a").write_text("old")
    with pytest.raises(RuntimeError), together():
        with whole(tmp_path / "a") as file:
            file.write_text("new")
        with whole(tmp_path / "b") as file:
            file.write_text("new")
        raise RuntimeError
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "old"}
    recorded.clear()
    with together():
        for name in ("a", "b"):
            with whole(tmp_path / name) as file:
                file.write_text("new")
        assert (tmp_path / "a").read_text() == "old"
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "new", "b": "new"}
    made = [f".{name}.{os.getpid()}.tmp" for name in ("a", "b")]
    assert recorded == [
        *(("fsync", name) for name in made),
        ("replace", "a"),
        ("replace", "b"),
        ("fsync", tmp_path.name),
    ]


def test_a_name_as_long_as_can_be(tmp_path):
    name = "\u00e4" * 127 + "x"  # 255 bytes
    with whole(tmp_path / name) as file:
        file.write_text("text")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_file_where_a_folder_is_to_be_is_found_before_the_work(tmp_path):
    (tmp_path / "out").touch()
    said = "out: is a file, but a folder is to be made there"
    with pytest.raises(InputError, match=said), whole(tmp_path / "out", continues="mark"):
        pytest.fail("it began")
