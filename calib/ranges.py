"""Ranges of tensors, gathered image by image; what is gathered can be put away and taken up again."""

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from mtmamba.calib.calibration import Range
from mtmamba.calib.histogram import BINS, Histogram
from mtmamba.errors import MtmError
from mtmamba.files import atomic_path


class Ranges:
    """names: the tensors; read: those of them that quantised layers read, of which histograms are kept (none for method
    max). images: how many were added."""

    def __init__(self, names: Sequence[str], read: Sequence[str]) -> None:
        self.names = tuple(names)
        self.low = np.full(len(self.names), np.inf)
        self.high = np.full(len(self.names), -np.inf)
        self.histograms = {name: Histogram() for name in read}
        self.images = 0

    def add(
        self, low: npt.NDArray[Any], high: npt.NDArray[Any], values: Mapping[str, npt.NDArray[Any]], images: int
    ) -> None:
        """Add a batch of `images`: low and high, each tensor's smallest and largest value [len(names)], and activations.

        Raises MtmError naming the first tensor that is not finite.
        """
        bad = np.flatnonzero(~(np.isfinite(low) & np.isfinite(high)))
        if bad.size:
            raise MtmError(
                f"the FP32 model itself leaves FP32 at {self.names[bad[0]]} ({low[bad[0]]} to {high[bad[0]]}); check the "
                "checkpoint and the images"
            )
        self.add_values(values)
        np.minimum(self.low, low, out=self.low)
        np.maximum(self.high, high, out=self.high)
        self.images += images

    def add_values(self, values: Mapping[str, npt.NDArray[Any]]) -> None:
        """Add more activations of the batch that was added last: {tensor: values}."""
        for name, found in values.items():
            if name in self.histograms:
                self.histograms[name].add(found)

    def result(self, method: str, percentile: float) -> dict[str, Range]:
        """Tensor -> its range, clipped by `method` ("max", "percentile" or "entropy")."""
        if not self.images:
            raise MtmError("expected at least one image to calibrate on, found none")
        ranges = {}
        for name, low, high in zip(self.names, self.low.tolist(), self.high.tolist(), strict=True):
            histogram, clip = self.histograms.get(name), None
            if histogram is not None:
                clip = histogram.percentile(percentile) if method == "percentile" else histogram.entropy()
                clip = min(clip, max(abs(low), abs(high)))
            ranges[name] = Range(low=low, high=high, clip=clip)
        return ranges

    def save(self, path: Path, key: Mapping[str, Any]) -> None:
        """Put everything away. key: what this work belongs to, JSON-ready."""
        label = json.dumps({"key": key, "names": self.names, "read": list(self.histograms), "images": self.images})
        counts = np.array([h.counts for h in self.histograms.values()], np.int64).reshape(-1, BINS)
        widths = np.array([h.width for h in self.histograms.values()])
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, label=label, low=self.low, high=self.high, counts=counts, widths=widths)

    def resume(self, path: Path, key: Mapping[str, Any]) -> bool:
        """Take up what `save` put away for the same key and tensors; False where there is none, or it is other work's."""
        if not path.is_file():
            return False
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                label = json.loads(str(arrays["label"]))
                low, high, counts, widths = (arrays[name] for name in ("low", "high", "counts", "widths"))
        except (OSError, ValueError, KeyError, EOFError, BadZipFile, zlib.error):
            return False
        same = label.get("key") == json.loads(json.dumps(key)) and tuple(label.get("names", ())) == self.names
        if not same or label.get("read") != list(self.histograms) or counts.shape != (len(self.histograms), BINS):
            return False
        self.low, self.high, self.images = low, high, int(label["images"])
        for histogram, row, width in zip(self.histograms.values(), counts, widths.tolist(), strict=True):
            histogram.counts, histogram.width = row, width
        return True
