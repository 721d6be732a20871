"""What a difference means for each kind of task. Sums add up image by image; raw predictions are [C, h, w].

kind       figures
========== ==========================================================================================================
labels     `agreement`: percent of pixels with the same class; `miou`: mean IoU of the two label maps, percent
saliency   `agreement`: percent of pixels on the same side of probability 0.5; `iou`: of the salient pixels, percent
boundary   the same of boundary pixels
depth      `depth`: mean of |candidate - reference| / reference, percent; `depth_max`: the largest. Pixels nearer than
           1 % of the image's largest depth do not count: they are noise around zero
normals    `angle`, `angle_max`: mean and largest angle between the two, degrees. Zero vectors do not count
========== ==========================================================================================================

A figure over no pixel at all is that of perfect agreement where it judges a task, else NaN.
"""

import math
from typing import Protocol

import numpy as np
import numpy.typing as npt

from mtmamba.metrics.meters import add_confusion, angles_deg, iou_of
from mtmamba.runtime.backends.base import Array
from mtmamba.tasks import Task

NEAREST = 0.01  # of the image's largest depth


class Figures(Protocol):
    def add(self, reference: Array, candidate: Array) -> None:
        """Add an image; both [C, h, w], finite."""

    def result(self) -> dict[str, float]:
        """All figures so far."""


def figures_for(task: Task) -> Figures:
    """Fresh figures of a task."""
    if task.kind == "depth":
        return _Depth()
    return _Normals() if task.kind == "normals" else _Agreement(task)


def angle_map(reference: Array, candidate: Array) -> npt.NDArray[np.float64]:
    """Angles [h, w] in degrees between normals [3, h, w] of any length; NaN where one of the two is zero."""
    angle = angles_deg(np.moveaxis(candidate, 0, -1), np.moveaxis(reference, 0, -1))
    return np.where((reference != 0).any(axis=0) & (candidate != 0).any(axis=0), angle, np.nan)


class _Agreement:
    """Of labels: the classes, or the two sides of probability 0.5 (where the logit, or their difference, is 0)."""

    def __init__(self, task: Task) -> None:
        self._kind = task.kind
        classes = 2 if task.kind == "boundary" else task.channels
        self._confusion = np.zeros((classes, classes), np.int64)  # [reference, candidate]

    def add(self, reference: Array, candidate: Array) -> None:
        add_confusion(self._confusion, self._classes(candidate), self._classes(reference))

    def _classes(self, raw: Array) -> npt.NDArray[np.int64]:
        return (raw[0] > 0).astype(np.int64) if self._kind == "boundary" else raw.argmax(axis=0)

    def result(self) -> dict[str, float]:
        total, iou = int(self._confusion.sum()), iou_of(self._confusion)
        overlap = {"miou": _mean(iou[np.isfinite(iou)])} if self._kind == "labels" else {"iou": float(iou[1])}
        return {"agreement": 100 * int(self._confusion.trace()) / total if total else 100.0, **overlap}


def _mean(values: npt.NDArray[np.float64]) -> float:
    return float(values.mean()) if values.size else math.nan


class _Depth:
    def __init__(self) -> None:
        self._sum, self._count, self._max = 0.0, 0, 0.0

    def add(self, reference: Array, candidate: Array) -> None:
        r, c = reference[0].astype(np.float64), np.maximum(candidate[0].astype(np.float64), 0)
        counts = r > NEAREST * max(float(r.max()), 0.0)
        if counts.any():
            error = np.abs(c[counts] - r[counts]) / r[counts]
            self._sum, self._count = self._sum + float(error.sum()), self._count + error.size
            self._max = max(self._max, float(error.max()))

    def result(self) -> dict[str, float]:
        mean = 100 * self._sum / self._count if self._count else 0.0
        return {"depth": mean, "depth_max": 100 * self._max if self._count else math.nan}


class _Normals:
    def __init__(self) -> None:
        self._sum, self._count, self._max = 0.0, 0, 0.0

    def add(self, reference: Array, candidate: Array) -> None:
        angle = angle_map(reference, candidate)
        angle = angle[np.isfinite(angle)]
        if angle.size:
            self._sum, self._count = self._sum + float(angle.sum()), self._count + angle.size
            self._max = max(self._max, float(angle.max()))

    def result(self) -> dict[str, float]:
        mean = self._sum / self._count if self._count else 0.0
        return {"angle": mean, "angle_max": self._max if self._count else math.nan}
