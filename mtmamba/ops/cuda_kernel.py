"""The scans by the CUDA library (plugins/torch_cuda), for CUDA tensors: float32 states and sums whatever the tensors are.

Everything runs on the current stream of the tensors' device, in memory from torch's own allocator, and nothing waits: CUDA
graphs capture it. The same call gives the same bits every time. The vectorised PyTorch path stays for float64, and where the
library is turned off or cannot be built.
"""

import ctypes
from ctypes import c_int32, c_int64, c_void_p
from functools import reduce

import torch
from torch import Tensor

from mtmamba.native import cuda_library

MAX_STATES = 64
"""N that the library takes at most, as everywhere (plugins/ops.yaml)."""
DTYPE_CODES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


class _ScanArguments(ctypes.Structure):
    """plugins/torch_cuda/arguments.h, as all of these"""

    _fields_ = (
        *((name, c_void_p) for name in ("u", "delta", "A", "B", "C", "D", "delta_bias")),
        *((name, c_int64) for name in ("batch", "channels", "groups", "states", "length")),
        ("type", c_int32),
        ("softplus", c_int32),
    )


class _ScanGradients(ctypes.Structure):
    _fields_ = tuple((name, c_void_p) for name in ("y", "u", "delta", "A", "B", "C", "D", "delta_bias"))


class _MapArguments(ctypes.Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("x", "x_dbl", "dt_weight", "dt_bias", "A", "D")),
        *((name, c_int64) for name in ("batch", "groups", "channels", "height", "width", "rank", "states")),
        ("type", c_int32),
    )


class _MapGradients(ctypes.Structure):
    _fields_ = tuple((name, c_void_p) for name in ("y", "x", "x_dbl", "dt_weight", "dt_bias", "A", "D"))


class _Place(ctypes.Structure):
    _fields_ = (("device", c_int32), ("stream", c_void_p), ("workspace", c_void_p))


def takes(states: int, *tensors: Tensor) -> bool:
    """Whether the library can do it: tensors of one CUDA device, float32 or less, none of them empty, and a library."""
    device = tensors[0].device
    fits = all(x.device == device and x.dtype in DTYPE_CODES and x.numel() > 0 for x in tensors)
    return device.type == "cuda" and fits and states <= MAX_STATES and _library(device) is not None


def scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor, softplus: bool
) -> Tensor:
    """`selective_scan` of tensors that `takes` says yes to, shapes checked. Answers a contiguous tensor of u's dtype."""
    tensors = _scan_tensors(u, delta, A, B, C, D, delta_bias)
    y = torch.empty_like(tensors[0])
    _run("mtmambaCudaSelectiveScan", _scan_arguments(tensors, softplus), y.data_ptr(), u.device, workspace=0)
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
    tensors = _scan_tensors(*given)
    arguments = _scan_arguments(tensors, softplus)
    grads = [torch.empty_like(x) for x in tensors]
    grad_y = _as(grad_y, tensors[0].dtype)
    pointers = _ScanGradients(grad_y.data_ptr(), *(x.data_ptr() for x in grads))
    name = "mtmambaCudaSelectiveScanBackward"
    _run(name, arguments, ctypes.byref(pointers), u.device, _bytes(name, arguments, u.device))
    return tuple(grad.to(x.dtype) for grad, x in zip(grads, given, strict=True))


def scan_2d(x: Tensor, x_dbl: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor) -> Tensor:
    """`selective_scan_2d`: y [B, G, H, W, D], contiguous, of x's dtype."""
    tensors = _map_tensors(x, x_dbl, dt_weight, dt_bias, A, D)
    batch, groups, channels, height, width = x.shape
    y = tensors[0].new_empty(batch, groups, height, width, channels)
    arguments = _map_arguments(tensors)
    name = "mtmambaCudaSelectiveScan2D"
    _run(name, arguments, y.data_ptr(), x.device, _bytes(name, arguments, x.device))
    return y.to(x.dtype)


def scan_2d_backward(
    grad_y: Tensor, x: Tensor, x_dbl: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor
) -> tuple[Tensor, ...]:
    """`selective_scan_2d_backward`: the gradients of the six tensors, each of its tensor's dtype."""
    given = (x, x_dbl, dt_weight, dt_bias, A, D)
    tensors = _map_tensors(*given)
    arguments = _map_arguments(tensors)
    grads = [torch.empty_like(v) for v in tensors]
    grad_y = _as(grad_y, tensors[0].dtype)
    pointers = _MapGradients(grad_y.data_ptr(), *(v.data_ptr() for v in grads))
    name = "mtmambaCudaSelectiveScan2DBackward"
    _run(name, arguments, ctypes.byref(pointers), x.device, _bytes(name, arguments, x.device))
    return tuple(grad.to(v.dtype) for grad, v in zip(grads, given, strict=True))


def _as(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Contiguous and of `dtype`; the tensor itself where it is so already. Keep it while its pointer is in use."""
    return x.detach().to(dtype).contiguous()


def _common_dtype(*tensors: Tensor) -> torch.dtype:
    """The narrowest that holds all of them: what the library, which knows one, takes them as."""
    return reduce(torch.promote_types, (x.dtype for x in tensors))


def _scan_tensors(*given: Tensor) -> list[Tensor]:
    u, delta, A, B, C, D, delta_bias = given
    dtype, full = _common_dtype(u, delta, B, C), torch.float32
    dtypes = (dtype, dtype, full, dtype, dtype, full, full)
    return [_as(x, wanted) for x, wanted in zip((u, delta, A, B, C, D, delta_bias), dtypes, strict=True)]


def _map_tensors(*given: Tensor) -> list[Tensor]:
    dtype = _common_dtype(*given[:2])
    return [_as(x, dtype) for x in given[:2]] + [_as(x, torch.float32) for x in given[2:]]


def _scan_arguments(tensors: list[Tensor], softplus: bool) -> _ScanArguments:
    u, A, B = tensors[0], tensors[2], tensors[3]
    sizes = (u.shape[0], u.shape[1], B.shape[1], A.shape[1], u.shape[2])
    return _ScanArguments(*(x.data_ptr() for x in tensors), *sizes, DTYPE_CODES[u.dtype], softplus)


def _map_arguments(tensors: list[Tensor]) -> _MapArguments:
    x, dt_weight, A = tensors[0], tensors[2], tensors[4]
    sizes = (*x.shape, dt_weight.shape[-1], A.shape[-1])
    return _MapArguments(*(v.data_ptr() for v in tensors), *sizes, DTYPE_CODES[x.dtype])


def _bytes(name: str, arguments: ctypes.Structure, device: torch.device) -> int:
    """Of the workspace that function `name` needs for these arguments."""
    function = getattr(_library(device), f"{name}Bytes")
    function.restype = c_int64
    return function(ctypes.byref(arguments))


def _run(name: str, arguments: ctypes.Structure, outputs: object, device: torch.device, workspace: int) -> None:
    """Call function `name` on the current stream. outputs: its second argument. workspace: bytes."""
    library = _library(device)
    assert library is not None  # `takes` has looked
    memory = torch.empty(workspace, dtype=torch.uint8, device=device)
    outputs = c_void_p(outputs) if isinstance(outputs, int) else outputs
    with torch.cuda.device(device):
        error = getattr(library, name)(ctypes.byref(arguments), outputs, ctypes.byref(_place(device, memory)))
    if error != 0:
        library.mtmambaCudaErrorText.restype = ctypes.c_char_p
        raise RuntimeError(f"{name}: {library.mtmambaCudaErrorText(error).decode()}")


def _place(device: torch.device, workspace: Tensor) -> _Place:
    return _Place(device.index, torch.cuda.current_stream(device).cuda_stream, workspace.data_ptr())


def _library(device: torch.device) -> ctypes.CDLL | None:
    return cuda_library(torch.cuda.get_device_capability(device))
