"""Some cases of tests/fuzz.py with a fixed seed; thousands are run by hand."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

from tests.fuzz import FAMILIES, fuzz


def test_whatever_comes_in_ends_in_one_clear_line():
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:  # no other test's peak of memory
        counted, faults = fresh.submit(fuzz, 2015, 304, list(FAMILIES)).result()
    assert not faults, "\n\n".join(faults)
    for family in FAMILIES.keys() - {"checkpoints"}:  # whose damage is said and made good
        assert counted[family, "clean"] > 10, family  # it does damage things
