"""The TensorRT backend. Without a GPU: against a CUDA runtime and an engine that are played by host memory (see conftest).
With one (marker gpu): a real engine."""

import ctypes
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from mtmamba.errors import MtmError
from mtmamba.metadata import INPUT_NAME, ModelMetadata
from mtmamba.runtime import gpu
from mtmamba.runtime.backends import Backend, open_backend

Filled = Callable[[Backend, float], np.ndarray]
FIRST = gpu.Gpu(index=0, name="test GPU", compute_capability=(8, 9), memory_mib=1024)


@pytest.mark.parametrize("rig", [(1, "float32"), (1, "float16"), (3, "float32")], indirect=True, ids=str)
def test_data_goes_in_and_comes_out(rig: Any) -> None:
    with open_backend(rig.path) as backend:
        metadata = backend.metadata
        assert (backend.name, backend.device) == ("tensorrt", "test GPU")
        kept = []
        for value in (0.5, -2.0):
            images = np.full((metadata.batch, 3, *metadata.input_size), value, np.float32)
            images += np.arange(metadata.batch, dtype=np.float32)[:, None, None, None]
            kept.append((value, backend.infer(images)))
        assert backend.engine_ms == 1.25
        for value, outputs in kept:  # the second run did not overwrite the first one's arrays
            for task in metadata.tasks:
                found = outputs[task.name]
                assert found.dtype == np.float32
                assert found.shape == (metadata.batch, task.channels, *metadata.output_size)
                for index in range(metadata.batch):
                    wanted = value + index + np.arange(task.channels)
                    np.testing.assert_allclose(found[index, :, 5, 7], wanted, atol=1e-2)
    assert not rig.cuda.memory, "memory, streams or events were not freed"
    backend.close()  # twice is fine


@pytest.mark.parametrize("function", ["cudaMalloc", "cudaMallocHost", "cudaStreamCreateWithFlags", "cudaEventCreate"])
def test_a_failing_allocation_is_one_sentence(rig: Any, function: str) -> None:
    rig.cuda.fail = function
    with pytest.raises(MtmError, match=rf"CUDA's {function} failed on test GPU \(out of memory\)"):
        open_backend(rig.path)


@pytest.mark.parametrize("function", ["cudaMemcpyAsync", "cudaEventRecord", "cudaStreamSynchronize"])
def test_a_failing_run_is_one_sentence(rig: Any, function: str) -> None:
    with open_backend(rig.path) as backend:
        rig.cuda.fail = function
        with pytest.raises(MtmError, match=f"CUDA's {function} failed"):
            backend.infer(np.zeros((1, 3, *backend.metadata.input_size), np.float32))


def test_an_engine_that_does_not_start(rig: Any) -> None:
    rig.engine.starts = False
    with open_backend(rig.path) as backend, pytest.raises(MtmError, match="could not start the engine"):
        backend.infer(np.zeros((1, 3, *backend.metadata.input_size), np.float32))


def test_no_room_for_a_context(rig: Any) -> None:
    rig.engine.create_execution_context = lambda: None
    with pytest.raises(MtmError, match="could not make an execution context"):
        open_backend(rig.path)
    assert not rig.cuda.memory


def test_an_engine_tensorrt_refuses(rig: Any, toy_metadata_of: Callable[[int], ModelMetadata]) -> None:
    rig.path.write_bytes(b"other")
    rig.write_sidecar(toy_metadata_of(1))
    with pytest.raises(MtmError, match=r"TensorRT 1\.2\.3 cannot load this engine"):
        open_backend(rig.path)


def test_an_engine_with_other_outputs(rig: Any) -> None:
    rig.engine.names.remove("depth")
    rig.engine.num_io_tensors -= 1
    with pytest.raises(MtmError, match="expected the inputs and outputs its sidecar promises"):
        open_backend(rig.path)
    assert not rig.cuda.memory


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"tensorrt_version": "9.9"}, "it was built by tensorrt 9.9, and 1.2.3 is installed"),
        ({"compute_capabilities": ("12.0",)}, "compute capability 12.0, and this one has 8.9"),
        ({"engine_sha256": "0" * 64}, "its bytes are not those its sidecar was written for"),
    ],
)
def test_an_engine_for_something_else(
    rig: Any, toy_metadata_of: Callable[[int], ModelMetadata], changes: dict[str, Any], sentence: str
) -> None:
    rig.write_sidecar(toy_metadata_of(1), **changes)
    with pytest.raises(MtmError) as caught:
        open_backend(rig.path)
    assert sentence in str(caught.value) and "mtm-build-engine" in str(caught.value)
    assert not rig.cuda.calls  # nothing of CUDA before the sidecar agrees


@pytest.mark.parametrize("rig", [(2, "picture")], indirect=True, ids=str)
def test_bytes_go_in_and_predictions_come_out(rig: Any) -> None:
    with open_backend(rig.path) as backend:
        pictures = np.stack([np.full((48, 64, 3), value, np.uint8) for value in (7, 200)])
        found = backend.infer(pictures)
        for task in backend.metadata.tasks:
            assert found[task.name].dtype == (np.float16 if task.kind == "depth" else np.uint8)
            assert found[task.name].shape == (2, 48, 64, *([3] if task.kind == "normals" else []))
            assert [found[task.name][index].max() for index in range(2)] == [7, 200]
        with pytest.raises(ValueError, match=r"expected uint8 images \[1..2, 48, 64, 3\], found float32"):
            backend.infer(pictures.astype(np.float32))
    assert not rig.cuda.memory


@pytest.mark.parametrize("rig", [(1, "picture")], indirect=True, ids=str)
def test_an_engine_that_gives_other_types_than_its_sidecar_says(rig: Any) -> None:
    rig.engine.types["depth"] = "float32"
    with pytest.raises(MtmError, match=r"depth float32 \[1, 48, 64\]"):
        open_backend(rig.path)


@pytest.mark.parametrize("changes", [{"embedded_plugin": True}, {"version_compatible": True}], ids=str)
def test_an_engine_that_carries_code_needs_trust(
    rig: Any,
    toy_metadata_of: Callable[[int], ModelMetadata],
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
) -> None:
    rig.write_sidecar(toy_metadata_of(1), **changes)
    with pytest.raises(MtmError, match="carries code .* set MTMAMBA_TRUST_ENGINES=1"):
        open_backend(rig.path)
    assert not hasattr(rig.runtime, "engine_host_code_allowed")
    monkeypatch.setenv("MTMAMBA_TRUST_ENGINES", "1")
    open_backend(rig.path).close()
    assert rig.runtime.engine_host_code_allowed is True


def test_another_gpu_of_several(rig: Any, monkeypatch: pytest.MonkeyPatch, filled: Filled) -> None:
    second = replace(FIRST, index=1, name="second GPU")
    monkeypatch.setattr(gpu, "find_gpus", lambda: [FIRST, second])
    chosen: list[int] = []
    monkeypatch.setitem(rig.cuda._functions, "cudaSetDevice", lambda index: chosen.append(index) or ())
    with open_backend(rig.path, device=1) as backend:
        assert backend.device == "second GPU" and set(chosen) == {1}
        before = len(chosen)
        backend.infer(filled(backend, 1.0))
        assert len(chosen) > before, "each thread has to choose the GPU again"
    with pytest.raises(MtmError, match=r"--device 2: expected one of the GPUs here, 0 \(test GPU\), 1 \(second GPU\)"):
        open_backend(rig.path, device=2)


@pytest.mark.gpu
@pytest.mark.trt
def test_a_real_engine_answers_as_onnxruntime_does(toy_onnx: Path, metadata: ModelMetadata) -> None:
    if not gpu.find_gpus():
        pytest.skip("no NVIDIA GPU here")
    from mtmamba.runtime.engine import BuildOptions, build_engine
    from mtmamba.runtime.onnx_model import load_onnx
    from mtmamba.runtime.trt import resolve

    path = toy_onnx.with_suffix(".engine")
    build_engine(resolve(), load_onnx(toy_onnx), path, BuildOptions(), None)
    images = np.random.default_rng(0).normal(size=(1, 3, *metadata.input_size)).astype(np.float32)
    names = [task.name for task in metadata.tasks]
    session = onnxruntime.InferenceSession(str(toy_onnx), providers=["CPUExecutionProvider"])
    expected = dict(zip(names, session.run(names, {INPUT_NAME: images}), strict=True))
    with open_backend(path) as backend:
        for _ in range(3):  # without a CUDA graph, with it for the first time, and again
            found = backend.infer(images)
        assert 0 < backend.engine_ms < 1000
    for name in names:  # convolutions may use TF32: 10 bits of mantissa
        np.testing.assert_allclose(found[name], expected[name], rtol=5e-3, atol=2e-2)


class TestArraysOnTheGpu:
    def test_they_are_read_and_written_where_they_lie(self, rig: Any, elsewhere: Any) -> None:
        with open_backend(rig.path) as backend:
            height, width = backend.metadata.input_size
            before = len(rig.cuda.memory)
            image, depth = np.full((1, 3, height, width), 2.5, np.float32), np.empty((1, 1, height, width), np.float32)
            given = elsewhere(depth)
            rig.cuda.calls.clear()
            found = backend.infer_on_gpu(elsewhere(image), {"depth": given})
            assert "cudaMemcpyAsync" not in rig.cuda.calls, "something was copied"
            assert found["depth"] is given and (depth == 2.5).all()
            assert list(found) == [task.name for task in backend.metadata.tasks]
            interface = found["normals"].__cuda_array_interface__
            assert interface["shape"] == (1, 3, height, width) and interface["typestr"] == "<f4"
            memory = (ctypes.c_float * (3 * height * width)).from_address(interface["data"][0])
            assert np.frombuffer(memory, np.float32).reshape(3, -1).T[7].tolist() == [2.5, 3.5, 4.5]
            assert len(rig.cuda.memory) == before + len(found) - 1
            del found, interface
            assert len(rig.cuda.memory) == before, "results were not freed with their arrays"
            host = backend.infer(np.zeros((1, 3, height, width), np.float32))  # its own buffers again
            assert host["depth"].max() == 0 and (depth == 2.5).all()
        assert not rig.cuda.memory

    @pytest.mark.parametrize(("stream", "waits"), [(None, 1), (2, 2)])
    def test_the_owners_stream_is_waited_for(self, rig: Any, stream: int | None, waits: int, elsewhere: Any) -> None:
        with open_backend(rig.path) as backend:
            image = np.zeros((1, 3, *backend.metadata.input_size), np.float32)
            rig.cuda.calls.clear()
            backend.infer_on_gpu(elsewhere(image, stream=stream), {})
            assert rig.cuda.calls.count("cudaStreamSynchronize") == waits

    def test_what_does_not_fit(self, rig: Any, elsewhere: Any) -> None:
        with open_backend(rig.path) as backend:
            shape = (1, 3, *backend.metadata.input_size)
            good = elsewhere(np.zeros(shape, np.float32))
            for wrong in (
                np.zeros(shape),
                np.zeros((2, *shape[1:]), np.float32),
                np.zeros(shape, np.float32)[..., ::-1],
            ):
                with pytest.raises(MtmError, match="image: expected a contiguous array float32"):
                    backend.infer_on_gpu(elsewhere(wrong), {})
            with pytest.raises(MtmError, match="depth: expected an array on the GPU, found a ndarray"):
                backend.infer_on_gpu(good, {"depth": np.zeros(shape, np.float32)})
            with pytest.raises(MtmError, match="out: expected some of semseg"):
                backend.infer_on_gpu(good, {"flow": good})


def test_another_context_of_the_same_engine(rig: Any) -> None:
    first = open_backend(rig.path)
    alone = len(rig.cuda.memory)
    other = first.another()
    images = np.ones((1, 3, *first.metadata.input_size), np.float32)
    assert len(rig.cuda.memory) == 2 * alone, "stream, events and buffers are not its own"
    for backend in (first, other):
        assert backend.infer(images)["depth"].max() == 1
    other.close()
    assert len(rig.cuda.memory) == alone and first.infer(images)["depth"].max() == 1
    rig.engine.create_execution_context = lambda: None
    with pytest.raises(MtmError, match="could not make an execution context"):
        first.another()
    first.close()
    assert not rig.cuda.memory
