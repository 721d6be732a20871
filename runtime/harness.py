"""Runs the TensorRT plugins without TensorRT: each created through its creator, configured as a builder would, and enqueued on
device buffers, so that the plugin itself is tested and timed on any NVIDIA GPU.

    with Harness() as harness:
        scan = harness.plugin("SelectiveScan", {name: array.shape for name, array in arrays.items()}, "float16")
        y = scan.run(arrays)                                  # NumPy arrays, copied there and back
        scan.enqueue(inputs, y_device, stream=stream.handle)  # arrays of PyCUDA, CuPy or torch, where they are

Creating a plugin needs no GPU. The C++ part is plugins/harness, compiled on first need against TensorRT's headers alone.
"""

import ctypes
import hashlib
import math
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import ml_dtypes
import numpy as np
import numpy.typing as npt

from mtmamba.cache import cache_dir, work_dir
from mtmamba.errors import MtmError
from mtmamba.export.contract import OPERATORS, Operator
from mtmamba.native import source_dir
from mtmamba.runtime import gpu
from mtmamba.runtime.plugin_build import build_library
from mtmamba.runtime.toolchain import find_nvcc, headers_dir, headers_version

LIBRARY = "libmtmamba_harness.so"
TYPES = {"float32": 0, "float16": 1, "bfloat16": 7}  # nvinfer1::DataType
DTYPES = {name: np.dtype(getattr(ml_dtypes if name == "bfloat16" else np, name)) for name in TYPES}

Shape = tuple[int, ...]
Array = npt.NDArray[Any]


class DeviceArray(Protocol):
    """Anything with the CUDA array interface: of PyCUDA, CuPy, torch, Numba."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]: ...


class _Tensor(ctypes.Structure):
    """plugins/harness/harness.h"""

    _fields_ = (("type", ctypes.c_int32), ("rank", ctypes.c_int32), ("dims", ctypes.c_int64 * 8))


class _Attribute(ctypes.Structure):
    """plugins/harness/harness.h"""

    _fields_ = (("name", ctypes.c_char_p), ("value", ctypes.c_int32))


class Harness:
    """An open plugin library, of the file `library`. Close it (or leave its `with` block) after the last use of its plugins."""

    def __init__(self, library: Path | None = None) -> None:
        """library: of the plugins; by default that of this version, built on first need. Raises MtmError where it is
        missing, is something else, or cannot be built."""
        path = library or build_library()
        if not path.is_file():
            raise MtmError(
                f"{path}: expected the mtmamba plugin library, found no such file; leave it away to build it"
            )
        self.library = path
        self._functions = _load(harness_library())
        with tempfile.TemporaryDirectory(prefix="mtmamba-") as folder:
            # Of its own: where TensorRT has loaded the same file, its plugins go on speaking to TensorRT.
            copy = shutil.copy2(path, folder)
            self._handle = self._functions.mtmambaHarnessOpen(os.fsencode(copy))
        if not self._handle:
            raise MtmError(f"{path}: {self._reason()}; name another library or leave it away to build it")
        self._plugins: list[PluginInstance] = []

    def plugin(
        self, op: str, shapes: Mapping[str, Shape], kind: str = "float32", **attributes: int
    ) -> "PluginInstance":
        """The plugin of operator `op` for inputs of these shapes, by name.

        kind: "float32", "float16" or "bfloat16", the type of the tensors that are not float32 always. attributes: of
        the operator, such as delta_softplus=0. Raises MtmError for an unknown operator, input or type, and in the
        plugin's own words where it refuses a shape or an attribute.
        """
        if op not in OPERATORS or kind not in TYPES:
            raise MtmError(
                f"expected one of {', '.join(OPERATORS)} in {', '.join(TYPES)}, found {op} in {kind}; correct the name"
            )
        operator = OPERATORS[op]
        _check_names(operator, shapes)
        types = ["float32" if name in operator.float_inputs else kind for name in operator.inputs]
        tensors = [_tensor(type_, shapes[name]) for type_, name in zip(types, operator.inputs, strict=True)]
        given = [_Attribute(name.encode(), value) for name, value in attributes.items()]
        handle = self._functions.mtmambaHarnessCreate(
            self._handle,
            op.encode(),
            (_Attribute * len(given))(*given),
            len(given),
            (_Tensor * len(tensors))(*tensors),
            len(tensors),
        )
        if not handle:
            raise MtmError(f"{self._reason()}; correct the call of {op}")
        made = PluginInstance(
            self._functions, handle, operator, dict(shapes), dict(zip(operator.inputs, types, strict=True)), kind
        )
        self._plugins.append(made)
        return made

    def _reason(self) -> str:
        return bytes(self._functions.mtmambaHarnessError()).decode(errors="replace")

    def close(self) -> None:
        for plugin in self._plugins:
            plugin.close()
        self._plugins = []
        if self._handle:
            self._functions.mtmambaHarnessClose(self._handle)
            self._handle = None

    def __enter__(self) -> "Harness":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class PluginInstance:
    """A plugin configured for fixed sizes. output_shape: of y, whose type is `kind`. workspace_bytes: of the scratch
    memory that `enqueue` needs."""

    def __init__(
        self,
        functions: ctypes.CDLL,
        handle: int,
        operator: Operator,
        shapes: dict[str, Shape],
        types: dict[str, str],
        kind: str,
    ) -> None:
        self._functions, self._handle = functions, handle
        self.operator, self.shapes, self.types, self.kind = operator, shapes, types, kind
        output = functions.mtmambaHarnessOutput(handle)
        self.output_shape: Shape = tuple(output.dims[: output.rank])
        self.workspace_bytes = int(functions.mtmambaHarnessWorkspaceBytes(handle))

    def enqueue(
        self,
        inputs: Mapping[str, DeviceArray],
        output: DeviceArray,
        workspace: DeviceArray | None = None,
        stream: int = 0,
    ) -> None:
        """Start the plugin on device buffers, without waiting. All are contiguous; workspace: of at least
        `workspace_bytes`. stream: a cudaStream_t as a number (torch's stream.cuda_stream, PyCUDA's stream.handle, CuPy's
        stream.ptr). Raises MtmError where a buffer does not fit, and in the plugin's words where it fails."""
        _check_names(self.operator, inputs)
        addresses = [_address(name, inputs[name], self.shapes[name], self.types[name]) for name in self.operator.inputs]
        y = _address("the output", output, self.output_shape, self.kind)
        scratch = 0
        if self.workspace_bytes:
            scratch = _workspace_address(workspace, self.workspace_bytes, self.operator.name)
        self._enqueue(addresses, y, scratch, stream)

    def run(self, arrays: Mapping[str, Array]) -> Array:
        """y of NumPy arrays, copied to the GPU and back. Output and workspace hold NaN before. Raises MtmError without a
        GPU or cuda-bindings, and where arrays do not fit."""
        _check_names(self.operator, arrays)
        for name, array in arrays.items():
            if array.shape != self.shapes[name] or array.dtype != DTYPES[self.types[name]]:
                raise MtmError(
                    f"expected {name} {self.types[name]} {list(self.shapes[name])}, found {array.dtype} "
                    f"{list(array.shape)}; convert it, or make a plugin for its shape"
                )
        y = np.empty(self.output_shape, DTYPES[self.kind])
        with _Device() as device:
            inputs = [device.copy_of(np.ascontiguousarray(arrays[name])) for name in self.operator.inputs]
            output = device.filled(y.nbytes)
            self._enqueue(inputs, output, device.filled(self.workspace_bytes), device.stream)
            device.copy_back(y, output)
        return y

    def _enqueue(self, inputs: list[int], output: int, workspace: int, stream: int) -> None:
        pointers = (ctypes.c_void_p * len(inputs))(*inputs)
        if self._functions.mtmambaHarnessEnqueue(self._handle, pointers, output, workspace, stream) != 0:
            reason = bytes(self._functions.mtmambaHarnessError()).decode(errors="replace")
            raise MtmError(f"{reason}; check the buffers, and the GPU with nvidia-smi")

    def close(self) -> None:
        if self._handle:
            self._functions.mtmambaHarnessDestroy(self._handle)
            self._handle = 0


class _Device:
    """Memory and a stream on the first GPU, freed at the end of the `with` block."""

    def __init__(self) -> None:
        from mtmamba.runtime.backends.tensorrt_backend import import_cudart

        if not gpu.find_gpus():
            raise MtmError(
                "running a plugin needs an NVIDIA GPU and its driver, found none; mtm-doctor shows what is here"
            )
        self._cudart = import_cudart()
        self._resources = ExitStack()

    def __enter__(self) -> "_Device":
        self.stream = int(self._call(self._cudart.cudaStreamCreate))
        self._resources.callback(self._call, self._cudart.cudaStreamDestroy, self.stream)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(MtmError) if error else ExitStack():  # a broken context fails every later call: the first counts
            self._resources.close()

    def filled(self, size: int) -> int:
        """`size` bytes of ones, which is NaN in every type; 0 for no bytes."""
        if size == 0:
            return 0
        address = int(self._call(self._cudart.cudaMalloc, size))
        self._resources.callback(self._call, self._cudart.cudaFree, address)
        self._call(self._cudart.cudaMemsetAsync, address, 0xFF, size, self.stream)
        return address

    def copy_of(self, array: Array) -> int:
        address = self.filled(array.nbytes)
        kind = self._cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call(self._cudart.cudaMemcpyAsync, address, array.ctypes.data, array.nbytes, kind, self.stream)
        self._call(self._cudart.cudaStreamSynchronize, self.stream)  # `array` may go now
        return address

    def copy_back(self, array: Array, address: int) -> None:
        kind = self._cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call(self._cudart.cudaMemcpyAsync, array.ctypes.data, address, array.nbytes, kind, self.stream)
        self._call(self._cudart.cudaStreamSynchronize, self.stream)

    def _call(self, function: Callable[..., tuple[Any, ...]], *arguments: Any) -> Any:
        status, *values = function(*arguments)
        if status != self._cudart.cudaError_t.cudaSuccess:
            text = self._cudart.cudaGetErrorString(status)[1]
            reason = text.decode() if isinstance(text, bytes) else str(text)
            raise MtmError(f"CUDA's {function.__name__} failed ({reason}); check the GPU with nvidia-smi")
        return values[0] if values else None


def _check_names(operator: Operator, given: Mapping[str, Any]) -> None:
    if set(given) != set(operator.inputs):
        raise MtmError(
            f"{operator.name}: expected the inputs {', '.join(operator.inputs)}, found {', '.join(given) or 'none'}; "
            "name each of them"
        )


def _tensor(kind: str, shape: Shape) -> _Tensor:
    if len(shape) > 8:
        raise MtmError(f"expected a tensor of at most 8 dimensions, found {list(shape)}; correct its shape")
    return _Tensor(TYPES[kind], len(shape), (ctypes.c_int64 * 8)(*shape))


def _address(name: str, array: DeviceArray, shape: Shape, kind: str) -> int:
    """The device address of a contiguous array of this shape and type."""
    interface = _interface(name, array)
    found, text = tuple(interface["shape"]), str(interface["typestr"])
    item = DTYPES[kind].itemsize
    dense = tuple(item * math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    strides = interface.get("strides")
    is_float = text[1:2] == "f"  # bfloat16 has no code of its own: each library writes another two-byte one
    fits = text[2:] == str(item) and is_float == (kind != "bfloat16")
    if found != shape or not fits or (strides is not None and tuple(strides) != dense):
        layout = "contiguous" if strides is None else f"strides {list(strides)}"
        raise MtmError(
            f"expected {name} as contiguous {kind} {list(shape)}, found {text} {list(found)}, {layout}; convert it, or "
            "make a plugin for its shape"
        )
    return int(interface["data"][0])


def _workspace_address(array: DeviceArray | None, size: int, op: str) -> int:
    if array is None:
        raise MtmError(f"{op}: expected a workspace of {size} bytes, found none; give enqueue one")
    interface = _interface("the workspace", array)
    found = math.prod(interface["shape"]) * int(str(interface["typestr"])[2:])
    if found < size or interface.get("strides") is not None:
        raise MtmError(
            f"{op}: expected a contiguous workspace of {size} bytes, found one of {found}; give a larger one"
        )
    return int(interface["data"][0])


def _interface(name: str, array: DeviceArray) -> dict[str, Any]:
    found = getattr(array, "__cuda_array_interface__", None)
    if found is None:
        raise MtmError(
            f"expected {name} in the GPU's memory (with the CUDA array interface), found {type(array).__name__}; copy it "
            "there, or use run() for NumPy arrays"
        )
    return dict(found)


def harness_library() -> Path:
    """The harness's own library, compiled if the cache has none. Raises MtmError where nvcc or TensorRT's headers are
    missing, or it fails."""
    source, headers, nvcc = source_dir() / "harness", headers_dir(), find_nvcc()
    digest = hashlib.sha256(f"{nvcc} {headers} {headers_version(headers)}".encode())
    for path in sorted(source.iterdir()):
        digest.update(path.read_bytes())
    made = cache_dir("harness", digest.hexdigest()[:16]) / LIBRARY
    if not made.is_file():
        with work_dir(made.parent) as folder:
            _compile(nvcc, headers, source, folder / LIBRARY)
            (folder / LIBRARY).replace(made)
    return made


def _compile(nvcc: Path, headers: Path, source: Path, output: Path) -> None:
    """There is no device code in it: nvcc knows the host compiler and where CUDA's headers are."""
    flags = ["-std=c++17", "-O1", "-shared", "-cudart=none", "-Xcompiler=-fPIC,-fvisibility=hidden"]
    places = [f"-I{source.parent}", f"-isystem={headers}"]
    command = [str(nvcc), *flags, *places, str(source / "harness.cpp"), "-o", str(output), "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise MtmError(f"{nvcc} could not build {LIBRARY}: {done.stderr.strip()[-500:] or 'it said nothing'}")


def _load(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    pointer, text = ctypes.c_void_p, ctypes.c_char_p
    signatures: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "Error": (text, ()),
        "Open": (pointer, (text,)),
        "Close": (None, (pointer,)),
        "Create": (pointer, (pointer, text, pointer, ctypes.c_int32, pointer, ctypes.c_int32)),
        "Destroy": (None, (pointer,)),
        "Output": (_Tensor, (pointer,)),
        "WorkspaceBytes": (ctypes.c_int64, (pointer,)),
        "Enqueue": (ctypes.c_int32, (pointer, pointer, pointer, pointer, pointer)),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, f"mtmambaHarness{name}")
        function.restype, function.argtypes = result, arguments
    return library
