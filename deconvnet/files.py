"""Files that appear whole or not at all, also when the power fails."""

import contextlib
import contextvars
import errno
import glob
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from deconvnet.errors import InputError

_unfinished: set[Path] = set()  # temporaries that this process is writing
_waiting: contextvars.ContextVar[dict[Path, Path] | None] = contextvars.ContextVar("waiting", default=None)
LONGEST = 255  # bytes of a file's name
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def whole(path: str | Path, continues: str = "") -> Iterator[Path]:
    """Yield a temporary name beside `path`, for a file or a folder; rename it on success, remove it on any error.

    The content is on the disk before the rename, and the rename before this returns (fsync of file and folder), so a
    power failure leaves the old file or the new one. A rename replaces DVC's read-only hard links instead of writing
    through them into the cache. The temporary name starts with a dot and ends in `.tmp`, which .dvcignore and the next
    run's clean-up know.

    continues: hash of all that a folder is made from. What a kill leaves of it is then found under the same name.

    Raises InputError, before anything is made, where a folder is wanted and a file is there.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    ending = f".{continues or os.getpid()}.tmp"
    name = _fitting(path.name, LONGEST - len(ending) - 1)
    temporary = path.with_name(f".{name}{ending}")
    for left in path.parent.glob(f".{glob.escape(name)}.*.tmp"):  # by a kill: no two processes write one name
        if left != temporary:
            _remove(left)
    if continues and path.exists() and not path.is_dir():
        raise InputError(f"{path}: is a file, but a folder is to be made there; name another")
    if not continues:
        _unfinished.add(temporary)
    waiting, made = _waiting.get(), False
    try:
        yield temporary
        sync(temporary)
        if path.is_dir() and not temporary.is_dir():
            raise InputError(f"{path}: is a folder, but a file is to be written there; name another")
        if waiting is None:
            _move(temporary, path)
            sync(path.parent)
        else:
            waiting[path] = temporary
        made = True
    except OSError as error:
        if error.errno in FULL and error.filename is None:  # write() does not name its file
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        if not made or waiting is None:
            _remove(temporary)
            _unfinished.discard(temporary)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Files that `whole` makes inside appear when this ends, all of them; on any error, none."""
    waiting: dict[Path, Path] = {}
    token = _waiting.set(waiting)
    try:
        yield
        for path, temporary in waiting.items():
            _move(temporary, path)
        for folder in dict.fromkeys(path.parent for path in waiting):
            sync(folder)
    finally:
        _waiting.reset(token)
        for temporary in waiting.values():
            _remove(temporary)
            _unfinished.discard(temporary)


def _move(temporary: Path, path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    os.replace(temporary, path)


def _fitting(name: str, most: int) -> str:
    """The name, or its begin and its hash where it has more than `most` bytes."""
    data = os.fsencode(name)
    if len(data) <= most:
        return name
    return os.fsdecode(data[: most - 17]) + "-" + hashlib.sha256(data).hexdigest()[:16]


def read_plain(path: str | Path, most: int) -> bytes:
    """The bytes of a plain file, `most` at most. Raises InputError for anything else, such as a pipe or a device."""
    path = Path(path)
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise InputError(f"{path}: not a plain file; name another")
        if size > most:
            raise InputError(f"{path}: {size:,} bytes, more than the {most:,} that are read; name another")
        with open(path, "rb") as file:
            return file.read(most + 1)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; name another") from None


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):  # some network file systems cannot
            raise
    finally:
        os.close(descriptor)


def remove_unfinished() -> None:
    """Remove what this process is writing, before it ends by a signal."""
    for temporary in tuple(_unfinished):
        _remove(temporary)


def list_files(path: Path) -> list[Path]:
    """The files of a folder (not of folders in it, and no hidden ones), or a file itself, sorted by name."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InputError(f"{path}: no such folder; correct its path")
    found = sorted(entry for entry in path.iterdir() if entry.is_file() and not entry.name.startswith("."))
    if strange := next((entry for entry in found if not entry.name.isprintable()), None):
        raise InputError(f"{path}: {strange.name!r}: a name with such characters cannot be listed; rename it")
    if not found:
        inside = " itself; folders in it are not looked into" if any(path.iterdir()) else ""
        raise InputError(f"{path}: holds no files{inside}; name the folder that holds them")
    return found


def file_hash(path: str | Path) -> str:
    """sha256 of a file's bytes, for inputs that are no tables."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remove(temporary: Path) -> None:
    if temporary.is_dir():
        shutil.rmtree(temporary, ignore_errors=True)
    else:
        temporary.unlink(missing_ok=True)
