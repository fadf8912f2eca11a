"""Computing the items of an iterator ahead of their use, in a thread."""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any


def prefetch(items: Iterable[Any], depth: int, cancel: Callable[[], None] = lambda: None) -> Iterator[Any]:
    """The same items, up to `depth` of them computed ahead in a thread. Exceptions of the thread are raised here.

    Args:
        items: an iterable, closed by the thread when it ends.
        depth: number of items that may wait.
        cancel: called when the consumer stops before the end; it should make the next item return soon.
    """
    waiting: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(depth)
    end, cancelled = object(), threading.Event()

    def put(item: Any, error: BaseException | None = None) -> bool:
        while not cancelled.is_set():
            try:
                waiting.put((item, error), timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def produce() -> None:
        try:
            for item in items:
                if not put(item):
                    break
            put(end)
        except BaseException as error:
            put(end, error)
        finally:
            if hasattr(items, "close"):
                items.close()

    thread = threading.Thread(target=produce, daemon=True)
    thread.start()
    try:
        while True:
            item, error = waiting.get()
            if error is not None:
                try:
                    raise error
                finally:
                    del error  # breaks the reference cycle between its traceback and this frame
            if item is end:
                return
            yield item
    finally:
        cancelled.set()
        cancel()
        thread.join()
