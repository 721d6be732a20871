"""Which NVIDIA GPUs are here, asked of the driver through ctypes: no CUDA package is needed and none is loaded."""

import ctypes
import sys
from dataclasses import dataclass

from mtmamba.errors import MtmError

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """compute_capability: such as (8, 9). memory_mib: total device memory."""

    index: int
    name: str
    compute_capability: tuple[int, int]
    memory_mib: int


def find_gpus() -> list[Gpu]:
    """The GPUs the CUDA driver shows to this process; empty without a driver, without a GPU, or where none is
    visible."""
    cuda = _driver()
    count = ctypes.c_int()
    if cuda is None or cuda.cuInit(0) != 0 or cuda.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return []
    return [found for index in range(count.value) if (found := _gpu(cuda, index)) is not None]


def require_gpu(index: int = 0) -> Gpu:
    """The GPU of that index. Raises MtmError, in one sentence, where there is none."""
    found = find_gpus()
    if not found:
        raise MtmError(
            "backend tensorrt: expected an NVIDIA GPU and its driver, found no NVIDIA GPU; use --backend onnxruntime "
            "with the .onnx file (mtm-doctor shows what is here)"
        )
    if index >= len(found):
        names = ", ".join(f"{device.index} ({device.name})" for device in found)
        raise MtmError(f"--device {index}: expected one of the GPUs here, {names}; choose one of these")
    return found[index]


def cuda_of_driver() -> tuple[int, int] | None:
    """The newest CUDA (major, minor) the installed driver supports; None without a driver."""
    cuda = _driver()
    version = ctypes.c_int()
    if cuda is None or cuda.cuDriverGetVersion(ctypes.byref(version)) != 0 or version.value == 0:
        return None
    return version.value // 1000, version.value % 1000 // 10


def driver_release() -> str | None:
    """The driver's release, such as "580.65.06", from NVML; None where NVML is not there (no driver, or a Jetson)."""
    nvml = _library("nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1")
    text = ctypes.create_string_buffer(96)
    if nvml is None or nvml.nvmlInit_v2() != 0:
        return None
    try:
        return text.value.decode() if nvml.nvmlSystemGetDriverVersion(text, len(text)) == 0 else None
    finally:
        nvml.nvmlShutdown()


def _driver() -> ctypes.CDLL | None:
    return _library("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")


def _library(name: str) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None


def _gpu(cuda: ctypes.CDLL, index: int) -> Gpu | None:
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    memory_bytes, name = ctypes.c_size_t(), ctypes.create_string_buffer(128)
    calls = (
        lambda: cuda.cuDeviceGet(ctypes.byref(device), index),
        lambda: cuda.cuDeviceGetName(name, len(name), device),
        lambda: cuda.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device),
        lambda: cuda.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device),
        lambda: cuda.cuDeviceTotalMem_v2(ctypes.byref(memory_bytes), device),
    )
    if any(call() != 0 for call in calls):
        return None
    capability = (major.value, minor.value)
    return Gpu(
        index=index, name=name.value.decode(), compute_capability=capability, memory_mib=memory_bytes.value >> 20
    )


def compute_capabilities() -> tuple[str, ...]:
    """Compute capability of every GPU, such as ("8.9",); () without a GPU."""
    return tuple(".".join(map(str, found.compute_capability)) for found in find_gpus())
