"""How far predictions of one model lie from those of another, in each task's own terms. Raw predictions are [C, h, w].

kind                         figure
============================ =====================================================================================
labels, saliency, boundary   `agreement`: percent of pixels with the same class, or on the same side of probability 0.5
depth                        `depth`: mean of |candidate - reference| / reference, percent; pixels nearer than 1 % of
                             the image's largest depth do not count: they are noise around zero
normals                      `angle`: mean angle, degrees; zero vectors do not count
any                          `rms`: of the difference of raw predictions, percent of the reference's own
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mtmamba.tasks import Kind, Task

Predictions = Mapping[str, npt.NDArray[np.float32]]
NEAREST = 0.01  # of the image's largest depth

FIGURES: dict[Kind, str] = {
    "labels": "agreement",
    "saliency": "agreement",
    "boundary": "agreement",
    "depth": "depth",
    "normals": "angle",
}


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """agreement: at least, percent. depth: at most, percent. angle: at most, degrees."""

    agreement: float
    depth: float
    angle: float

    def allows(self, figure: str, value: float) -> bool:
        """False for NaN."""
        limit = float(getattr(self, figure))
        return value >= limit if figure == "agreement" else value <= limit


TOLERANCES = {
    "fp16": Tolerance(agreement=99.5, depth=0.5, angle=0.5),
    "bf16": Tolerance(agreement=98.0, depth=2.0, angle=2.0),
    "int8": Tolerance(agreement=98.0, depth=2.0, angle=2.0),
    "fp8": Tolerance(agreement=98.0, depth=2.0, angle=2.0),
}


class Agreement:
    """Sums over images; `result` divides once."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self.tasks = tuple(tasks)
        self._sums = {task.name: np.zeros(4) for task in tasks}  # figure, its count, squares of error, of reference
        self.finite = {task.name: True for task in tasks}

    def add(self, reference: Predictions, candidate: Predictions) -> None:
        """Add an image: {task: [C, h, w]}. A candidate that is not finite fails its task for good."""
        for task in self.tasks:
            r, c = (np.asarray(each[task.name], np.float64) for each in (reference, candidate))
            if not np.isfinite(c).all():
                self.finite[task.name] = False
                continue
            figure, count = _FIGURE_SUMS[FIGURES[task.kind]](_scores(task, r), _scores(task, c))
            self._sums[task.name] += (figure, count, np.square(c - r).sum(), np.square(r).sum())

    def result(self) -> dict[str, dict[str, float]]:
        """{task: {figure: value, "rms": value}}; NaN where the candidate was not finite."""
        found = {}
        for task in self.tasks:
            figure = FIGURES[task.kind]
            total, count, error, reference = self._sums[task.name]
            perfect = 100.0 if figure == "agreement" else 0.0
            scale = 100.0 if figure != "angle" else 1.0
            value = scale * total / count if count else perfect
            rms = 100 * float(np.sqrt(error / reference)) if reference else 0.0
            finite = self.finite[task.name]
            found[task.name] = {figure: float(value) if finite else np.nan, "rms": rms if finite else np.nan}
        return found

    def failures(self, tolerance: Tolerance) -> dict[str, tuple[str, float]]:
        """{task: (figure, value)} of those beyond the tolerance."""
        judged = ((task, FIGURES[task.kind]) for task in self.tasks)
        result = self.result()
        return {
            task.name: (figure, result[task.name][figure])
            for task, figure in judged
            if not tolerance.allows(figure, result[task.name][figure])
        }


def _scores(task: Task, raw: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.concatenate([np.zeros_like(raw), raw]) if task.kind == "boundary" else raw


def _same_labels(r: npt.NDArray[np.float64], c: npt.NDArray[np.float64]) -> tuple[float, int]:
    same = r.argmax(axis=0) == c.argmax(axis=0)
    return float(same.sum()), same.size


def _relative_depth(r: npt.NDArray[np.float64], c: npt.NDArray[np.float64]) -> tuple[float, int]:
    r, c = r[0], np.maximum(c[0], 0)
    counts = r > NEAREST * max(float(r.max()), 0.0)
    return float((np.abs(c[counts] - r[counts]) / r[counts]).sum()), int(counts.sum())


def _angles(r: npt.NDArray[np.float64], c: npt.NDArray[np.float64]) -> tuple[float, int]:
    lengths = np.linalg.norm(r, axis=0), np.linalg.norm(c, axis=0)
    counts = (lengths[0] > 0) & (lengths[1] > 0)
    a, b = r[:, counts] / lengths[0][counts], c[:, counts] / lengths[1][counts]
    angle = 2 * np.arctan2(np.linalg.norm(a - b, axis=0), np.linalg.norm(a + b, axis=0))
    return float(np.degrees(angle).sum()), int(counts.sum())


_FIGURE_SUMS = {"agreement": _same_labels, "depth": _relative_depth, "angle": _angles}


def per_image(outputs: Predictions) -> list[dict[str, npt.NDArray[np.float32]]]:
    """{task: [B, C, h, w]} -> an entry an image, {task: [C, h, w]}."""
    count = len(next(iter(outputs.values())))
    return [{task: values[index] for task, values in outputs.items()} for index in range(count)]


def compared(tasks: Sequence[Task], references: Sequence[Predictions], candidates: Sequence[Predictions]) -> Agreement:
    """The agreement of batches {task: [B, C, h, w]} with those of the reference."""
    agreement = Agreement(tasks)
    for reference, candidate in zip(references, candidates, strict=True):
        for r, c in zip(per_image(reference), per_image(candidate), strict=True):
            agreement.add(r, c)
    return agreement
