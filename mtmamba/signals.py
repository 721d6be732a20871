"""What ends a command from outside."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

TWICE_S = 0.5
"""A signal may come twice for one blow: timeout sends it to the process and to its group. Within this time it counts once."""

_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")  # Ctrl-C; timeout, docker stop; a closed terminal. Windows has not all


@contextmanager
def on_blow(act: Callable[[], None]) -> Iterator[None]:
    """Inside, `act` is called in the main thread for each signal that asks the program to end. One that is ignored (nohup)
    stays so. In another thread nothing changes."""
    last_s: float | None = None

    def handle(number: int, frame: object) -> None:
        nonlocal last_s
        before_s, last_s = last_s, time.monotonic()
        if before_s is None or last_s - before_s > TWICE_S:
            act()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    known = [getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)]
    heeded = [number for number in known if signal.getsignal(number) not in (signal.SIG_IGN, None)]
    before = {number: signal.signal(number, handle) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def interrupt() -> NoReturn:
    """As Ctrl-C does: what is half-written is removed or finished."""
    raise KeyboardInterrupt
