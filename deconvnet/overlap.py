"""Work at the same time: items made ahead of their use, results finished behind it, in order and few at once."""

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from typing import TypeVar

T = TypeVar("T")


def ahead(items: Iterable[T], depth: int) -> Iterator[T]:
    """The items, made by a thread that is up to `depth` of them ahead. Its exception is raised after the items before.

    Closing the iterator, as a `for` does that ends by an exception and the garbage collector, ends the thread.
    """
    ready: queue.Queue = queue.Queue(depth)
    closed = threading.Event()

    def put(entry: tuple) -> None:
        while not closed.is_set():
            try:
                return ready.put(entry, timeout=0.1)
            except queue.Full:
                pass

    def produce() -> None:
        try:
            for item in items:
                put((item, None))
                if closed.is_set():
                    return
            put((None, StopIteration()))
        except BaseException as error:
            put((None, error))

    threading.Thread(target=produce, daemon=True).start()
    try:
        while True:
            item, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item
    finally:
        closed.set()


def behind(pool: Executor, works: Iterable[Callable[[], T]], depth: int) -> Iterator[T]:
    """What each of `works` returns, in their order, computed in `pool` with up to `depth` of them waiting or at work.

    An exception, of one of them or of the iterable that they come from, is raised after the results before it.
    """
    pending, works, error = deque(), iter(works), None
    while True:
        try:
            pending.append(pool.submit(next(works)))
        except StopIteration:
            break
        except Exception as raised:
            error = raised
            break
        if len(pending) >= depth:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()
    if error is not None:
        raise error
