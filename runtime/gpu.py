"""Which GPUs are there, asked of the driver itself: needs no CUDA toolkit and no Python package."""

import ctypes

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*


def compute_capabilities() -> tuple[str, ...]:
    """Compute capability of every GPU in the driver's order, such as ("8.9",); () without a GPU or a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return ()
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return ()
    return tuple(_compute_capability(driver, index) for index in range(count.value))


def _compute_capability(driver: ctypes.CDLL, index: int) -> str:
    device = ctypes.c_int(0)
    driver.cuDeviceGet(ctypes.byref(device), index)
    values = []
    for attribute in (_MAJOR, _MINOR):
        value = ctypes.c_int(0)
        driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        values.append(str(value.value))
    return ".".join(values)
