"""workers: results as they are done, with a progress bar, in this process, in others and on a Dask cluster."""

import logging
import os
from functools import partial
from pathlib import Path

import pytest
from distributed import LocalCluster

from data_processing.workers import in_workers
from utils.errors import MediaError, UserError

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
