"""What a low-precision graph computes, on a machine that has no low-precision arithmetic: the same graph in FP32, where
every result is rounded to its own type by a pair of Casts.

ONNX Runtime's CPU provider runs an FP16 graph in FP32 and drops the roundings in between: 300 * 300 / 1000 is 90 in it,
not infinity. Its Cast pairs, though, it keeps and rounds right. So the pairs are written into the graph: overflow to
infinity, rounding and loss of small numbers are then those of a GPU that multiplies in 16 bits and sums in FP32. What a GPU
fuses it rounds less often than this does. QuantizeLinear and DequantizeLinear are run as they are.
"""

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from mtmamba.export.graph import BF16, FP16, FP32, MOVES


def emulated(model: ModelProto) -> ModelProto:
    """`model`, as `to_precision` made it, in FP32 with the roundings of its 16-bit types."""
    copy = ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    half = _half_tensors(copy)
    weights = [_widened(tensor) for tensor in graph.initializer]
    nodes: list[NodeProto] = []
    for value in graph.input:
        if value.name in half:  # fed in FP32: round it first
            name = value.name
            value.type.tensor_type.elem_type = FP32
            nodes += _rounding(name, f"{name}_rounded", half[name])
            for node in graph.node:
                node.input[:] = [f"{name}_rounded" if used == name else used for used in node.input]
    for node in graph.node:
        nodes += _rounded(node, half)
    for value in graph.output:
        if value.name in half:
            value.type.tensor_type.elem_type = FP32
    del graph.value_info[:], graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(weights)
    return copy


def _half_tensors(model: ModelProto) -> dict[str, int]:
    """Tensor -> its type, of the main graph's FP16 and BF16 tensors."""
    values = (*model.graph.input, *model.graph.output, *model.graph.value_info)
    kinds = {value.name: value.type.tensor_type.elem_type for value in values}
    kinds.update({tensor.name: tensor.data_type for tensor in model.graph.initializer})
    return {name: kind for name, kind in kinds.items() if kind in (FP16, BF16)}


def _rounded(node: NodeProto, half: dict[str, int]) -> list[NodeProto]:
    """The node in FP32, and the roundings of what it makes."""
    if node.op_type == "Cast":
        to = next(item for item in node.attribute if item.name == "to")
        if to.i in (FP16, BF16):
            return _rounding(node.input[0], node.output[0], to.i)
        if node.input[0] in half and to.i == FP32:
            return [helper.make_node("Identity", node.input, node.output, name=node.name)]
    for attribute in node.attribute:
        if attribute.HasField("t"):
            attribute.t.CopyFrom(_widened(attribute.t))
    # A DequantizeLinear and the product it feeds are one step on a GPU: nothing is rounded between them.
    if node.op_type in MOVES or node.op_type in ("DequantizeLinear", "Constant"):
        return [node]
    result = [node]
    for index, name in enumerate(node.output):
        if name in half:
            node.output[index] = f"{name}_exact"
            result += _rounding(f"{name}_exact", name, half[name])
    return result


def _rounding(source: str, target: str, kind: int) -> list[NodeProto]:
    low = f"{target}_low"
    return [
        helper.make_node("Cast", [source], [low], name=f"{low}_cast", to=kind),
        helper.make_node("Cast", [low], [target], name=f"{target}_back", to=FP32),
    ]


def _widened(tensor: TensorProto) -> TensorProto:
    if tensor.data_type not in (FP16, BF16):
        return tensor
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name)
