import errno
import os

import cv2
import numpy as np
import pytest
import torch

from deconvnet.errors import InputError
from experiment.cli import call


def raising(error):
    def main(_):
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "an output: No space left on device; .*: make room, run"),
        (OSError(errno.EFBIG, "File too large", "a.png"), "a.png: File too large; .* make room"),
        (PermissionError(errno.EACCES, "Permission denied", "a"), "a: Permission denied; .* grant access"),
        (
            OSError(errno.ENAMETOOLONG, "File name too long", "x" * 300),
            r"xxx\[...\]xxx.*: File name too long; ",
        ),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", b"a\xff"), "a.*: Not a directory"),
        (MemoryError(), "out of memory; nothing half-written is left: lower"),
    ],
)
def test_what_the_machine_refuses_is_one_line(error, said):
    with pytest.raises(InputError, match=said):
        call(raising(error), [])


@pytest.mark.parametrize(
    "work",
    [
        lambda _: np.zeros(1 << 60, np.uint8),
        lambda _: torch.zeros(1 << 58),
        lambda _: cv2.resize(np.zeros((9, 9), np.uint8), (1 << 30, 1 << 30)),
    ],
)
def test_memory_that_no_machine_has(work):
    with pytest.raises(InputError, match="out of memory"):
        call(work, [])


@pytest.mark.parametrize("error", [ValueError("a mistake of ours"), OSError("ours"), RuntimeError("size mismatch")])
def test_our_own_mistakes_keep_their_traceback(error):
    with pytest.raises(type(error)):
        call(raising(error), [])


def test_a_real_loop_of_links(tmp_path):
    os.symlink(tmp_path / "a", tmp_path / "a")
    with pytest.raises(InputError, match="a: Too many levels of symbolic links; .* correct the path"):
        call(lambda _: open(tmp_path / "a"), [])
