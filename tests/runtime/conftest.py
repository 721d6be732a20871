"""A toy model (one convolution a task, our metadata) and small media files: the runtime's tests take milliseconds."""

import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mtmamba.config import preset
from mtmamba.metadata import INPUT_NAME, METADATA_KEY, ModelMetadata
from mtmamba.runtime import gpu

SIZE = (48, 64)  # the toy model's input, height and width


def toy_metadata(batch: int = 1, size: tuple[int, int] = SIZE, min_batch: int | None = None) -> ModelMetadata:
    """All six tasks."""
    config = replace(preset("synthetic", "nano"), input_size=size)
    return ModelMetadata(config=config, input_size=size, batch=batch, versions={}, min_batch=min_batch)


def toy_model(metadata: ModelMetadata) -> onnx.ModelProto:
    """Outputs: a fixed random 3x3 convolution of the image for each task; the depth lies around 3 m."""
    rng = np.random.default_rng(7)
    nodes, weights, outputs = [], [], []
    for task in metadata.tasks:
        kernel = rng.normal(0, 0.5, (task.channels, 3, 3, 3)).astype(np.float32)
        bias = rng.normal(0, 0.2, task.channels).astype(np.float32) + (3 if task.kind == "depth" else 0)
        weights += [
            numpy_helper.from_array(kernel, f"{task.name}.w"),
            numpy_helper.from_array(bias.astype(np.float32), f"{task.name}.b"),
        ]
        inputs = [INPUT_NAME, f"{task.name}.w", f"{task.name}.b"]
        nodes.append(helper.make_node("Conv", inputs, [task.name], pads=[1, 1, 1, 1]))
        shape = metadata.file_shape(metadata.output_shape(task))
        outputs.append(helper.make_tensor_value_info(task.name, TensorProto.FLOAT, shape))
    shape = metadata.file_shape(metadata.input_shape)
    image = helper.make_tensor_value_info(INPUT_NAME, TensorProto.FLOAT, shape)
    graph = helper.make_graph(nodes, "toy", [image], outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, {METADATA_KEY: metadata.to_json()})
    return model


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: an empty one, on a machine without a GPU."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gpu, "find_gpus", list)
    return tmp_path


@pytest.fixture
def metadata() -> ModelMetadata:
    return toy_metadata()


@pytest.fixture
def toy_metadata_of() -> Callable[..., ModelMetadata]:
    """toy_metadata_of(batch=1, size=SIZE, min_batch=None)."""
    return toy_metadata


@pytest.fixture
def make_toy() -> Callable[..., Path]:
    """make_toy(path, batch=1, size=SIZE, min_batch=None) writes a toy .onnx with our metadata."""

    def make(path: Path, batch: int = 1, size: tuple[int, int] = SIZE, min_batch: int | None = None) -> Path:
        onnx.save(toy_model(toy_metadata(batch, size, min_batch)), str(path))
        return path

    return make


@pytest.fixture
def toy_onnx(tmp_path: Path, make_toy: Callable[..., Path]) -> Path:
    return make_toy(tmp_path / "toy.onnx")


def grey_of(index: int) -> int:
    """The grey that frame `index` of `make_video` is filled with: each of 20 in a row is told from the next."""
    return 10 + 12 * (index % 20)


@pytest.fixture
def make_video() -> Callable[..., Path]:
    """make_video(path, frames=9, fps=12.5, size=(96, 64)): even grey frames, see `grey_of`; size is (width, height)."""

    def make(path: Path, frames: int = 9, fps: float = 12.5, size: tuple[int, int] = (96, 64)) -> Path:
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), fps, size)
        assert writer.isOpened()
        for index in range(frames):
            writer.write(np.full((size[1], size[0], 3), grey_of(index), np.uint8))
        writer.release()
        return path

    return make


@pytest.fixture
def clip(tmp_path: Path, make_video: Callable[..., Path]) -> Path:
    return make_video(tmp_path / "clip.mp4")


@pytest.fixture
def read_frames() -> Callable[[Path], tuple[list[np.ndarray], float]]:
    """read_frames(path): all frames of a video and its frame rate, by OpenCV alone."""

    def read(path: Path) -> tuple[list[np.ndarray], float]:
        capture = cv2.VideoCapture(str(path))
        fps, frames = capture.get(cv2.CAP_PROP_FPS), []
        while (result := capture.read())[0]:
            frames.append(np.asarray(result[1]))
        capture.release()
        return frames, fps

    return read


@pytest.fixture
def photo() -> np.ndarray:
    """[60, 90, 3] uint8 BGR with structure: gradients, a box, noise."""
    rng = np.random.default_rng(3)
    image = np.zeros((60, 90, 3), np.uint8)
    image[..., 0] = np.linspace(0, 255, 90, dtype=np.uint8)
    image[..., 1] = np.linspace(255, 0, 60, dtype=np.uint8)[:, None]
    image[20:40, 30:60] = (30, 80, 220)
    return np.clip(image + rng.integers(-10, 10, image.shape), 0, 255).astype(np.uint8)


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
