"""The main job with the commands a user types: checkpoint -> ONNX -> engine with the plugin -> annotated video."""

import json
import subprocess
import sys
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
from mtmamba.runtime.parity_cli import main as parity
from mtmamba.runtime.run_cli import main as run

SIZE = (64, 96)  # the model's
FRAMES, FPS, SOURCE_SIZE = 5, 12.0, (160, 120)
SCANS = 9  # three stages; two STM blocks and the CTM block


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


def test_parity_of_the_export(folder, monkeypatch):
    """With no argument: the checkpoint here against what can run here."""
    monkeypatch.chdir(folder)
    answer = invoke(parity, "--images", 2)
    assert answer["passed"] and answer["images"] == 2 and len(answer["tasks"]) == 6
    assert (answer["reference"]["backend"], answer["candidate"]["backend"]) == ("torch", "onnxruntime")
    assert answer["candidate"]["precision"] == "fp32"


def test_polygraphy_runs_the_export(folder, tmp_path):
    """A Polygraphy user's own command, and their outputs against ours."""
    pytest.importorskip("polygraphy", "0.53", reason="no Polygraphy of 0.53 or newer (pip install polygraphy)")
    command = [Path(sys.executable).with_name("polygraphy"), "run", folder / "best.onnx", "--onnxrt"]
    files = {name: tmp_path / f"{name}.json" for name in ("inputs", "outputs")}
    options = ["--val-range", "image:[-2.2,2.7]", *(f"--save-{name}={path}" for name, path in files.items())]
    result = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert result.returncode == 0 and "PASSED" in result.stdout + result.stderr, result.stderr
    from polygraphy.comparator import RunResults
    from polygraphy.json import load_json

    (inputs,) = load_json(str(files["inputs"]))
    ((_, (theirs,)),) = RunResults.load(str(files["outputs"]))
    assert -2.2 <= inputs["image"].min() < -2 and 2.5 < inputs["image"].max() <= 2.7
    with open_backend(folder / "best.onnx") as backend:
        for name, value in backend.infer(inputs["image"]).items():
            np.testing.assert_allclose(theirs[name], value, rtol=0, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.trt
@pytest.mark.parametrize(("precision", "row"), [("fp32", "tf32"), ("fp16", "fp16")])
def test_parity_gate_on_the_gpu(folder, tmp_path, precision, row):
    """The engine, built for the GPU of this machine and run on it, answers as the exported file does."""
    engine = tmp_path / "best.engine"
    invoke(build_engine, folder / "best.onnx", f"--{precision}", "-o", engine)
    answer = invoke(parity, "--reference", folder / "best.onnx", "--model", engine)
    assert answer["passed"] and answer["candidate"]["precision"] == row
