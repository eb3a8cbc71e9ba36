"""Some cases of tests/fuzz.py with fixed seeds; thousands are run by hand."""

import pytest

from tests.fuzz import FAMILIES, fuzz


@pytest.mark.parametrize("family", FAMILIES)
def test_whatever_comes_in_ends_in_one_clear_line(family):
    counted, faults = fuzz(2015, {"parameters": 100}.get(family, 40), [family])
    assert not faults, "\n\n".join(faults)
    if family != "checkpoints":  # whose damage is said and made good
        assert counted[family, "clean"] > sum(counted.values()) / 4  # it does damage things
