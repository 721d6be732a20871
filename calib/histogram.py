"""Histograms of magnitudes that grow with the data, and the clipping thresholds read off them.

One pass, bounded memory: when a value passes the last bin, bins are merged two by two until it fits, so no pass over the
images is needed first to learn the range.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

BINS = 2048
METHODS = ("max", "percentile", "entropy")
LEVELS = 128  # magnitudes an int8 has
_STEP = 16  # bins between the thresholds that `entropy` tries


@dataclass
class Histogram:
    """counts: int64 [BINS] of |x|, bin i from i * width to (i + 1) * width. width 0: nothing but zeros so far."""

    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))
    width: float = 0.0

    def add(self, values: npt.NDArray[Any]) -> None:
        """Count `values`, floats of any shape, all finite."""
        magnitudes = np.abs(values, dtype=np.float32).ravel()
        largest = float(magnitudes.max(initial=0.0))
        if largest > 0 and self.width == 0:
            self.width = largest / (BINS - 1)
        while largest >= self.width * BINS and largest > 0:
            self.counts = np.concatenate([self.counts.reshape(-1, 2).sum(1), np.zeros(BINS // 2, np.int64)])
            self.width *= 2
        index = (magnitudes / self.width).astype(np.int64) if self.width else np.zeros(magnitudes.size, np.int64)
        self.counts += np.bincount(np.minimum(index, BINS - 1), minlength=BINS)

    def percentile(self, share: float) -> float:
        """The magnitude below which `share` percent of the values lie, to a bin's width."""
        total = int(self.counts.sum())
        if not total:
            return 0.0
        last = int(np.searchsorted(self.counts.cumsum(), total * share / 100))
        return (min(last, BINS - 1) + 1) * self.width

    def entropy(self, levels: int = LEVELS) -> float:
        """The threshold whose `levels`-level quantisation loses the least information: the smallest Kullback-Leibler
        divergence of the clipped histogram from the quantised one (Migacz, "8-bit inference with TensorRT", GTC 2017)."""
        counts = self.counts.astype(np.float64)
        counts[0] = 0  # exact zeros are exact in any quantisation, and outnumber the rest after a ReLU or a padding
        if not counts.any():
            return BINS * self.width
        last = int(np.flatnonzero(counts)[-1]) + 1
        ends = [end for end in range(levels, last, _STEP) if counts[:end].any()] + [last]
        return min(ends, key=lambda end: _divergence(counts, end, levels)) * self.width


def _divergence(counts: npt.NDArray[np.float64], end: int, levels: int) -> float:
    clipped = counts[:end].copy()
    clipped[-1] += counts[end:].sum()
    level = np.arange(end) * levels // max(end, levels)
    filled = counts[:end] > 0
    mass = np.bincount(level, counts[:end], minlength=levels)
    members = np.bincount(level, filled, minlength=levels)
    quantised = np.where(filled, (mass / np.maximum(members, 1))[level], 0.0)
    p, q = clipped / clipped.sum(), quantised / quantised.sum()
    seen = p > 0
    with np.errstate(divide="ignore"):
        return float((p[seen] * np.log(p[seen] / np.maximum(q[seen], 1e-12))).sum())
