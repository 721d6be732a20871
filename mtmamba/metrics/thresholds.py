"""F over thresholds, from counts."""

import numpy as np

from mtmamba.metrics.base import NOT_A_NUMBER, Array

THRESHOLDS = np.arange(1, 20) / 20  # 0.05 .. 0.95
SALIENCY_BETA_SQUARED = 0.3


def published_thresholds() -> Array:
    """What `THRESHOLDS` ask of a probability in the published saliency meter, which applies a sigmoid to it once more:
    p >= log(t / (1 - t)). Up to 0.5 every pixel passes, from 0.75 none does."""
    return np.log(THRESHOLDS / (1 - THRESHOLDS))


class ThresholdCounts:
    """Pixels that are said to be positive (`probability >= threshold`), and those of them that are, at ascending
    thresholds. counts [2, thresholds + 1] int64: said, hit; their last column is the number of pixels, and of
    positive ones. F = (1 + b2) P R / (b2 P + R).
    """

    def __init__(self, beta_squared: float, thresholds: Array = THRESHOLDS) -> None:
        self.beta_squared, self.thresholds = beta_squared, thresholds
        self.counts = np.zeros((2, thresholds.size + 1), np.int64)

    def add(self, probability: Array, positive: Array) -> None:
        """Add pixels: probabilities and booleans [n]."""
        # How many thresholds each pixel passes; counts of those passing at least k follow by summing from the top.
        passed = np.searchsorted(self.thresholds, probability.astype(np.float64), side="right")
        for counts, values in zip(self.counts, (passed, passed[positive]), strict=True):
            histogram = np.bincount(values, minlength=counts.size)
            counts += np.roll(histogram[::-1].cumsum()[::-1], -1)

    def best(self) -> tuple[float, float]:
        """(the best F, a share of 1, its threshold); NaN where no pixel was added, and where none is positive and none
        is said to be at any threshold."""
        (said, hits), (_, true) = self.counts[:, :-1], self.counts[:, -1]
        if not true and not said.any():
            return NOT_A_NUMBER, NOT_A_NUMBER
        precision, recall = hits / np.maximum(said, 1), hits / max(int(true), 1)
        below = self.beta_squared * precision + recall
        f = np.divide((1 + self.beta_squared) * precision * recall, below, out=np.zeros_like(below), where=below > 0)
        return float(f.max()), float(THRESHOLDS[f.argmax()])
