"""The main job with the commands a user types: checkpoint -> ONNX -> engine with the plugin -> annotated video."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from mtmamba import MTMamba, preset, save_checkpoint
from mtmamba.cache import CACHE_VARIABLE
from mtmamba.export.cli import main as export
from mtmamba.runtime.backends import open_backend
from mtmamba.runtime.build_cli import main as build_engine
from mtmamba.runtime.run_cli import main as run

SIZE = (64, 96)  # the model's
FRAMES, FPS, SOURCE_SIZE = 5, 12.0, (160, 120)
SCANS = 12  # three stages; two STM blocks, and the CTM block's own and shared branch


def invoke(command, *arguments):
    result = CliRunner().invoke(command, [*map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("main_job")
    torch.manual_seed(0)
    save_checkpoint(folder / "best.pth", MTMamba(preset("synthetic", "nano")))
    size = f"{SIZE[0]}x{SIZE[1]}"
    answer = invoke(export, "--ckpt", folder / "best.pth", "--size", size, "-o", folder / "best.onnx")
    assert answer["scan_nodes"] == SCANS
    return folder


@pytest.fixture
def shared_cache(monkeypatch):
    """Where the test suite keeps its one build of the plugin library."""
    monkeypatch.setenv(CACHE_VARIABLE, str(Path(__file__).parent.parent / "build" / "tests-cache"))


@pytest.mark.trt
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_engine_with_the_plugin_in_it(folder, shared_cache, precision):
    engine = folder / f"best.{precision}.engine"
    answer = invoke(
        build_engine, folder / "best.onnx", f"--{precision}", "--flavour", "tensorrt-rtx", "--target", "sm_89", "-o", engine
    )  # fmt: skip
    assert answer["plugin_layers"] == SCANS
    assert engine.stat().st_size == answer["bytes"] > 1 << 20
    side = json.loads(Path(answer["sidecar"]).read_text())
    assert side["precision"] == precision and side["compute_capabilities"] == ["8.9"]
    assert side["metadata"]["config"]["tasks"] == ["semseg", "human_parts", "sal", "depth", "normals", "edge"]


def test_video(folder, tmp_path):
    source, target = tmp_path / "clip.mp4", tmp_path / "clip.mtm.mp4"
    writer = cv2.VideoWriter(str(source), cv2.VideoWriter.fourcc(*"mp4v"), FPS, SOURCE_SIZE)
    rng = np.random.default_rng(0)
    for _ in range(FRAMES):
        writer.write(cv2.resize(rng.integers(0, 256, (6, 8, 3), np.uint8), SOURCE_SIZE))
    writer.release()
    answer = invoke(run, source, "--model", folder / "best.onnx", "-o", target, "--save-raw", tmp_path / "raw")
    assert answer["frames"] == FRAMES and len(answer["tasks"]) == 6
    capture = cv2.VideoCapture(str(target))
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(FPS)
    frames = 0
    while capture.read()[0]:
        frames += 1
    assert frames == FRAMES
    assert len(list((tmp_path / "raw").glob("*.npz"))) == FRAMES


# Largest difference from ONNX Runtime in FP32, relative to the task's largest prediction.
GPU_TOLERANCES = {"fp32": 2e-3, "fp16": 3e-2}


@pytest.mark.gpu
@pytest.mark.parametrize("precision", GPU_TOLERANCES)
def test_parity_gate_on_the_gpu(folder, tmp_path, precision):
    """The engine, built for the GPU of this machine and run on it, answers as the exported file does."""
    engine = tmp_path / "best.engine"
    invoke(build_engine, folder / "best.onnx", f"--{precision}", "-o", engine)
    image = np.random.default_rng(0).normal(size=(1, 3, *SIZE)).astype(np.float32)
    with open_backend(folder / "best.onnx", "onnxruntime") as reference, open_backend(engine) as backend:
        expected, found = reference.infer(image), backend.infer(image)
    for task, value in expected.items():
        assert np.abs(found[task] - value).max() <= GPU_TOLERANCES[precision] * max(1.0, np.abs(value).max()), task
