"""The meter of boundaries: pixel by pixel while training, odsF for figures that are compared."""

import numpy as np

from mtmamba.data.labels import valid_pixels
from mtmamba.metrics.base import NOT_A_NUMBER, Array, Meter
from mtmamba.metrics.boundary_match import (
    COUNTS,
    Matching,
    average_precision,
    even_thresholds,
    f_measure,
    match_counts,
)
from mtmamba.metrics.thresholds import ThresholdCounts
from mtmamba.tasks import Task


class BoundaryMeter(Meter):
    """`boundary_f_pixel`: the best F over the thresholds 0.05 .. 0.95, percent, of pixels against label pixels, with no
    tolerance, thinning or matching: cheap, and much lower than odsF.

    With a `Matching`, also `odsF` (the best F of the set over one threshold, at `threshold`), `oisF` (each picture at
    its own best threshold) and `AP`, percent; `odsF` is then the headline. It takes seconds a picture, so a caller may
    spread `match_counts` over processes and hand the counts to `add_counts`, and the pixels to `add_pixels`.
    """

    lower_is_better = False

    def __init__(self, task: Task, matching: Matching | None = None) -> None:
        super().__init__(task)
        self.matching = matching
        self.headline = "odsF" if matching else "boundary_f_pixel"
        self._pixels = ThresholdCounts(1.0)
        self.sums = {"pixels": self._pixels.counts}
        if matching:
            self.sums["ods"] = np.zeros((matching.thresholds, len(COUNTS)), np.int64)
            self.sums["ois"] = np.zeros(len(COUNTS), np.int64)

    def add(self, prediction: Array, label: Array) -> None:
        self.add_pixels(prediction, label)
        if self.matching:
            for probability, true, valid in zip(prediction, label[:, 0], valid_pixels("boundary", label), strict=True):
                self.add_counts(match_counts(probability, true > 0.5, valid, self.matching))

    def add_pixels(self, prediction: Array, label: Array) -> None:
        """The part of `add` that needs no matching."""
        valid = valid_pixels("boundary", label)
        self._pixels.add(prediction[valid], label[:, 0][valid] > 0.5)

    def add_counts(self, counts: Array) -> None:
        """One picture's `match_counts`."""
        self.sums["ods"] += counts
        self.sums["ois"] += counts[f_measure(counts).argmax()]

    def curve(self) -> tuple[Array, Array]:
        """(recall, precision) at every threshold that any pixel passes, over the set; shares of 1."""
        matched, predicted, true = self.sums["ods"].T
        some = predicted > 0
        return matched[some] / np.maximum(true[some], 1), matched[some] / predicted[some]

    def result(self) -> dict[str, float]:
        pixel, at = self._pixels.best()
        figures = {"boundary_f_pixel": 100 * pixel, "threshold_pixel": at}
        if not self.matching:
            return figures
        ods = self.sums["ods"]
        if not ods[:, 1:].any():  # no picture, or none with a boundary, true or predicted
            return {
                "odsF": NOT_A_NUMBER,
                "threshold": NOT_A_NUMBER,
                "oisF": NOT_A_NUMBER,
                "AP": NOT_A_NUMBER,
                **figures,
            }
        f = f_measure(ods)
        return {
            "odsF": 100 * float(f.max()),
            "threshold": float(even_thresholds(self.matching.thresholds)[f.argmax()]),
            "oisF": 100 * float(f_measure(self.sums["ois"])),
            "AP": 100 * average_precision(ods),
            **figures,
        }
