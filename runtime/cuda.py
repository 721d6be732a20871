"""The CUDA runtime's Python bindings, with their errors made sentences."""

from collections.abc import Callable
from typing import Any

from mtmamba.errors import MtmError


def import_cudart() -> Any:
    """The module `cuda.bindings.runtime`. Raises MtmError where cuda-bindings is not installed."""
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise MtmError(
            f"backend tensorrt: expected the package cuda-bindings, found none that loads ({error}); install it "
            "with pip install cuda-bindings"
        ) from error
    return runtime


def call(cudart: Any, what: str, device: str, function: Callable[..., tuple[Any, ...]], *arguments: Any) -> Any:
    """Call one function of the CUDA runtime and return its value, if it has one. what, device: for the error, an MtmError
    that says which function failed and why."""
    status, *values = function(*arguments)
    if status != cudart.cudaError_t.cudaSuccess:
        text = cudart.cudaGetErrorString(status)[1]
        reason = text.decode() if isinstance(text, bytes) else str(text)
        raise MtmError(
            f"{what}: CUDA's {function.__name__} failed on {device} ({reason}); check the GPU with nvidia-smi"
        )
    return values[0] if values else None


def select_device(index: int) -> None:
    """Work of this thread goes to the GPU of that index. Raises MtmError where it cannot be used."""
    cudart = import_cudart()
    call(cudart, f"--device {index}", f"GPU {index}", cudart.cudaSetDevice, index)
