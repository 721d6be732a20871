"""Boundaries as the benchmark of Martin, Fowlkes and Malik (PAMI 2004) counts them: thin lines against thin lines, one
predicted pixel for one true pixel, no farther apart than a small share of the image's diagonal. H W: a picture's size.

The steps are those of the published figures (Dollar and Zitnick's edge toolbox for suppression, the Berkeley benchmark
for matching); docs/metrics.md has the formulas and what differs.
"""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from mtmamba.errors import MtmError

Array = np.ndarray[Any, Any]

SMOOTHING_RADIUS, NMS_REACH, NMS_BORDER, NMS_MARGIN = 4, 1, 5, 1.01
COST_PER_PIXEL = 100  # the solver takes whole numbers: distances to a hundredth of a pixel
OUTLIER_COST = 100  # of leaving a pixel alone, in units of the largest distance: more matches before shorter ones
THRESHOLD_COUNT = 101
COUNTS = ("matched", "predicted", "true")


def even_thresholds(count: int) -> Array:
    """`count` thresholds: 0.001, then evenly up to 0.999; 101 gives the usual 0.001, 0.01, 0.02 .. 0.99, 0.999.

    Raises MtmError below 1."""
    if count < 1:
        raise MtmError(f"expected at least one boundary threshold, found {count}; choose another --edge-thresholds")
    return np.clip(np.linspace(0, 1, count), 0.001, 0.999) if count > 1 else np.array([0.5])


@dataclass(frozen=True, kw_only=True)
class Matching:
    """How boundaries are matched. max_distance: share of the picture's diagonal. thresholds: how many."""

    max_distance: float
    thresholds: int = THRESHOLD_COUNT


def triangle_filter(values: Array) -> Array:
    """[H, W] smoothed with the triangle 1, 2 .. 5 .. 2, 1 over 25, down and across; mirrored at the borders."""
    radius = SMOOTHING_RADIUS
    ramp = np.concatenate([np.arange(1, radius + 2), np.arange(radius, 0, -1)]) / (radius + 1) ** 2
    return np.asarray(cv2.sepFilter2D(values, cv2.CV_64F, ramp, ramp, borderType=cv2.BORDER_REFLECT))


def orientation(probability: Array) -> Array:
    """[H, W] -> the direction across the edge at every pixel, radians in 0..pi: from second derivatives of the smoothed
    map."""
    dy, dx = np.gradient(triangle_filter(probability))
    dxx, (dyy, dxy) = np.gradient(dx, axis=1), np.gradient(dy)
    # The published formula has the sign of -dxy, which is 0 on an exactly horizontal line and so takes it for a vertical
    # one; any sign will do there.
    return np.asarray(np.arctan(dyy * np.where(dxy > 0, -1, 1) / (dxx + 1e-5)) % np.pi)


def suppress(probability: Array) -> Array:
    """Non-maximum suppression of [H, W] along `orientation`: a pixel stays where, times 1.01, it is no less than its
    interpolated neighbours one pixel to either side; the outermost five pixels fade out."""
    from scipy.ndimage import map_coordinates

    probability = np.asarray(probability, np.float64)
    height, width = probability.shape
    if min(height, width) < 2:
        return np.zeros_like(probability)
    angle = orientation(probability)
    rows, columns = np.mgrid[:height, :width].astype(np.float64)
    keep = np.ones(probability.shape, bool)
    for step in (*range(-NMS_REACH, 0), *range(1, NMS_REACH + 1)):
        place = [rows + step * np.sin(angle), columns + step * np.cos(angle)]
        keep &= probability * NMS_MARGIN >= map_coordinates(probability, place, order=1, mode="nearest")
    fade_y, fade_x = (np.minimum(1, np.minimum(np.arange(n), np.arange(n)[::-1]) / NMS_BORDER) for n in (height, width))
    return np.asarray(probability * keep * fade_y[:, None] * fade_x)


def thin(mask: Array) -> Array:
    """Lines one pixel wide of a bool mask [H, W] (Guo and Hall's thinning)."""
    from skimage.morphology import thin as skimage_thin

    return np.asarray(skimage_thin(mask))


def match(predicted: Array, true: Array, reach: float) -> int:
    """How many pixels of two bool masks [H, W] can be paired, one to one, no farther than `reach` pixels apart: of all
    pairings with few pixels left alone the one of least distance.

    A pixel left alone is paired with a stand-in of its own at a high cost, and the stand-ins of a possible pair can be
    paired with each other for nothing, so that a perfect assignment always exists.
    """
    rows, columns, distance = _near_pairs(predicted, true, reach)
    if not rows.size:
        return 0
    lefts, left = np.unique(rows, return_inverse=True)
    rights, right = np.unique(columns, return_inverse=True)
    n, m = lefts.size, rights.size
    alone = round(OUTLIER_COST * reach * COST_PER_PIXEL)
    # Left nodes: n predicted pixels, then m stand-ins of true ones. Right nodes: m true pixels, then n stand-ins.
    starts = np.concatenate([left, np.arange(n), n + np.arange(m), n + right])
    ends = np.concatenate([right, m + np.arange(n), np.arange(m), m + left])
    costs = np.concatenate(
        [np.rint(distance * COST_PER_PIXEL), np.full(n + m, alone), np.zeros(left.size)],
    )
    mates = _assign(starts, ends, costs)
    return int((mates[:n] < m).sum())


def _assign(starts: Array, ends: Array, costs: Array) -> Array:
    """The right node of every left node in the assignment of least cost (OR-tools' cost-scaling push-relabel)."""
    try:
        from ortools.graph.python.linear_sum_assignment import SimpleLinearSumAssignment
    except ImportError as error:
        raise MtmError(
            f"odsF: expected the package ortools, found none that loads ({error}); install it with "
            "pip install 'mtmamba[eval]'"
        ) from error
    solver = SimpleLinearSumAssignment()
    solver.add_arcs_with_cost(starts.astype(np.int32), ends.astype(np.int32), costs.astype(np.int64))
    status = solver.solve()
    if status != solver.OPTIMAL:
        raise MtmError(f"odsF: OR-tools found no assignment of boundary pixels ({status}); check the edge labels")
    return np.array([solver.right_mate(node) for node in range(solver.num_nodes())])


def _near_pairs(predicted: Array, true: Array, reach: float) -> tuple[Array, Array, Array]:
    """All pairs (index of a predicted pixel, index of a true pixel, distance) within `reach` pixels."""
    radius = int(reach)
    dy, dx = np.mgrid[-radius : radius + 1, -radius : radius + 1].reshape(2, -1)
    length = np.hypot(dy, dx)
    near = length <= reach
    dy, dx, length = dy[near], dx[near], length[near]
    numbers = np.full(true.shape, -1)
    numbers[true] = np.arange(true.sum())
    numbers = np.pad(numbers, radius, constant_values=-1)
    y, x = np.nonzero(predicted)
    found = numbers[y[:, None] + dy + radius, x[:, None] + dx + radius]  # [predicted pixels, offsets]
    rows, offsets = np.nonzero(found >= 0)
    return rows, found[rows, offsets], length[offsets]


def match_counts(probability: Array, label: Array, valid: Array, matching: Matching) -> Array:
    """Counts of one picture [thresholds, 3] int64 at every threshold: pixels matched, predicted, true (`COUNTS`).

    probability: [H, W] in 0..1. label, valid: bool [H, W]. Only the box of valid pixels is looked at (the rest is
    padding); predictions on other invalid pixels do not count. All 0 where nothing is valid.
    """
    thresholds = even_thresholds(matching.thresholds)
    counts = np.zeros((thresholds.size, len(COUNTS)), np.int64)
    if not valid.any():
        return counts
    box = tuple(slice(int(i.min()), int(i.max()) + 1) for i in np.nonzero(valid))
    probability, label, valid = probability[box], label[box], valid[box]
    true = thin(label & valid)
    line = np.where(valid, suppress(probability), 0)
    reach = matching.max_distance * float(np.hypot(*line.shape))
    counts[:, 2] = true.sum()
    before: Array | None = None
    for index, threshold in enumerate(thresholds):
        mask = line > threshold
        if before is not None and np.array_equal(mask, before):
            counts[index] = counts[index - 1]
            continue
        before, predicted = mask, thin(mask)
        counts[index, :2] = match(predicted, true, reach), predicted.sum()
    return counts


def f_measure(counts: Array) -> Array:
    """[..., 3] `COUNTS` -> F = 2 matched / (predicted + true), which is 2 P R / (P + R); 0 where there is nothing."""
    matched, predicted, true = np.moveaxis(np.asarray(counts, np.float64), -1, 0)
    return np.asarray(2 * matched / np.maximum(predicted + true, 1))


def average_precision(counts: Array) -> float:
    """Mean over the recalls 0, 0.01 .. 1 of the precision, linear between the thresholds' points and 0 outside of the
    recalls they reach; a share of 1. counts: [thresholds, 3]."""
    matched, predicted, true = np.asarray(counts, np.float64).T
    some = predicted > 0
    recall, precision = matched[some] / np.maximum(true[some], 1), matched[some] / predicted[some]
    if not recall.size:
        return 0.0
    order = np.lexsort((-precision, recall))
    recall, first = np.unique(recall[order], return_index=True)
    return float(np.interp(np.linspace(0, 1, 101), recall, precision[order][first], left=0, right=0).mean())
