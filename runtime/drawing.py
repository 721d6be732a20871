"""Drawing in processes of their own. Pages take many short calls, for which Python's threads wait for each other: four threads
draw less than three times what one does, and hold up the other stages. A process has an interpreter to itself.

Sheets and pages go through memory that both processes map (`Channel`), only their descriptions through a pipe. Where a process
is not ready yet, or has died, its sheets are drawn in this one.
"""

import logging
import mmap
import multiprocessing
import os
import pickle
import queue
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from mtmamba.runtime.outputs import Pages
from mtmamba.runtime.sheet import Sheet
from mtmamba.runtime.views import View

logger = logging.getLogger(__name__)

_CODE = "import sys; sys.path[:] = {path!a}; from mtmamba.runtime.drawing import serve; serve(*{files!r})"
_LINE = 64  # bytes; arrays start at multiples of it
_KEEP = {"MALLOC_TRIM_THRESHOLD_": str(1 << 28), "MALLOC_MMAP_THRESHOLD_": str(1 << 25)}
"""glibc gives memory back to the system after each page, and takes it again for the next: a tenth of the time. (Older ones
take no larger second one, and with the first alone take longer than with neither.)"""
_STALLED_S = 30.0  # for a page that takes 0.02


class Drawing:
    """Draws sheets' pages, for each of several threads in one of `processes`, or where none is free on the thread itself."""

    def __init__(self, view: View, processes: "tuple[DrawingProcess, ...]") -> None:
        self.processes = processes
        self._here = view.opened()
        self._idle: queue.SimpleQueue[DrawingProcess] = queue.SimpleQueue()
        for process in processes:
            self._idle.put(process)

    def __call__(self, sheet: Sheet) -> Pages:
        pages = self._elsewhere(sheet) if self.processes else None
        return self._here(sheet) if pages is None else pages

    def _elsewhere(self, sheet: Sheet) -> Pages | None:
        try:
            process = self._idle.get_nowait()
        except queue.Empty:  # fewer could be started than threads
            return None
        try:
            return process.draw(sheet)
        finally:
            self._idle.put(process)


@contextmanager
def drawn_in(processes: int, view: View) -> Iterator[Drawing]:
    """With so many processes, or as many as the system lends."""
    with ExitStack() as stack:
        started = list[DrawingProcess]()
        if hasattr(os, "memfd_create") and sys.executable and not getattr(sys, "frozen", False):
            try:
                while len(started) < processes:
                    started.append(stack.enter_context(_process(view)))
            except OSError as error:
                logger.warning("a process that draws could not be started (%s); %d draw", error, len(started))
        yield Drawing(view, tuple(started))


@contextmanager
def _process(view: View) -> "Iterator[DrawingProcess]":
    ours, theirs = multiprocessing.Pipe()
    with ours, Memory() as requests, Memory() as replies:
        with theirs:
            files = theirs.fileno(), requests.file, replies.file
            code = _CODE.format(path=[entry for entry in sys.path if isinstance(entry, str)], files=files)
            child = subprocess.Popen(
                [sys.executable, *subprocess._args_from_interpreter_flags(), "-c", code],  # type: ignore[attr-defined]
                pass_fds=files,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={**_KEEP, **os.environ},
                start_new_session=True,  # Ctrl-C is for this process: what is on its way is still drawn
            )
        try:
            yield DrawingProcess(view, child, Channel(ours, requests, replies))
        finally:
            child.kill()  # it holds nothing
            child.wait()


class DrawingProcess:
    """Draws for one thread at a time. child: the process itself."""

    def __init__(self, view: View, child: "subprocess.Popen[bytes]", channel: "Channel") -> None:
        self.child, self._channel = child, channel
        self._ready: bool | None = None  # True: it draws; False: it has ended; None: it starts
        channel.send(view)

    @property
    def ready(self) -> bool:
        """Whether it draws."""
        if self._ready is None and self._channel.waiting():
            try:
                self._ready = self._channel.receive(_STALLED_S)
            except (EOFError, OSError) as error:
                self._lose(error)
        return self._ready is True

    def draw(self, sheet: Sheet) -> Pages | None:
        """The pages; None where the process does not draw (yet)."""
        if not self.ready:
            return None
        try:
            self._channel.send(sheet)
            pages: Pages = self._channel.receive(_STALLED_S)
        except (EOFError, OSError) as error:
            self._lose(error)
            return None
        return {name: page.copy() for name, page in pages.items()}

    def _lose(self, error: Exception) -> None:
        self._ready = False
        reason = f"{error}"
        if not isinstance(error, TimeoutError):
            with suppress(subprocess.TimeoutExpired):  # its connection ends before it does
                reason = f"status {self.child.wait(5)}"
        self.child.kill()
        logger.warning("a process that draws ended early (%s); its frames are drawn in this one", reason)


def serve(connection: int, requests: int, replies: int) -> None:
    """The other process: draw what comes until nobody is there any more."""
    cv2.setNumThreads(1)
    channel = Channel(Connection(connection), Memory(replies), Memory(requests))
    try:
        draw = channel.receive().opened()
        channel.send(True)
        while True:
            channel.send(draw(channel.receive()))
    except (EOFError, ConnectionError):
        return


class Channel:
    """To and from another process: `connection` takes what describes a value, `mine` and `theirs` take its arrays."""

    def __init__(self, connection: "Connection[Any, Any]", mine: "Memory", theirs: "Memory") -> None:
        self._connection, self._mine, self._theirs = connection, mine, theirs

    def send(self, value: object) -> None:
        """Raises OSError where nobody listens."""
        buffers: list[pickle.PickleBuffer] = []
        text = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
        arrays = [np.frombuffer(buffer.raw(), np.uint8) for buffer in buffers]
        for area, array in zip(self._mine.areas([array.size for array in arrays]), arrays, strict=True):
            np.copyto(area, array)
        self._connection.send((text, [array.size for array in arrays]))

    def waiting(self) -> bool:
        """Whether `receive` would not have to wait."""
        return self._connection.poll()

    def receive(self, seconds: float | None = None) -> Any:
        """Wait for the next value, whose arrays stay until the one after it. Raises EOFError or OSError where none comes, or
        not in time."""
        if not self._connection.poll(seconds):
            raise TimeoutError(f"no answer for {seconds:g} s")
        text, sizes = self._connection.recv()
        return pickle.loads(text, buffers=self._theirs.areas(sizes))


class Memory:
    """A file that is nothing but memory, as large as it needs to be, to be mapped by several processes. file: its number, of
    a new one unless it is given."""

    def __init__(self, file: int | None = None) -> None:
        self.file = os.memfd_create("mtm-draw") if file is None else file
        self._bytes: npt.NDArray[np.uint8] = np.empty(0, np.uint8)

    def areas(self, sizes: list[int]) -> list[npt.NDArray[np.uint8]]:
        """Places for arrays of so many bytes, one after another: where the other process finds those of the same sizes."""
        ends = np.cumsum([-(-size // _LINE) * _LINE for size in sizes]).tolist()
        if ends and ends[-1] > self._bytes.size:
            if ends[-1] > os.fstat(self.file).st_size:
                os.ftruncate(self.file, ends[-1])
            self._bytes = np.frombuffer(mmap.mmap(self.file, ends[-1]), np.uint8)
        starts = [0, *ends[:-1]] if ends else []
        return [self._bytes[start : start + size] for start, size in zip(starts, sizes, strict=True)]

    def __enter__(self) -> "Memory":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.file)
