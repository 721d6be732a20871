"""odsF: suppression, matching, counting."""

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from mtmamba.data.synthetic import render_sample
from mtmamba.errors import MtmError
from mtmamba.metrics import BOUNDARY_TOLERANCE, BoundaryMeter, Definitions, Matching, meter_for
from mtmamba.metrics.boundary_match import (
    average_precision,
    even_thresholds,
    f_measure,
    match,
    match_counts,
    orientation,
    suppress,
    thin,
    triangle_filter,
)
from mtmamba.tasks import dataset

EDGE = next(task for task in dataset("nyudv2").tasks if task.kind == "boundary")
NYUDV2 = Matching(max_distance=BOUNDARY_TOLERANCE["nyudv2"])
Array = np.ndarray


@pytest.fixture(scope="module")
def room() -> Array:
    """The boundaries of a rendered room at NYUDv2's size, thinned: bool [425, 560]."""
    return thin(render_sample(1, 3, (425, 560)).edge > 0.5)


def reach_of(mask: Array) -> float:
    return NYUDV2.max_distance * float(np.hypot(*mask.shape))


def test_thresholds() -> None:
    usual = even_thresholds(101)
    assert usual[[0, 1, 2, 99, 100]] == pytest.approx([0.001, 0.01, 0.02, 0.99, 0.999])
    assert even_thresholds(1).tolist() == [0.5] and even_thresholds(3).tolist() == [0.001, 0.5, 0.999]
    with pytest.raises(MtmError, match="at least one boundary threshold"):
        even_thresholds(0)


def test_smoothing_by_hand() -> None:
    spike = np.zeros((21, 21))
    spike[10, 10] = 1
    smooth = triangle_filter(spike)
    assert smooth[10, 5:16] == pytest.approx(0.2 * np.array([0, 1, 2, 3, 4, 5, 4, 3, 2, 1, 0]) / 25)
    assert smooth == pytest.approx(smooth.T) and smooth.sum() == pytest.approx(1)
    assert triangle_filter(np.full((9, 12), 0.7)) == pytest.approx(0.7)


@pytest.mark.parametrize("degrees", [0, 30, 45, 90, 120, 150])
def test_orientation_is_across_the_line(degrees: float) -> None:
    angle = np.radians(degrees)
    y, x = np.mgrid[-32:33, -32:33]
    line = np.exp(-((np.cos(angle) * x + np.sin(angle) * y) ** 2) / 8)
    off = (np.degrees(orientation(line))[32, 32] - degrees + 90) % 180 - 90
    # (atan(dyy / dxx) is the published estimate: exact along the axes and diagonals, up to 12 degrees off between)
    assert abs(off) < (1 if degrees in (0, 45, 90) else 13)


def test_suppression_by_hand() -> None:
    """Of a vertical ridge only the crest stays, and it fades over the five outermost rows."""
    ridge = np.tile(np.array([0, 0.1, 0.3, 0.6, 0.9, 0.6, 0.3, 0.1, 0]), (24, 1))
    ridge = np.pad(ridge, ((0, 0), (8, 8)))
    line = suppress(ridge)
    assert np.flatnonzero(line[12]).tolist() == [12] and line[12, 12] == pytest.approx(0.9)
    assert line[:7, 12] == pytest.approx(0.9 * np.array([0, 0.2, 0.4, 0.6, 0.8, 1, 1]))
    assert suppress(ridge.T) == pytest.approx(line.T)


def test_suppression_by_a_plain_loop() -> None:
    rng = np.random.default_rng(2)
    e = rng.random((19, 23))
    angle, wanted = orientation(e), e.copy()
    height, width = e.shape

    def at(y: float, x: float) -> float:
        y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
        y0, x0 = min(int(y), height - 2), min(int(x), width - 2)
        fy, fx = y - y0, x - x0
        top = e[y0, x0] * (1 - fx) + e[y0, x0 + 1] * fx
        return float(top * (1 - fy) + (e[y0 + 1, x0] * (1 - fx) + e[y0 + 1, x0 + 1] * fx) * fy)

    for y in range(height):
        for x in range(width):
            for step in (-1, 1):
                if e[y, x] * 1.01 < at(y + step * np.sin(angle[y, x]), x + step * np.cos(angle[y, x])):
                    wanted[y, x] = 0
            from_edge = (min(y, height - 1 - y), min(x, width - 1 - x))
            for away in from_edge:
                wanted[y, x] *= min(1, away / 5)
    assert suppress(e) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_matching_is_the_optimum_of_a_dense_solver(seed: int) -> None:
    """On small random maps: as many pairs as SciPy's dense assignment of the same costs, and as its maximum matching."""
    rng = np.random.default_rng(seed)
    a, b = rng.random((2, 17, 21)) < 0.15
    reach = 2.3
    pa, pb = np.argwhere(a), np.argwhere(b)
    distance = np.linalg.norm(pa[:, None] - pb[None], axis=-1)
    near = distance <= reach
    n, m = near.shape
    alone = 100 * reach
    cost = np.full((n + m, n + m), 1e9)
    cost[:n, :m][near] = distance[near]
    cost[range(n), m + np.arange(n)] = cost[n + np.arange(m), range(m)] = alone
    cost[n:, m:][near.T] = 0
    rows, columns = linear_sum_assignment(cost)
    assert match(a, b, reach) == ((rows < n) & (columns < m)).sum()
    assert match(a, b, reach) == (maximum_bipartite_matching(csr_array(near)) >= 0).sum()
    assert match(b, a, reach) == match(a, b, reach)


def test_one_pixel_takes_one_pixel() -> None:
    one, three = np.zeros((2, 9, 9), bool)
    one[4, 4] = three[4, 3:6] = True
    assert match(one, three, 2.0) == match(three, one, 2.0) == 1
    assert match(one, np.roll(one, 2, 0), 2.0) == 1 and match(one, np.roll(one, 2, (0, 1)), 2.0) == 0
    assert match(one, np.zeros_like(one), 2.0) == 0


def contours() -> Array:
    """Boundaries that need no renderer: 4,275 pixels of lines, thinned, bool [425, 560]."""
    y, x = np.mgrid[:425, :560] / 100
    level = np.floor(0.7 * (np.sin(2.1 * x + 1.3 * y) + np.sin(1.7 * y - 2.9 * x + 1) + np.sin(3.3 * y * x / 4)))
    edge = np.zeros(level.shape, bool)
    edge[:, 1:] |= level[:, 1:] != level[:, :-1]
    edge[1:] |= level[1:] != level[:-1]
    return thin(edge)


def moved(mask: Array, pixels: int) -> Array:
    """Down and to the right, by at least 1."""
    return np.asarray(np.pad(mask, ((pixels, 0), (pixels, 0)))[:-pixels, :-pixels])


@pytest.mark.parametrize(
    ("change", "reference"),
    [
        ("self", 4267),
        ("moved 3", 4211),
        ("moved 5", 4169),
        ("moved 7", 2737),
        ("mirrored", 1250),
        ("thinned out", 2840),
    ],
)
def test_matching_agrees_with_the_reference_tool(change: str, reference: int) -> None:
    """The Berkeley benchmark's correspondPixels (as compiled in pyEdgeEval 0.2.8, run once on these maps) finds a few
    pairs fewer than there are, since it draws a random sparse graph: never more, and within 0.25 percent."""
    true = contours()
    predicted = {
        "self": lambda: true,
        "mirrored": lambda: true[:, ::-1],
        "thinned out": lambda: true & (np.arange(560) % 3 > 0),
    }.get(change, lambda: moved(true, int(change[-1])))()
    found = match(predicted, true, reach_of(true))
    assert reference <= found <= 1.0025 * reference
    if change == "self":
        assert found == true.sum()


def test_a_map_matches_itself_and_its_shift(room: Array) -> None:
    """Every pixel of a real-size map finds itself; shifted within the tolerance, all but what left the picture; shifted
    beyond, only where the map has other lines near."""
    count, reach = int(room.sum()), reach_of(room)
    assert count > 3000 and reach == pytest.approx(7.733, abs=1e-3)
    assert match(room, room, reach) == count
    assert match(moved(room, 3), room, reach) >= 0.999 * moved(room, 3).sum()
    assert match(moved(room, 16), room, reach) < 0.8 * moved(room, 16).sum()
    reversed_map = room[::-1, ::-1]
    assert match(reversed_map, room, reach) == match(reversed_map[::-1, ::-1], room[::-1, ::-1], reach)


def test_a_perfect_map_scores_near_one(room: Array) -> None:
    """Not 1: the outermost five pixels fade, and junctions lose a pixel to suppression."""
    counts = match_counts(room.astype(np.float32), room, np.ones_like(room), Matching(max_distance=0.011, thresholds=3))
    assert f_measure(counts).max() > 0.99
    assert (counts[:, 0] <= counts[:, 1:].min(axis=1)).all() and (counts[:, 2] == room.sum()).all()


def test_every_threshold_has_its_own_map() -> None:
    """Three lines of probability 0.3, 0.5 and 0.9; 0.5 itself does not pass the threshold 0.5."""
    probability = np.zeros((60, 80))
    for column, value in ((20, 0.3), (40, 0.5), (60, 0.9)):
        probability[:, column] = value
    true = probability > 0.8
    counts = match_counts(probability, true, np.ones_like(true), Matching(max_distance=0.02, thresholds=3))
    rows = 60 - 2  # the first and last row fade to nothing
    assert counts[:, 2].tolist() == [60, 60, 60]
    assert counts[:, 1].tolist() == [3 * rows, rows - 4, 0], "0.9 fades below 0.5 in two more rows at either end"
    assert counts[:, 0].tolist() == [rows, rows - 4, 0]


def test_padding_counts_in_nothing(room: Array) -> None:
    """A padded picture scores as the picture itself, whatever is predicted in the padding."""
    rng = np.random.default_rng(0)
    true = room[100:200, 100:240]
    probability = np.where(true, 0.9, 0.4 * rng.random(true.shape))
    matching = Matching(max_distance=0.011, thresholds=4)
    wanted = match_counts(probability, true, np.ones_like(true), matching)
    pads = ((7, 5), (9, 3))
    valid, padded_true = np.pad(np.ones_like(true), pads), np.pad(true, pads, constant_values=True)
    found = match_counts(np.pad(probability, pads, constant_values=1.0), padded_true, valid, matching)
    assert np.array_equal(found, wanted) and wanted[:, 0].max() > 0
    hole = np.ones_like(true)
    hole[40:60, 40:60] = False
    inside = match_counts(np.ones_like(probability) * ~hole, np.zeros_like(true), hole, matching)
    assert not inside.any(), "predictions on ignored ground"


def test_figures_by_hand() -> None:
    """Two pictures, three thresholds: [matched, predicted, true]."""
    first = np.array([[8, 16, 10], [6, 8, 10], [2, 2, 10]])
    second = np.array([[4, 12, 5], [3, 6, 5], [3, 3, 5]])
    meter = BoundaryMeter(EDGE, Matching(max_distance=0.011, thresholds=3))
    meter.add_counts(first)
    meter.add_counts(second)
    figures = meter.result()
    # Set: F = 24 / 43, 18 / 29, 10 / 20; pictures' best: 12 / 18 (second threshold) and 6 / 8 (third).
    assert figures["odsF"] == pytest.approx(100 * 18 / 29) and figures["threshold"] == 0.5
    assert figures["oisF"] == pytest.approx(100 * 2 * (6 + 3) / (8 + 3 + 15))
    # Points (recall, precision): (1/3, 1), (9/15, 9/14), (12/15, 12/28).
    levels = [r / 100 for r in range(101)]
    precision = [0.0 if r < 1 / 3 or r > 0.8 else
                 1 + (r - 1 / 3) / (0.6 - 1 / 3) * (9 / 14 - 1) if r <= 0.6 else
                 9 / 14 + (r - 0.6) / 0.2 * (12 / 28 - 9 / 14) for r in levels]  # fmt: skip
    assert figures["AP"] == pytest.approx(100 * sum(precision) / 101, rel=1e-6)
    recall, curve = meter.curve()
    assert recall == pytest.approx([0.8, 0.6, 1 / 3]) and curve == pytest.approx([12 / 28, 9 / 14, 1])
    assert average_precision(np.zeros((3, 3))) == 0


def test_pictures_without_boundaries() -> None:
    matching = Matching(max_distance=0.02, thresholds=5)
    meter = meter_for(EDGE, Definitions(matching=matching))
    nothing, line = np.zeros((1, 40, 50), np.float32), np.zeros((1, 40, 50), np.float32)
    line[0, :, 25] = 0.9
    meter.add(nothing, nothing[:, None])
    assert np.isnan(meter.result()["odsF"]), "no boundary, true or predicted"
    meter.add(line, nothing[:, None])
    assert meter.result()["odsF"] == 0 and meter.result()["AP"] == 0, "predicted where none is"
    meter.add(line, (line > 0)[:, None].astype(np.float32))
    assert 50 < meter.result()["odsF"] < 70, "one of two predicted lines is true"
