"""Call a function for many items in processes of this machine, or on the workers of a Dask cluster."""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from functools import partial
from logging.handlers import QueueHandler
from typing import Any, TypeVar
from uuid import uuid4

import joblib
from tqdm import tqdm

from utils.command_line import PACKAGES
from utils.errors import ParameterError, UserError

ENDING_S = 10  # that an interrupted command waits for items which the workers of a cluster have begun
Item, Result = TypeVar("Item"), TypeVar("Result")
logger = logging.getLogger(__name__)
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

    What it logs in other processes is logged again in this one. On a cluster, closing waits for the items that have
    begun, ENDING_S at most; see `cancelled`.

    Args:
        function: called with an item. It can be pickled, as must its results.
        jobs: number of processes; with 1 the function is called in this process.
        scheduler: address of a Dask scheduler, whose workers are used instead. They must see the same files.
        unit, description: of the progress bar.
        load: returns what `function` takes before the item, such as networks. Each worker calls it once.

    Raises:
        ParameterError: there is no scheduler at this address, or a worker was killed.
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
    try:
        with closing(results):
            for result, records in results:
                for record in records:
                    logging.getLogger(record.name).handle(record)
                yield result
    except BrokenProcessPool:
        reason = "a worker process was killed, probably for lack of memory; use fewer processes"
        raise ParameterError("jobs", reason) from None


def _call(
    function: Callable[..., Result], load: Callable[[], Any] | None, key: str, item: Item
) -> tuple[Result, list[logging.LogRecord]]:
    """In a worker: the result for one item, and what was logged. `key` names the call of `in_workers`."""
    with _recorder.recording() as records:
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


class _LogRecorder(QueueHandler):
    """Keeps the log records of this project, which are not printed, while calls run in this worker.

    A record of a thread that a call has started belongs to the call, or to the first one if several run.
    """

    def __init__(self) -> None:
        super().__init__(None)  # makes records that can be sent to another process; `enqueue` needs no queue
        self._loggers = [logging.getLogger(package) for package in PACKAGES]
        self._before: list[tuple[int, bool]] = []
        self._records: dict[int, list[logging.LogRecord]] = {}  # by thread of the call

    def enqueue(self, record: logging.LogRecord) -> None:
        first = next(iter(self._records.values()), [])
        self._records.get(record.thread, first).append(record)

    @contextmanager
    def recording(self) -> Iterator[list[logging.LogRecord]]:
        """Records of the body, which is a call, as they come."""
        thread = threading.get_ident()
        with self.lock:  # held while `enqueue` is called, too
            if not self._records:
                self._begin()
            self._records[thread] = records = []
        try:
            yield records
        finally:
            with self.lock:
                del self._records[thread]
                if not self._records:
                    self._end()

    def _begin(self) -> None:
        self._before = [(logger.level, logger.propagate) for logger in self._loggers]
        for logger in self._loggers:
            logger.addHandler(self)
            logger.setLevel(logging.INFO)
            logger.propagate = False

    def _end(self) -> None:
        for logger, (level, propagate) in zip(self._loggers, self._before, strict=True):
            logger.removeHandler(self)
            logger.setLevel(level)
            logger.propagate = propagate


_recorder = _LogRecorder()


def cancelled() -> bool:
    """In a function that a worker of a cluster calls: whether the command that waits for it has ended."""
    from distributed import get_worker

    worker = get_worker()
    task = worker.state.tasks.get(worker.get_current_task())
    return task is None or task.state == "cancelled"


def _on_cluster(function: Callable[[Item], Result], items: Sequence[Item], address: str) -> Iterator[Result]:
    from distributed import Client, KilledWorker, as_completed

    try:
        client = Client(address, timeout=10)
    except (OSError, ValueError, TimeoutError) as error:
        raise ParameterError("scheduler", f"no Dask scheduler at {address}: {error}") from None
    with client:
        futures = client.map(function, items, pure=False)  # the same item again is calculated again
        waiting = {future.key for future in futures}
        try:
            for future, result in as_completed(futures, with_results=True):
                waiting.discard(future.key)
                future.release()
                yield result
        except KilledWorker:
            reason = "workers were killed, probably for lack of memory; give each one more of it, or start fewer"
            raise ParameterError("scheduler", reason) from None
        finally:
            client.cancel(futures)
            if waiting:
                _wait_until_ended(client, waiting)


def _wait_until_ended(client: Any, keys: set[str]) -> None:
    """Wait until the workers have left the tasks with these keys, which are cancelled."""
    end_s = time.monotonic() + ENDING_S
    while num_running := sum(client.run(_num_known, keys, on_error="ignore").values()):
        if time.monotonic() > end_s:
            message = "workers are still busy with %d items; their results are dropped"
            logger.warning(message, num_running, extra={"parameter": "scheduler"})
            return
        time.sleep(0.2)


def _num_known(keys: set[str], dask_worker: Any) -> int:
    """How many tasks with these keys a worker has not forgotten: it does so when they have ended."""
    return len(keys & dask_worker.state.tasks.keys())
