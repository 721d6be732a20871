"""What the precision passes need to know of a graph: tensors' types, constants, blocks, and nodes that only move data."""

import math
import re
from collections.abc import Iterable

import numpy as np
from onnx import ModelProto, TensorProto, TensorShapeProto, ValueInfoProto, helper, numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

from mtmamba.errors import MtmError
from mtmamba.export.contract import DOMAIN, SELECTIVE_SCAN, SELECTIVE_SCAN_2D
from mtmamba.metadata import BATCH_NAME

FP32, FP16, BF16 = int(TensorProto.FLOAT), int(TensorProto.FLOAT16), int(TensorProto.BFLOAT16)

MOVES = frozenset(
    {
        *("Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "Pad", "Reshape", "Slice"),
        *("SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"),
    }
)
"""Operators whose outputs are copies of their inputs' values: exact in any type."""

BLOCK = re.compile(
    r"encoder\.layers\.\d+\.(?:blocks\.\d+|downsample)|encoder\.\w+(?:\.\d+)?"
    r"|stages\.\d+(?:\.(?:stm\.\d+|ctm|expand))?|heads\.\w+"
)
"""The start of a module's path that names its block (`mtmamba.model`'s names)."""


def block_of(node: str) -> str:
    """The block of a node that mtm-export named MODULE/NAME; the node itself where the name tells no module."""
    module, slash, _ = node.rpartition("/")
    if not slash:
        return node
    found = BLOCK.match(module)
    return found.group() if found else module or "input"


def blocks_of(nodes: Iterable[str]) -> dict[str, list[str]]:
    """Block -> its nodes, both in order of appearance."""
    blocks: dict[str, list[str]] = {}
    for node in nodes:
        blocks.setdefault(block_of(node), []).append(node)
    return blocks


def fold_weights(model: ModelProto) -> None:
    """Replace nodes that only move weights (a transpose, a split) by their results, in place: weights are then
    initialisers, to be converted or quantised once."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    kept = []
    for node in model.graph.node:
        if node.op_type in MOVES and not node.domain and all(name in weights for name in node.input if name):
            evaluator = ReferenceEvaluator(node)
            results = evaluator.run(None, {name: numpy_helper.to_array(weights[name]) for name in node.input if name})
            for name, value in zip(node.output, results, strict=True):
                weights[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        else:
            kept.append(node)
    used = {name for node in kept for name in node.input} | {value.name for value in model.graph.output}
    del model.graph.node[:]
    model.graph.node.extend(kept)
    del model.graph.initializer[:]
    model.graph.initializer.extend(tensor for name, tensor in weights.items() if name in used)


def float_tensors(model: ModelProto) -> set[str]:
    """Names of the main graph's FP32 tensors. Raises MtmError where a type cannot be inferred, or is another float."""
    types = _types(model)
    if any(kind in (FP16, BF16, TensorProto.DOUBLE) for kind in types.values()):
        raise MtmError("expected a model in FP32, found one with other float types; give the FP32 export")
    unknown = [n for node in model.graph.node for n in node.output if n and not types.get(n)]
    if unknown:
        raise MtmError(
            f"the types of {len(unknown)} tensors ({', '.join(unknown[:3])}, ...) cannot be inferred; "
            "export the model again with mtm-export"
        )
    return {name for name, kind in types.items() if kind == FP32}


def float_activations(model: ModelProto) -> list[str]:
    """The FP32 tensors that depend on the image, in the graph's order: its inputs and what its nodes make."""
    floats = float_tensors(model)
    made = [name for node in model.graph.node if node.op_type != "Constant" for name in node.output]
    return [name for name in (*(value.name for value in model.graph.input), *made) if name in floats]


def element_counts(model: ModelProto, batch: int = 1) -> dict[str, int]:
    """How many elements each tensor of the main graph has, where its shape is known. batch: of the run, where it is free."""
    counts = {}
    for value in _inferred(model):
        dims = [_length(dim, batch) for dim in value.type.tensor_type.shape.dim]
        if value.type.tensor_type.HasField("shape") and all(dim is not None for dim in dims):
            counts[value.name] = math.prod(dim for dim in dims if dim is not None)
    return counts


def _length(dim: TensorShapeProto.Dimension, batch: int) -> int | None:
    """A dimension's length, None where nobody knows: free ones are `batch`, or `12*batch` (windows)."""
    if dim.HasField("dim_value"):
        return int(dim.dim_value)
    *factors, name = dim.dim_param.split("*")
    known = name == BATCH_NAME and all(factor.isdecimal() for factor in factors)
    return math.prod(map(int, factors)) * batch if known else None


def _types(model: ModelProto) -> dict[str, int]:
    types = {value.name: value.type.tensor_type.elem_type for value in _inferred(model)}
    types.update({tensor.name: tensor.data_type for tensor in model.graph.initializer})
    return types


def _inferred(model: ModelProto) -> list[ValueInfoProto]:
    """The graph's inputs, outputs and what lies between them, with types and shapes."""
    # Weights decide no types: without their bytes the copy is small and fits a protobuf message.
    light = ModelProto()
    light.CopyFrom(model)
    small = 1024
    for tensor in light.graph.initializer:
        if len(tensor.raw_data) > small:
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
    _stand_ins(light)
    inferred = shape_inference.infer_shapes(light, check_type=False)
    return [*inferred.graph.input, *inferred.graph.output, *inferred.graph.value_info]


def _stand_ins(model: ModelProto) -> None:
    """Put standard operators with outputs of the same type and shape in the place of ours, which onnx cannot infer through."""
    for node in model.graph.node:
        if node.domain == DOMAIN:
            perm = SHAPE_STAND_INS[node.op_type]
            node.CopyFrom(helper.make_node("Transpose", node.input[:1], node.output, perm=perm))


SHAPE_STAND_INS = {SELECTIVE_SCAN.name: [0, 1, 2], SELECTIVE_SCAN_2D.name: [0, 1, 3, 4, 2]}
"""Operator -> the permutation of its first input's axes that gives its output's."""
