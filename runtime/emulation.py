"""Graphs in memory on ONNX Runtime's CPU provider: as they are, or with the roundings of another precision."""

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from mtmamba.errors import MtmError
from mtmamba.export.emulate import emulated
from mtmamba.metadata import INPUT_NAME

Array = npt.NDArray[np.float32]
_ERRORS_ONLY = 3


def cpu_session(model: onnx.ModelProto, *, optimise: bool = True) -> Any:
    """An `onnxruntime.InferenceSession`; without `optimise` it is made in half the time and runs a little slower.
    Raises MtmError where ONNX Runtime is missing."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MtmError(
            f"expected the package onnxruntime, found none ({error}); install it with pip install 'mtmamba[cpu]'"
        ) from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    # Else INT8 products run on this CPU's own instructions, some of which saturate in between as no GPU does.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


class Emulation:
    """A model in FP32, or as `to_precision` made it, run on the CPU with its own precision's roundings (see
    `mtmamba.export.emulate`)."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._session = cpu_session(emulated(model), optimise=False)
        self._names = [output.name for output in self._session.get_outputs()]

    def run(self, images: Array) -> dict[str, Array]:
        """images: [B, 3, H, W] as the model takes them. Returns {task: [B, C, h, w]}."""
        return dict(zip(self._names, self._session.run(self._names, {INPUT_NAME: images}), strict=True))
