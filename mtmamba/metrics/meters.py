"""Meters of labels, depth, normals and saliency. docs/metrics.md has every formula and its source."""

from typing import Literal

import numpy as np

from mtmamba.data.labels import valid_pixels
from mtmamba.errors import MtmError
from mtmamba.metrics.base import NOT_A_NUMBER, Array, Meter, ratio
from mtmamba.metrics.thresholds import SALIENCY_BETA_SQUARED, ThresholdCounts, published_thresholds
from mtmamba.tasks import Task

AbsentClasses = Literal["zero", "left-out"]
NORMAL_SHARES_DEG = (11.25, 22.5, 30.0)
CITYSCAPES_MAX_DISPARITY = 80.0
BINS_PER_DEG = 1000


def add_confusion(confusion: Array, prediction: Array, label: Array) -> None:
    """Count pairs of equal-shaped class arrays into [label, prediction], in place."""
    classes = len(confusion)
    pairs = label.astype(np.int64) * classes + prediction
    confusion += np.bincount(pairs.ravel(), minlength=classes * classes).reshape(classes, classes)


def iou_of(confusion: Array) -> Array:
    """IoU [classes], percent, tp / (tp + fp + fn); NaN for a class in neither prediction nor label."""
    hits = confusion.diagonal().astype(np.float64)
    union = confusion.sum(0) + confusion.sum(1) - hits
    return np.asarray(100 * np.divide(hits, union, out=np.full_like(hits, np.nan), where=union > 0))


class LabelMeter(Meter):
    """Mean over classes of the IoU, percent.

    `mIoU` counts a class that is in neither prediction nor label as 0, as the published code does; `mIoU_present`
    leaves such classes out, and is the headline with absent="left-out". `accuracy` is the share of pixels that are
    right, percent.
    """

    lower_is_better = False

    def __init__(self, task: Task, absent: AbsentClasses = "zero") -> None:
        super().__init__(task)
        self.headline = "mIoU" if absent == "zero" else "mIoU_present"
        self.sums = {"confusion": np.zeros((task.channels, task.channels), np.int64)}

    @property
    def confusion(self) -> Array:
        """Pixels [label, prediction]."""
        return self.sums["confusion"]

    def add(self, prediction: Array, label: Array) -> None:
        valid = valid_pixels("labels", label)
        true = label[valid]
        if true.size and true.max() >= self.task.channels:
            raise MtmError(
                f"{self.task.name}: expected labels 0 to {self.task.channels - 1}, or 255 where none counts, found "
                f"{true.max()}; check that these labels are the dataset's"
            )
        add_confusion(self.confusion, prediction[valid], true)

    def class_iou(self) -> Array:
        """IoU [classes], percent; NaN for a class in neither prediction nor label."""
        return iou_of(self.confusion)

    def result(self) -> dict[str, float]:
        iou, total = self.class_iou(), int(self.confusion.sum())
        present = iou[~np.isnan(iou)]
        return {
            "mIoU": float(np.nan_to_num(iou).mean()) if total else NOT_A_NUMBER,
            "mIoU_present": ratio(present.sum(), present.size),
            "accuracy": 100 * ratio(self.confusion.trace(), total),
        }


class DepthMeter(Meter):
    """RMSE and the usual depth figures over pixels with 0 < label < limit; predictions are clamped at 0.

    `abs_rel` and `sq_rel` are relative to the label; `log_rmse` (natural) and the shares `delta1..3` of max(p/g, g/p)
    below 1.25, 1.25^2, 1.25^3, percent, take predictions as at least 1e-3.
    """

    headline, lower_is_better = "RMSE", True

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.limit = depth_limit(task)
        self.sums = {"errors": np.zeros(4), "close": np.zeros(3, np.int64), "count": np.zeros(1, np.int64)}

    def add(self, prediction: Array, label: Array) -> None:
        valid = valid_pixels("depth", label) & (label[:, 0] < self.limit)
        g = label[:, 0][valid].astype(np.float64)
        p = np.maximum(prediction[valid].astype(np.float64), 0)
        error, positive = p - g, np.maximum(p, 1e-3)
        worse = np.maximum(positive / g, g / positive)
        parts = (error**2, np.abs(error) / g, error**2 / g, np.log(positive / g) ** 2)
        self.sums["errors"] += [part.sum() for part in parts]
        self.sums["close"] += [int((worse < 1.25**k).sum()) for k in (1, 2, 3)]
        self.sums["count"] += g.size

    def result(self) -> dict[str, float]:
        count = self.sums["count"][0]
        square, abs_rel, sq_rel, log_square = (ratio(value, count) for value in self.sums["errors"])
        return {
            "RMSE": square**0.5,
            "abs_rel": abs_rel,
            "sq_rel": sq_rel,
            "log_rmse": log_square**0.5,
            **{f"delta{k}": 100 * ratio(n, count) for k, n in enumerate(self.sums["close"], start=1)},
        }


class NormalMeter(Meter):
    """Angles between unit normals, degrees: mean (`mErr`), `median` (within 0.0005 degrees of the exact one: the
    middles of bins of 0.001), and the percent under 11.25, 22.5, 30. A zero vector is 90 degrees from everything."""

    headline, lower_is_better = "mErr", True

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.sums = {
            "angle": np.zeros(1),
            "under": np.zeros(len(NORMAL_SHARES_DEG), np.int64),
            "histogram": np.zeros(180 * BINS_PER_DEG + 1, np.int64),
        }

    def add(self, prediction: Array, label: Array) -> None:
        valid = valid_pixels("normals", label)
        angle = angles_deg(prediction[valid], label.transpose(0, 2, 3, 1)[valid])
        self.sums["angle"] += angle.sum()
        self.sums["under"] += [int((angle < limit).sum()) for limit in NORMAL_SHARES_DEG]
        histogram = self.sums["histogram"]
        histogram += np.bincount((angle * BINS_PER_DEG).astype(np.int64), minlength=histogram.size)

    def result(self) -> dict[str, float]:
        cumulated = self.sums["histogram"].cumsum()
        count = int(cumulated[-1])
        middles = np.searchsorted(cumulated, [(count - 1) // 2, count // 2], side="right")
        under = zip(NORMAL_SHARES_DEG, self.sums["under"], strict=True)
        return {
            "mErr": ratio(self.sums["angle"][0], count),
            "median": (float(middles.mean()) + 0.5) / BINS_PER_DEG if count else NOT_A_NUMBER,
            **{f"under_{limit:g}": 100 * ratio(n, count) for limit, n in under},
        }


def angles_deg(p: Array, g: Array) -> Array:
    """Angles [...] in degrees between vectors [..., 3] of any length: 2 atan2(|p - g|, |p + g|) of the unit vectors,
    which is exact for small angles where the arc cosine is not."""
    p, g = (np.asarray(v, np.float64) for v in (p, g))
    p, g = (v / np.maximum(np.linalg.norm(v, axis=-1, keepdims=True), 1e-12) for v in (p, g))
    return np.degrees(2 * np.arctan2(np.linalg.norm(p - g, axis=-1), np.linalg.norm(p + g, axis=-1)))


class SaliencyMeter(Meter):
    """The best F with beta^2 = 0.3, percent, of the saliency's probability.

    `maxF` is the plain definition, over the thresholds 0.05 .. 0.95; `maxF_published` is what the published meter
    computes, whose thresholds apply to the sigmoid of the probability; it is the headline with published=True.
    `threshold`, `threshold_published`: where they were reached. `mIoU`: mean IoU of salient and not salient, percent,
    at probability 0.5.
    """

    lower_is_better = False

    def __init__(self, task: Task, published: bool = False) -> None:
        super().__init__(task)
        self.headline = "maxF_published" if published else "maxF"
        self._plain = ThresholdCounts(SALIENCY_BETA_SQUARED)
        self._published = ThresholdCounts(SALIENCY_BETA_SQUARED, published_thresholds())
        self.sums = {
            "plain": self._plain.counts,
            "published": self._published.counts,
            "confusion": np.zeros((2, 2), np.int64),
        }

    def add(self, prediction: Array, label: Array) -> None:
        valid = valid_pixels("saliency", label)
        probability, positive = prediction[valid], label[valid] == 1
        self._plain.add(probability, positive)
        self._published.add(probability, positive)
        add_confusion(self.sums["confusion"], probability > 0.5, positive)

    def result(self) -> dict[str, float]:
        (plain, at), (published, published_at) = self._plain.best(), self._published.best()
        iou = iou_of(self.sums["confusion"])
        present = iou[~np.isnan(iou)]
        return {
            "maxF": 100 * plain,
            "threshold": at,
            "maxF_published": 100 * published,
            "threshold_published": published_at,
            "mIoU": ratio(present.sum(), present.size),
        }


def depth_limit(task: Task) -> float:
    """Labels from here on do not count: 80 pixels of disparity (Cityscapes), none in metres."""
    return CITYSCAPES_MAX_DISPARITY if task.unit == "px" else float("inf")
