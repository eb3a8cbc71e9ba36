"""What every stage's command line shares: errors as one line, files that appear whole or not at all, progress."""

import contextlib
import datetime
import errno
import functools
import glob
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tqdm import tqdm


class InputError(Exception):
    """Something the user can mend. The message is one line: the file or key, what is wrong with it, the remedy."""


def run(main: Callable[[list[str]], None]) -> None:
    """Call `main(arguments)` and turn what a user can mend into one line on stderr and exit status 1.

    How long it took goes to data/times.jsonl, which is no stage's output: times differ from run to run.
    Ctrl-C and SIGTERM end the process at once; the threads and processes of a pool would first finish what is queued.
    """
    begin = time.monotonic()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
        os.register_at_fork(after_in_child=functools.partial(signal.signal, number, signal.SIG_DFL))
    try:
        main(sys.argv[1:])
        _note_time(time.monotonic() - begin)
    except InputError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPERM):
            raise
        where = error.filename2 or error.filename or "an output"
        sys.exit(
            f"error: {where}: {error.strerror}; nothing half-written is left: make room or grant access, run again"
        )


def _stop(number: int, _) -> None:
    for temporary in tuple(_unfinished):
        _remove(temporary)
    os.write(2, b"interrupted; the same command continues\n")
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _note_time(seconds: float) -> None:
    if Path("data").is_dir() and Path("params.yaml").is_file():  # an experiment
        module = f"stages.{Path(sys.argv[0]).stem}"
        line = {"module": module, "arguments": sys.argv[1:], "seconds": round(seconds, 2)}
        line["date"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        with open("data/times.jsonl", "a") as file:  # appending one short line is atomic: shards may end together
            file.write(json.dumps(line) + "\n")


_unfinished: set[Path] = set()  # temporaries that this process is writing


@contextlib.contextmanager
def whole(path: str | Path, continues: str = "") -> Iterator[Path]:
    """Yield a temporary name beside `path`, for a file or a folder; rename it on success, remove it on any error.

    A rename replaces DVC's read-only hard links instead of writing through them into the cache. The temporary
    name starts with a dot and ends in `.tmp`, which .dvcignore and the next run's clean-up know.

    continues: hash of all that a folder is made from. What a kill leaves of it is then found under the same name.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{continues or os.getpid()}.tmp")
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):  # by a kill: no two processes write one name
        if left != temporary:
            _remove(left)
    if not continues:
        _unfinished.add(temporary)
    try:
        yield temporary
        if path.is_dir():
            if not temporary.is_dir():
                raise InputError(f"{path}: is a folder, but a file is to be written there; name another")
            shutil.rmtree(path)
        os.replace(temporary, path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT) and error.filename is None:  # write() does not name its file
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        _remove(temporary)
        _unfinished.discard(temporary)


def _remove(temporary: Path) -> None:
    if temporary.is_dir():
        shutil.rmtree(temporary, ignore_errors=True)
    else:
        temporary.unlink(missing_ok=True)


def progress(iterable=None, **options) -> tqdm:
    """A tqdm bar: live on a terminal, a line every ten seconds in a log file (Snakemake's, a cluster's)."""
    if sys.stderr.isatty():
        return tqdm(iterable, dynamic_ncols=True, **options)
    return tqdm(iterable, mininterval=10, ascii=True, ncols=100, file=_Lines(), **options)


class _Lines:
    """stderr for a bar that redraws itself: every drawing becomes a line, flushed."""

    def write(self, text: str) -> None:
        if text := text.strip():
            sys.stderr.write(text + "\n")

    def flush(self) -> None:
        sys.stderr.flush()
