"""workers: results as they are done, with a progress bar, in this process and on a Dask cluster."""

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
