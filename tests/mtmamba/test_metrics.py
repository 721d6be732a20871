"""Meters against hand-computed cases, and the same figures whatever the batches."""

import math
from dataclasses import replace

import numpy as np
import pytest

from mtmamba.errors import MtmError
from mtmamba.metrics import (
    BoundaryMeter,
    Definitions,
    DepthMeter,
    LabelMeter,
    Matching,
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
ODS = Definitions(matching=Matching(max_distance=0.2, thresholds=7))
METERS = [(name, None) for name in TASKS] + [("edge", ODS)]
NAMES = [*TASKS, "edge-ods"]
Array = np.ndarray


def four_classes() -> Task:
    return replace(TASKS["human_parts"], channels=4, classes=("a", "b", "c", "d"))


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


@pytest.mark.parametrize(("name", "definitions"), METERS, ids=NAMES)
def test_any_split_into_batches_gives_the_same(name: str, definitions: Definitions | None) -> None:
    task = TASKS[name]
    prediction, label = random_set(task, 6, 4)
    meter = meter_for(task, definitions)
    whole = score(meter, prediction, label)
    for cuts in ([1], [2, 3], [1, 2, 3, 4, 5]):
        one_process, two_processes = meter_for(task, definitions), meter_for(task, definitions)
        for part_p, part_l in zip(np.split(prediction, cuts), np.split(label, cuts), strict=True):
            one_process.update(part_p, part_l)
            other = meter_for(task, definitions)
            other.update(part_p, part_l)
            two_processes.merge(other.state())
        assert one_process.result() == pytest.approx(whole, rel=1e-12)
        assert two_processes.result() == pytest.approx(whole, rel=1e-12)
    assert meter.headline in whole and not any(math.isnan(value) for value in whole.values())


@pytest.mark.parametrize(("name", "definitions"), METERS, ids=NAMES)
def test_no_pixel_counts(name: str, definitions: Definitions | None) -> None:
    """Every figure of no picture, and of a picture that is ignored altogether, is NaN; such a picture changes nothing."""
    task = TASKS[name]
    prediction, label = random_set(task, 3, 4)  # the first label is ignored
    assert all(math.isnan(value) for value in meter_for(task, definitions).result().values())
    meter = meter_for(task, definitions)
    assert all(math.isnan(value) for value in score(meter, prediction[:1], label[:1]).values())
    assert score(meter, prediction[1:], label[1:]) == score(meter_for(task, definitions), prediction[1:], label[1:])


def test_states_of_different_meters_do_not_add_up() -> None:
    state = meter_for(TASKS["edge"], ODS).state()
    with pytest.raises(MtmError, match="merge equal meters"):
        meter_for(TASKS["edge"]).merge(state)
    with pytest.raises(MtmError, match="merge equal boards"):
        Scoreboard([TASKS["edge"]]).merge({"depth": state})


def test_a_state_is_a_copy() -> None:
    prediction, label = random_set(TASKS["depth"], 2, 0)
    meter = DepthMeter(TASKS["depth"])
    state = meter.state()
    meter.update(prediction, label)
    assert not state["count"].any() and meter.state()["count"].any()


@pytest.mark.parametrize("name", TASKS)
def test_outputs_that_are_not_finite_are_refused(name: str) -> None:
    prediction, label = random_set(TASKS[name], 2, 0)
    prediction[1, 0, 2, 2] = np.nan
    with pytest.raises(MtmError, match=f"{name}: expected finite outputs"):
        meter_for(TASKS[name]).update(prediction, label)


def test_outputs_are_resized_to_the_label() -> None:
    label = np.repeat(np.repeat(np.array([[[0, 3], [2, 1]]], np.uint8), 8, 1), 8, 2)
    figures = score(LabelMeter(four_classes()), one_hot(label[:, 4::8, 4::8], 4), label)
    assert figures["accuracy"] == 100


def test_miou_by_hand() -> None:
    label = np.array([[[0, 0, 1, 1, 255, 2]]], dtype=np.uint8)
    prediction = one_hot(np.array([[[0, 1, 1, 1, 0, 0]]]), 4)
    meter = LabelMeter(four_classes())
    figures = score(meter, prediction, label)
    # class 0: 1 / (1 + 1 + 1), class 1: 2 / (2 + 1), class 2: 0 / 1, class 3: nowhere
    assert figures["mIoU"] == pytest.approx(100 * (1 / 3 + 2 / 3 + 0 + 0) / 4)
    assert figures["mIoU_present"] == pytest.approx(100 * (1 / 3 + 2 / 3 + 0) / 3)
    assert figures["accuracy"] == pytest.approx(100 * 3 / 5)
    assert meter.class_iou()[:3] == pytest.approx([100 / 3, 200 / 3, 0]) and math.isnan(meter.class_iou()[3])
    assert meter.confusion.tolist() == [[1, 1, 0, 0], [0, 2, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert (meter.headline, LabelMeter(four_classes(), "left-out").headline) == ("mIoU", "mIoU_present")


def test_a_label_beyond_the_classes_is_refused() -> None:
    label = np.array([[[0, 4]]], np.uint8)
    with pytest.raises(MtmError, match="expected labels 0 to 3, or 255 where none counts, found 4"):
        LabelMeter(four_classes()).add(np.zeros((1, 1, 2), np.uint8), label)


def test_depth_by_hand() -> None:
    label = np.array([2.0, 1.0, 0.0, np.inf, 4.0]).reshape(1, 1, 1, 5)
    prediction = np.array([1.0, -3.0, 7.0, 7.0, 4.4]).reshape(1, 1, 1, 5)
    figures = score(DepthMeter(TASKS["depth"]), prediction, label)
    assert figures["RMSE"] == pytest.approx(math.sqrt((1 + 1 + 0.16) / 3))
    assert figures["abs_rel"] == pytest.approx((0.5 + 1 + 0.1) / 3)
    assert figures["sq_rel"] == pytest.approx((0.5 + 1 + 0.04) / 3)
    logs = [math.log(2), math.log(1e-3), math.log(1.1)]
    assert figures["log_rmse"] == pytest.approx(math.sqrt(sum(x * x for x in logs) / 3))
    assert [figures[f"delta{k}"] for k in (1, 2, 3)] == pytest.approx([100 / 3, 100 / 3, 100 / 3])
    city = next(task for task in dataset("cityscapes").tasks if task.kind == "depth")
    far = np.where(label == 4, 80, label)  # pixels of disparity: from 80 on they do not count
    assert score(meter_for(city), prediction, far)["RMSE"] == pytest.approx(1.0)
    assert score(meter_for(TASKS["depth"]), prediction, far)["RMSE"] > 40


def test_normals_by_hand() -> None:
    """Angles of 0, 10, 90 and 180 degrees, predictions of any length; a zero label is out."""
    ten = math.radians(10)
    label = np.array([[0, 0, 1], [0, 0, 1], [1, 0, 0], [0, 1, 0], [0, 0, 0]], dtype=np.float64)
    prediction = np.array([[0, 0, 7], [0, math.sin(ten), math.cos(ten)], [0, 0, 0.1], [0, -2, 0], [1, 1, 1]])
    figures = score(NormalMeter(TASKS["normals"]), prediction.T.reshape(1, 3, 1, 5), label.T.reshape(1, 3, 1, 5))
    assert figures["mErr"] == pytest.approx((0 + 10 + 90 + 180) / 4)
    assert figures["median"] == pytest.approx((10 + 90) / 2, abs=5.1e-4)
    assert [figures[f"under_{x}"] for x in ("11.25", "22.5", "30")] == [50, 50, 50]


@pytest.mark.parametrize("count", [1, 2, 1000, 1001])
def test_the_median_is_within_half_a_bin(count: int) -> None:
    rng = np.random.default_rng(count)
    g = rng.normal(size=(count, 3))
    p = g / np.linalg.norm(g, axis=1, keepdims=True) + 0.3 * rng.normal(size=(count, 3))
    cosine = (p * g).sum(1) / np.linalg.norm(p, axis=1) / np.linalg.norm(g, axis=1)
    meter = NormalMeter(TASKS["normals"])
    meter.add(p.reshape(1, 1, count, 3), g.T.reshape(1, 3, 1, count))
    assert meter.result()["median"] == pytest.approx(np.median(np.degrees(np.arccos(cosine))), abs=5.001e-4)


def test_small_angles_are_exact() -> None:
    """A thousandth of a degree in float32, where an arc cosine would say 0 or 0.02."""
    tiny = math.radians(1e-3)
    p, g = np.array([[[[math.sin(tiny), 0, math.cos(tiny)]]]], np.float32), np.array([0, 0, 1.0]).reshape(1, 3, 1, 1)
    meter = NormalMeter(TASKS["normals"])
    meter.add(p, g)
    assert meter.result()["mErr"] == pytest.approx(1e-3, rel=1e-6)


def test_saliency_by_hand() -> None:
    """Probabilities 0.9, 0.6, 0.4, 0.1 with the first and third true."""
    probability = np.array([0.9, 0.6, 0.4, 0.1, 0.99])
    logit = np.log(probability / (1 - probability))
    prediction = np.stack([np.zeros(5), logit]).reshape(1, 2, 1, 5)
    label = np.array([1, 0, 1, 0, 255], dtype=np.uint8).reshape(1, 1, 5)
    # over 0.6: P 1, R 1/2; up to 0.4: P 2/3, R 1; F = 1.3 P R / (0.3 P + R)
    best = max(1.3 * 0.5 / (0.3 + 0.5), 1.3 * (2 / 3) / (0.3 * 2 / 3 + 1))
    figures = score(SaliencyMeter(TASKS["sal"]), prediction, label)
    assert figures["maxF"] == pytest.approx(100 * best)
    assert figures["threshold"] == pytest.approx(0.65)
    nothing = score(SaliencyMeter(TASKS["sal"]), prediction, np.zeros((1, 1, 5), dtype=np.uint8))
    assert nothing["maxF"] == 0, "nothing is salient and something is predicted"
    # at 0.5: 1 of salient's union of 3, 1 of the rest's union of 3
    assert figures["mIoU"] == pytest.approx(100 / 3)


def test_the_published_maxf_by_a_plain_loop() -> None:
    """A sigmoid on top of the probability: the threshold 0.6 asks for 0.4055, 0.65 for 0.6190, 0.75 for more than 1."""
    rng = np.random.default_rng(8)
    probability, true = rng.random(500), rng.random(500) < 0.3
    probability = np.where(true, probability**0.5, probability)
    best = {}
    for threshold in np.arange(1, 20) / 20:
        said = 1 / (1 + np.exp(-probability)) >= threshold
        hits, n = (said & true).sum(), said.sum()
        precision, recall = hits / max(n, 1), hits / true.sum()
        best[threshold] = 1.3 * precision * recall / max(0.3 * precision + recall, 1e-12)
    meter = SaliencyMeter(TASKS["sal"], published=True)
    meter.add(probability.reshape(1, 1, -1), true.reshape(1, 1, -1).astype(np.uint8))
    figures = meter.result()
    assert figures["maxF_published"] == pytest.approx(100 * max(best.values()), rel=1e-12)
    assert figures["threshold_published"] == pytest.approx(max(best, key=lambda t: best[t]))
    assert figures["maxF"] > figures["maxF_published"] + 0.5, "the two definitions are told apart"
    assert meter.headline == "maxF_published"


def test_a_probability_at_a_threshold_passes_it() -> None:
    meter = BoundaryMeter(TASKS["edge"])
    meter.add(np.array([[[0.5, 0.45]]]), np.array([1.0, 0.0]).reshape(1, 1, 1, 2))
    assert meter.result()["threshold_pixel"] == 0.5 and meter.result()["boundary_f_pixel"] == 100


def test_thresholds_match_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    logit, truth = rng.normal(size=(2, 1, 9, 9)), (rng.random((2, 1, 9, 9)) < 0.3).astype(np.float64)
    best = 0.0
    for threshold in np.arange(1, 20) / 20:
        said = 1 / (1 + np.exp(-logit)) >= threshold
        hits = (said & (truth == 1)).sum()
        precision, recall = hits / max(said.sum(), 1), hits / truth.sum()
        best = max(best, 2 * precision * recall / max(precision + recall, 1e-12))
    assert score(BoundaryMeter(TASKS["edge"]), logit, truth)["boundary_f_pixel"] == pytest.approx(100 * best, rel=1e-12)


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
    if task.kind == "boundary":
        assert figures["threshold_pixel"] == 0.05
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
