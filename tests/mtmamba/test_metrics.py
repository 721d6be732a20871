"""Meters against hand-computed cases, and the same figures whatever the batches."""

import math

import numpy as np
import pytest

from mtmamba.errors import MtmError
from mtmamba.metrics import (
    BoundaryMeter,
    DepthMeter,
    LabelMeter,
    Meter,
    NormalMeter,
    SaliencyMeter,
    Scoreboard,
    best_constant,
    constant_baseline,
    meter_for,
)
from mtmamba.tasks import Task, dataset

TASKS = {task.name: task for task in dataset("synthetic").tasks}
Array = np.ndarray


def score(meter: Meter, prediction: Array, label: Array) -> dict[str, float]:
    meter.update(prediction, label)
    return meter.result()


def one_hot(labels: Array, classes: int) -> Array:
    """[B, H, W] -> [B, C, H, W]"""
    return np.moveaxis(np.eye(classes)[labels], -1, 1)


def random_set(task: Task, count: int, seed: int) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    prediction = rng.normal(size=(count, task.channels, 5, 6)).astype(np.float32)
    ignored = rng.random((count, 5, 6)) < 0.2
    ignored[0] = True  # an image of which no pixel counts
    if task.kind in ("labels", "saliency"):
        return prediction, np.where(ignored, 255, rng.integers(0, task.channels, ignored.shape)).astype(np.uint8)
    if task.kind == "depth":
        return prediction, np.where(ignored, 0, rng.uniform(0.5, 5, ignored.shape)).astype(np.float32)[:, None]
    if task.kind == "normals":
        normals = rng.normal(size=prediction.shape)
        normals /= np.linalg.norm(normals, axis=1, keepdims=True)
        return prediction, np.where(ignored[:, None], 0, normals).astype(np.float32)
    return prediction, np.where(ignored, 255, rng.random(ignored.shape) < 0.3).astype(np.float32)[:, None]


@pytest.mark.parametrize("name", TASKS)
def test_any_split_into_batches_gives_the_same(name: str) -> None:
    task = TASKS[name]
    prediction, label = random_set(task, 6, 4)
    whole = score(meter_for(task), prediction, label)
    for cuts in ([1], [2, 3], [1, 2, 3, 4, 5]):
        meter = meter_for(task)
        for part_p, part_l in zip(np.split(prediction, cuts), np.split(label, cuts), strict=True):
            meter.update(part_p, part_l)
        assert meter.result() == pytest.approx(whole, rel=1e-12)
    assert meter.headline in whole and not any(math.isnan(value) for value in whole.values())


@pytest.mark.parametrize("name", TASKS)
def test_no_pixel_counts(name: str) -> None:
    task = TASKS[name]
    prediction, label = random_set(task, 1, 4)
    assert all(math.isnan(value) for value in meter_for(task).result().values())
    assert all(math.isnan(value) for value in score(meter_for(task), prediction, label).values())


def test_miou_by_hand() -> None:
    label = np.array([[[0, 0, 1, 1, 255, 2]]], dtype=np.uint8)
    prediction = one_hot(np.array([[[0, 1, 1, 1, 0, 0]]]), 4)
    meter = LabelMeter(4)
    figures = score(meter, prediction, label)
    # class 0: 1 / (1 + 1 + 1), class 1: 2 / (2 + 1), class 2: 0 / 1, class 3: nowhere
    assert figures["mIoU"] == pytest.approx(100 * (1 / 3 + 2 / 3 + 0 + 0) / 4)
    assert figures["mIoU_present"] == pytest.approx(100 * (1 / 3 + 2 / 3 + 0) / 3)
    assert figures["accuracy"] == pytest.approx(100 * 3 / 5)
    assert math.isnan(meter.class_iou()[3])


def test_depth_by_hand() -> None:
    label = np.array([2.0, 1.0, 0.0, np.inf, 4.0]).reshape(1, 1, 1, 5)
    prediction = np.array([1.0, -3.0, 7.0, 7.0, 4.4]).reshape(1, 1, 1, 5)
    figures = score(DepthMeter(), prediction, label)
    assert figures["RMSE"] == pytest.approx(math.sqrt((1 + 1 + 0.16) / 3))
    assert figures["abs_rel"] == pytest.approx((0.5 + 1 + 0.1) / 3)
    assert figures["sq_rel"] == pytest.approx((0.5 + 1 + 0.04) / 3)
    logs = [math.log(2), math.log(1e-3), math.log(1.1)]
    assert figures["log_rmse"] == pytest.approx(math.sqrt(sum(x * x for x in logs) / 3))
    assert [figures[f"delta{k}"] for k in (1, 2, 3)] == pytest.approx([100 / 3, 100 / 3, 100 / 3])
    limited = score(DepthMeter(limit=4.0), prediction, label)
    assert limited["RMSE"] == pytest.approx(1.0)
    city = next(task for task in dataset("cityscapes").tasks if task.kind == "depth")
    assert isinstance(meter := meter_for(city), DepthMeter) and meter.limit == 80


def test_normals_by_hand() -> None:
    """Angles of 0, 10, 90 and 180 degrees, predictions of any length; a zero label is out."""
    ten = math.radians(10)
    label = np.array([[0, 0, 1], [0, 0, 1], [1, 0, 0], [0, 1, 0], [0, 0, 0]], dtype=np.float64)
    prediction = np.array([[0, 0, 7], [0, math.sin(ten), math.cos(ten)], [0, 0, 0.1], [0, -2, 0], [1, 1, 1]])
    figures = score(NormalMeter(), prediction.T.reshape(1, 3, 1, 5), label.T.reshape(1, 3, 1, 5))
    assert figures["mErr"] == pytest.approx((0 + 10 + 90 + 180) / 4)
    assert figures["median"] == pytest.approx(10, abs=0.011)
    assert [figures[f"under_{x}"] for x in ("11.25", "22.5", "30")] == [50, 50, 50]


def test_saliency_by_hand() -> None:
    """Probabilities 0.9, 0.6, 0.4, 0.1 with the first and third true."""
    probability = np.array([0.9, 0.6, 0.4, 0.1, 0.99])
    logit = np.log(probability / (1 - probability))
    prediction = np.stack([np.zeros(5), logit]).reshape(1, 2, 1, 5)
    label = np.array([1, 0, 1, 0, 255], dtype=np.uint8).reshape(1, 1, 5)
    # over 0.6: P 1, R 1/2; up to 0.4: P 2/3, R 1; F = 1.3 P R / (0.3 P + R)
    best = max(1.3 * 0.5 / (0.3 + 0.5), 1.3 * (2 / 3) / (0.3 * 2 / 3 + 1))
    figures = score(SaliencyMeter(), prediction, label)
    assert figures["maxF"] == pytest.approx(100 * best)
    assert figures["threshold"] == pytest.approx(0.65)
    nothing = score(SaliencyMeter(), prediction, np.zeros((1, 1, 5), dtype=np.uint8))
    assert nothing["maxF"] == 0, "nothing is salient and something is predicted"


def test_thresholds_match_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    logit, truth = rng.normal(size=(2, 1, 9, 9)), (rng.random((2, 1, 9, 9)) < 0.3).astype(np.float64)
    best = 0.0
    for threshold in np.arange(1, 20) / 20:
        said = 1 / (1 + np.exp(-logit)) >= threshold
        hits = (said & (truth == 1)).sum()
        precision, recall = hits / max(said.sum(), 1), hits / truth.sum()
        best = max(best, 2 * precision * recall / max(precision + recall, 1e-12))
    assert score(BoundaryMeter(), logit, truth)["boundary_f_pixel"] == pytest.approx(100 * best, rel=1e-12)


@pytest.mark.parametrize("name", TASKS)
def test_perfect_predictions(name: str) -> None:
    task = TASKS[name]
    _, label = random_set(task, 4, 7)
    prediction = {
        "labels": lambda: one_hot(np.where(label == 255, 0, label), task.channels),
        "saliency": lambda: 20 * one_hot(np.where(label == 255, 0, label), 2),
        "boundary": lambda: 40 * label - 20,
    }.get(task.kind, lambda: label)()
    meter = meter_for(task)
    perfect = 0 if meter.lower_is_better else 100
    figures = score(meter, prediction, label)
    headline = "mIoU_present" if task.kind == "labels" else meter.headline
    assert figures[headline] == pytest.approx(perfect, abs=1e-4)


@pytest.mark.parametrize("name", TASKS)
def test_no_other_constant_beats_the_baseline(name: str) -> None:
    task = TASKS[name]
    prediction, label = random_set(task, 5, 11)
    baseline = constant_baseline([task], [{name: label[:2]}, {name: label[2:]}])[name]
    rng = np.random.default_rng(5)
    others = np.eye(task.channels) if task.kind == "labels" else rng.normal(size=(40, task.channels))
    meter = meter_for(task)
    sign = -1 if meter.lower_is_better else 1
    for constant in others:
        other = score(meter_for(task), np.broadcast_to(constant[:, None, None], prediction.shape), label)
        slack = 0.5 if task.kind == "normals" else 1e-9
        assert sign * other[meter.headline] <= sign * baseline[meter.headline] + slack
    assert best_constant(task, [label]).shape == (task.channels,)


def test_scoreboard_names_what_is_missing() -> None:
    prediction, label = random_set(TASKS["depth"], 2, 0)
    board = Scoreboard([TASKS["depth"]])
    board.update({"depth": prediction}, {"depth": label})
    assert set(board.result()) == {"depth"}
    with pytest.raises(MtmError, match="expected a prediction and a label of depth"):
        board.update({"edge": prediction}, {"depth": label})
