"""Meters against torchmetrics and scikit-learn, on random data with ignored pixels, to 1e-6."""

import numpy as np
import pytest
import torch
import torchmetrics.classification as tmc
import torchmetrics.regression as tmr
from sklearn import metrics as sk

from mtmamba.metrics import BoundaryMeter, DepthMeter, LabelMeter, NormalMeter, SaliencyMeter
from mtmamba.tasks import dataset

TASKS = {task.name: task for task in dataset("synthetic").tasks}
SHAPE = (4, 23, 31)
Array = np.ndarray


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20)


@pytest.fixture
def ignored(rng: np.random.Generator) -> Array:
    mask = rng.random(SHAPE) < 0.25
    mask[1] = True
    return mask


def test_labels(rng: np.random.Generator, ignored: Array) -> None:
    """With torchmetrics' Jaccard index, accuracy and confusion matrix; classes 30 and up appear nowhere."""
    task = TASKS["semseg"]
    true, said = rng.integers(0, 30, SHAPE), rng.integers(0, 30, SHAPE)
    said = np.where(rng.random(SHAPE) < 0.4, true, said)
    label = np.where(ignored, 255, true).astype(np.uint8)
    meter = LabelMeter(task)
    meter.add(said, label)
    figures = meter.result()
    p, g = torch.from_numpy(said), torch.from_numpy(label.astype(np.int64))
    per_class = tmc.MulticlassJaccardIndex(40, average="none", ignore_index=255)(p, g).numpy()
    assert np.nan_to_num(meter.class_iou()) == pytest.approx(100 * per_class, abs=1e-4)  # torchmetrics: float32
    assert figures["mIoU"] == pytest.approx(100 * per_class.astype(np.float64).mean(), abs=1e-5)
    kept = ~ignored
    per_class = sk.jaccard_score(true[kept], said[kept], labels=range(40), average=None, zero_division=0)
    assert figures["mIoU"] == pytest.approx(100 * per_class.mean(), rel=1e-6)
    present = sk.jaccard_score(true[kept], said[kept], average="macro")
    assert figures["mIoU_present"] == pytest.approx(100 * present, rel=1e-6)
    assert figures["accuracy"] == pytest.approx(100 * sk.accuracy_score(true[kept], said[kept]), rel=1e-6)
    assert np.array_equal(meter.confusion, sk.confusion_matrix(true[kept], said[kept], labels=range(40)))


def test_depth(rng: np.random.Generator, ignored: Array) -> None:
    true = rng.uniform(0.5, 9, SHAPE)
    said = true * np.exp(0.3 * rng.normal(size=SHAPE))
    meter = DepthMeter(TASKS["depth"])
    meter.add(said, np.where(ignored, 0, true)[:, None])
    figures = meter.result()
    p, g = said[~ignored], true[~ignored]
    assert figures["RMSE"] == pytest.approx(sk.root_mean_squared_error(g, p), rel=1e-6)
    assert figures["abs_rel"] == pytest.approx(sk.mean_absolute_percentage_error(g, p), rel=1e-6)
    assert figures["log_rmse"] == pytest.approx(sk.root_mean_squared_error(np.log(g), np.log(p)), rel=1e-6)
    assert figures["log_rmse"] ** 2 == pytest.approx(
        float(tmr.MeanSquaredError()(torch.from_numpy(np.log(p)), torch.from_numpy(np.log(g)))), rel=1e-6
    )
    assert figures["sq_rel"] == pytest.approx(
        sk.mean_squared_error(g, p, sample_weight=1 / g) * (1 / g).mean(), rel=1e-6
    )
    for power in (1, 2, 3):
        near = sk.accuracy_score(np.ones(g.size), np.maximum(p / g, g / p) < 1.25**power)
        assert figures[f"delta{power}"] == pytest.approx(100 * near, rel=1e-6)


def test_normals(rng: np.random.Generator, ignored: Array) -> None:
    true = rng.normal(size=(*SHAPE, 3))
    true /= np.linalg.norm(true, axis=-1, keepdims=True)
    said = true + 0.4 * rng.normal(size=true.shape)
    meter = NormalMeter(TASKS["normals"])
    meter.add(said, np.where(ignored[..., None], 0, true).transpose(0, 3, 1, 2))
    p, g = (torch.from_numpy(v[~ignored]) for v in (said, true))
    cosine = tmr.CosineSimilarity(reduction="none")(p, g).numpy()
    assert meter.result()["mErr"] == pytest.approx(np.degrees(np.arccos(cosine)).mean(), rel=1e-6)
    under = sk.accuracy_score(np.ones(cosine.size), cosine > np.cos(np.radians(22.5)))
    assert meter.result()["under_22.5"] == pytest.approx(100 * under, rel=1e-6)


@pytest.mark.parametrize(("name", "beta"), [("sal", 0.3**0.5), ("edge", 1.0)])
def test_f_over_thresholds(rng: np.random.Generator, ignored: Array, name: str, beta: float) -> None:
    """The best of scikit-learn's F-beta at each of the 19 thresholds, and of torchmetrics'."""
    true = rng.random(SHAPE) < 0.3
    probability = np.clip(rng.random(SHAPE) + 0.3 * true, 0, 1)
    label = np.where(ignored, 255, true)
    meter = SaliencyMeter(TASKS[name]) if name == "sal" else BoundaryMeter(TASKS[name])
    meter.add(probability, label.astype(np.uint8) if name == "sal" else label[:, None].astype(np.float32))
    kept, thresholds = ~ignored, np.arange(1, 20) / 20
    scores = [sk.fbeta_score(true[kept], probability[kept] >= t, beta=beta, zero_division=0) for t in thresholds]
    best = meter.result()["maxF" if name == "sal" else "boundary_f_pixel"]
    assert best == pytest.approx(100 * max(scores), rel=1e-6)
    at = float(thresholds[int(np.argmax(scores))])
    theirs = tmc.BinaryFBetaScore(beta=beta, threshold=at, ignore_index=255)
    score = theirs(torch.from_numpy(probability), torch.from_numpy(label.astype(np.int64)))
    assert best == pytest.approx(100 * float(score), rel=1e-6)
    if name == "sal":
        iou = sk.jaccard_score(true[kept], probability[kept] > 0.5, average="macro")
        assert meter.result()["mIoU"] == pytest.approx(100 * iou, rel=1e-6)
