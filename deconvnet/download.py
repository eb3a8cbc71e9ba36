"""Download one file from the first of several addresses that gives it, checked and continued after any interruption.

Addresses are mirrors of one file: http(s)://, file:, or a plain path (~, absolute, or relative to the working
directory), tried in turn. What has arrived waits in `<file>.part`, from which a later attempt, mirror or run continues;
`file` itself appears only once its size and its checksums hold.
"""

import errno
import functools
import hashlib
import itertools
import os
import re
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from deconvnet.errors import InputError
from deconvnet.files import sync
from deconvnet.progress import progress

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
class Expected:
    """What is known of a file. All that is known must hold."""

    bytes: int | None = None
    md5: str | None = None
    sha256: str | None = None  # or its first digits, 8 at least: torchvision's file names carry 8
    git_blob: str | None = None  # what `git hash-object` says: sha1 of "blob SIZE\0" and the content

    @property
    def checksums(self) -> dict[str, str]:
        """Expected hex digits by algorithm; none where nothing vouches for the content."""
        names = ("md5", "sha256", "git_blob")
        return {name: value.lower() for name in names if (value := getattr(self, name))}

    def wrong(self, path: Path) -> str:
        """Why the file at `path` is not the expected one, in a few words; empty when it is. The size comes first."""
        if not (size := _size(path)):
            return "the file is empty"  # which would read as: not used
        if problem := self.wrong_size(size):
            return problem
        found = digests(path, self.checksums)
        for name, digits in self.checksums.items():
            if not (got := found[name]).startswith(digits):
                return f"corrupted, or another file: {name} expected {digits}, got {got[: len(digits)]}"
        return ""

    def wrong_size(self, size: int) -> str:
        return f"another file: {self.bytes:,} bytes expected, got {size:,}" if self.bytes not in (None, size) else ""

    def __str__(self) -> str:
        known = [f"{self.bytes:,} bytes"] if self.bytes else []
        return ", ".join(known + [f"{name} {digits}" for name, digits in self.checksums.items()])


def fetch(
    path: str | Path,
    addresses: Sequence[str],
    expected: Expected = Expected(),
    patience: Patience = Patience(),
    remedy: str = "give its path as an address",
) -> None:
    """Make the file `path` from the first address that gives it. A file that is there and as expected is left alone.

    remedy: what to do with a copy got by hand where no address gives the file, for the error's message.
    Raises InputError when no address gives the file or the disk is full (its .part stays), OSError when the folder
    cannot be written.
    """
    file = Path(path)
    part = file.with_name(f"{file.name}.part")
    if file.is_dir() or part.is_dir():
        raise InputError(f"{file}: it or {part.name} is a folder; remove it, or name another file")
    reasons = []
    if expected.checksums and _size(file):
        if not (problem := expected.wrong(file)):
            say(f"{file}: present, checksum holds")
            return
        say(f"{file}: {problem}; fetching it")
        reasons.append(f"the present file: {problem}")
    file.parent.mkdir(parents=True, exist_ok=True)
    for address in addresses:
        say(f"{file}: from {address}")
        try:
            if re.match("https?:", address, re.IGNORECASE):
                download(address, part, expected, patience)
            else:
                copy(address, part, expected)
        except Failed as failure:
            # Whole all the same? A server may announce more than there is; a kill may fall just before the rename.
            if not expected.checksums or not part.is_file() or expected.wrong(part):
                say(f"{file}: {failure}")
                reasons.append(f"{address}: {failure}")
                continue
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            advice = "make room and run again: what has arrived is kept and continued"
            raise InputError(f"{part}: {error.strerror}; {advice}") from None
        os.replace(part, file)  # in the place of DVC's read-only hard link, not through it into the cache
        sync(file.parent)
        if expected.checksums:
            say(f"{file}: whole, checksum holds")
        else:
            found = digests(file, ["sha256"])["sha256"]
            say(f"{file}: whole as far as anyone can tell; to pin it, add `sha256: {found}` beside its addresses")
        return
    copy_of = f"{_name(addresses) or file.name} ({expected})" if str(expected) else _name(addresses) or file.name
    own = f"save it as {file}, or " if expected.checksums else ""
    raise InputError(
        f"{file}: no address gave it ({'; '.join(reasons)}); get a copy of {copy_of} by hand and {own}{remedy}"
    )


def download(address: str, part: Path, expected: Expected, patience: Patience) -> None:
    """Fetch `address` into `part`, continuing what is there. Raises Failed.

    Without a checksum nothing would reveal a mix of two files: then only what this very call received is continued.
    """
    if not expected.checksums:
        part.unlink(missing_ok=True)
    mirror = Mirror(address, patience.timeout, expected)
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
        problem = expected.wrong(part)
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
    expected: Expected
    answers: bool = False
    ranges: bool = True  # False once it has answered with another range than asked for
    validator: str = ""  # the strong ETag, or Last-Modified, of what it gave

    def transfer(self, part: Path) -> bool:
        """Make one request and append its body to `part`, or replace `part`. Returns whether it continued `part`.

        Raises Dropped when another attempt may help, Failed when not.
        """
        import requests  # here, so that the library imports without it
        import urllib3

        offset = _size(part) if self.ranges else 0
        if self.expected.bytes and offset > self.expected.bytes:
            offset = 0  # what is there is another file
        headers = {"Accept-Encoding": "identity"}
        if offset:
            headers["Range"] = f"bytes={offset}-"
            # Not where a checksum decides, as the machines behind one name disagree on ETags.
            if self.validator and not self.expected.checksums:
                headers["If-Range"] = self.validator
        try:
            response = requests.get(self.address, headers=headers, stream=True, timeout=self.timeout)
        except requests.RequestException as error:
            # MaxRetryError: no connection. Worth waiting for in mid-download; at the start the next mirror is quicker.
            unreached = bool(error.args) and isinstance(error.args[0], urllib3.exceptions.MaxRetryError)
            passing = isinstance(error, (requests.ConnectionError, requests.Timeout))
            raise (Dropped if passing and (self.answers or not unreached) else Failed)(_root(error)) from None
        except (ValueError, OverflowError, urllib3.exceptions.HTTPError) as error:  # it redirects to what is no address
            raise Failed(f"leads nowhere: {_root(error)}") from None
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
            total = int(total) if total and total.isdecimal() and len(total) < 20 else None
            if total is not None and (problem := self.expected.wrong_size(total)):
                raise Failed(problem)
            etag = response.headers.get("ETag", "W/")
            self.validator = response.headers.get("Last-Modified", "") if etag.startswith("W/") else etag
            # Not iter_content: it would unpack a .tgz that the server labels "Content-Encoding: x-gzip".
            body = response.raw.stream(CHUNK, decode_content=False)
            try:
                head = next(body, b"")
                if not offset and re.match(rb"(\xef\xbb\xbf)?\s*<(!doctype\s+html|html)\b", head, re.IGNORECASE):
                    raise Failed("the body looks like an HTML page, not like the file")  # and `part` is still whole
                _write(itertools.chain([head], body), part, offset, total, self.expected.bytes)
            except urllib3.exceptions.HTTPError as error:
                raise Dropped(f"the transfer broke off: {_root(error)}") from None
        if total is not None and _size(part) != total:
            raise Dropped(f"{total} bytes were announced, {_size(part)} came")
        return offset > 0


def copy(address: str, part: Path, expected: Expected) -> None:
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
        size = os.fstat(stream.fileno()).st_size
        if size and (problem := expected.wrong_size(size)):
            raise Failed(problem)
        if not (part.exists() and part.samefile(source)):  # someone may point at the .part itself
            _write(_chunks(stream), part, 0, size)
    if problem := expected.wrong(part):
        part.unlink()
        raise Failed(problem)


def digests(path: Path, names: Iterable[str]) -> dict[str, str]:
    """The hex digests of a file by the algorithms `names`, in one reading."""
    made = {name: hashlib.new("sha1" if name == "git_blob" else name, usedforsecurity=False) for name in names}
    if "git_blob" in made:
        made["git_blob"].update(b"blob %d\0" % _size(path))
    with path.open("rb") as stream:
        while made and (chunk := stream.read(1 << 20)):
            for algorithm in made.values():
                algorithm.update(chunk)
    return {name: algorithm.hexdigest() for name, algorithm in made.items()}


def _name(addresses: Sequence[str]) -> str:
    """What the file is called where it comes from."""
    return Path(unquote(urlsplit(addresses[0]).path)).name if addresses else ""


def _write(chunks: Iterable[bytes], part: Path, offset: int, total: int | None, most: int | None = None) -> None:
    """Write `chunks` at `offset`, the end of `part` or 0, under a progress bar; on the disk when it returns.

    Raises Failed when more than `most` bytes come.
    """
    options = {"total": total, "initial": offset, "unit": "B", "unit_scale": True, "desc": part.stem}
    size = offset
    with part.open("ab" if offset else "wb") as out, progress(**options) as bar:
        for chunk in chunks:
            out.write(chunk)
            bar.update(len(chunk))
            size += len(chunk)
            if most and size > most:
                raise Failed(f"another file: {most:,} bytes expected, more came")
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
