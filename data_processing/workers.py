"""Call a function for many items in processes of this machine, or on the workers of a Dask cluster."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from typing import TypeVar

import joblib
from tqdm import tqdm

from utils.errors import ParameterError, UserError

Item, Result = TypeVar("Item"), TypeVar("Result")


def in_workers(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    jobs: int,
    scheduler: str | None,
    *,
    unit: str,
    description: str,
) -> Iterator[Result]:
    """Results of `function` for all items, as they are done, with a progress bar. Closing ends the work.

    Args:
        function: can be pickled, as must its results.
        jobs: number of processes; with 1 the function is called in this process.
        scheduler: address of a Dask scheduler, whose workers are used instead. They must see the same files.
        unit, description: of the progress bar.

    Raises:
        ParameterError: there is no scheduler at this address.
        Exception: what `function` raises, any user error as UserError; the work ends.
    """
    call = partial(_call, function)
    if scheduler:
        results = _on_cluster(call, items, scheduler)
    else:
        parallel = joblib.Parallel(jobs, return_as="generator_unordered")
        results = parallel(joblib.delayed(call)(item) for item in items)
    with closing(results):
        yield from tqdm(results, total=len(items), unit=unit, desc=description)


def _call(function: Callable[[Item], Result], item: Item) -> Result:
    try:
        return function(item)
    except UserError as error:  # the types derived from it cannot be sent to another process
        raise UserError(str(error), parameter=error.parameter, path=error.path) from None


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
