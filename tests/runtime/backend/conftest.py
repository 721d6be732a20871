"""A CUDA runtime and an engine that are played by host memory: enough to check addresses, types, order, error codes and that
all is freed."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mtmamba.files import sha256
from mtmamba.metadata import INPUT_NAME, ModelMetadata
from mtmamba.runtime import gpu
from mtmamba.runtime.backends import Backend, tensorrt_backend
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


class FakeContext:
    """An execution context. A graph captured from it must not run once its batch has changed: TensorRT's behaviour is
    undefined then."""

    def __init__(self, engine: "FakeEngine") -> None:
        self.engine = engine
        self.addresses: dict[str, int] = {}
        self.batch = 0 if engine.free else engine.metadata.batch

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        metadata = self.engine.metadata
        assert name == INPUT_NAME and shape[1:] == metadata.input_shape[1:] and self.engine.free
        if not metadata.smallest_batch <= shape[0] <= metadata.batch:
            return False
        self.batch = shape[0]
        self.engine.shapes_set += 1
        return True

    def execute_async_v3(self, stream: int) -> bool:
        engine = self.engine
        assert stream in engine.cuda.memory and self.batch, "no input shape was set"
        addresses, batch = dict(self.addresses), self.batch

        def work() -> None:
            assert self.batch == batch, "a graph outlived a change of the context's shapes"
            engine.run(addresses, batch)

        engine.cuda.put(work)
        return engine.starts and (engine.capturable or engine.cuda.recorded is None)


class FakeEngine:
    """Every output pixel of channel c is the mean of that image plus c; runs when the stream is waited for."""

    def __init__(self, metadata: ModelMetadata, cuda: FakeCuda, dtype: str) -> None:
        self.metadata, self.free = metadata, metadata.min_batch is not None
        self.shapes = {INPUT_NAME: metadata.input_shape}
        self.shapes |= {task.name: metadata.output_shape(task) for task in metadata.tasks}
        self.types = {task.name: dtype for task in metadata.tasks} | {INPUT_NAME: "float32"}
        if metadata.io == "picture":
            self.types = {task.name: metadata.output_dtype(task) for task in metadata.tasks} | {INPUT_NAME: "uint8"}
        self.names, self.num_io_tensors = list(self.shapes), len(self.shapes)
        self.cuda = cuda
        self.starts = self.capturable = True
        self.runs = self.shapes_set = 0
        self.profile = (metadata.smallest_batch, metadata.batch)
        self.get_tensor_name = self.names.__getitem__
        self.get_tensor_dtype = self.types.__getitem__
        self.get_tensor_mode = lambda name: name == INPUT_NAME
        self.create_execution_context: Callable[[], FakeContext | None] = lambda: FakeContext(self)

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1, *self.shapes[name][1:]) if self.free else self.shapes[name]

    def get_tensor_profile_shape(self, name: str, index: int) -> list[tuple[int, ...]]:
        assert (name, index) == (INPUT_NAME, 0) and self.free
        least, most = self.profile
        return [(batch, *self.shapes[name][1:]) for batch in (least, most, most)]

    def array(self, name: str, address: int, batch: int) -> np.ndarray:
        dtype, shape = np.dtype(self.get_tensor_dtype(name)), (batch, *self.shapes[name][1:])
        size = int(np.prod(shape)) * dtype.itemsize
        return np.frombuffer((ctypes.c_byte * size).from_address(address), dtype).reshape(shape)

    def run(self, addresses: dict[str, int], batch: int) -> None:
        self.runs += 1
        means = self.array(INPUT_NAME, addresses[INPUT_NAME], batch).mean(axis=(1, 2, 3))
        for name in self.names[1:]:
            shape = self.shapes[name]
            step = np.arange(shape[1])[None, :, None, None] if self.types[INPUT_NAME] == "float32" else 0
            self.array(name, addresses[name], batch)[:] = means.reshape(-1, *[1] * (len(shape) - 1)) + step


@dataclass
class Rig:
    cuda: FakeCuda
    engine: FakeEngine
    path: Path
    module: Any
    runtime: Any

    def write_sidecar(self, metadata: ModelMetadata, **changes: Any) -> None:
        engine = self.path
        values = {
            "flavour": "tensorrt", "tensorrt_version": "1.2.3", "compute_capabilities": ("8.9",), "plugin_hash": "",
            "plugin_ops": (), "onnx_path": "toy.onnx", "onnx_sha256": "", "engine_sha256": sha256(engine),
            "engine_bytes": 6, "precision": "fp32", "metadata": metadata,
        }  # fmt: skip
        sidecar_path(engine).write_text(Sidecar(**{**values, **changes}).to_json())


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Rig:
    """An engine file with its sidecar, and the fakes in place. Parameter: (batch, output dtype or "picture", and the
    smallest batch where it is free)."""
    batch, dtype, *least = getattr(request, "param", (1, "float32"))
    metadata: ModelMetadata = request.getfixturevalue("toy_metadata_of")(batch, min_batch=next(iter(least), None))
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
    made = Rig(cuda=cuda, engine=engine, path=path, module=module, runtime=runtime)
    made.write_sidecar(metadata)
    return made


class Elsewhere:
    """An array in "GPU" memory: NumPy memory behind the CUDA array interface."""

    def __init__(self, array: np.ndarray, **changes: Any) -> None:
        self.array = array
        interface = {"shape": array.shape, "typestr": array.dtype.str, "data": (array.ctypes.data, False), "version": 3}
        self.__cuda_array_interface__ = {**interface, "strides": array.strides, "stream": None, **changes}


@pytest.fixture
def elsewhere() -> type[Elsewhere]:
    return Elsewhere


def filled_images(backend: Backend, value: float) -> np.ndarray:
    return np.full((1, 3, *backend.metadata.input_size), value, np.float32)


@pytest.fixture
def filled() -> Callable[[Backend, float], np.ndarray]:
    """filled(backend, value): one image that is `value` all over."""
    return filled_images
