"""Work ahead and behind: order, bounds, exceptions."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from deconvnet.overlap import ahead, behind


def test_items_made_ahead_come_in_order_and_few_wait():
    made = []

    def items():
        for number in range(20):
            made.append(number)
            yield number

    found = ahead(items(), 3)
    assert next(found) == 0
    time.sleep(0.3)
    assert len(made) == 5  # one taken, three ready, one that waits for a place
    assert list(found) == list(range(1, 20))


def test_an_exception_ahead_comes_after_the_items_before_it():
    def items():
        yield 1
        raise ValueError("no second")

    found = ahead(items(), 5)
    assert next(found) == 1
    with pytest.raises(ValueError, match="no second"):
        next(found)


def test_a_consumer_that_leaves_ends_the_thread():
    before, found = threading.active_count(), ahead(iter(range(1000)), 2)
    assert next(found) == 0
    found.close()
    end = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < end:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_results_behind_come_in_order_few_at_once_and_exceptions_at_their_turn():
    asked = []

    def works():
        for number in range(8):
            asked.append(number)
            yield lambda number=number: time.sleep(0.02 * (number % 3 == 0)) or 1 // (5 - number)

    with ThreadPoolExecutor(3) as pool:
        found = behind(pool, works(), 4)
        assert next(found) == 0
        assert asked == [0, 1, 2, 3]
        assert [next(found) for _ in range(4)] == [0, 0, 0, 1]
        with pytest.raises(ZeroDivisionError):
            next(found)


def test_what_makes_the_works_may_fail_too():
    def works():
        yield from [lambda: 1, lambda: 2]
        raise ValueError("no third")

    with ThreadPoolExecutor(1) as pool:
        found = behind(pool, works(), 9)
        assert [next(found), next(found)] == [1, 2]
        with pytest.raises(ValueError, match="no third"):
            next(found)
