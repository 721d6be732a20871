"""Work in overlapping stages: each stage reads from the one before it in a thread of its own, through a bounded queue.

Order is kept, nothing is dropped, and what goes wrong in a stage is raised where the last stage is read, after every
item that came before it.
"""

import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Generic, TypeVar

import cv2

T = TypeVar("T")
U = TypeVar("U")
_POLL_S = 0.1
_KEPT = 10_000  # times kept a stage: enough for a median, flat in memory however long a stream runs


class Prefetch(Generic[T]):
    """Iterate over `items` while a thread makes the next `depth` of them. `close` stops the thread and closes `items`.
    Where an iteration was broken off (by Ctrl-C), a new one goes on with the next item."""

    def __init__(self, items: Generator[T, None, None], depth: int) -> None:
        self._items = items
        self._queue: queue.Queue[T | _End] = queue.Queue(depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mtm-prefetch", daemon=True)
        self._thread.start()

    done = False
    """Whether the end, or an error, has been handed over: nothing follows."""

    def __iter__(self) -> Iterator[T]:
        while not self.done:
            item = self._queue.get()
            if isinstance(item, _End):
                self.done = True
                if item.error is not None:
                    raise item.error
                return
            yield item
            del item  # what was handed over is the caller's

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


class Meter:
    """How long each stage is busy: milliseconds an item, of the last 10,000 items."""

    def __init__(self) -> None:
        self.ms: dict[str, deque[float]] = {}

    def add(self, stage: str, ms: float) -> None:
        self.ms.setdefault(stage, deque(maxlen=_KEPT)).append(ms)

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.add(stage, (time.perf_counter() - start) * 1e3)

    def pull(self, stage: str, items: Iterable[T]) -> Iterator[T]:
        """`items`, the making of each measured."""
        iterator = iter(items)
        while True:
            start = time.perf_counter()
            try:
                item = next(iterator)
            except StopIteration:
                return
            self.add(stage, (time.perf_counter() - start) * 1e3)
            yield item


def stage(
    name: str, work: Callable[[T], U], items: Generator[T, None, None], meter: Meter, depth: int
) -> Generator[U, None, None]:
    """`work` on every one of `items`, which a thread makes `depth` ahead."""
    ahead = Prefetch(items, depth)
    try:
        for item in ahead:
            with meter.measure(name):
                result = work(item)
            yield result
    finally:
        ahead.close()


def shared_stage(
    name: str,
    begin: Callable[[T], Callable[[], U]],
    items: Generator[T, None, None],
    meter: Meter,
    depth: int,
    workers: int,
) -> Generator[U, None, None]:
    """A `stage` of several threads. `begin` takes the items one after another; what it returns is called by one of `workers`
    threads. Results keep the items' order, and each comes as soon as it is there. The meter gets an item's time over the
    number of threads: the pace. One more item than threads is under way or done, so that a thread seldom waits for the one
    whose turn it is; with these about as many wait as before a stage of one thread."""
    if workers == 1:
        yield from stage(name, lambda item: begin(item)(), items, meter, depth)
        return

    def call(rest: Callable[[], U], begun_s: float) -> U:
        start = time.perf_counter()
        result = rest()
        meter.add(name, (begun_s + time.perf_counter() - start) * 1e3 / workers)
        return result

    def started(ahead: Prefetch[T]) -> Generator[Future[U], None, None]:
        try:
            for item in ahead:
                start = time.perf_counter()
                rest = begin(item)
                yield pool.submit(call, rest, time.perf_counter() - start)
                del item, rest  # not kept until the next one comes
        finally:
            ahead.close()

    pool = ThreadPoolExecutor(workers, thread_name_prefix=f"mtm-{name}")
    under_way = Prefetch(started(Prefetch(items, max(1, depth - workers))), workers - 1)
    try:
        for one in under_way:
            result = one.result()
            del one
            yield result
            del result
    finally:
        under_way.close()
        pool.shutdown(cancel_futures=True)


def several(most: int) -> int:
    """Threads for one stage: no more than `most`, nor than a third of the cores, which the other stages need too."""
    return max(1, min(most, cores() // 3))


def cores() -> int:
    """Those this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def opencv_on_one_thread() -> Iterator[None]:
    """Stages share the cores between them: OpenCV's own threads would take them from each other in turns."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


class _End:
    def __init__(self, error: BaseException | None) -> None:
        self.error = error
