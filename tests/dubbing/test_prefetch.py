"""Items computed ahead in a thread."""

import threading
from collections.abc import Iterator
from contextlib import closing

import pytest

from dubbing.prefetch import Prefetch
from utils.errors import UserError


def test_items_and_exceptions_are_passed_on() -> None:
    assert list(Prefetch(iter(range(100)), 3)) == list(range(100))

    def breaks() -> Iterator[int]:
        yield 1
        raise UserError("broken")

    items = Prefetch(breaks(), 3)
    assert next(items) == 1
    with pytest.raises(UserError, match="broken"):
        next(items)


def test_closing_cancels_the_next_item() -> None:
    started, cancelled = threading.Event(), threading.Event()

    def slow() -> Iterator[int]:
        yield 1
        started.set()
        cancelled.wait()

    items = Prefetch(slow(), 3, cancelled.set)
    assert next(items) == 1
    started.wait()
    items.close()  # would otherwise block


def test_waiting_is_reported_and_may_end_it() -> None:
    cancelled = threading.Event()

    def slow() -> Iterator[int]:
        cancelled.wait()
        yield 1

    def give_up() -> None:
        raise UserError("given up")

    with closing(Prefetch(slow(), 3, cancelled.set, give_up)) as items, pytest.raises(UserError, match="given up"):
        next(items)


def test_closing_stops_the_thread() -> None:
    produced, closed = [], []

    def numbers() -> Iterator[int]:
        try:
            for number in range(10_000):
                produced.append(number)
                yield number
        finally:
            closed.append(True)

    items = Prefetch(numbers(), 3)
    assert [next(items), next(items)] == [0, 1]
    items.close()
    assert closed == [True]
    assert len(produced) <= 7
