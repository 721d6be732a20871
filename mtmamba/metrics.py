"""Metrics, streaming: meters add up counts and sums over a whole set, and divide once at the end. NumPy only, so that
one code scores PyTorch and engines.

Predictions are the model's raw outputs [B, C, H, W]; labels are laid out as `mtmamba.data.labels` says, with a batch
dimension. How a set is cut into batches changes nothing beyond the last bits of float64 sums. A figure over no pixel
at all is NaN.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from mtmamba.data.labels import valid_pixels
from mtmamba.errors import MtmError
from mtmamba.tasks import Task

Array = np.ndarray[Any, Any]
THRESHOLDS = np.arange(1, 20) / 20  # 0.05 .. 0.95
SALIENCY_BETA_SQUARED = 0.3
NORMAL_SHARES_DEG = (11.25, 22.5, 30.0)
CITYSCAPES_MAX_DISPARITY = 80.0
_BINS_PER_DEG = 100


class Meter(Protocol):
    """`headline` is the figure that tables show; `lower_is_better` says which way it points."""

    headline: str
    lower_is_better: bool

    def update(self, prediction: Array, label: Array) -> None:
        """Add a batch."""

    def result(self) -> dict[str, float]:
        """All figures so far, by name."""


def _ratio(numerator: Any, denominator: Any) -> float:
    return float(numerator) / float(denominator) if denominator else float("nan")


class LabelMeter:
    """mIoU, percent: mean over classes of tp / (tp + fp + fn).

    `mIoU` counts a class that is in neither prediction nor label as 0, as the published code does; `mIoU_present`
    leaves such classes out. `accuracy` is the share of pixels that are right, percent.
    """

    headline, lower_is_better = "mIoU", False

    def __init__(self, classes: int) -> None:
        self.confusion = np.zeros((classes, classes), dtype=np.int64)  # [label, prediction]

    def update(self, prediction: Array, label: Array) -> None:
        valid = valid_pixels("labels", label)
        classes = len(self.confusion)
        pairs = label[valid].astype(np.int64) * classes + prediction.argmax(axis=1)[valid]
        self.confusion += np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)

    def class_iou(self) -> Array:
        """IoU [classes], percent; NaN for a class in neither prediction nor label."""
        hits = self.confusion.diagonal().astype(np.float64)
        union = self.confusion.sum(0) + self.confusion.sum(1) - hits
        return np.asarray(100 * np.divide(hits, union, out=np.full_like(hits, np.nan), where=union > 0))

    def result(self) -> dict[str, float]:
        iou, total = self.class_iou(), int(self.confusion.sum())
        present = iou[~np.isnan(iou)]
        return {
            "mIoU": float(np.nan_to_num(iou).mean()) if total else float("nan"),
            "mIoU_present": _ratio(present.sum(), present.size),
            "accuracy": 100 * _ratio(self.confusion.trace(), total),
        }


class DepthMeter:
    """RMSE and the usual depth figures over pixels with 0 < label < limit; predictions are clamped at 0.

    `abs_rel` and `sq_rel` are relative to the label; `log_rmse` (natural) and the shares `delta1..3` of max(p/g, g/p)
    below 1.25, 1.25^2, 1.25^3, percent, take predictions as at least 1e-3.
    """

    headline, lower_is_better = "RMSE", True

    def __init__(self, limit: float = float("inf")) -> None:
        self.limit = limit
        self._sums = np.zeros(7)
        self._count = 0

    def update(self, prediction: Array, label: Array) -> None:
        valid = valid_pixels("depth", label) & (label[:, 0] < self.limit)
        g = label[:, 0][valid].astype(np.float64)
        p = np.maximum(prediction[:, 0][valid].astype(np.float64), 0)
        error, positive = p - g, np.maximum(p, 1e-3)
        ratio = np.maximum(positive / g, g / positive)
        parts = [
            error**2,
            np.abs(error) / g,
            error**2 / g,
            np.log(positive / g) ** 2,
            *(ratio < 1.25**k for k in (1, 2, 3)),
        ]
        self._sums += [part.sum() for part in parts]
        self._count += g.size

    def result(self) -> dict[str, float]:
        square, abs_rel, sq_rel, log_square, *deltas = (_ratio(value, self._count) for value in self._sums)
        return {
            "RMSE": square**0.5,
            "abs_rel": abs_rel,
            "sq_rel": sq_rel,
            "log_rmse": log_square**0.5,
            **{f"delta{k}": 100 * share for k, share in enumerate(deltas, start=1)},
        }


class NormalMeter:
    """Angles between unit normals, degrees: mean (`mErr`), `median` (to 0.01 degrees), and the percent under 11.25,
    22.5, 30."""

    headline, lower_is_better = "mErr", True

    def __init__(self) -> None:
        self._sum = 0.0
        self._under = np.zeros(len(NORMAL_SHARES_DEG), dtype=np.int64)
        self._histogram = np.zeros(180 * _BINS_PER_DEG + 1, dtype=np.int64)

    def update(self, prediction: Array, label: Array) -> None:
        valid = valid_pixels("normals", label)
        p = prediction.astype(np.float64).transpose(0, 2, 3, 1)[valid]
        g = label.astype(np.float64).transpose(0, 2, 3, 1)[valid]
        p /= np.maximum(np.linalg.norm(p, axis=1, keepdims=True), 1e-12)
        g /= np.linalg.norm(g, axis=1, keepdims=True)
        angle = np.degrees(2 * np.arctan2(np.linalg.norm(p - g, axis=1), np.linalg.norm(p + g, axis=1)))
        self._sum += angle.sum()
        self._under += [int((angle < limit).sum()) for limit in NORMAL_SHARES_DEG]
        self._histogram += np.bincount((angle * _BINS_PER_DEG).astype(np.int64), minlength=self._histogram.size)

    def result(self) -> dict[str, float]:
        count = int(self._histogram.sum())
        middle = int(np.searchsorted(self._histogram.cumsum(), count / 2)) if count else 0
        shares = {
            f"under_{limit:g}": 100 * _ratio(n, count) for limit, n in zip(NORMAL_SHARES_DEG, self._under, strict=True)
        }
        median = (middle + 0.5) / _BINS_PER_DEG if count else float("nan")
        return {"mErr": _ratio(self._sum, count), "median": median, **shares}


class ThresholdMeter:
    """The best F, percent, over the thresholds 0.05, 0.10 .. 0.95 (`probability >= threshold`), of precision and
    recall from counts over the whole set: F = (1 + b2) P R / (b2 P + R). The figure is called `name`; `threshold` is
    where it was reached.
    """

    lower_is_better = False

    def __init__(self, name: str, beta_squared: float) -> None:
        self.headline, self.beta_squared = name, beta_squared
        self._hits, self._said = (np.zeros(THRESHOLDS.size, dtype=np.int64) for _ in range(2))
        self._true = 0

    def add(self, probability: Array, positive: Array) -> None:
        """Add pixels: probabilities and booleans of one shape."""
        # How many thresholds each pixel passes; counts of those passing at least k follow by summing from the top.
        passed = np.searchsorted(THRESHOLDS, probability.astype(np.float64), side="right")
        for counts, values in ((self._said, passed), (self._hits, passed[positive])):
            histogram = np.bincount(values.ravel(), minlength=THRESHOLDS.size + 1)
            counts += histogram[::-1].cumsum()[::-1][1:]
        self._true += int(positive.sum())

    def result(self) -> dict[str, float]:
        if not self._true and not self._said.any():
            return {self.headline: float("nan"), "threshold": float("nan")}
        precision, recall = self._hits / np.maximum(self._said, 1), self._hits / max(self._true, 1)
        below = self.beta_squared * precision + recall
        f = np.divide((1 + self.beta_squared) * precision * recall, below, out=np.zeros_like(below), where=below > 0)
        return {self.headline: 100 * float(f.max()), "threshold": float(THRESHOLDS[f.argmax()])}


class SaliencyMeter(ThresholdMeter):
    """maxF with beta^2 = 0.3 of softmax[1], the plain definition (the published meter's thresholds are moved)."""

    def __init__(self) -> None:
        super().__init__("maxF", SALIENCY_BETA_SQUARED)

    def update(self, prediction: Array, label: Array) -> None:
        valid = valid_pixels("saliency", label)
        logit = prediction[:, 1].astype(np.float64) - prediction[:, 0]
        self.add(_sigmoid(logit[valid]), label[valid] == 1)


class BoundaryMeter(ThresholdMeter):
    """`boundary_f_pixel`: F of thresholded pixels against label pixels, with no tolerance, thinning or matching. It
    is not odsF, and much lower."""

    def __init__(self) -> None:
        super().__init__("boundary_f_pixel", 1.0)

    def update(self, prediction: Array, label: Array) -> None:
        valid = valid_pixels("boundary", label)
        self.add(_sigmoid(prediction[:, 0][valid].astype(np.float64)), label[:, 0][valid] > 0.5)


def _sigmoid(logit: Array) -> Array:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * logit)))


def depth_limit(task: Task) -> float:
    """Labels from here on do not count: 80 pixels of disparity (Cityscapes), none in metres."""
    return CITYSCAPES_MAX_DISPARITY if task.unit == "px" else float("inf")


def meter_for(task: Task) -> Meter:
    """A fresh meter of a task: the one place that says which kind is measured how."""
    if task.kind == "labels":
        return LabelMeter(task.channels)
    if task.kind == "depth":
        return DepthMeter(depth_limit(task))
    if task.kind == "normals":
        return NormalMeter()
    return SaliencyMeter() if task.kind == "saliency" else BoundaryMeter()


class Scoreboard:
    """A meter for every task."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self.meters = {task.name: meter_for(task) for task in tasks}

    def update(self, predictions: Mapping[str, Array], labels: Mapping[str, Array]) -> None:
        """Add a batch. Raises MtmError naming a task that is missing."""
        for name, meter in self.meters.items():
            if name not in predictions or name not in labels:
                raise MtmError(
                    f"expected a prediction and a label of {name}; found {sorted(predictions)} and {sorted(labels)}"
                )
            meter.update(predictions[name], labels[name])

    def result(self) -> dict[str, dict[str, float]]:
        return {name: meter.result() for name, meter in self.meters.items()}


def best_constant(task: Task, labels: Sequence[Array]) -> Array:
    """The raw prediction [C] that, given at every pixel of this very set, scores best on the task's meter: what a
    model that looks at no image could reach at most. labels: batches of the set.

    labels: the class whose IoU is largest, the most frequent one. depth: the mean. normals: the direction of least
    mean angle among 2,000, within about 2 degrees of the best. saliency, boundary: positive everywhere.
    """
    if task.kind == "labels":
        counts = sum(np.bincount(batch[valid_pixels("labels", batch)], minlength=task.channels) for batch in labels)
        return np.eye(task.channels)[int(np.argmax(counts))]
    if task.kind == "depth":
        values = [batch[:, 0][valid_pixels("depth", batch) & (batch[:, 0] < depth_limit(task))] for batch in labels]
        return np.array([np.concatenate(values).astype(np.float64).mean()])
    if task.kind == "normals":
        normals = np.concatenate([batch.transpose(0, 2, 3, 1)[valid_pixels("normals", batch)] for batch in labels])
        candidates = _directions(2000)
        angles = np.arccos(np.clip(candidates @ normals[:: max(1, len(normals) // 20000)].T, -1, 1)).mean(axis=1)
        return np.asarray(candidates[int(angles.argmin())])
    return np.array([-50.0, 50.0]) if task.kind == "saliency" else np.array([50.0])


def _directions(count: int) -> Array:
    """Unit vectors [count, 3] spread evenly (a Fibonacci spiral)."""
    z = 1 - (2 * np.arange(count) + 1) / count
    turn = np.pi * (3 - 5**0.5) * np.arange(count)
    radius = np.sqrt(1 - z * z)
    return np.stack([radius * np.cos(turn), radius * np.sin(turn), z], axis=1)


def constant_baseline(tasks: Sequence[Task], batches: Sequence[Mapping[str, Array]]) -> dict[str, dict[str, float]]:
    """The figures of `best_constant` on the set whose label batches these are."""
    board = Scoreboard(tasks)
    constants = {task.name: best_constant(task, [batch[task.name] for batch in batches]) for task in tasks}
    for batch in batches:
        shapes = {name: (len(batch[name]), len(value), *batch[name].shape[-2:]) for name, value in constants.items()}
        board.update(
            {name: np.broadcast_to(value[:, None, None], shapes[name]) for name, value in constants.items()}, batch
        )
    return board.result()
