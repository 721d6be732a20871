"""TensorRT's progress monitor, made one number: phases lie inside phases, and each counts steps."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

OnProgress = Callable[[float, str], None]
"""Called with (fraction done, 0..1, never falling; name of the innermost phase), maybe from TensorRT's own threads."""


@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


class PhaseTree:
    """The phases that have started and not finished, and the fraction of the outermost one that is done."""

    def __init__(self) -> None:
        self._phases: dict[str, _Phase] = {}
        self._best = 0.0

    def start(self, name: str, parent: str | None, steps: int) -> None:
        self._phases[name] = _Phase(parent, max(steps, 1))

    def step(self, name: str, index: int) -> None:
        if name in self._phases:
            self._phases[name].done = index + 1

    def finish(self, name: str) -> None:
        finished = self._phases.pop(name, None)
        if finished is not None and finished.parent is None:
            self._best = 1.0

    @property
    def innermost(self) -> str:
        return next(reversed(self._phases), "")

    @property
    def fraction(self) -> float:
        """A phase's own steps, and inside the step under way the fraction of the phase within it."""
        inner = 0.0
        name: str | None = self.innermost
        while name is not None and name in self._phases:
            phase = self._phases[name]
            inner = min(1.0, (phase.done + inner) / phase.steps)
            name = phase.parent
        self._best = max(self._best, inner)
        return self._best


def make_monitor(module: Any, on_progress: OnProgress, cancel: threading.Event) -> Any:
    """An IProgressMonitor of `module` that reports to `on_progress`, and ends the build when `cancel` is set."""
    tree = PhaseTree()
    lock = threading.Lock()

    class Monitor(module.IProgressMonitor):
        def __init__(self) -> None:
            module.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with lock:
                tree.start(phase_name, parent_phase, num_steps)
                on_progress(tree.fraction, tree.innermost)

        def phase_finish(self, phase_name: str) -> None:
            with lock:
                tree.finish(phase_name)
                on_progress(tree.fraction, tree.innermost)

        def step_complete(self, phase_name: str, step: int) -> bool:
            with lock:
                tree.step(phase_name, step)
                on_progress(tree.fraction, tree.innermost)
            return not cancel.is_set()

    return Monitor()
