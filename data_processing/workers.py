"""Call a function for many items in processes of this machine, or on the workers of a Dask cluster."""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from logging.handlers import QueueHandler
from queue import SimpleQueue
from typing import Any, TypeVar
from uuid import uuid4

import joblib
from tqdm import tqdm

from utils.command_line import PACKAGES
from utils.errors import ParameterError, UserError

Item, Result = TypeVar("Item"), TypeVar("Result")
_lock = threading.Lock()
_kept: dict[str, Any] = {}  # what `load` returned in this worker, by call of `in_workers`


def in_workers(
    function: Callable[..., Result],
    items: Sequence[Item],
    jobs: int,
    scheduler: str | None,
    *,
    unit: str,
    description: str,
    load: Callable[[], Any] | None = None,
) -> Iterator[Result]:
    """Results of `function` for all items, as they are done, with a progress bar. Closing ends the work.

    What it logs in other processes is logged again in this one.

    Args:
        function: called with an item. It can be pickled, as must its results.
        jobs: number of processes; with 1 the function is called in this process.
        scheduler: address of a Dask scheduler, whose workers are used instead. They must see the same files.
        unit, description: of the progress bar.
        load: returns what `function` takes before the item, such as networks. Each worker calls it once.

    Raises:
        ParameterError: there is no scheduler at this address.
        Exception: what `function` or `load` raises, in other processes any user error as UserError; the work ends.
    """
    if scheduler or jobs != 1:
        results = _from_workers(partial(_call, function, load, uuid4().hex), items, jobs, scheduler)
    else:
        results = _here(function, items, load)
    with closing(results):
        yield from tqdm(results, total=len(items), unit=unit, desc=description)


def _here(
    function: Callable[..., Result], items: Sequence[Item], load: Callable[[], Any] | None
) -> Iterator[Result]:
    loaded = [load()] if load else []
    for item in items:
        yield function(*loaded, item)


def _from_workers(
    call: Callable[[Item], tuple[Result, list[logging.LogRecord]]],
    items: Sequence[Item],
    jobs: int,
    scheduler: str | None,
) -> Iterator[Result]:
    if scheduler:
        results = _on_cluster(call, items, scheduler)
    else:
        parallel = joblib.Parallel(jobs, return_as="generator_unordered")
        results = parallel(joblib.delayed(call)(item) for item in items)
    with closing(results):
        for result, records in results:
            for record in records:
                logging.getLogger(record.name).handle(record)
            yield result


def _call(
    function: Callable[..., Result], load: Callable[[], Any] | None, key: str, item: Item
) -> tuple[Result, list[logging.LogRecord]]:
    """In a worker: the result for one item, and what was logged. `key` names the call of `in_workers`."""
    with _recorded_logs() as records:
        try:
            loaded = [_loaded(load, key)] if load else []
            return function(*loaded, item), records
        except UserError as error:  # the types derived from it cannot be sent to another process
            raise UserError(str(error), parameter=error.parameter, path=error.path) from None


def _loaded(load: Callable[[], Any], key: str) -> Any:
    """What `load` returns, kept until another key is given: a worker of a cluster outlives the command."""
    with _lock:
        if key not in _kept:
            _kept.clear()
            _kept[key] = load()
        return _kept[key]


@contextmanager
def _recorded_logs() -> Iterator[list[logging.LogRecord]]:
    """At the end of the body, the list holds the log records of this project, which were not printed."""
    queue: SimpleQueue[logging.LogRecord] = SimpleQueue()
    handler = QueueHandler(queue)  # makes records that can be sent to another process
    loggers = [logging.getLogger(package) for package in PACKAGES]
    before = [(logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
    records: list[logging.LogRecord] = []
    try:
        yield records
    finally:
        for logger, (level, propagate) in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagate
        while not queue.empty():
            records.append(queue.get())


def _on_cluster(function: Callable[[Item], Result], items: Sequence[Item], address: str) -> Iterator[Result]:
    from distributed import Client, as_completed

    try:
        client = Client(address, timeout=10)
    except (OSError, ValueError, TimeoutError) as error:
        raise ParameterError("scheduler", f"no Dask scheduler at {address}: {error}") from None
    with client:
        futures = client.map(function, items, pure=False)  # the same item again is calculated again
        try:
            for future, result in as_completed(futures, with_results=True):
                future.release()
                yield result
        finally:
            client.cancel(futures)
