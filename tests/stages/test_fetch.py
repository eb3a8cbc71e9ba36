"""The stage's command line; the downloading itself is in tests/deconvnet/test_download.py."""

import hashlib
import os
from pathlib import Path

import pytest
import yaml

from deconvnet.errors import InputError
from stages import fetch

BODY = b"an archive" * 1000
ENTRY = {"by": "stages/fetch.py", "file": "data/archives/sbd.tgz"}


def write(experiment, **entry):
    path = experiment / "params.yaml"
    values = yaml.safe_load(path.read_text())
    values["fetch"]["sbd"] = ENTRY | entry
    path.write_text(yaml.safe_dump(values))


def test_no_addresses_means_not_used(experiment, capsys):
    write(experiment, addresses=[])
    file = experiment / "data/archives/sbd.tgz"
    for _ in range(2):  # nothing there before; then something, which must not stay
        fetch.main(["sbd"])
        assert file.read_bytes() == b""
        assert capsys.readouterr().out == (
            "data/archives/sbd.tgz: not used, since fetch.sbd.addresses is empty; left as an empty file\n"
        )
        os.unlink(file)
        file.write_bytes(BODY)


def test_a_copy_s_path_is_an_address_and_all_that_is_known_is_checked(experiment, capsys):
    Path("mine.tgz").write_bytes(BODY)
    known = {
        "bytes": len(BODY),
        "md5": hashlib.md5(BODY).hexdigest(),
        "sha256": hashlib.sha256(BODY).hexdigest(),
        "git_blob": hashlib.sha1(b"blob %d\0" % len(BODY) + BODY).hexdigest(),
    }
    for name, value in known.items():
        write(experiment, addresses=["mine.tgz"], **known | {name: value + 1 if name == "bytes" else value[::-1]})
        with pytest.raises(InputError, match="another file") as caught:
            fetch.main(["sbd"])
        assert str(caught.value).endswith("or put its path first in fetch.sbd.addresses in params.yaml")
        assert not Path(ENTRY["file"]).exists()
    write(experiment, addresses=["mine.tgz"], **known)
    fetch.main(["sbd"])
    assert Path(ENTRY["file"]).read_bytes() == BODY
    capsys.readouterr()
    os.unlink("mine.tgz")
    fetch.main(["sbd"])
    assert capsys.readouterr().out == "data/archives/sbd.tgz: present, checksum holds\n"


def test_command_line(experiment, capsys):
    with pytest.raises(SystemExit) as ended:
        fetch.main(["--help"])
    assert ended.value.code == 0
    assert "addresses" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        fetch.main(["voc"])
    assert "voc_trainval" in capsys.readouterr().err
    with pytest.raises(InputError, match="fetch.sbd.by: demo/world/archives.py, not stages/fetch.py"):
        fetch.main(["sbd"])  # the demo's own entry


def test_any_mistake_in_the_file_ends_it_at_once(experiment):
    values = yaml.safe_load(Path("params.yaml").read_text())
    values["crf"]["iteratons"] = 3
    Path("params.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(InputError, match="crf.iteratons: unknown key"):
        fetch.main(["vgg16"])
