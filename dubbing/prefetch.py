"""Computing the items of an iterator ahead of their use, in a thread."""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any, Self

WAITING_S = 0.5


class Prefetch(Iterator[Any]):
    """The same items, up to `depth` of them computed ahead in a thread, from now on. Exceptions of the thread are
    raised here. Call `close` when done.

    Args:
        items: an iterable, closed by the thread when it ends.
        depth: number of items that may wait.
        cancel: called when this is closed; it should make the next item return soon.
        waiting: called every WAITING_S while the next item is waited for.
    """

    def __init__(
        self,
        items: Iterable[Any],
        depth: int,
        cancel: Callable[[], None] = lambda: None,
        waiting: Callable[[], None] | None = None,
    ) -> None:
        self._waiting: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(depth)
        self._items, self._cancel, self._report_waiting = items, cancel, waiting
        self._end, self._cancelled = object(), threading.Event()
        self._thread = threading.Thread(target=self._produce, daemon=True)
        self._thread.start()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        if self._cancelled.is_set():
            raise StopIteration
        item, error = self._get()
        if error is not None or item is self._end:
            self.close()
        if error is not None:
            try:
                raise error
            finally:
                del error  # breaks the reference cycle between its traceback and this frame
        if item is self._end:
            raise StopIteration
        return item

    def close(self) -> None:
        """End the thread. The next item, if one is asked for, is the end."""
        self._cancelled.set()
        self._cancel()
        with suppress(queue.Full):
            self._waiting.put_nowait((self._end, None))  # another thread may be waiting for an item
        self._thread.join()

    def _get(self) -> tuple[Any, BaseException | None]:
        while self._report_waiting:
            with suppress(queue.Empty):
                return self._waiting.get(timeout=WAITING_S)
            self._report_waiting()
        return self._waiting.get()

    def _put(self, item: Any, error: BaseException | None = None) -> bool:
        while not self._cancelled.is_set():
            try:
                self._waiting.put((item, error), timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def _produce(self) -> None:
        try:
            for item in self._items:
                if not self._put(item):
                    break
            self._put(self._end)
        except BaseException as error:
            self._put(self._end, error)
        finally:
            if hasattr(self._items, "close"):
                self._items.close()
