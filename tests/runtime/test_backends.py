"""Backends: choice by file, what they refuse and in which words, and that they answer with the model's numbers."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from mtmamba.errors import MtmError
from mtmamba.metadata import METADATA_KEY, ModelMetadata
from mtmamba.runtime import backends, gpu
from mtmamba.runtime.backends import default_model, open_backend
from mtmamba.tasks import dataset

TASKS = [task.name for task in dataset("synthetic").tasks]


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "find_gpus", list)


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    device = gpu.Gpu(index=0, name="test GPU", compute_capability=(8, 9), memory_mib=1024)
    monkeypatch.setattr(gpu, "find_gpus", lambda: [device])


def images_of(metadata: ModelMetadata, count: int) -> np.ndarray:
    rng = np.random.default_rng(count)
    return rng.normal(size=(count, 3, *metadata.input_size)).astype(np.float32)


def test_onnx_answers_as_onnxruntime_does(toy_onnx: Path, metadata: ModelMetadata) -> None:
    images = images_of(metadata, 1)
    session = onnxruntime.InferenceSession(str(toy_onnx), providers=["CPUExecutionProvider"])
    expected = dict(zip(TASKS, session.run(TASKS, {"image": images}), strict=True))
    with open_backend(toy_onnx) as backend:
        found = backend.infer(images)
        assert (backend.name, backend.metadata) == ("onnxruntime", metadata)
        assert backend.device in ("CPU", "GPU (CUDA)") and backend.engine_ms > 0
    assert list(found) == TASKS
    for name in TASKS:
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], expected[name], atol=1e-5)


def test_a_short_batch_is_padded_and_cut(tmp_path: Path, make_toy: Callable[..., Path]) -> None:
    one = open_backend(make_toy(tmp_path / "one.onnx"))
    three = open_backend(make_toy(tmp_path / "three.onnx", batch=3))
    images = images_of(one.metadata, 2)
    found = three.infer(images)
    for index in range(2):
        single = one.infer(images[index : index + 1])
        for name in TASKS:
            assert found[name].shape[0] == 2
            np.testing.assert_allclose(found[name][index], single[name][0], atol=1e-5)


@pytest.mark.parametrize(
    "images",
    [np.zeros((2, 3, 48, 64), np.float32), np.zeros((1, 3, 48, 65), np.float32), np.zeros((1, 3, 48, 64))],
    ids=["too many", "wrong size", "float64"],
)
def test_wrong_images_are_a_bug_of_the_caller(toy_onnx: Path, images: np.ndarray) -> None:
    with open_backend(toy_onnx) as backend, pytest.raises(ValueError, match="expected float32 images"):
        backend.infer(images)


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize(
    ("file", "backend", "sentence"),
    [
        ("toy.onnx", "torch", "backend torch reads .pth .pt .tar files, found .onnx; use --backend onnxruntime"),
        ("toy.onnx", "fast", "unknown backend 'fast'; known: tensorrt, onnxruntime, torch"),
        ("toy.onnx", "tensorrt", "found no NVIDIA GPU; use --backend onnxruntime"),
        ("a.engine", None, "found no NVIDIA GPU; use --backend onnxruntime"),
        ("a.engine", "onnxruntime", "backend onnxruntime reads .onnx files, found .engine; use --backend tensorrt"),
        ("notes.txt", None, "expected a model file, one of .engine (tensorrt), .onnx (onnxruntime)"),
        ("missing.onnx", None, "expected a model file, found nothing there"),
        ("empty.onnx", None, "found an empty file"),
    ],
)
def test_refused_pairings(toy_onnx: Path, file: str, backend: str | None, sentence: str) -> None:
    folder = toy_onnx.parent
    (folder / "a.engine").write_bytes(b"engine")
    (folder / "notes.txt").write_text("notes")
    (folder / "empty.onnx").touch()
    with pytest.raises(MtmError) as caught:
        open_backend(folder / file, backend)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_nothing_of_tensorrt_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "mtmamba.runtime.backends.tensorrt_backend", raising=False)
    (tmp_path / "a.engine").write_bytes(b"engine")
    with pytest.raises(MtmError, match="found no NVIDIA GPU"):
        open_backend(tmp_path / "a.engine")
    assert "mtmamba.runtime.backends.tensorrt_backend" not in sys.modules


@pytest.mark.usefixtures("one_gpu")
def test_an_engine_without_its_sidecar(tmp_path: Path) -> None:
    (tmp_path / "a.engine").write_bytes(b"engine")
    with pytest.raises(MtmError, match=r"expected its sidecar a\.engine\.json"):
        open_backend(tmp_path / "a.engine")


def change(path: Path, edit: Callable[[onnx.ModelProto], None]) -> Path:
    model = onnx.load(str(path))
    edit(model)
    onnx.save(model, str(path))
    return path


def drop_metadata(model: onnx.ModelProto) -> None:
    del model.metadata_props[:]


def break_metadata(model: onnx.ModelProto) -> None:
    helper.set_model_props(model, {METADATA_KEY: "{not json"})


def rename_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].name = "pixels"
    for node in model.graph.node:
        node.input[0] = "pixels"


def resize_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 96
    for output in model.graph.output:
        output.type.tensor_type.shape.dim[2].dim_value = 96


def drop_depth(model: onnx.ModelProto) -> None:
    kept = [output for output in model.graph.output if output.name != "depth"]
    del model.graph.output[:]
    model.graph.output.extend(kept)


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (drop_metadata, "expected mtmamba metadata, found none; export the model again with mtm-export"),
        (break_metadata, "its mtmamba metadata is no JSON"),
        (rename_input, "expected one input image float32 [1, 3, 48, 64], found pixels"),
        (resize_input, "expected one input image float32 [1, 3, 48, 64], found image tensor(float) [1, 3, 96, 64]"),
        (
            drop_depth,
            "expected an output depth float32 [1, 1, 48, 64], found only semseg, human_parts, sal, normals, edge",
        ),
    ],
)
def test_onnx_files_that_are_not_ours(toy_onnx: Path, edit: Callable[[onnx.ModelProto], None], sentence: str) -> None:
    with pytest.raises(MtmError) as caught:
        open_backend(change(toy_onnx, edit))
    assert sentence in str(caught.value)


@pytest.mark.parametrize("keep", [0.5, 0.98], ids=["half", "nearly all"])
def test_a_truncated_onnx_file(toy_onnx: Path, keep: float) -> None:
    data = toy_onnx.read_bytes()
    toy_onnx.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(MtmError) as caught:
        open_backend(toy_onnx)
    assert str(caught.value).startswith(f"{toy_onnx}: expected ") and "\n" not in str(caught.value)
    assert "mtm-export" in str(caught.value)


def test_no_onnxruntime_says_how_to_get_it(toy_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MtmError, match=r"pip install 'mtmamba\[cpu\]'"):
        open_backend(toy_onnx)


@pytest.mark.usefixtures("no_gpu")
class TestDefaultModel:
    def test_the_only_one(self, toy_onnx: Path) -> None:
        assert default_model(folder=toy_onnx.parent) == (toy_onnx, "")

    def test_none(self, tmp_path: Path) -> None:
        with pytest.raises(MtmError, match=r"no model .*; make one with mtm-export or mtm-build-engine, .* --model"):
            default_model(folder=tmp_path)

    def test_onnx_before_checkpoints(self, toy_onnx: Path) -> None:
        (toy_onnx.parent / "best.pth").write_bytes(b"x")
        assert default_model(folder=toy_onnx.parent)[0] == toy_onnx

    def test_several_are_listed(self, toy_onnx: Path) -> None:
        (toy_onnx.parent / "b.onnx").write_bytes(b"x")
        with pytest.raises(MtmError, match=r"2 files .*b\.onnx, toy\.onnx.*--model"):
            default_model(folder=toy_onnx.parent)

    def test_an_engine_is_passed_over_without_a_gpu(self, toy_onnx: Path) -> None:
        (toy_onnx.parent / "a.engine").write_bytes(b"x")
        model, note = default_model(folder=toy_onnx.parent)
        assert model == toy_onnx and note == "no NVIDIA GPU here: passing over a.engine"

    def test_an_engine_comes_first_with_one(self, toy_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(gpu, "find_gpus", lambda: ["one"])
        (toy_onnx.parent / "a.engine").write_bytes(b"x")
        assert default_model(folder=toy_onnx.parent)[0].name == "a.engine"

    def test_the_backend_decides_the_kind(self, toy_onnx: Path) -> None:
        (toy_onnx.parent / "best.pth").write_bytes(b"x")
        assert default_model("torch", toy_onnx.parent)[0].name == "best.pth"
        with pytest.raises(MtmError, match="found no NVIDIA GPU"):
            default_model("tensorrt", toy_onnx.parent)


def test_every_backend_says_what_makes_its_files() -> None:
    assert set(backends.MADE_BY) == set(backends.BACKENDS)
