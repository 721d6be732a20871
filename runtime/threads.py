"""Two helpers for work beside the main thread: read ahead, and consume behind. Order is kept, nothing is dropped,
queues are bounded, and what goes wrong in the thread is raised where the caller stands."""

import queue
import threading
from collections.abc import Callable, Generator, Iterator
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")
_POLL_S = 0.1


class Prefetch(Generic[T]):
    """Iterate over `items` while a thread makes the next `depth` of them. `close` stops the thread and closes
    `items`."""

    def __init__(self, items: Generator[T, None, None], depth: int) -> None:
        self._items = items
        self._queue: queue.Queue[T | _End] = queue.Queue(depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mtm-prefetch", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[T]:
        while True:
            item = self._queue.get()
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            yield item

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            for item in self._items:
                if not self._put(item):
                    break
        except BaseException as caught:  # handed to the caller by __iter__
            error = caught
        finally:
            self._items.close()
        self._put(_End(error))

    def _put(self, item: "T | _End") -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=_POLL_S)
            except queue.Full:
                continue
            return True
        return False


class Consumer(Generic[T]):
    """Call `consume` on every item `put`, in a thread, in order.

    A context manager: leaving the block waits until all is consumed; leaving it by an exception drops what is still
    queued. Either way the thread has ended afterwards.
    """

    def __init__(self, consume: Callable[[T], None], depth: int) -> None:
        self._consume = consume
        self._queue: queue.Queue[T | _End] = queue.Queue(depth)
        self._error: BaseException | None = None
        self._cancelled = False
        self._thread = threading.Thread(target=self._run, name="mtm-consume", daemon=True)
        self._thread.start()

    def put(self, item: T) -> None:
        """Queue one item; waits while the queue is full. Raises what `consume` raised for an earlier one."""
        if self._error is not None:
            raise self._error
        self._queue.put(item)

    def __enter__(self) -> "Consumer[T]":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cancelled = error is not None
        try:
            self._finish()
        except KeyboardInterrupt:  # a second Ctrl-C while the queue is being worked off
            self._cancelled = True
            self._finish()
            raise
        if error is None and self._error is not None:
            raise self._error

    def _finish(self) -> None:
        self._queue.put(_End(None))
        self._thread.join()

    def _run(self) -> None:
        while not isinstance(item := self._queue.get(), _End):
            if self._cancelled or self._error is not None:
                continue  # empty the queue, so that no put waits for ever
            try:
                self._consume(item)
            except BaseException as caught:  # handed to the caller by put and __exit__
                self._error = caught


class _End:
    def __init__(self, error: BaseException | None) -> None:
        self.error = error
