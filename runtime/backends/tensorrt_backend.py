"""TensorRT engines, of either flavour. All is made once: device buffers, pinned host buffers, one stream, two events.

An `infer` is: copy into pinned memory, copy to the device, run, copy back, wait; the events stand around the run alone.
"""

import ctypes
import logging
import math
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mtmamba.errors import MtmError
from mtmamba.metadata import INPUT_NAME, ModelMetadata
from mtmamba.runtime import sidecar
from mtmamba.runtime.backends.base import Array, Backend
from mtmamba.runtime.device_array import DeviceArray, view
from mtmamba.runtime.gpu import Gpu, require_gpu
from mtmamba.runtime.plugin import load_plugins
from mtmamba.runtime.trt import TensorRT, quoted, resolve

logger = logging.getLogger(__name__)

_REBUILD = "build the engine again with mtm-build-engine"


@dataclass(frozen=True, kw_only=True)
class Binding:
    """One input or output: its memory on the device (an address) and in pinned host memory (an array on it)."""

    name: str
    is_input: bool
    device: int
    host: npt.NDArray[Any]


class _Owner:
    """Holds a piece of GPU memory: what is to be freed hangs on its life."""


class TensorRTBackend(Backend):
    """An engine and its sidecar. Raises MtmError where there is no GPU (before anything is loaded), the sidecar is
    missing or says the engine is for something else, a package is missing, or TensorRT or CUDA fail."""

    name = "tensorrt"

    def __init__(self, model: Path) -> None:
        gpu = require_gpu()
        self._trt, metadata = _prepare(model, gpu)
        super().__init__(model, metadata, gpu.name)
        self._cudart = import_cudart()
        self._index = gpu.index
        self._resources = ExitStack()
        self._context: Any = None
        self._engine: Any = None
        self._runtime: Any = None
        with self._closing_on_error():
            self._cuda(self._cudart.cudaSetDevice, self._index)
            self._runtime, self._engine = _load_engine(self._trt, self.model)
            self._make_context()

    def another(self) -> "TensorRTBackend":
        other = copy(self)  # shares the engine; its context, stream and buffers are its own
        other._resources = ExitStack()
        other._context, other._bindings = None, {}
        with other._closing_on_error():
            other._cuda(other._cudart.cudaSetDevice, other._index)
            other._make_context()
        return other

    @contextmanager
    def _closing_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.close()
            raise

    def _make_context(self) -> None:
        cuda, cudart = self._cuda, self._cudart
        self._stream = cuda(cudart.cudaStreamCreateWithFlags, cudart.cudaStreamNonBlocking)
        self._resources.callback(cuda, cudart.cudaStreamDestroy, self._stream)
        self._start, self._stop = (cuda(cudart.cudaEventCreate) for _ in range(2))
        for event in (self._start, self._stop):
            self._resources.callback(cuda, cudart.cudaEventDestroy, event)
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise MtmError(
                f"{self.model}: TensorRT could not make an execution context, most likely for want of GPU memory; "
                "close other programs on this GPU (nvidia-smi lists them)"
            )
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        self._bindings = {name: self._bind(self._trt, self._engine, name) for name in names}
        _check(self._bindings, self.metadata, self.model)

    def _bind(self, trt: TensorRT, engine: Any, name: str) -> Binding:
        """Allocate a tensor's memory."""
        cuda, cudart = self._cuda, self._cudart
        shape = tuple(engine.get_tensor_shape(name))
        if min(shape, default=1) < 1:
            raise MtmError(f"{self.model}: expected fixed sizes, found {name} {list(shape)}; {_REBUILD}")
        dtype = np.dtype(trt.module.nptype(engine.get_tensor_dtype(name)))
        size = math.prod(shape) * dtype.itemsize
        device = int(cuda(cudart.cudaMalloc, size))
        self._resources.callback(cuda, cudart.cudaFree, device)
        pinned = int(cuda(cudart.cudaMallocHost, size))
        self._resources.callback(cuda, cudart.cudaFreeHost, pinned)
        host = np.frombuffer((ctypes.c_byte * size).from_address(pinned), dtype).reshape(shape)
        is_input = engine.get_tensor_mode(name) == trt.module.TensorIOMode.INPUT
        return Binding(name=name, is_input=is_input, device=device, host=host)

    def _execute(self, images: Array) -> dict[str, Array]:
        cudart = self._cudart
        outputs = [binding for binding in self._bindings.values() if not binding.is_input]
        image = self._bindings[INPUT_NAME]
        image.host[:] = images
        self._copy(
            image.device, image.host.ctypes.data, image.host.nbytes, cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        )
        self._start_engine({binding.name: binding.device for binding in self._bindings.values()})
        for out in outputs:
            self._copy(out.host.ctypes.data, out.device, out.host.nbytes, cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost)
        self._finish()
        return {out.name: out.host.astype(np.float32) for out in outputs}  # astype copies: the buffers are used again

    def infer_on_gpu(self, image: Any, out: Mapping[str, Any]) -> dict[str, Any]:
        names = [binding.name for binding in self._bindings.values() if not binding.is_input]
        unknown = [name for name in out if name not in names]
        if unknown:
            raise MtmError(f"out: expected some of {', '.join(names)}, found {', '.join(unknown)}")
        arrays = {INPUT_NAME: self._view(INPUT_NAME, image)}
        arrays |= {name: self._view(name, out[name]) if name in out else self._new_array(name) for name in names}
        self._start_engine({name: array.address for name, array in arrays.items()})
        self._finish()
        return {name: out.get(name, arrays[name]) for name in names}

    def _view(self, name: str, array: Any) -> DeviceArray:
        host = self._bindings[name].host
        return view(array, name, host.shape, host.dtype, lambda s: self._cuda(self._cudart.cudaStreamSynchronize, s))

    def _new_array(self, name: str) -> DeviceArray:
        """Memory of its own, freed with the array."""
        host, owner = self._bindings[name].host, _Owner()
        address = int(self._cuda(self._cudart.cudaMalloc, host.nbytes))
        weakref.finalize(owner, self._cudart.cudaFree, address)
        return DeviceArray(address=address, shape=host.shape, dtype=host.dtype, owner=owner)

    def _start_engine(self, addresses: dict[str, int]) -> None:
        cuda, cudart = self._cuda, self._cudart
        for name, address in addresses.items():
            if not self._context.set_tensor_address(name, address):
                raise MtmError(f"{self.model}: TensorRT refused the memory of {name}; build the engine again")
        cuda(cudart.cudaEventRecord, self._start, self._stream)
        if not self._context.execute_async_v3(int(self._stream)):
            raise MtmError(f"{self.model}: TensorRT could not start the engine; run with another --backend to compare")
        cuda(cudart.cudaEventRecord, self._stop, self._stream)

    def _finish(self) -> None:
        """Wait for all that was started."""
        self._cuda(self._cudart.cudaStreamSynchronize, self._stream)
        self.engine_ms = float(self._cuda(self._cudart.cudaEventElapsedTime, self._start, self._stop))

    def _copy(self, to: int, of: int, size: int, kind: Any) -> None:
        self._cuda(self._cudart.cudaMemcpyAsync, to, of, size, kind, self._stream)

    def _cuda(self, function: Callable[..., tuple[Any, ...]], *arguments: Any) -> Any:
        """Call one function of the CUDA runtime and return its value, if it has one. Raises MtmError where it fails."""
        status, *values = function(*arguments)
        if status != self._cudart.cudaError_t.cudaSuccess:
            text = self._cudart.cudaGetErrorString(status)[1]
            reason = text.decode() if isinstance(text, bytes) else str(text)
            raise MtmError(
                f"{self.model}: CUDA's {function.__name__} failed on {self.device} ({reason}); check the GPU "
                "with nvidia-smi"
            )
        return values[0] if values else None

    def close(self) -> None:
        self._context = None  # before the memory it points to, before the engine, before the runtime
        self._engine = None
        self._runtime = None
        self._bindings = {}
        try:
            self._resources.close()
        except MtmError:  # an error of an earlier run shows up in every later call; that run has raised it
            logger.debug("freeing the GPU's memory failed", exc_info=True)


def _prepare(model: Path, gpu: Gpu) -> tuple[TensorRT, ModelMetadata]:
    """Hold the sidecar against what is here, cheapest first, and load the plugins the engine needs."""
    wanted = sidecar.read(model)
    trt = resolve(wanted.flavour)
    capability = ".".join(str(part) for part in gpu.compute_capability)
    here = {"flavour": trt.flavour, "tensorrt_version": trt.version, "compute_capability": capability}
    sidecar.check(model, **here)
    if wanted.plugin_ops:
        plugins = load_plugins(trt)
        if plugins.hash != wanted.plugin_hash:
            sidecar.check(model, **here, plugin_hash=plugins.hash)  # raises, and says what differs
    return trt, wanted.metadata


def _load_engine(trt: TensorRT, model: Path) -> tuple[Any, Any]:
    """The runtime and the engine; the first has to outlive the second."""
    with trt.messages.quoting() as errors:
        runtime = trt.module.Runtime(trt.logger)
        engine = runtime.deserialize_cuda_engine(model.read_bytes())
    if engine is None:
        raise MtmError(f"{model}: TensorRT {trt.version} cannot load this engine ({quoted(errors)}); {_REBUILD}")
    return runtime, engine


def import_cudart() -> Any:
    """The CUDA runtime's Python bindings. Raises MtmError where cuda-bindings is not installed."""
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise MtmError(
            f"backend tensorrt: expected the package cuda-bindings, found none that loads ({error}); install it "
            "with pip install cuda-bindings"
        ) from error
    return runtime


def _check(bindings: dict[str, Binding], metadata: ModelMetadata, model: Path) -> None:
    """The engine's inputs and outputs are those its sidecar promises."""
    (height, width), (out_height, out_width) = metadata.input_size, metadata.output_size
    wanted = {INPUT_NAME: (True, (metadata.batch, 3, height, width))}
    wanted |= {task.name: (False, (metadata.batch, task.channels, out_height, out_width)) for task in metadata.tasks}
    found = {name: (binding.is_input, binding.host.shape) for name, binding in bindings.items()}
    if found != wanted:
        shapes = ", ".join(f"{name} {list(shape)}" for name, (_, shape) in found.items())
        raise MtmError(f"{model}: expected the inputs and outputs its sidecar promises, found {shapes}; {_REBUILD}")
