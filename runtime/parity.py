"""Parity: the same images through a reference and another backend, compared task by task.

Statistics add up image by image in float64, so memory does not grow with their number. Raw predictions are compared at
the model's output size, as the model gave them: [C, h, w] float32 an image.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from mtmamba.errors import MtmError
from mtmamba.metrics import or_null
from mtmamba.runtime.backends import Backend
from mtmamba.runtime.backends.base import Array
from mtmamba.runtime.parity_figures import figures_for
from mtmamba.runtime.parity_tolerance import AT_LEAST, FIGURE_OF, Tolerance
from mtmamba.runtime.preprocess import preprocess
from mtmamba.runtime.sources import Frame
from mtmamba.tasks import Task

Predictions = Mapping[str, Array]
"""A batch's raw predictions: {task: [B, C, h, w]}."""
OnWorst = Callable[[Task, Frame, Array, Array], None]


@dataclass(frozen=True, kw_only=True)
class Check:
    """A figure held against its tolerance. needed: the tolerance that would have been needed, rounded to three digits
    the way that passes."""

    figure: str
    needed: float
    allowed: float

    @property
    def passed(self) -> bool:
        """False for NaN."""
        return self.needed >= self.allowed if self.figure in AT_LEAST else self.needed <= self.allowed

    def to_dict(self) -> dict[str, Any]:
        values = {"figure": self.figure, "allowed": self.allowed, "needed": or_null(self.needed)}
        return {**values, "passed": self.passed}


@dataclass(frozen=True, kw_only=True)
class TaskParity:
    """max_abs, rms: of candidate minus reference over all raw predictions, NaN where no image counted. rms_percent: rms
    as percent of the reference's own RMS. scale: the reference's largest. cosine: of all predictions as two vectors.
    not_finite: the candidate's NaN and infinite values; an image that has some counts in no other figure. figures: by
    the task's kind, see `parity_figures`. worst: the image of the largest difference."""

    task: Task
    max_abs: float
    rms: float
    rms_percent: float
    cosine: float
    scale: float
    not_finite: int
    figures: dict[str, float]
    checks: tuple[Check, ...]
    worst: str

    @property
    def passed(self) -> bool:
        return not self.not_finite and all(check.passed for check in self.checks)

    @property
    def cost(self) -> dict[str, float]:
        """{the figure of the task's kind: value, "rms": rms_percent}; all NaN where the candidate was not finite."""
        figure = FIGURE_OF[self.task.kind]
        values = {figure: self.figures[figure], "rms": self.rms_percent}
        return dict.fromkeys(values, math.nan) if self.not_finite else values

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; a figure that is not finite is None."""
        numbers = {name: or_null(getattr(self, name)) for name in ("max_abs", "rms", "rms_percent", "cosine", "scale")}
        return {
            **numbers,
            "not_finite": self.not_finite,
            "figures": {name: or_null(value) for name, value in self.figures.items()},
            "checks": [check.to_dict() for check in self.checks],
            "worst_image": self.worst,
            "passed": self.passed,
        }


@dataclass(frozen=True, kw_only=True)
class Parity:
    """The comparison of two backends over `images` images."""

    images: int
    tasks: tuple[TaskParity, ...]

    @property
    def passed(self) -> bool:
        return all(task.passed for task in self.tasks)

    def failures(self) -> str:
        """Every task that failed and why, as the end of a sentence; "" where all passed."""
        parts = []
        for task in self.tasks:
            if task.not_finite:
                parts.append(f"{task.task.name} ({task.not_finite} values are NaN or infinite)")
            elif not task.passed:
                failed = (f"{c.figure} {c.needed:.3g}, allowed {c.allowed:g}" for c in task.checks if not c.passed)
                parts.append(f"{task.task.name} ({'; '.join(failed)})")
        return ", ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        return {
            "images": self.images,
            "passed": self.passed,
            "tasks": {task.task.name: task.to_dict() for task in self.tasks},
        }


class Statistics:
    """One task's running sums."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self._figures = figures_for(task)
        self._sums = np.zeros(4)  # of squared differences, of products, of squares of reference and candidate
        self._count = self._not_finite = 0
        self._max_abs, self._scale, self._worst = -1.0, 0.0, ""

    def add(self, name: str, reference: Array, candidate: Array) -> bool:
        """Add an image called `name`: raw predictions [C, h, w], the reference's finite. True where its difference is
        the largest so far."""
        lost = int(candidate.size - np.isfinite(candidate).sum())
        if lost:
            first = not self._not_finite
            self._not_finite += lost
            self._worst = name if first else self._worst
            return first
        largest = 0.0
        for r, c in zip(reference.astype(np.float64), candidate.astype(np.float64), strict=True):
            error = c - r
            largest = max(largest, float(np.abs(error).max()))
            self._scale = max(self._scale, float(np.abs(r).max()))
            self._sums += [np.vdot(a, b) for a, b in ((error, error), (r, c), (r, r), (c, c))]
        self._count += reference.size
        self._figures.add(reference, candidate)
        worse = largest > self._max_abs and not self._not_finite
        self._max_abs = max(self._max_abs, largest)
        self._worst = name if worse else self._worst
        return worse

    def result(self, tolerance: Tolerance) -> TaskParity:
        """All figures so far, held against `tolerance`."""
        max_abs = self._max_abs if self._count else math.nan
        square, dot, of_reference, of_candidate = (float(value) for value in self._sums)
        figures = self._figures.result()
        found = {"difference": max_abs / max(1.0, self._scale), **figures}
        judged_by = ("difference", FIGURE_OF[self.task.kind])
        return TaskParity(
            task=self.task,
            max_abs=max_abs,
            rms=math.sqrt(square / self._count) if self._count else math.nan,
            rms_percent=100 * math.sqrt(square / of_reference) if of_reference else 0.0 if self._count else math.nan,
            cosine=_cosine(dot, of_reference, of_candidate),
            scale=self._scale,
            not_finite=self._not_finite,
            figures=figures,
            checks=tuple(_check(figure, found[figure], tolerance) for figure in judged_by),
            worst=self._worst,
        )


def compare(
    reference: Backend,
    candidate: Backend,
    frames: Iterable[Frame],
    *,
    tolerances: dict[str, Tolerance],
    on_image: Callable[[], None] = lambda: None,
    on_worst: OnWorst = lambda task, frame, reference, candidate: None,
) -> Parity:
    """Run `frames` through both, each with its own normalisation, and compare the tasks that `tolerances` names.

    on_worst: called with the task, the frame and both raw predictions [C, h, w] whenever a frame differs more than all
    before it. Raises MtmError where the two are of different sizes, one lacks a task, the reference gives NaN or
    infinite values, or there is no frame.
    """
    _check_comparable(reference, candidate, tuple(tolerances))
    statistics = {task.name: Statistics(task) for task in candidate.metadata.tasks if task.name in tolerances}
    images = 0
    for batch in _batches(frames, max(reference.metadata.batch, candidate.metadata.batch)):
        expected, found = _predict(reference, batch), _predict(candidate, batch)
        for index, frame in enumerate(batch):
            for name, running in statistics.items():
                r, c = expected[name][index], found[name][index]
                if not np.isfinite(r).all():
                    raise MtmError(
                        f"{reference.model}: the reference's {name} of {frame.name} holds NaN or infinite values, so "
                        "nothing can be compared with it; check the checkpoint with mtm-info"
                    )
                if running.add(frame.name, r, c):
                    on_worst(running.task, frame, r, c)
            images += 1
            on_image()
    if not images:
        raise MtmError("expected at least one image to compare on, found none that decodes; name another source")
    return Parity(images=images, tasks=tuple(s.result(tolerances[name]) for name, s in statistics.items()))


def compare_predictions(
    tasks: Iterable[Task],
    reference: Sequence[Predictions],
    candidate: Sequence[Predictions],
    tolerances: dict[str, Tolerance],
) -> Parity:
    """Compare what two models have predicted on the same batches, in the tasks that `tolerances` names. The reference's
    predictions are finite."""
    statistics = [Statistics(task) for task in tasks if task.name in tolerances]
    images = 0
    for r, c in zip(reference, candidate, strict=True):
        for running in statistics:
            name = running.task.name
            for index, pair in enumerate(zip(r[name], c[name], strict=True)):
                running.add(f"image {images + index}", *pair)
        images += len(next(iter(r.values())))
    return Parity(images=images, tasks=tuple(s.result(tolerances[s.task.name]) for s in statistics))


def random_frames(size: tuple[int, int], count: int, seed: int = 0) -> Iterator[Frame]:
    """`count` random pictures of `size` (height, width): coarse coloured blobs and pixel noise, so that every scale has
    something to see. The same seed gives the same pictures."""
    height, width = size
    rng = np.random.default_rng(seed)
    for index in range(count):
        coarse = rng.uniform(0, 255, (-(-height // 16), -(-width // 16), 3))
        blobs = np.kron(coarse, np.ones((16, 16, 1)))[:height, :width]
        image = np.clip(blobs + rng.normal(0, 25, (height, width, 3)), 0, 255).astype(np.uint8)
        yield Frame(index=index, name=f"random_{index:03d}", image=image, source=f"random, seed {seed}")


def _check_comparable(reference: Backend, candidate: Backend, names: tuple[str, ...]) -> None:
    one, other = reference.metadata, candidate.metadata
    if one.output_size != other.output_size or one.input_size != other.input_size:
        sizes = [f"{m.input_size[0]}x{m.input_size[1]}" for m in (one, other)]
        raise MtmError(
            f"expected two models of one size, found {reference.model} of {sizes[0]} and {candidate.model} of "
            f"{sizes[1]}; export again with mtm-export --size {sizes[1]}, or name the checkpoint with --reference"
        )
    for backend in (reference, candidate):
        if backend.metadata.io != "raw":
            raise MtmError(
                f"{backend.model}: expected a model with raw outputs, found one with picture I/O, whose rounding would "
                "hide what is compared; export or build it again without --picture-io to compare it"
            )
        known = {task.name: task.channels for task in backend.metadata.tasks}
        wanted = {task.name: task.channels for task in other.tasks if task.name in names}
        lacking = [name for name in names if name not in wanted or known.get(name) != wanted[name]]
        if lacking:
            raise MtmError(
                f"{backend.model} has no task {', '.join(lacking)} of the same channels, found {', '.join(known)}; compare "
                "models of one configuration, or choose common tasks with --tasks"
            )


def _predict(backend: Backend, frames: list[Frame]) -> dict[str, Array]:
    """Raw predictions of all frames, in as many runs as the backend's batch needs."""
    images = np.stack([preprocess(frame.image, backend.metadata) for frame in frames])
    batch = backend.metadata.batch
    parts = [backend.infer(images[start : start + batch]) for start in range(0, len(images), batch)]
    return parts[0] if len(parts) == 1 else {n: np.concatenate([part[n] for part in parts]) for n in parts[0]}


def _batches(frames: Iterable[Frame], size: int) -> Iterator[list[Frame]]:
    iterator = iter(frames)
    while batch := list(islice(iterator, size)):
        yield batch


def _check(figure: str, found: float, tolerance: Tolerance) -> Check:
    up = figure not in AT_LEAST
    return Check(figure=figure, needed=_rounded(found, up=up), allowed=getattr(tolerance, figure))


def _rounded(value: float, *, up: bool) -> float:
    """To three significant digits of the value (or, of percentages near 100, of what is missing), never the way that
    would fail."""
    if not math.isfinite(value) or value == 0:
        return value
    if not up:
        return max(0.0, 100 - _rounded(100 - value, up=True))
    unit = 10.0 ** (math.floor(math.log10(abs(value))) - 2)
    return float(f"{math.ceil(value / unit - 1e-9) * unit:.3g}")


def _cosine(dot: float, of_one: float, of_other: float) -> float:
    """Of two zero vectors 1; of one alone 0."""
    if of_one == 0 or of_other == 0:
        return float(of_one == of_other)
    return max(-1.0, min(1.0, dot / math.sqrt(of_one * of_other)))
