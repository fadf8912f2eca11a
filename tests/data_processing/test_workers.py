"""workers: results as they are done, with a progress bar, in this process, in others and on a Dask cluster."""

import logging
import os
import signal
import time
from functools import partial
from pathlib import Path
from threading import Barrier, Thread
from types import SimpleNamespace

import pytest
from distributed import Client, Event, KilledWorker, LocalCluster

from data_processing import workers
from data_processing.workers import cancelled, in_workers
from utils.errors import MediaError, ParameterError, UserError

PROGRESS = {"unit": "number", "description": "squares"}


@pytest.fixture(scope="module")
def scheduler():
    with LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None) as cluster:
        yield cluster.scheduler_address


def square(number: int) -> int:
    if number == -1:
        raise ZeroDivisionError("negative")
    if number == -2:
        raise MediaError("two.mp4", "no audio track")
    return number**2


@pytest.mark.parametrize("on_cluster", [False, True])
def test_results_progress_and_errors(scheduler, capsys, on_cluster):
    address = scheduler if on_cluster else None
    results = in_workers(square, [1, 2, 3, 2], 1, address, **PROGRESS)
    assert sorted(results) == [1, 4, 4, 9]
    assert "squares: 100%" in (errors := capsys.readouterr().err) and "4/4" in errors
    with pytest.raises(ZeroDivisionError):
        list(in_workers(square, [1, -1], 1, address, **PROGRESS))
    with pytest.raises(UserError, match=r"^two\.mp4: no audio track$") as caught:
        list(in_workers(square, [-2], 2, address, **PROGRESS))
    assert caught.value.path == Path("two.mp4")
    results = in_workers(square, range(100), 1, address, **PROGRESS)
    next(results)
    results.close()
    assert list(in_workers(square, [], 1, address, **PROGRESS)) == []


def kill_this_process(number: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL")
def test_killed_process_is_one_line():
    with pytest.raises(ParameterError, match="a worker process was killed, probably for lack of memory") as caught:
        list(in_workers(kill_this_process, [1, 2], 2, None, **PROGRESS))
    assert caught.value.parameter == "jobs"


def killed(number: int) -> None:
    worker = SimpleNamespace(address="tcp://127.0.0.1:9")
    raise KilledWorker("killed-1", worker, 3)  # what the scheduler says when four workers have died


def test_killed_workers_of_a_cluster_are_one_line(scheduler):
    with pytest.raises(ParameterError, match="workers were killed, probably for lack of memory") as caught:
        list(in_workers(killed, [1], 1, scheduler, **PROGRESS))
    assert caught.value.parameter == "scheduler"


def load(folder: Path, name: str) -> str:
    with (folder / "loads").open("a") as file:
        file.write(f"{name} {os.getpid()}\n")
    logging.getLogger("evaluation").warning("%s is loaded", name, extra={"parameter": "data"})
    return name


def with_item(name: str, item: int) -> str:
    return f"{name} {item}"


@pytest.mark.parametrize("where", ["here", "processes", "cluster"])
def test_what_a_worker_loads_is_kept_until_the_next_call(scheduler, tmp_path, caplog, where):
    jobs, address = (2 if where == "processes" else 1), (scheduler if where == "cluster" else None)
    for name in ("first", "second"):
        results = in_workers(with_item, range(4), jobs, address, **PROGRESS, load=partial(load, tmp_path, name))
        assert sorted(results) == [f"{name} {item}" for item in range(4)]
    loads = (tmp_path / "loads").read_text().splitlines()
    assert len(loads) == len(set(loads)) and {line.split()[0] for line in loads} == {"first", "second"}
    assert (str(os.getpid()) in " ".join(loads)) == (where != "processes")
    records = [record for record in caplog.records if record.name == "evaluation"]
    assert [record.getMessage() for record in records] == [f"{line.split()[0]} is loaded" for line in loads]
    assert {record.parameter for record in records} == {"data"}


def begin(folder: Path, number: int) -> int:
    """Returns 0 at once; another number not before it is cancelled."""
    if number:
        (folder / f"{number} has begun").touch()
        while not cancelled():
            time.sleep(0.01)
        (folder / f"{number} is cancelled").touch()
    return number


def test_what_has_begun_on_a_cluster_is_cancelled(scheduler, tmp_path):
    results = in_workers(partial(begin, tmp_path), [0, 1, 2], 1, scheduler, **PROGRESS)
    assert next(results) == 0
    while not (tmp_path / "1 has begun").exists():
        time.sleep(0.01)
    results.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1 has begun", "1 is cancelled"]


def wait_until(event: Event, number: int) -> int:
    if number:
        event.wait()
    return number


def test_items_that_do_not_end_are_waited_for_no_longer_than_stated(scheduler, monkeypatch):
    warned = []
    monkeypatch.setattr(workers, "ENDING_S", 0.1)
    monkeypatch.setattr(workers.logger, "warning", lambda message, *args, **_: warned.append(message % args))
    with Client(scheduler) as client:
        event = Event("end", client)
        results = in_workers(partial(wait_until, event), [0, 1], 1, scheduler, **PROGRESS)
        assert next(results) == 0
        while not any(client.processing().values()):
            time.sleep(0.01)
        results.close()
        event.set()
        assert warned == ["workers are still busy with 1 items; their results are dropped"]
        while workers._recorder._records:  # until the worker has left the item
            time.sleep(0.01)


def test_records_of_calls_at_the_same_time_are_not_mixed(caplog):
    """Nor are those of threads that they start recorded twice; afterwards logging is as it was."""
    logger, both_run = logging.getLogger("evaluation.x"), Barrier(2)
    recorded = {}

    def call(name: str) -> None:
        with workers._recorder.recording() as records:
            both_run.wait()
            logger.info(name)
            helper = Thread(target=logger.warning, args=[f"helper of {name}"])
            helper.start()
            helper.join()
            both_run.wait()
        recorded[name] = [record.getMessage() for record in records]

    package = logging.getLogger("evaluation")
    before = (package.level, package.propagate, package.handlers[:])
    threads = [Thread(target=call, args=[name]) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [message for message in recorded["one"] + recorded["two"] if "helper" not in message] == ["one", "two"]
    assert "one" in recorded["one"] and "two" in recorded["two"]
    helpers = sorted(message for message in recorded["one"] + recorded["two"] if "helper" in message)
    assert helpers == ["helper of one", "helper of two"]
    assert (package.level, package.propagate, package.handlers) == before
    assert caplog.records == []
