"""TODO."""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any


def prefetch(items: Iterable[Any], count: int, stop: Callable[[], None] = lambda: None) -> Iterator[Any]:
    """The same items, made up to `count` ahead in a thread of their own; what they raise is raised here.

    If they are not wanted to the end, `stop` is to have the making of the next one end soon.
    """
    waiting: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(count)
    ended, stopped = object(), threading.Event()

    def put(item: Any, error: BaseException | None = None) -> bool:
        while not stopped.is_set():
            try:
                waiting.put((item, error), timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def make() -> None:
        try:
            for item in items:
                if not put(item):
                    break
            put(ended)
        except BaseException as error:
            put(ended, error)
        finally:
            if hasattr(items, "close"):
                items.close()

    thread = threading.Thread(target=make, daemon=True)
    thread.start()
    try:
        while True:
            item, error = waiting.get()
            if error is not None:
                try:
                    raise error
                finally:
                    del error  # or its traceback would keep this frame, and this frame it
            if item is ended:
                return
            yield item
    finally:
        stopped.set()
        stop()
        thread.join()
