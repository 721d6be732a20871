"""A stream's work as one CUDA graph: launching it costs the CPU microseconds, and the GPU waits for nobody between the
hundreds of kernels of an engine."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from mtmamba.errors import MtmError


def captured(cudart: Any, cuda: Callable[..., Any], stream: Any, enqueue: Callable[[], None]) -> Any:
    """The executable graph of what `enqueue` puts on `stream`; nothing of it runs. cuda: calls a function of the CUDA
    runtime and raises MtmError where it fails, as this does where something in there cannot be captured."""
    cuda(cudart.cudaStreamBeginCapture, stream, cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
    try:
        enqueue()
    except MtmError:
        with suppress(MtmError):  # it ends the capture, and says again that it failed
            cuda(cudart.cudaStreamEndCapture, stream)
        raise
    graph = cuda(cudart.cudaStreamEndCapture, stream)
    try:
        return cuda(cudart.cudaGraphInstantiate, graph, 0)
    finally:
        cuda(cudart.cudaGraphDestroy, graph)
