"""Histograms that grow with the data, and the thresholds read off them."""

import numpy as np
import pytest

from mtmamba.calib.histogram import BINS, Histogram


def filled(*batches: np.ndarray) -> Histogram:
    histogram = Histogram()
    for batch in batches:
        histogram.add(batch.astype(np.float32))
    return histogram


def test_growing_loses_nothing():
    rng = np.random.default_rng(0)
    batches = [rng.normal(size=(3, 1000)) * scale for scale in (1e-6, 1.0, 30.0)]
    histogram = filled(*batches)
    values = np.abs(np.concatenate([b.ravel() for b in batches]).astype(np.float32))
    assert histogram.counts.sum() == values.size
    assert histogram.width * BINS > values.max()
    edges = np.arange(BINS + 1) * histogram.width
    exact = np.histogram(values, edges)[0]
    # Merging keeps bins' borders: only values within rounding of a border may lie on its other side.
    assert np.abs(np.cumsum(histogram.counts) - np.cumsum(exact)).max() <= 3


def test_order_of_batches_moves_thresholds_by_a_bin_at_most():
    rng = np.random.default_rng(1)
    small, large = rng.normal(size=20000), 8 * rng.normal(size=20000)
    one, other = filled(small, large), filled(large, small)
    assert one.percentile(99.9) == pytest.approx(other.percentile(99.9), abs=2 * max(one.width, other.width))


def test_percentile():
    values = np.linspace(-1, 1, 100001)
    assert filled(values).percentile(99) == pytest.approx(0.99, abs=2e-3)
    assert filled(values).percentile(100) == pytest.approx(1.0, abs=2e-3)


def test_entropy_clips_outliers_and_keeps_a_uniform_range():
    rng = np.random.default_rng(2)
    bulk = rng.normal(size=200000)
    with_outlier = filled(np.append(bulk, 100.0))
    assert 2.0 < with_outlier.entropy() < 25.0
    uniform = filled(rng.uniform(-1, 1, size=200000))
    assert uniform.entropy() == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("method", ["percentile", "entropy"])
def test_zeros_alone_give_zero(method):
    histogram = filled(np.zeros(100))
    threshold = histogram.percentile(99.9) if method == "percentile" else histogram.entropy()
    assert threshold == 0.0
