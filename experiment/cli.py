"""What every command of an experiment shares: errors as one line, clean ends, and how long it took."""

import datetime
import errno
import functools
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from deconvnet.errors import InputError
from deconvnet.files import FULL, remove_unfinished, whole
from experiment import live

ROOM, ACCESS = "make room", "grant access"
REMEDIES = dict.fromkeys(FULL, ROOM) | dict.fromkeys((errno.EACCES, errno.EROFS, errno.EPERM), ACCESS)
NAMELESS = (*REMEDIES, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
# What PyTorch, OpenCV and Python say where the memory ends, each by an exception of its own.
SCARCE = re.compile(r"alloc\w* (memory|\d+ bytes)|out of memory|insufficient memory|start new thread", re.IGNORECASE)
TIMES = Path("data/times")  # a file for every command that ended: no stage's output, since times differ
_ends: list[float] = []  # when this command began, and when each part of it that `record` was told of ended


def run(main: Callable[[list[str]], None]) -> None:
    """Call `main(arguments)` and turn what a user can mend into one line on stderr and exit status 1.

    The process ends in here. Ctrl-C and SIGTERM end it at once; the threads and processes of a pool would first finish
    what is queued.
    """
    _ends.append(time.monotonic())
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
        os.register_at_fork(after_in_child=functools.partial(signal.signal, number, signal.SIG_DFL))
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.reconfigure(errors="backslashreplace")  # a picture's name need not be text
    try:
        live.follow(sys.argv[1:])
        call(main, sys.argv[1:])
        if len(_ends) == 1:
            record(sys.argv[1:])
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)  # Python would first take apart all its modules, PyTorch's for up to a second
    except InputError as error:
        sys.exit(f"error: {error}")
    except BrokenPipeError:  # whoever read the output, such as `head`, has read enough
        os._exit(128 + signal.SIGPIPE)


def call(main: Callable[[list[str]], None], arguments: list[str]) -> None:
    """`main(arguments)`; what the machine refuses (files, disk, memory) becomes an InputError."""
    try:
        main(arguments)
    except OSError as error:
        place = error.filename2 or error.filename
        if not isinstance(error.errno, int) or not (place or error.errno in NAMELESS):
            raise
        place = os.fsdecode(place) if isinstance(place, (str, bytes)) else "an output"
        remedy = REMEDIES.get(error.errno, "correct the path")
        raise InputError(f"{place}: {error.strerror}; nothing half-written is left: {remedy}, run again") from None
    except InputError:
        raise
    except Exception as error:
        if not isinstance(error, MemoryError) and not SCARCE.search(str(error)):
            raise
        raise InputError(
            "out of memory; nothing half-written is left: lower the sizes and batches of params.yaml or take a machine "
            "with more, run again"
        ) from None


def _stop(number: int, _) -> None:
    remove_unfinished()
    os.write(2, b"interrupted; the same command continues\n")
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def record(arguments: list[str]) -> None:
    """Keep how long this command took, or its part that has just ended, which `arguments` alone would have made.

    A file of its own, since appending is not atomic on network file systems.
    """
    if not _ends or not (Path("data").is_dir() and Path("params.yaml").is_file()) or int(os.environ.get("RANK", 0)):
        return  # no command, no experiment, or another process of the group records it
    _ends.append(time.monotonic())
    entry = {"module": Path(sys.argv[0]).stem, "arguments": arguments, "seconds": round(_ends[-1] - _ends[-2], 2)}
    entry["date"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    with whole(TIMES / f"{time.time_ns()}-{os.getpid()}.json") as file:
        file.write_text(json.dumps(entry) + "\n", encoding="utf-8")
