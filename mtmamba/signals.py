"""What ends a command from outside."""

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

TWICE_S = 0.5
"""A signal may come twice for one blow: timeout sends it to the process and to its group. Within this time it counts once."""


@contextmanager
def ended_as_by_ctrl_c() -> Iterator[None]:
    """SIGTERM (timeout, docker stop) and SIGHUP (a closed terminal) end a command as Ctrl-C does: what is half-written is
    removed or finished. What is ignored (nohup) stays so."""
    last_s = -math.inf

    def interrupt(number: int, frame: object) -> None:
        nonlocal last_s
        before_s, last_s = last_s, time.monotonic()
        if last_s - before_s > TWICE_S:
            raise KeyboardInterrupt

    before = {}
    if threading.current_thread() is threading.main_thread():
        known = [
            getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
        ]  # not all on Windows
        taken = [number for number in known if signal.getsignal(number) != signal.SIG_IGN]
        before = {number: signal.signal(number, interrupt) for number in taken}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
