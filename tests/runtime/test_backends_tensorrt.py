"""The TensorRT backend. Without a GPU: against a CUDA runtime and an engine that are played by host memory, which is
enough to check addresses, types, order, error codes and that all is freed. With one (marker gpu): a real engine."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from mtmamba.errors import MtmError
from mtmamba.files import sha256
from mtmamba.metadata import INPUT_NAME, ModelMetadata
from mtmamba.runtime import gpu
from mtmamba.runtime.backends import open_backend, tensorrt_backend
from mtmamba.runtime.sidecar import Sidecar, sidecar_path
from mtmamba.runtime.trt import Messages, TensorRT

GPU = gpu.Gpu(index=0, name="test GPU", compute_capability=(8, 9), memory_mib=1024)


class FakeCuda:
    """The functions of cuda.bindings.runtime that the backend uses, by host memory. Copies and the engine run when the
    stream is waited for. `fail`: the function that answers with an error."""

    def __init__(self) -> None:
        self.fail = ""
        self.memory: dict[int, Any] = {}
        self.calls: list[str] = []
        self.queued: list[Callable[[], Any]] = []
        self.cudaStreamNonBlocking = 1
        self.cudaError_t = SimpleNamespace(cudaSuccess=0)
        self.cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
        self._functions: dict[str, Callable[..., tuple[Any, ...]]] = {
            **dict.fromkeys(("cudaMalloc", "cudaMallocHost"), self.allocate),
            **dict.fromkeys(("cudaStreamCreateWithFlags", "cudaEventCreate"), lambda *_: self.allocate(1)),
            **dict.fromkeys(("cudaFree", "cudaFreeHost", "cudaStreamDestroy", "cudaEventDestroy"), self.free),
            **dict.fromkeys(("cudaSetDevice", "cudaEventRecord"), lambda *_: ()),
            "cudaMemcpyAsync": self.copy,
            "cudaStreamSynchronize": self.synchronise,
            "cudaEventElapsedTime": self.elapsed,
            "cudaGetErrorString": lambda status: (b"out of memory",),
        }

    def __getattr__(self, name: str) -> Callable[..., tuple[Any, ...]]:
        implementation = self._functions[name]

        def function(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append(name)
            if name == self.fail:
                return 2, None
            return 0, *implementation(*arguments)

        function.__name__ = name
        return function

    def allocate(self, size: int) -> tuple[int]:
        block = (ctypes.c_byte * size)()
        ctypes.memset(block, 0xFF, size)  # NaN, whatever the type
        self.memory[ctypes.addressof(block)] = block
        return (ctypes.addressof(block),)

    def free(self, address: int) -> tuple[()]:
        del self.memory[address]
        return ()

    def copy(self, to: int, of: int, size: int, kind: int, stream: int) -> tuple[()]:
        self.queued.append(lambda: ctypes.memmove(to, of, size))
        return ()

    def synchronise(self, stream: int) -> tuple[()]:
        while self.queued:
            self.queued.pop(0)()
        return ()

    def elapsed(self, start: int, stop: int) -> tuple[float]:
        assert start != stop and not self.queued
        return (1.25,)


class FakeEngine:
    """Every output pixel of channel c is the mean of that image plus c; runs when the stream is waited for."""

    def __init__(self, metadata: ModelMetadata, cuda: FakeCuda, dtype: str) -> None:
        self.shapes = {INPUT_NAME: (metadata.batch, 3, *metadata.input_size)}
        self.shapes |= {task.name: (metadata.batch, task.channels, *metadata.output_size) for task in metadata.tasks}
        self.names, self.num_io_tensors = list(self.shapes), len(self.shapes)
        self.cuda, self.dtype = cuda, dtype
        self.addresses: dict[str, int] = {}
        self.starts = True
        self.get_tensor_name = self.names.__getitem__
        self.get_tensor_shape = self.shapes.__getitem__
        self.get_tensor_dtype = lambda name: "float32" if name == INPUT_NAME else self.dtype
        self.get_tensor_mode = lambda name: name == INPUT_NAME
        self.create_execution_context = lambda: self

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def array(self, name: str) -> np.ndarray:
        dtype = np.dtype(self.get_tensor_dtype(name))
        size = int(np.prod(self.shapes[name])) * dtype.itemsize
        return np.frombuffer((ctypes.c_byte * size).from_address(self.addresses[name]), dtype).reshape(
            self.shapes[name]
        )

    def execute_async_v3(self, stream: int) -> bool:
        assert stream in self.cuda.memory
        self.cuda.queued.append(self._run)
        return self.starts

    def _run(self) -> None:
        means = self.array(INPUT_NAME).mean(axis=(1, 2, 3))[:, None, None, None]
        for name in self.names[1:]:
            self.array(name)[:] = means + np.arange(self.shapes[name][1])[None, :, None, None]


@dataclass
class Rig:
    cuda: FakeCuda
    engine: FakeEngine
    path: Path
    module: Any


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Rig:
    """An engine file with its sidecar, and the fakes in place. Parameter: (batch, output dtype)."""
    batch, dtype = getattr(request, "param", (1, "float32"))
    metadata: ModelMetadata = request.getfixturevalue("toy_metadata_of")(batch)
    cuda = FakeCuda()
    engine = FakeEngine(metadata, cuda, dtype)
    runtime = SimpleNamespace(deserialize_cuda_engine=lambda data: engine if data == b"engine" else None)
    module = SimpleNamespace(
        __version__="1.2.3", Runtime=lambda logger: runtime, nptype=np.dtype, TensorIOMode=SimpleNamespace(INPUT=True)
    )
    trt = TensorRT(flavour="tensorrt", module=module, logger=None, messages=Messages())
    monkeypatch.setattr(gpu, "find_gpus", lambda: [GPU])
    monkeypatch.setattr(tensorrt_backend, "resolve", lambda flavour: trt)
    monkeypatch.setattr(tensorrt_backend, "import_cudart", lambda: cuda)
    path = tmp_path / "toy.engine"
    path.write_bytes(b"engine")
    write_sidecar(path, metadata)
    return Rig(cuda=cuda, engine=engine, path=path, module=module)


def write_sidecar(engine: Path, metadata: ModelMetadata, **changes: Any) -> None:
    values = {
        "flavour": "tensorrt", "tensorrt_version": "1.2.3", "compute_capabilities": ("8.9",), "plugin_hash": "",
        "plugin_ops": (), "onnx_path": "toy.onnx", "onnx_sha256": "", "engine_sha256": sha256(engine),
        "engine_bytes": 6, "precision": "fp32", "metadata": metadata,
    }  # fmt: skip
    sidecar_path(engine).write_text(Sidecar(**{**values, **changes}).to_json())


@pytest.mark.parametrize("rig", [(1, "float32"), (1, "float16"), (3, "float32")], indirect=True, ids=str)
def test_data_goes_in_and_comes_out(rig: Rig) -> None:
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
def test_a_failing_allocation_is_one_sentence(rig: Rig, function: str) -> None:
    rig.cuda.fail = function
    with pytest.raises(MtmError, match=rf"CUDA's {function} failed on test GPU \(out of memory\)"):
        open_backend(rig.path)


@pytest.mark.parametrize("function", ["cudaMemcpyAsync", "cudaEventRecord", "cudaStreamSynchronize"])
def test_a_failing_run_is_one_sentence(rig: Rig, function: str) -> None:
    with open_backend(rig.path) as backend:
        rig.cuda.fail = function
        with pytest.raises(MtmError, match=f"CUDA's {function} failed"):
            backend.infer(np.zeros((1, 3, *backend.metadata.input_size), np.float32))


def test_an_engine_that_does_not_start(rig: Rig) -> None:
    rig.engine.starts = False
    with open_backend(rig.path) as backend, pytest.raises(MtmError, match="could not start the engine"):
        backend.infer(np.zeros((1, 3, *backend.metadata.input_size), np.float32))


def test_no_room_for_a_context(rig: Rig) -> None:
    rig.engine.create_execution_context = lambda: None
    with pytest.raises(MtmError, match="could not make an execution context"):
        open_backend(rig.path)
    assert not rig.cuda.memory


def test_an_engine_tensorrt_refuses(rig: Rig, toy_metadata_of: Callable[[int], ModelMetadata]) -> None:
    rig.path.write_bytes(b"other")
    write_sidecar(rig.path, toy_metadata_of(1))
    with pytest.raises(MtmError, match=r"TensorRT 1\.2\.3 cannot load this engine"):
        open_backend(rig.path)


def test_an_engine_with_other_outputs(rig: Rig) -> None:
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
    rig: Rig, toy_metadata_of: Callable[[int], ModelMetadata], changes: dict[str, Any], sentence: str
) -> None:
    write_sidecar(rig.path, toy_metadata_of(1), **changes)
    with pytest.raises(MtmError) as caught:
        open_backend(rig.path)
    assert sentence in str(caught.value) and "mtm-build-engine" in str(caught.value)
    assert not rig.cuda.calls  # nothing of CUDA before the sidecar agrees


@pytest.mark.gpu
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
        for _ in range(3):
            found = backend.infer(images)
        assert 0 < backend.engine_ms < 1000
    for name in names:  # convolutions may use TF32: 10 bits of mantissa
        np.testing.assert_allclose(found[name], expected[name], rtol=5e-3, atol=2e-2)


class Elsewhere:
    """An array in "GPU" memory: NumPy memory behind the CUDA array interface."""

    def __init__(self, array: np.ndarray, **changes: Any) -> None:
        self.array = array
        interface = {"shape": array.shape, "typestr": array.dtype.str, "data": (array.ctypes.data, False), "version": 3}
        self.__cuda_array_interface__ = {**interface, "strides": array.strides, "stream": None, **changes}


class TestArraysOnTheGpu:
    def test_they_are_read_and_written_where_they_lie(self, rig: Rig) -> None:
        with open_backend(rig.path) as backend:
            height, width = backend.metadata.input_size
            before = len(rig.cuda.memory)
            image, depth = np.full((1, 3, height, width), 2.5, np.float32), np.empty((1, 1, height, width), np.float32)
            given = Elsewhere(depth)
            rig.cuda.calls.clear()
            found = backend.infer_on_gpu(Elsewhere(image), {"depth": given})
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
    def test_the_owners_stream_is_waited_for(self, rig: Rig, stream: int | None, waits: int) -> None:
        with open_backend(rig.path) as backend:
            image = np.zeros((1, 3, *backend.metadata.input_size), np.float32)
            rig.cuda.calls.clear()
            backend.infer_on_gpu(Elsewhere(image, stream=stream), {})
            assert rig.cuda.calls.count("cudaStreamSynchronize") == waits

    def test_what_does_not_fit(self, rig: Rig) -> None:
        with open_backend(rig.path) as backend:
            shape = (1, 3, *backend.metadata.input_size)
            good = Elsewhere(np.zeros(shape, np.float32))
            for wrong in (
                np.zeros(shape),
                np.zeros((2, *shape[1:]), np.float32),
                np.zeros(shape, np.float32)[..., ::-1],
            ):
                with pytest.raises(MtmError, match="image: expected a contiguous array float32"):
                    backend.infer_on_gpu(Elsewhere(wrong), {})
            with pytest.raises(MtmError, match="depth: expected an array on the GPU, found a ndarray"):
                backend.infer_on_gpu(good, {"depth": np.zeros(shape, np.float32)})
            with pytest.raises(MtmError, match="out: expected some of semseg"):
                backend.infer_on_gpu(good, {"flow": good})


def test_another_context_of_the_same_engine(rig: Rig) -> None:
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
