"""Section `fetch` of the parameter file."""

import re
from pathlib import Path

import pytest
import yaml

from deconvnet.errors import InputError
from deconvnet.fields import parse
from experiment.params import DrawnSbd, DrawnVoc, Fetch, Fetched

REPOSITORY = Path(__file__).parents[2]
MD5, SHA256, GIT_BLOB = "0a" * 16, "1b" * 32, "2c" * 20
GOOD = {
    "by": "stages/fetch.py",
    "file": "data/a.tar",
    "addresses": ["https://a/b", "~/a b.tar", "file:///a"],
    "bytes": 7,
    "md5": MD5,
    "sha256": SHA256[:8],
    "git_blob": GIT_BLOB,
}
DRAWN = {"by": "demo/world/archives.py", "file": "sbd.tgz", "seed": 1, "train": 1, "val": 1, "shared_train": 1,
         "shared_val": 1}  # fmt: skip
BY = '"stages/fetch.py" or "demo/world/archives.py"'


def section(folder, **changes):
    return yaml.safe_load((REPOSITORY / folder / "params.yaml").read_text())["fetch"] | changes


def load(folder="demo", **changes):
    return parse(Fetch, section(folder, **changes), "params.yaml", "fetch")


def test_who_makes_a_file_decides_which_keys_it_has():
    found = load(sbd=GOOD)
    assert isinstance(found.sbd, Fetched)
    assert isinstance(found.voc_trainval, DrawnVoc)
    assert isinstance(load(sbd=DRAWN | {"seed": found.voc_trainval.seed}).sbd, DrawnSbd)
    assert found.sbd.addresses == tuple(GOOD["addresses"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"md5": MD5[:-1]}, f"md5: {MD5[:-1]!r} is not allowed; allowed: 32 hex digits"),
        ({"md5": MD5 + "\n"}, "32 hex digits"),
        ({"md5": "g" * 32}, "32 hex digits"),
        ({"sha256": SHA256[:7]}, "8 to 64 hex digits"),
        ({"sha256": SHA256 + "0"}, "8 to 64 hex digits"),
        ({"sha256": 12345678}, "fetch.sbd.sha256: 12345678 is not allowed; allowed: text or null"),
        ({"git_blob": GIT_BLOB[:-1]}, "git_blob: .* 40 hex digits"),
        ({"bytes": 0}, "fetch.sbd.bytes: 0 is not allowed; allowed: a whole number from 1"),
        ({"bytes": "7"}, "fetch.sbd.bytes: '7' is not allowed"),
        ({"addresses": "https://a/b"}, "fetch.sbd.addresses: 'https://a/b' is not allowed; allowed: a list"),
        ({"addresses": ["ftp://a/b"]}, "addresses: 'ftp://a/b' is not allowed; allowed: https://, http://, file:"),
        ({"addresses": [" "]}, "addresses: ' ' is not allowed"),
        ({"file": ""}, "file: '' is not allowed; allowed: the path of a file inside the experiment folder"),
        ({"file": "../../x"}, "file: '../../x' is not allowed"),
        ({"file": "/etc/x"}, "file: '/etc/x' is not allowed"),
        ({"by": "shapes"}, f"fetch.sbd.by: 'shapes' is not allowed; allowed: {BY}"),
        ({"by": ["stages/fetch.py"]}, f"fetch.sbd.by: .* is not allowed; allowed: {BY}"),
        ({"md6": MD5}, "fetch.sbd.md6: unknown key .* allowed: by, file, addresses, bytes, md5, sha256, git_blob"),
    ],
)
def test_a_bad_entry_of_a_fetched_file(change, message):
    with pytest.raises(InputError, match=f"^params.yaml: (?=fetch.sbd).*{message}"):
        load(sbd=GOOD | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tran": 3}, "sbd.tran: unknown key (value 3); allowed: by, file, seed, train, val, shared_train, shared_val"),
        ({"val": -1}, "sbd.val: -1 is not allowed; allowed: a whole number from 0 to 999999"),
        ({"file": "/"}, "sbd: file: '/' is not allowed; allowed: the path of a file"),
        ({"seed": 2}, ": sbd.seed: 2 is not voc_trainval.seed 1: the images of both would differ"),
        ({"shared_val": 6}, ": sbd.shared_val: 6 is not allowed; allowed: at most voc_trainval.val, 5"),
        ({"shared_train": 5}, ": sbd.shared_train: 5 is not allowed; allowed: at most voc_trainval.train, 4"),
    ],
)
def test_a_bad_entry_of_a_drawn_archive_is_told_its_own_keys(change, message):
    voc = {name: value for name, value in DRAWN.items() if "shared" not in name} | {"train": 4, "val": 5}
    assert load(voc_trainval=voc, sbd=DRAWN).sbd.train == 1
    with pytest.raises(InputError, match=re.escape(message)):
        load(voc_trainval=voc, sbd=DRAWN | change)
    with pytest.raises(
        InputError, match="voc_trainval.shared_val: unknown key .* allowed: by, file, seed, train, val$"
    ):
        load(voc_trainval=voc | {"shared_val": 1}, sbd=DRAWN)


def test_what_cannot_be_drawn():
    with pytest.raises(InputError, match=r'fetch.vgg16.by: .* is not allowed; allowed: "stages/fetch.py"$'):
        load(vgg16=GOOD | {"by": "demo/world/archives.py"})
    entry = {name: value for name, value in GOOD.items() if name != "by"}
    with pytest.raises(InputError, match=f"fetch.sbd.by: missing; needed: {BY}"):
        load(sbd=entry)


def test_the_roots_files_are_known_by_size_and_checksum():
    """Whoever lowers this to a name would train on whatever a mirror gives."""
    found = load("")
    for name in ("voc_trainval", "voc_test", "sbd", "vgg16"):
        entry = getattr(found, name)
        assert entry.bytes > 500_000_000, name
        assert len(entry.sha256) == 64, name
    assert len(found.edge_model.git_blob) == 40
    assert len(found.voc_trainval.addresses) > 2
