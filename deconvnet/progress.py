"""Progress bars that also read well in a log file, and whose numbers can be followed."""

import sys
from collections.abc import Callable

from tqdm import tqdm

# Called with a bar and the numbers that it is given beside its text, and with None at its end. Nothing that is computed
# depends on them (`deconvnet.provenance` leaves them out).
followers: list[Callable[[tqdm, dict | None], None]] = []


class Bar(tqdm):
    """A tqdm bar that tells `followers` the numbers it is given."""

    def set_postfix_str(self, s: str = "", refresh: bool = True, **numbers) -> None:
        """Show a text; the numbers are for followers."""
        super().set_postfix_str(s, refresh)
        if numbers and not self.disable:
            for follow in followers:
                follow(self, numbers)

    def close(self) -> None:
        """End the bar."""
        if not self.disable:  # of another process, or closed already
            for follow in followers:
                follow(self, None)
        super().close()


def progress(iterable=None, **options) -> Bar:
    """A bar: live on a terminal, a line every ten seconds in a log file (Snakemake's, a cluster's)."""
    if sys.stderr.isatty():
        return Bar(iterable, dynamic_ncols=True, **options)
    return Bar(iterable, mininterval=10, ascii=True, ncols=100, file=_Lines(), **options)


class _Lines:
    """stderr for a bar that redraws itself: every drawing becomes a line, flushed."""

    def write(self, text: str) -> None:
        if text := text.strip():
            sys.stderr.write(text + "\n")

    def flush(self) -> None:
        sys.stderr.flush()
