"""The table of times, from records of commands."""

import json

import pytest

from experiment import times


@pytest.fixture
def record(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "data/times"
    folder.mkdir(parents=True)

    def write(name: str, module: str, arguments: list[str], seconds: float, date: str = "2026-01-01T00:00:00+00:00"):
        entry = {"module": module, "arguments": arguments, "seconds": seconds, "date": date}
        (folder / f"{name}.json").write_text(json.dumps(entry))

    write.folder = folder
    return write


def test_of_every_command_the_last_run_counts(record, capsys):
    record("1", "infer", ["a"], 9)
    record("2", "infer", ["b"], 2)
    record("3", "crf", [], 1.5, "2026-01-01T00:00:01+00:00")
    record("0", "infer", ["a"], 3, "2026-01-01T00:00:02+00:00")  # from a machine whose clock counts otherwise
    times.main()
    assert [line.split() for line in capsys.readouterr().out.splitlines()[:3]] == [
        ["stage", "commands", "seconds"], ["infer", "2", "5.0"], ["crf", "1", "1.5"],
    ]  # fmt: skip


def test_unreadable_records_are_one_warning(record, capsys):
    record("1", "infer", ["a"], 9)
    for name, text in (("2", "{"), ("3", "[]"), ("4", '{"module": "crf"}'), ("5", '"text"')):
        (record.folder / f"{name}.json").write_text(text)
    (record.folder / "6.json").write_bytes(b"\xff")
    (record.folder / "7.json").mkdir()
    times.main()
    *_, warning = capsys.readouterr().out.splitlines()
    assert warning == "warning: data/times/2.json and 5 more: not readable, left out; delete them"


def test_no_records(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    times.main()
    assert capsys.readouterr().out == "data/times: no times; run this in an experiment folder, after `dvc repro`\n"
