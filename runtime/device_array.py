"""Arrays in GPU memory, whoever made them: read through DLPack or the CUDA array interface, handed out through the
latter. No GPU package is imported.

DLPack: https://dmlc.github.io/dlpack/latest/c_api.html. CUDA array interface, version 3:
https://numba.readthedocs.io/en/stable/cuda/cuda_array_interface.html
"""

import ctypes
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from mtmamba.errors import MtmError

_DLPACK_CUDA = (2, 13)  # kDLCUDA, kDLCUDAManaged
_DLPACK_KINDS = {0: "i", 1: "u", 2: "f"}
_LEGACY_STREAM = 1


@dataclass(frozen=True, kw_only=True)
class DeviceArray:
    """A contiguous array on the GPU. torch.as_tensor(a, device="cuda"), cupy.asarray(a) and others see its memory
    without a copy.

    address: of its first element. owner: what keeps the memory alive; it lives as long as this array does.
    """

    address: int
    shape: tuple[int, ...]
    dtype: npt.DTypeLike
    owner: Any = field(default=None, repr=False)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        # stream None: all work on it has ended when it is handed out
        typestr = np.dtype(self.dtype).str
        return {"shape": self.shape, "typestr": typestr, "data": (self.address, False), "version": 3, "stream": None}


def is_on_gpu(array: Any) -> bool:
    """Whether it says that its memory is a CUDA device's."""
    if hasattr(array, "__dlpack_device__"):
        return int(array.__dlpack_device__()[0]) in _DLPACK_CUDA
    return hasattr(array, "__cuda_array_interface__")


def on_host(array: Any) -> npt.NDArray[Any]:
    """`array` as NumPy sees it, without a copy where that can be. Raises MtmError where NumPy cannot read it."""
    try:
        if hasattr(array, "__dlpack__") and not hasattr(array, "__array__"):
            return np.from_dlpack(array)
        return np.asarray(array)
    except (BufferError, RuntimeError, TypeError, ValueError, AttributeError) as error:  # what owners refuse with
        reason = " ".join(str(error).split())[:200]
        cure = "call .detach() on it first" if getattr(array, "requires_grad", False) else "give a NumPy array"
        raise MtmError(
            f"expected an array in host memory, found a {type(array).__name__} that NumPy cannot read ({reason}); {cure}"
        ) from error


def view(
    array: Any,
    name: str,
    shape: tuple[int, ...],
    dtype: npt.DTypeLike,
    wait: Callable[[int], None],
    least: int | None = None,
) -> DeviceArray:
    """`array`'s own memory, once whatever still writes to it is done. name: for errors. least: its first dimension may be
    anything from this to `shape`'s.

    wait(stream): blocks until the work on a CUDA stream (its handle) has ended. Raises MtmError where the array is not on
    the GPU, not contiguous, or of another shape or type than asked.
    """
    if not is_on_gpu(array):
        raise MtmError(f"{name}: expected an array on the GPU, found a {type(array).__name__} that is not on one")
    try:
        if hasattr(array, "__dlpack__"):  # asked first: it knows which stream its owner works on
            found = from_dlpack(array, array.__dlpack__(stream=_LEGACY_STREAM))
            wait(_LEGACY_STREAM)
        else:
            found = _from_interface(array, wait)
    except (BufferError, RuntimeError, TypeError, ValueError, AttributeError) as error:  # what owners refuse with
        reason = " ".join(str(error).split())[:200]
        raise MtmError(f"{name}: its {type(array).__name__} does not hand out its memory ({reason})") from error
    first = shape[0] if least is None else least
    if (
        found is None
        or found.shape[1:] != shape[1:]
        or not (first,) <= found.shape[:1] <= shape[:1]
        or np.dtype(found.dtype) != np.dtype(dtype)
    ):
        dims = ", ".join([str(shape[0]) if first == shape[0] else f"{first}..{shape[0]}", *map(str, shape[1:])])
        what = "one that is not contiguous" if found is None else f"{np.dtype(found.dtype)} {list(found.shape)}"
        raise MtmError(f"{name}: expected a contiguous array {np.dtype(dtype)} [{dims}] on the GPU, found {what}")
    return found


def _from_interface(array: Any, wait: Callable[[int], None]) -> DeviceArray | None:
    interface = array.__cuda_array_interface__
    # Version 2 names no stream: the legacy one, on which everything runs that chose no other.
    stream = interface.get("stream", _LEGACY_STREAM)
    if stream is not None:
        wait(stream)
    shape, dtype = tuple(interface["shape"]), np.dtype(interface["typestr"])
    strides = interface.get("strides")
    if strides is not None and not _contiguous(shape, tuple(s // dtype.itemsize for s in strides)):
        return None
    return DeviceArray(address=int(interface["data"][0]), shape=shape, dtype=dtype, owner=array)


class _DLTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


def from_dlpack(array: Any, capsule: Any) -> DeviceArray | None:
    """The tensor in a "dltensor" capsule of `array`, None where it is not contiguous. The capsule is only looked into,
    and kept: it frees itself as one that nobody took."""
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    tensor = _DLTensor.from_address(get(capsule, b"dltensor"))
    shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
    if tensor.strides and not _contiguous(shape, tuple(tensor.strides[i] for i in range(tensor.ndim))):
        return None
    kind = _DLPACK_KINDS.get(tensor.code, "V") if tensor.lanes == 1 else "V"
    dtype = np.dtype(f"{kind}{tensor.bits // 8}")
    return DeviceArray(
        address=(tensor.data or 0) + tensor.byte_offset, shape=shape, dtype=dtype, owner=(array, capsule)
    )


def _contiguous(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """strides: in elements. Those of dimensions of length 1 do not matter."""
    return all(
        length == 1 or stride == math.prod(shape[i + 1 :])
        for i, (length, stride) in enumerate(zip(shape, strides, strict=True))
    )
