"""Some cases of tests/fuzz.py with a fixed seed; thousands are run by hand."""

from tests.fuzz import FAMILIES, fuzz


def test_whatever_comes_in_ends_in_one_clear_line():
    counted, faults = fuzz(2015, 304, list(FAMILIES))
    assert not faults, "\n\n".join(faults)
    for family in FAMILIES.keys() - {"checkpoints"}:  # whose damage is said and made good
        assert counted[family, "clean"] > 10, family  # it does damage things
