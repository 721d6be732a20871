"""Which row of the tolerances a model is judged by: the precision its products are computed in."""

import onnx
from onnx import TensorProto

from mtmamba.runtime import sidecar
from mtmamba.runtime.backends import Backend

_QUANTISED = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
_FP8 = {getattr(TensorProto, name) for name in dir(TensorProto) if name.startswith("FLOAT8E")}


def precision_of(backend: Backend) -> str:
    """A row of `parity_tolerance.TOLERANCES`: of an engine what its sidecar says, of an ONNX file what its graph
    holds, of a checkpoint FP32. FP32 means TF32 anywhere but on a CPU."""
    precision = "fp32"
    if backend.name == "tensorrt":
        precision = sidecar.read(backend.model).precision
    elif backend.name == "onnxruntime":
        precision = _of_graph(onnx.load(str(backend.model), load_external_data=False))
    return "tf32" if precision == "fp32" and backend.device != "CPU" else precision


def _of_graph(model: onnx.ModelProto) -> str:
    types = {tensor.data_type for tensor in model.graph.initializer}
    if any(node.op_type in _QUANTISED for node in model.graph.node):
        return "fp8" if types & _FP8 else "int8"
    if TensorProto.BFLOAT16 in types:
        return "bf16"
    return "fp16" if TensorProto.FLOAT16 in types else "fp32"
