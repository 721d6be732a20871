"""The scans by the C++ library (plugins/cpu), for CPU tensors: float32 inside, float16 and bfloat16 converted on the way.

Results have the same bits whatever the number of threads. The vectorised PyTorch path stays for float64, for other
devices, and where the library is turned off or cannot be built.
"""

import ctypes
from ctypes import POINTER, c_bool, c_float, c_int64

import torch
from torch import Tensor

from mtmamba.native import cpu_library

MAX_STATES = 64
"""N that the library takes at most, as everywhere (plugins/ops.yaml)."""

_Floats = POINTER(c_float)


class _ScanTensors(ctypes.Structure):
    """plugins/cpu/scan.h"""

    _fields_ = (
        *((name, _Floats) for name in ("u", "delta", "A", "B", "C", "D", "delta_bias")),
        *((name, c_int64) for name in ("batch", "channels", "groups", "states", "length")),
        ("delta_softplus", c_bool),
    )


class _ScanGradients(ctypes.Structure):
    """plugins/cpu/scan_backward.h"""

    _fields_ = tuple((name, _Floats) for name in ("y", "u", "delta", "A", "B", "C", "D", "delta_bias"))


class _MapTensors(ctypes.Structure):
    """plugins/cpu/scan_2d.h"""

    _fields_ = (
        *((name, _Floats) for name in ("x", "x_dbl", "dt_weight", "dt_bias", "A", "D")),
        *((name, c_int64) for name in ("batch", "groups", "channels", "height", "width", "rank", "states")),
    )


class _MapGradients(ctypes.Structure):
    """plugins/cpu/scan_2d_backward.h"""

    _fields_ = tuple((name, _Floats) for name in ("y", "x", "x_dbl", "dt_weight", "dt_bias", "A", "D"))


def takes(states: int, *tensors: Tensor) -> bool:
    """Whether the library can do it: CPU tensors of float32 or less, none of them empty, and a library."""
    fits = all(x.device.type == "cpu" and x.dtype != torch.float64 and x.numel() > 0 for x in tensors)
    return fits and states <= MAX_STATES and cpu_library() is not None


def scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor, softplus: bool
) -> Tensor:
    """`selective_scan` of tensors that `takes` says yes to, shapes checked. Answers a contiguous tensor of u's dtype."""
    tensors = _floats(u, delta, A, B, C, D, delta_bias)
    y = torch.empty(u.shape)
    _call("mtmambaCpuSelectiveScan", _scan_tensors(tensors, softplus), _pointer(y))
    return y.to(u.dtype)


def scan_backward(
    grad_y: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    delta_bias: Tensor,
    softplus: bool,
) -> tuple[Tensor, ...]:
    """`selective_scan_backward`: the gradients of u, delta, A, B, C, D and delta_bias, each of its tensor's dtype."""
    given = (u, delta, A, B, C, D, delta_bias)
    tensors, (gy,) = _floats(*given), _floats(grad_y)
    gradients = [torch.empty(x.shape) for x in given]
    pointers = _ScanGradients(_pointer(gy), *map(_pointer, gradients))
    _call("mtmambaCpuSelectiveScanBackward", _scan_tensors(tensors, softplus), ctypes.byref(pointers))
    return tuple(gradient.to(x.dtype) for gradient, x in zip(gradients, given, strict=True))


def scan_2d(x: Tensor, x_dbl: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor) -> Tensor:
    """`selective_scan_2d`: y [B, G, H, W, D], contiguous, of x's dtype."""
    tensors = _floats(x, x_dbl, dt_weight, dt_bias, A, D)
    batch, groups, channels, height, width = x.shape
    y = torch.empty(batch, groups, height, width, channels)
    _call("mtmambaCpuSelectiveScan2D", _map_tensors(tensors), _pointer(y))
    return y.to(x.dtype)


def scan_2d_backward(
    grad_y: Tensor, x: Tensor, x_dbl: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor
) -> tuple[Tensor, ...]:
    """`selective_scan_2d_backward`: the gradients of the six tensors, each of its tensor's dtype."""
    given = (x, x_dbl, dt_weight, dt_bias, A, D)
    tensors, (gy,) = _floats(*given), _floats(grad_y)
    gradients = [torch.empty(v.shape) for v in given]
    pointers = _MapGradients(_pointer(gy), *map(_pointer, gradients))
    _call("mtmambaCpuSelectiveScan2DBackward", _map_tensors(tensors), ctypes.byref(pointers))
    return tuple(gradient.to(v.dtype) for gradient, v in zip(gradients, given, strict=True))


def _floats(*tensors: Tensor) -> list[Tensor]:
    """Contiguous float32; the tensors themselves where they are so already. Keep the list while pointers are in use."""
    return [x.detach().to(torch.float32, memory_format=torch.contiguous_format).contiguous() for x in tensors]


def _pointer(x: Tensor):  # type: ignore[no-untyped-def]  # ctypes has no name for the type
    return ctypes.cast(x.data_ptr(), _Floats)


def _scan_tensors(tensors: list[Tensor], softplus: bool) -> _ScanTensors:
    u, A, B = tensors[0], tensors[2], tensors[3]
    sizes = (u.shape[0], u.shape[1], B.shape[1], A.shape[1], u.shape[2])
    return _ScanTensors(*map(_pointer, tensors), *sizes, softplus)


def _map_tensors(tensors: list[Tensor]) -> _MapTensors:
    x, dt_weight, A = tensors[0], tensors[2], tensors[4]
    return _MapTensors(*map(_pointer, tensors), *x.shape, dt_weight.shape[-1], A.shape[-1])


def _call(name: str, struct: ctypes.Structure, other: object) -> None:
    library = cpu_library()
    assert library is not None  # `takes` has looked
    if getattr(library, name)(ctypes.byref(struct), other, torch.get_num_threads()) != 0:
        raise MemoryError(f"{name}: no memory for its working copies")
