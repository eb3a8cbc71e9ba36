"""Progress bars that also read well in a log file."""

import sys

from tqdm import tqdm


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
