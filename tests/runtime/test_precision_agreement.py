"""A trained model in every precision against itself in FP32, on scenes it was not calibrated on, emulated on the CPU."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from mtmamba.calib.plan import PRECISIONS
from mtmamba.export.precision import to_precision
from mtmamba.runtime.agreement import FIGURES, TOLERANCES, Agreement, compared
from mtmamba.runtime.bisect import run_all
from mtmamba.runtime.calibrate import calibrate
from mtmamba.runtime.emulation import Emulation
from mtmamba.runtime.onnx_model import load_onnx
from mtmamba.runtime.preprocess import preprocess
from mtmamba.runtime.sensitivity import WHOLE, draw, sensitivity
from mtmamba.tasks import tasks_of

TRAINED = Path(__file__).parents[2] / "models" / "nano-synthetic.pth"
SIZE = (64, 96)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The committed checkpoint, or a minute's training where there is none."""
    if TRAINED.exists():
        return TRAINED
    from mtmamba.checkpoint import save_checkpoint
    from mtmamba.config import preset
    from mtmamba.train import NANO_LR, Recipe, train

    recipe = Recipe(size=(32, 48), batch=2, lr=NANO_LR, iterations=60, seed=0, warmup=0.05, workers=0)
    model, _ = train(replace(preset("synthetic", "nano"), input_size=SIZE), recipe)
    path = tmp_path_factory.mktemp("trained") / "nano.pth"
    save_checkpoint(path, model, {})
    return path


@pytest.fixture(scope="module")
def model(checkpoint, tmp_path_factory):
    from mtmamba.checkpoint import load_checkpoint
    from mtmamba.export.torch_to_onnx import export_model

    path = tmp_path_factory.mktemp("exported") / "nano.onnx"
    onnx.save(export_model(load_checkpoint(checkpoint), input_size=SIZE), str(path))
    return load_onnx(path)


def scenes(model, seed, count):
    from mtmamba.data.synthetic import render_sample

    images = (render_sample(seed, index, SIZE).image for index in range(count))
    return [preprocess(np.ascontiguousarray(image[:, :, ::-1]), model.metadata)[None] for image in images]


@pytest.fixture(scope="module")
def calibration(model):
    return calibrate(model, scenes(model, 11, 8), method="percentile")


@pytest.fixture(scope="module")
def test_images(model):
    return scenes(model, 12, 4)


@pytest.fixture(scope="module")
def reference(model, test_images):
    return run_all(Emulation(model.proto), test_images)


@pytest.mark.parametrize("precision", PRECISIONS[1:])
def test_agrees_with_fp32(model, calibration, test_images, reference, precision):
    low, report = to_precision(model.proto, precision, calibration)
    found = compared(model.metadata.tasks, reference, run_all(Emulation(low), test_images))
    assert found.failures(TOLERANCES[precision]) == {}, found.result()
    assert all(figures["rms"] > 1e-3 for figures in found.result().values()), "this was not low precision"
    assert report["quantised_nodes"] == (110 if precision in ("int8", "fp8") else 0)


def test_sensitivity(model, calibration, test_images, reference, tmp_path, monkeypatch):
    """Two blocks and the whole: each costs something, none more than the whole by far, heads only their own task."""
    monkeypatch.setattr(
        "mtmamba.runtime.sensitivity.blocks_of", lambda nodes: {"heads.depth": [], "encoder.patch_embed": []}
    )
    tasks = model.metadata.tasks
    found = sensitivity(model.proto, tasks, test_images[:1], ["fp16"], calibration=calibration)["fp16"]
    assert list(found) == [WHOLE, "heads.depth", "encoder.patch_embed"]
    assert found["heads.depth"]["depth"]["rms"] > 1e-4
    assert all(found["heads.depth"][task.name]["rms"] == 0 for task in tasks if task.name != "depth")
    assert all(figures["rms"] > 1e-5 for figures in found["encoder.patch_embed"].values())
    pytest.importorskip("matplotlib", reason="the picture needs matplotlib")
    draw({"fp16": found, "bf16": found}, tasks, tmp_path / "s.png")
    import cv2

    picture = cv2.imread(str(tmp_path / "s.png"))
    assert picture is not None
    assert min(picture.shape[:2]) > 200
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 50


def figure_of(name, reference, candidate):
    task = next(task for task in tasks_of("synthetic") if task.name == name)
    agreement = Agreement([task])
    agreement.add({name: np.asarray(reference, np.float32)}, {name: np.asarray(candidate, np.float32)})
    return agreement.result()[name][FIGURES[task.kind]], agreement


def test_figures():
    labels = np.zeros((40, 1, 4))
    labels[3] = 1
    other = labels.copy()
    other[5, 0, 0] = 2
    assert figure_of("semseg", labels, other)[0] == 75
    assert figure_of("edge", [[[1.0, -1.0, 2.0, -2.0]]], [[[0.5, 0.5, 3.0, -1.0]]])[0] == 75
    assert figure_of("depth", [[[1.0, 2.0, 0.001]]], [[[1.1, 2.0, 5.0]]])[0] == pytest.approx(5, rel=1e-5)
    angle, _ = figure_of("normals", [[[1.0]], [[0.0]], [[0.0]]], [[[1.0]], [[1.0]], [[0.0]]])
    assert angle == pytest.approx(45, rel=1e-5)


def test_what_is_not_finite_fails():
    labels = np.zeros((40, 1, 2))
    labels[0] = 1
    _, agreement = figure_of("semseg", labels, np.full_like(labels, np.nan))  # the arg max of NaN is class 0, too
    assert "semseg" in agreement.failures(TOLERANCES["fp16"])
    _, agreement = figure_of("depth", [[[1.0, 2.0]]], [[[np.nan, 2.0]]])
    agreement.add({"depth": np.ones((1, 1, 2))}, {"depth": np.ones((1, 1, 2))})
    assert "depth" in agreement.failures(TOLERANCES["fp16"])
