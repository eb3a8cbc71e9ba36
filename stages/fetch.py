"""Fetch one file of an experiment: section `fetch.KEY` of params.yaml -> its `file`, with the checksum verified.

Run in an experiment folder. `addresses` are mirrors of one file: http(s)://, file:, or a plain path (~, absolute, or
relative to the experiment folder), tried in turn. What has arrived waits in `<file>.part`, from which a later attempt,
mirror or run continues; `file` itself appears only once the checksum (md5, sha256 or the first digits of a sha256)
holds. An empty list of addresses means that the file is not used: then `file` is empty.
"""

import argparse
import errno
import functools
import hashlib
import itertools
import os
import re
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal
from urllib.parse import unquote

import requests
import urllib3

from stages.cli import InputError, progress, run, whole
from stages.config import load

CHUNK = 1 << 16  # bytes; the most that a kill loses

say = functools.partial(print, flush=True)


class Failed(Exception):
    """A mirror cannot give the file. The message is the reason, in a few words."""


class Dropped(Exception):
    """A transfer broke off or was put off; worth another attempt after `pause` seconds or more."""

    def __init__(self, reason: str, pause: float = 0.0):
        super().__init__(reason)
        self.pause = pause


@dataclass(frozen=True)
class Patience:
    attempts: int = 5  # at one mirror, in a row, none of which got `gain` further
    gain: int = 1 << 20  # bytes
    longest: float = 60.0  # s between two attempts
    timeout: tuple[float, float] = (15.0, 60.0)  # s to connect, s without a byte
    sleep: Callable[[float], None] = time.sleep


@dataclass(frozen=True)
class Params:
    by: Literal["fetch"]
    file: str  # relative to the experiment folder
    addresses: list[str]
    md5: str | None = None
    sha256: str | None = None  # or its first digits, 8 at least: torchvision's file names carry 8

    def __post_init__(self):
        if not Path(self.file).name:
            raise ValueError(f"file: {self.file!r} is not allowed; allowed: the path of a file")
        for address in self.addresses:
            if not address.strip() or re.match(r"(?!https?:|file:)[a-z][a-z0-9+.-]*://", address, re.IGNORECASE):
                raise ValueError(f"addresses: {address!r} is not allowed; allowed: http://, https://, file: or a path")
        for name, digits in (("md5", "32"), ("sha256", "8,64")):
            value = getattr(self, name)
            if value is not None and not re.fullmatch(f"[0-9a-fA-F]{{{digits}}}", value):
                raise ValueError(f"{name}: {value!r} is not allowed; allowed: {digits.replace(',', ' to ')} hex digits")

    @property
    def checksums(self) -> dict[str, str]:
        """Expected hex digits by algorithm; none where nothing vouches for the file."""
        return {name: value.lower() for name in ("md5", "sha256") if (value := getattr(self, name))}


def fetch(key: str, params: Params, patience: Patience = Patience()) -> None:
    """Make `params.file` from the first address that gives it; `key` is its name in messages.

    Raises InputError when no mirror gives the file or the disk is full (its .part stays), OSError when the folder
    cannot be written.
    """
    file = Path(params.file)
    part = file.with_name(f"{file.name}.part")
    if not params.addresses:
        with whole(file) as empty:
            empty.touch()
        say(f"{file}: not used, since fetch.{key}.addresses is empty; left as an empty file")
        return
    if file.is_dir() or part.is_dir():
        raise InputError(f"fetch.{key}.file: {file} or {part.name} is a folder; remove it, or name another file")
    if params.checksums and file.is_file() and not wrong(file, params.checksums):
        say(f"{file}: present, checksum holds")
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    reasons = []
    for address in params.addresses:
        say(f"{file}: from {address}")
        try:
            if re.match("https?:", address, re.IGNORECASE):
                download(address, part, params.checksums, patience)
            else:
                copy(address, part, params.checksums)
        except Failed as failure:
            # Whole all the same? A server may announce more than there is; a kill may fall just before the rename.
            if not params.checksums or not part.is_file() or wrong(part, params.checksums):
                say(f"{file}: {failure}")
                reasons.append(f"{address}: {failure}")
                continue
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            remedy = "make room and run again: what has arrived is kept and continued"
            raise InputError(f"{part}: {error.strerror}; {remedy}") from None
        os.replace(part, file)  # in the place of DVC's read-only hard link, not through it into the cache
        if params.checksums:
            say(f"{file}: whole, checksum holds")
        else:
            say(f"{file}: whole as far as anyone can tell; pin it, under fetch.{key} in params.yaml:")
            say(f"  sha256: {digest(file, 'sha256')}")
        return
    raise InputError(
        f"fetch.{key}: no mirror gave {file} ({'; '.join(reasons)}); download it by hand and put its path first in "
        f"fetch.{key}.addresses in params.yaml"
    )


def download(address: str, part: Path, checksums: dict[str, str], patience: Patience) -> None:
    """Fetch `address` into `part`, continuing what is there. Raises Failed.

    Without a checksum nothing would reveal a mix of two files: then only what this very call received is continued.
    """
    if not checksums:
        part.unlink(missing_ok=True)
    mirror = Mirror(address, patience.timeout, confirm=not checksums)
    drops, furthest, again = 0, _size(part), False
    while True:
        try:
            continued = mirror.transfer(part)
        except Dropped as drop:
            drops += 1
            if _size(part) >= furthest + patience.gain:
                drops, furthest = 1, _size(part)
            if drops >= patience.attempts:
                raise Failed(f"{drop} ({drops} attempts)") from None
            wait = min(max(2.0 ** (drops - 1), drop.pause), patience.longest)
            say(f"{part}: {drop}; again in {wait:g} s")
            patience.sleep(wait)
            continue
        problem = wrong(part, checksums)
        if not problem:
            return
        part.unlink()
        if again or not continued:
            raise Failed(problem)
        say(f"{part}: {problem}; it came in several pieces: once more from zero")
        drops, furthest, again = 0, 0, True


@dataclass
class Mirror:
    """One HTTP address, and what its answers teach from one transfer to the next."""

    address: str
    timeout: tuple[float, float]  # s to connect, s without a byte
    confirm: bool  # by If-Range; not where a checksum decides, as the machines behind one name disagree on ETags
    answers: bool = False
    ranges: bool = True  # False once it has answered with another range than asked for
    validator: str = ""  # the strong ETag, or Last-Modified, of what it gave

    def transfer(self, part: Path) -> bool:
        """Make one request and append its body to `part`, or replace `part`. Returns whether it continued `part`.

        Raises Dropped when another attempt may help, Failed when not.
        """
        offset = _size(part) if self.ranges else 0
        headers = {"Accept-Encoding": "identity"}
        if offset:
            headers["Range"] = f"bytes={offset}-"
            if self.confirm and self.validator:
                headers["If-Range"] = self.validator
        try:
            response = requests.get(self.address, headers=headers, stream=True, timeout=self.timeout)
        except requests.RequestException as error:
            # MaxRetryError: no connection. Worth waiting for in mid-download; at the start the next mirror is quicker.
            unreached = bool(error.args) and isinstance(error.args[0], urllib3.exceptions.MaxRetryError)
            passing = isinstance(error, (requests.ConnectionError, requests.Timeout))
            raise (Dropped if passing and (self.answers or not unreached) else Failed)(_root(error)) from None
        with response:
            self.answers = True
            status = response.status_code
            because = f"HTTP {status} {response.reason or ''}".strip()
            span = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", response.headers.get("Content-Range", ""))
            first, total = span.groups() if span else (None, None)
            if status == 416 and offset and total == str(offset):
                return True  # nothing is missing
            if status == 416 or status == 206 and first != str(offset):
                self.ranges = False
                raise Dropped(f"{because}, not the range asked for")
            if status in (408, 425, 429) or status >= 500:
                after = response.headers.get("Retry-After", "")
                raise Dropped(because, float(after) if after.isdecimal() else 0.0)
            if status == 200:
                offset, total = 0, response.headers.get("Content-Length")
            elif status != 206:
                raise Failed(because)
            total = int(total) if total and total.isdecimal() else None
            etag = response.headers.get("ETag", "W/")
            self.validator = response.headers.get("Last-Modified", "") if etag.startswith("W/") else etag
            # Not iter_content: it would unpack a .tgz that the server labels "Content-Encoding: x-gzip".
            body = response.raw.stream(CHUNK, decode_content=False)
            try:
                head = next(body, b"")
                if not offset and re.match(rb"(\xef\xbb\xbf)?\s*<(!doctype\s+html|html)\b", head, re.IGNORECASE):
                    raise Failed("the body looks like an HTML page, not like the file")  # and `part` is still whole
                _write(itertools.chain([head], body), part, offset, total)
            except urllib3.exceptions.HTTPError as error:
                raise Dropped(f"the transfer broke off: {_root(error)}") from None
        if total is not None and _size(part) != total:
            raise Dropped(f"{total} bytes were announced, {_size(part)} came")
        return offset > 0


def copy(address: str, part: Path, checksums: dict[str, str]) -> None:
    """Copy a plain path or file: address into `part`. Raises Failed."""
    if address[:5].lower() == "file:":
        address = unquote(re.sub(r"^//(localhost)?(?=/)", "", address[5:], flags=re.IGNORECASE))
    source = Path(os.path.expanduser(address))
    try:
        if not source.is_file():
            raise Failed("not a file" if source.exists() else "no such file")
        stream = source.open("rb")
    except OSError as error:
        raise Failed(error.strerror) from None
    with stream:
        if not (part.exists() and part.samefile(source)):  # someone may point at the .part itself
            _write(_chunks(stream), part, 0, os.fstat(stream.fileno()).st_size)
    if problem := wrong(part, checksums):
        part.unlink()
        raise Failed(problem)


def wrong(path: Path, checksums: dict[str, str]) -> str:
    """Why the file at `path` is not the expected one, in a few words; empty when it is."""
    if not _size(path):
        return "the file is empty"  # which would read as: not used
    for name, expected in checksums.items():
        if not (got := digest(path, name)).startswith(expected):
            return f"corrupted, or another file: {name} expected {expected}, got {got[: len(expected)]}"
    return ""


def digest(path: Path, name: str) -> str:
    """The hex digest of a file by the algorithm `name`."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.new(name, usedforsecurity=False)).hexdigest()


def _write(chunks: Iterable[bytes], part: Path, offset: int, total: int | None) -> None:
    """Write `chunks` at `offset`, the end of `part` or 0, under a progress bar; on the disk when it returns."""
    options = {"total": total, "initial": offset, "unit": "B", "unit_scale": True, "desc": part.stem}
    with part.open("ab" if offset else "wb") as out, progress(**options) as bar:
        for chunk in chunks:
            out.write(chunk)
            bar.update(len(chunk))
        out.flush()
        os.fsync(out.fileno())


def _chunks(stream: BinaryIO) -> Iterator[bytes]:
    try:
        while chunk := stream.read(1 << 20):
            yield chunk
    except OSError as error:
        raise Failed(f"reading it failed: {error.strerror}") from None


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _root(error: BaseException) -> str:
    """What lies at the bottom of requests' and urllib3's wrappings, in one short line."""
    while inner := error.__cause__ or error.__context__:
        error = inner
    if isinstance(error, socket.gaierror):
        return "host name not found (no network?)"
    return " ".join((getattr(error, "strerror", None) or str(error) or type(error).__name__).split())[:120]


def main(arguments: list[str]) -> None:
    summary, _, rest = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(prog="python -m stages.fetch", description=summary, epilog=rest)
    parser.add_argument("key", metavar="KEY", help="a key of `fetch` in params.yaml, such as voc_trainval")
    key = parser.parse_args(arguments).key
    fetch(key, load(Params, f"fetch.{key}"))


if __name__ == "__main__":
    run(main)
