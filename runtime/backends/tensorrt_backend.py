"""TensorRT engines, of either flavour. All is made once: device buffers, pinned host buffers, one stream, two events.

An `infer` is: copy into pinned memory, copy to the device, run, copy back, wait; the events stand around the run alone.
From the second run on the engine's launches are one CUDA graph, where they can be captured. `submit` takes turns between
two contexts of the engine, so that one's copies overlap the other's run; the runs themselves wait for each other.
Where the batch is free, buffers fit the largest, only the images there are are copied and run, and a graph is kept for as
long as their number stays the same.
"""

import ctypes
import logging
import math
import os
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mtmamba.errors import MtmError
from mtmamba.metadata import INPUT_NAME, ModelMetadata
from mtmamba.runtime import sidecar
from mtmamba.runtime.backends.base import Array, Backend, Result
from mtmamba.runtime.backends.cuda_graph import captured
from mtmamba.runtime.backends.kernel_cache import Kernels, open_kernels
from mtmamba.runtime.cuda import call, import_cudart
from mtmamba.runtime.device_array import DeviceArray, view
from mtmamba.runtime.gpu import Gpu, require_gpu
from mtmamba.runtime.plugin import load_plugins
from mtmamba.runtime.trt import TensorRT, quoted, resolve

logger = logging.getLogger(__name__)

TRUST_VARIABLE = "MTMAMBA_TRUST_ENGINES"
_REBUILD = "build the engine again with mtm-build-engine"


@dataclass(frozen=True, kw_only=True)
class Binding:
    """One input or output: its memory on the device (an address) and in pinned host memory (an array on it), for the
    largest batch."""

    name: str
    is_input: bool
    device: int
    host: npt.NDArray[Any]


class _Owner:
    """Holds a piece of GPU memory: what is to be freed hangs on its life."""


class TensorRTBackend(Backend):
    """An engine and its sidecar, on the GPU of index `device`. Raises MtmError where there is no GPU (before anything is
    loaded), the sidecar is missing or says the engine is for something else, it carries code and nobody said it is to be
    trusted, a package is missing, or TensorRT or CUDA fail."""

    name = "tensorrt"
    depth = 2

    def __init__(self, model: Path, device: int = 0) -> None:
        gpu = require_gpu(device)
        self._trt, wanted = _prepare(model, gpu)
        super().__init__(model, wanted.metadata, gpu.name)
        self._cudart = import_cudart()
        self._index = gpu.index
        self._runtime: Any = None
        self._engine: Any = None
        self._kernels: Kernels | None = None
        self._turn, self._is_twin = 0, False
        self._start_empty()
        with self._closing_on_error():
            self._cuda(self._cudart.cudaSetDevice, self._index)
            self._runtime, self._engine = _load_engine(self._trt, self.model, wanted.carries_code)
            self._kernels = open_kernels(self._trt, self._engine, wanted.engine_sha256, gpu.name)
            self._make_context()
            _check(self._bindings, self._range(), self.metadata, self.model)

    def another(self) -> "TensorRTBackend":
        other = copy(self)  # shares the engine; its context, stream and buffers are its own
        other._is_twin = True
        other._start_empty()
        with other._closing_on_error():
            other._cuda(other._cudart.cudaSetDevice, other._index)
            other._make_context()
        return other

    def _start_empty(self) -> None:
        """Nothing of a context's own."""
        self._resources = ExitStack()
        self._bindings: dict[str, Binding] = {}
        self._context: Any = None
        self._graph: Any = None
        self._twin: TensorRTBackend | None = None
        self._batch, self._runs, self._busy = 0, 0, False

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
        assert self._kernels is not None
        self._context = self._kernels.context()
        if self._context is None:
            raise MtmError(
                f"{self.model}: TensorRT could not make an execution context, most likely for want of GPU memory; "
                "close other programs on this GPU (nvidia-smi lists them)"
            )
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        self._bindings = {name: self._bind(self._trt, self._engine, name) for name in names}
        self._resources.callback(self._drop_graph)

    def _bind(self, trt: TensorRT, engine: Any, name: str) -> Binding:
        """Allocate a tensor's memory."""
        cuda, cudart = self._cuda, self._cudart
        shape = tuple(engine.get_tensor_shape(name))
        if self.metadata.min_batch is not None and shape[:1] == (-1,):
            shape = (self.metadata.batch, *shape[1:])
        if min(shape, default=1) < 1:
            raise MtmError(f"{self.model}: expected the sizes of its sidecar, found {name} {list(shape)}; {_REBUILD}")
        dtype = np.dtype(trt.module.nptype(engine.get_tensor_dtype(name)))
        size = math.prod(shape) * dtype.itemsize
        device = int(cuda(cudart.cudaMalloc, size))
        self._resources.callback(cuda, cudart.cudaFree, device)
        pinned = int(cuda(cudart.cudaMallocHost, size))
        self._resources.callback(cuda, cudart.cudaFreeHost, pinned)
        host = np.frombuffer((ctypes.c_byte * size).from_address(pinned), dtype).reshape(shape)
        is_input = engine.get_tensor_mode(name) == trt.module.TensorIOMode.INPUT
        return Binding(name=name, is_input=is_input, device=device, host=host)

    def _range(self) -> tuple[int, int]:
        """The fewest and the most images that the engine runs."""
        if -1 not in tuple(self._engine.get_tensor_shape(INPUT_NAME)):
            return (self.metadata.batch,) * 2
        least, _, most = self._engine.get_tensor_profile_shape(INPUT_NAME, 0)
        return tuple(least)[0], tuple(most)[0]

    def submit(self, images: npt.ArrayLike) -> Result:
        twin = self._other_lane()
        if twin is None:
            return super().submit(images)
        batch, count = self._whole_batch(images)
        lanes = (self, twin)
        lane, before = lanes[self._turn], lanes[1 - self._turn]
        lane._begin(batch, after=before._stop)
        self._turn = 1 - self._turn

        def wait() -> dict[str, Array]:
            outputs = lane._end()
            self.engine_ms = lane.engine_ms
            return self._cut(outputs, count)

        return wait

    def _other_lane(self) -> "TensorRTBackend | None":
        """The second context, made at the first need; None where the GPU has no room for it."""
        if self._twin is None and self.depth > 1:
            try:
                self._twin = self.another()
            except MtmError as error:
                logger.info("one batch at a time: %s", error)
                self.depth = 1
        return self._twin

    def _execute(self, images: Array) -> dict[str, Array]:
        self._begin(images)
        return self._end()

    def _begin(self, images: Array, after: Any = None) -> None:
        """Put a batch's copies and its run on the stream. after: an event that the run waits for."""
        if self._busy:
            raise ValueError(f"{self.depth} batches are on their way already; ask for a result first")
        cuda, cudart = self._cuda, self._cudart
        cuda(cudart.cudaSetDevice, self._index)  # this may be another thread than the last time
        self._use_batch(len(images))
        image = self._bindings[INPUT_NAME]
        image.host[: self._batch] = images
        self._copy(image.device, image.host.ctypes.data, images.nbytes, cudart.cudaMemcpyKind.cudaMemcpyHostToDevice)
        if after is not None:
            cuda(cudart.cudaStreamWaitEvent, self._stream, after, 0)
        self._run_on_own_buffers()
        for out in self._outputs():
            size = out.host[: self._batch].nbytes
            self._copy(out.host.ctypes.data, out.device, size, cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost)
        self._busy = True

    def _end(self) -> dict[str, Array]:
        """Wait for what `_begin` began."""
        self._busy = False
        self._finish()
        types = {task.name: self.metadata.output_dtype(task) for task in self.metadata.tasks}
        # copies: buffers are used again
        return {out.name: out.host[: self._batch].astype(types[out.name]) for out in self._outputs()}

    def _outputs(self) -> list[Binding]:
        return [binding for binding in self._bindings.values() if not binding.is_input]

    def _use_batch(self, images: int) -> None:
        """Prepare the context for runs of so many images. A captured graph holds for one number alone, and TensorRT does not
        let it outlive a change of the context's shapes."""
        if images == self._batch:
            return
        self._drop_graph()
        self._batch = self._runs = 0
        shape = (images, *self.metadata.input_shape[1:])
        if self.metadata.min_batch is not None and not self._context.set_input_shape(INPUT_NAME, shape):
            raise MtmError(f"{self.model}: TensorRT refused a batch of {images}; {_REBUILD}")
        self._batch = images

    def _drop_graph(self) -> None:
        graph, self._graph = self._graph, None
        if graph is not None:
            self._cuda(self._cudart.cudaGraphExecDestroy, graph)

    def _run_on_own_buffers(self) -> None:
        addresses = {binding.name: binding.device for binding in self._bindings.values()}
        if self._runs == 1:  # the first run has set up whatever TensorRT puts off until then
            self._capture(addresses)
        self._runs += 1
        with self._timed():
            if self._graph is None:
                self._enqueue(addresses)
            else:
                self._cuda(self._cudart.cudaGraphLaunch, self._graph, self._stream)

    def _capture(self, addresses: dict[str, int]) -> None:
        try:
            with self._trt.messages.quoting():
                self._graph = captured(self._cudart, self._cuda, self._stream, lambda: self._enqueue(addresses))
        except MtmError as error:
            logger.info("%s runs without a CUDA graph: %s", self.model, error)

    def infer_on_gpu(self, image: Any, out: Mapping[str, Any]) -> dict[str, Any]:
        self._cuda(self._cudart.cudaSetDevice, self._index)
        names = [binding.name for binding in self._outputs()]
        unknown = [name for name in out if name not in names]
        if unknown:
            raise MtmError(f"out: expected some of {', '.join(names)}, found {', '.join(unknown)}")
        arrays = {INPUT_NAME: self._view(INPUT_NAME, image, self.metadata.smallest_batch)}
        self._use_batch(arrays[INPUT_NAME].shape[0])
        arrays |= {name: self._view(name, out[name]) if name in out else self._new_array(name) for name in names}
        with self._timed():
            self._enqueue({name: array.address for name, array in arrays.items()})
        self._finish()
        return {name: out.get(name, arrays[name]) for name in names}

    def _view(self, name: str, array: Any, least: int | None = None) -> DeviceArray:
        """The array's memory. least: of the input, which says how many images there are; outputs have as many."""
        host, synchronise = self._bindings[name].host, self._cudart.cudaStreamSynchronize
        shape = host.shape if least else (self._batch, *host.shape[1:])
        return view(array, name, shape, host.dtype, lambda s: self._cuda(synchronise, s), least)

    def _new_array(self, name: str) -> DeviceArray:
        """Memory of its own, freed with the array."""
        host, owner = self._bindings[name].host[: self._batch], _Owner()
        address = int(self._cuda(self._cudart.cudaMalloc, host.nbytes))
        weakref.finalize(owner, self._cudart.cudaFree, address)
        return DeviceArray(address=address, shape=host.shape, dtype=host.dtype, owner=owner)

    @contextmanager
    def _timed(self) -> Iterator[None]:
        self._cuda(self._cudart.cudaEventRecord, self._start, self._stream)
        yield
        self._cuda(self._cudart.cudaEventRecord, self._stop, self._stream)

    def _enqueue(self, addresses: dict[str, int]) -> None:
        for name, address in addresses.items():
            if not self._context.set_tensor_address(name, address):
                raise MtmError(f"{self.model}: TensorRT refused the memory of {name}; build the engine again")
        if not self._context.execute_async_v3(int(self._stream)):
            raise MtmError(f"{self.model}: TensorRT could not start the engine; run with another --backend to compare")

    def _finish(self) -> None:
        """Wait for all that was started."""
        self._cuda(self._cudart.cudaStreamSynchronize, self._stream)
        self.engine_ms = float(self._cuda(self._cudart.cudaEventElapsedTime, self._start, self._stop))

    def _copy(self, to: int, of: int, size: int, kind: Any) -> None:
        self._cuda(self._cudart.cudaMemcpyAsync, to, of, size, kind, self._stream)

    def _cuda(self, function: Callable[..., tuple[Any, ...]], *arguments: Any) -> Any:
        return call(self._cudart, str(self.model), self.device, function, *arguments)

    def close(self) -> None:
        if self._twin is not None:
            self._twin.close()
            self._twin = None
        if self._busy:
            self._busy = False
            with suppress(MtmError):  # nobody has asked for that run's result
                self._cuda(self._cudart.cudaStreamSynchronize, self._stream)
        self._context = None  # before the memory it points to, before the engine, before the runtime
        if self._kernels is not None and not self._is_twin:
            self._kernels.close()
        self._kernels = self._engine = self._runtime = None
        self._bindings = {}
        try:
            self._resources.close()
        except MtmError:  # an error of an earlier run shows up in every later call; that run has raised it
            logger.debug("freeing the GPU's memory failed", exc_info=True)


def _prepare(model: Path, gpu: Gpu) -> tuple[TensorRT, sidecar.Sidecar]:
    """Hold the sidecar against what is here, cheapest first, and load the plugins the engine needs."""
    wanted = sidecar.read(model)
    trt = resolve(wanted.flavour)
    capability = ".".join(str(part) for part in gpu.compute_capability)
    here = {"flavour": trt.flavour, "tensorrt_version": trt.version, "compute_capability": capability}
    sidecar.check(model, **here)
    if wanted.carries_code and os.environ.get(TRUST_VARIABLE) != "1":
        raise MtmError(
            f"{model}: this engine carries code (--embed-plugin or --version-compatible), which loading it runs; if you "
            f"trust where it comes from, set {TRUST_VARIABLE}=1"
        )
    if wanted.plugin_ops and not wanted.embedded_plugin:
        plugins = load_plugins(trt)
        if plugins.hash != wanted.plugin_hash:
            sidecar.check(model, **here, plugin_hash=plugins.hash)  # raises, and says what differs
    return trt, wanted


def _load_engine(trt: TensorRT, model: Path, with_code: bool) -> tuple[Any, Any]:
    """The runtime and the engine; the first has to outlive the second."""
    with trt.messages.quoting() as errors:
        runtime = trt.module.Runtime(trt.logger)
        if with_code:
            runtime.engine_host_code_allowed = True
        engine = runtime.deserialize_cuda_engine(model.read_bytes())
    if engine is None:
        raise MtmError(f"{model}: TensorRT {trt.version} cannot load this engine ({quoted(errors)}); {_REBUILD}")
    return runtime, engine


def _check(bindings: dict[str, Binding], batches: tuple[int, int], metadata: ModelMetadata, model: Path) -> None:
    """The engine's inputs, outputs and batches (fewest, most) are those its sidecar promises."""
    if batches != (metadata.smallest_batch, metadata.batch):
        least, most = batches
        raise MtmError(
            f"{model}: expected batches of {metadata.batch_text}, as its sidecar promises, found {least}-{most}; {_REBUILD}"
        )
    wanted = {INPUT_NAME: (True, metadata.input_shape, metadata.input_dtype)}
    wanted |= {t.name: (False, metadata.output_shape(t), metadata.output_dtype(t)) for t in metadata.tasks}
    found = {name: (b.is_input, b.host.shape, _type_of(b, metadata)) for name, b in bindings.items()}
    if found != wanted:
        shapes = ", ".join(f"{name} {dtype} {list(shape)}" for name, (_, shape, dtype) in found.items())
        raise MtmError(f"{model}: expected the inputs and outputs its sidecar promises, found {shapes}; {_REBUILD}")


def _type_of(binding: Binding, metadata: ModelMetadata) -> str:
    """The type's name; raw outputs in half precision count as float32, which they become on the way out."""
    half = metadata.io == "raw" and not binding.is_input and binding.host.dtype == np.float16
    return "float32" if half else str(binding.host.dtype)
