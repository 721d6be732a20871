"""The TensorRT backend. Without a GPU: against a CUDA runtime and an engine that are played by host memory, which is
enough to check addresses, types, order, error codes and that all is freed. With one (marker gpu): a real engine."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, replace
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
from mtmamba.runtime.backends import Backend, open_backend, tensorrt_backend
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
        self.recorded: list[Callable[[], Any]] | None = None  # by a capture that is under way
        self.graphs: dict[int, list[Callable[[], Any]]] = {}
        self.cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)
        self.cudaStreamNonBlocking = 1
        self.cudaError_t = SimpleNamespace(cudaSuccess=0)
        self.cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
        self._functions: dict[str, Callable[..., tuple[Any, ...]]] = {
            **dict.fromkeys(("cudaMalloc", "cudaMallocHost"), self.allocate),
            **dict.fromkeys(("cudaStreamCreateWithFlags", "cudaEventCreate"), lambda *_: self.allocate(1)),
            **dict.fromkeys(("cudaFree", "cudaFreeHost", "cudaStreamDestroy", "cudaEventDestroy"), self.free),
            **dict.fromkeys(("cudaSetDevice", "cudaEventRecord", "cudaStreamWaitEvent"), lambda *_: ()),
            "cudaStreamBeginCapture": self.begin_capture,
            "cudaStreamEndCapture": self.end_capture,
            "cudaGraphInstantiate": lambda graph, flags: (self.keep(self.graphs[graph]),),
            "cudaGraphLaunch": lambda graph, stream: self.queued.extend(self.graphs[graph]) or (),
            **dict.fromkeys(("cudaGraphDestroy", "cudaGraphExecDestroy"), lambda graph: self.graphs.pop(graph) and ()),
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
                self.recorded = None if name == "cudaStreamEndCapture" else self.recorded  # it ends all the same
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
        self.put(lambda: ctypes.memmove(to, of, size))
        return ()

    def put(self, work: Callable[[], Any]) -> None:
        (self.queued if self.recorded is None else self.recorded).append(work)

    def begin_capture(self, stream: int, mode: int) -> tuple[()]:
        self.recorded = []
        return ()

    def end_capture(self, stream: int) -> tuple[int]:
        recorded, self.recorded = self.recorded, None
        assert recorded is not None
        return (self.keep(recorded),)

    def keep(self, work: list[Callable[[], Any]]) -> int:
        number = max(self.graphs, default=0) + 1
        self.graphs[number] = work
        return number

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
        self.shapes = {INPUT_NAME: metadata.input_shape}
        self.shapes |= {task.name: metadata.output_shape(task) for task in metadata.tasks}
        self.types = {task.name: dtype for task in metadata.tasks} | {INPUT_NAME: "float32"}
        if metadata.io == "picture":
            self.types = {task.name: metadata.output_dtype(task) for task in metadata.tasks} | {INPUT_NAME: "uint8"}
        self.names, self.num_io_tensors = list(self.shapes), len(self.shapes)
        self.cuda = cuda
        self.addresses: dict[str, int] = {}
        self.starts = self.capturable = True
        self.runs = 0
        self.get_tensor_name = self.names.__getitem__
        self.get_tensor_shape = self.shapes.__getitem__
        self.get_tensor_dtype = self.types.__getitem__
        self.get_tensor_mode = lambda name: name == INPUT_NAME
        self.create_execution_context = lambda: self

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def array(self, name: str, address: int) -> np.ndarray:
        dtype = np.dtype(self.get_tensor_dtype(name))
        size = int(np.prod(self.shapes[name])) * dtype.itemsize
        return np.frombuffer((ctypes.c_byte * size).from_address(address), dtype).reshape(self.shapes[name])

    def execute_async_v3(self, stream: int) -> bool:
        assert stream in self.cuda.memory
        addresses = dict(self.addresses)
        self.cuda.put(lambda: self._run(addresses))
        return self.starts and (self.capturable or self.cuda.recorded is None)

    def _run(self, addresses: dict[str, int]) -> None:
        self.runs += 1
        means = self.array(INPUT_NAME, addresses[INPUT_NAME]).mean(axis=(1, 2, 3))
        for name in self.names[1:]:
            shape = self.shapes[name]
            step = np.arange(shape[1])[None, :, None, None] if self.types[INPUT_NAME] == "float32" else 0
            self.array(name, addresses[name])[:] = means.reshape(-1, *[1] * (len(shape) - 1)) + step


@dataclass
class Rig:
    cuda: FakeCuda
    engine: FakeEngine
    path: Path
    module: Any
    runtime: Any


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Rig:
    """An engine file with its sidecar, and the fakes in place. Parameter: (batch, output dtype or "picture")."""
    batch, dtype = getattr(request, "param", (1, "float32"))
    metadata: ModelMetadata = request.getfixturevalue("toy_metadata_of")(batch)
    if dtype == "picture":
        metadata = replace(metadata, io="picture")
    cuda = FakeCuda()
    engine = FakeEngine(metadata, cuda, dtype)
    runtime: Any = SimpleNamespace(deserialize_cuda_engine=lambda data: engine if data == b"engine" else None)
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
    return Rig(cuda=cuda, engine=engine, path=path, module=module, runtime=runtime)


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


@pytest.mark.parametrize("rig", [(2, "picture")], indirect=True, ids=str)
def test_bytes_go_in_and_predictions_come_out(rig: Rig) -> None:
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
def test_an_engine_that_gives_other_types_than_its_sidecar_says(rig: Rig) -> None:
    rig.engine.types["depth"] = "float32"
    with pytest.raises(MtmError, match=r"depth float32 \[1, 48, 64\]"):
        open_backend(rig.path)


def filled(backend: Backend, value: float) -> np.ndarray:
    return np.full((1, 3, *backend.metadata.input_size), value, np.float32)


class TestGraph:
    def test_from_the_second_run_on_the_engine_is_a_graph(self, rig: Rig) -> None:
        with open_backend(rig.path) as backend:
            for value in (1.0, 2.0, 3.0):
                assert backend.infer(filled(backend, value))["depth"].max() == value
            assert rig.cuda.calls.count("cudaGraphLaunch") == 2 and rig.engine.runs == 3
            assert len(rig.cuda.graphs) == 1, "the captured graph is kept beside its executable"
            outside = Elsewhere(filled(backend, 4.0)), Elsewhere(np.empty((1, 1, 48, 64), np.float32))
            backend.infer_on_gpu(outside[0], {"depth": outside[1]})
            assert (outside[1].array == 4).all()
            assert backend.infer(filled(backend, 5.0))["depth"].max() == 5  # its own buffers again
        assert not rig.cuda.graphs and not rig.cuda.memory

    @pytest.mark.parametrize("function", ["cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate", ""])
    def test_what_cannot_be_captured_runs_without(self, rig: Rig, function: str) -> None:
        rig.cuda.fail = function
        rig.engine.capturable = bool(function)
        with open_backend(rig.path) as backend:
            for value in (1.0, 2.0, 3.0):
                assert backend.infer(filled(backend, value))["depth"].max() == value
            assert "cudaGraphLaunch" not in rig.cuda.calls
            assert function != "cudaStreamBeginCapture" or rig.cuda.calls.count(function) == 1, "tried again and again"


class TestSubmit:
    def test_two_batches_overlap_and_keep_their_order(self, rig: Rig) -> None:
        with open_backend(rig.path) as backend:
            assert backend.depth == 2
            results = [backend.submit(filled(backend, value)) for value in (1.0, 2.0)]
            assert rig.engine.runs == 0, "submit waited"
            found = [result()["depth"] for result in results]
            for value in (3.0, 4.0, 5.0, 6.0):  # graphs in both contexts by now
                results.append(backend.submit(filled(backend, value)))
                found.append(results[-1]()["depth"])
            assert [depth.max() for depth in found] == [1, 2, 3, 4, 5, 6]
            assert backend.engine_ms == 1.25
            assert rig.cuda.calls.count("cudaGraphLaunch") == 4
        assert not rig.cuda.memory and not rig.cuda.graphs

    def test_a_third_at_once_is_refused_and_close_waits_for_the_rest(self, rig: Rig) -> None:
        with open_backend(rig.path) as backend:
            for value in (1.0, 2.0):
                backend.submit(filled(backend, value))
            with pytest.raises(ValueError, match="2 batches are on their way already"):
                backend.submit(filled(backend, 3.0))
            rig.cuda.calls.clear()
        assert rig.cuda.calls.index("cudaStreamSynchronize") < rig.cuda.calls.index("cudaFree")
        assert not rig.cuda.memory

    def test_no_room_for_the_second_context(self, rig: Rig) -> None:
        contexts = iter([rig.engine, None])
        rig.engine.create_execution_context = lambda: next(contexts)
        with open_backend(rig.path) as backend:
            results = [backend.submit(filled(backend, value)) for value in (1.0, 2.0, 3.0)]
            assert [result()["depth"].max() for result in results] == [1, 2, 3] and backend.depth == 1
        assert not rig.cuda.memory


@pytest.mark.parametrize("changes", [{"embedded_plugin": True}, {"version_compatible": True}], ids=str)
def test_an_engine_that_carries_code_needs_trust(
    rig: Rig,
    toy_metadata_of: Callable[[int], ModelMetadata],
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
) -> None:
    write_sidecar(rig.path, toy_metadata_of(1), **changes)
    with pytest.raises(MtmError, match="carries code .* set MTMAMBA_TRUST_ENGINES=1"):
        open_backend(rig.path)
    assert not hasattr(rig.runtime, "engine_host_code_allowed")
    monkeypatch.setenv("MTMAMBA_TRUST_ENGINES", "1")
    open_backend(rig.path).close()
    assert rig.runtime.engine_host_code_allowed is True


def test_another_gpu_of_several(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    second = replace(GPU, index=1, name="second GPU")
    monkeypatch.setattr(gpu, "find_gpus", lambda: [GPU, second])
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


@pytest.mark.gpu
def test_real_batches_on_their_way_answer_as_those_alone(toy_onnx: Path, metadata: ModelMetadata) -> None:
    if not gpu.find_gpus():
        pytest.skip("no NVIDIA GPU here")
    from mtmamba.runtime.engine import BuildOptions, build_engine
    from mtmamba.runtime.onnx_model import load_onnx
    from mtmamba.runtime.trt import resolve

    path = toy_onnx.with_suffix(".engine")
    build_engine(resolve(), load_onnx(toy_onnx), path, BuildOptions(), None)
    rng = np.random.default_rng(0)
    images = [rng.normal(size=(1, 3, *metadata.input_size)).astype(np.float32) for _ in range(9)]
    with open_backend(path) as backend:
        alone = [backend.infer(image) for image in images]
        waiting, found = [], []
        for image in images:
            waiting.append(backend.submit(image))
            if len(waiting) == backend.depth:
                found.append(waiting.pop(0)())
                assert 0 < backend.engine_ms < 1000
        found += [result() for result in waiting]
    for one, other in zip(alone, found, strict=True):
        for name, value in one.items():
            np.testing.assert_array_equal(other[name], value)


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
