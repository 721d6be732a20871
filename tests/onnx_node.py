"""One node of an operator with its body as a model in ONNX Runtime, for the tests and benchmarks of the body."""

from collections.abc import Mapping
from typing import Any

import onnx
import onnxruntime
from onnx import helper

from mtmamba.export.contract import DOMAIN, DOMAIN_VERSION
from mtmamba.export.function_body import functions


def session_of(
    op: str, feeds: Mapping[str, Any], opset: int = 20, options: Any = None, **attributes: int
) -> onnxruntime.InferenceSession:
    """feeds: the node's inputs in the operator's order, arrays of the types and sizes to come. Its output is y.

    options: onnxruntime.SessionOptions.
    """
    kinds = {name: helper.np_dtype_to_tensor_dtype(value.dtype) for name, value in feeds.items()}
    first = next(iter(feeds))
    graph = helper.make_graph(
        [helper.make_node(op, list(feeds), ["y"], domain=DOMAIN, **attributes)],
        op,
        [helper.make_tensor_value_info(name, kinds[name], value.shape) for name, value in feeds.items()],
        [helper.make_tensor_value_info("y", kinds[first], [None] * feeds[first].ndim)],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, DOMAIN_VERSION)]
    model = helper.make_model(graph, functions=functions(opset), ir_version=10, opset_imports=opsets)
    onnx.checker.check_model(model)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
