"""FP32 graph -> FP16 graph with FP32 islands, in the graph itself: strongly typed TensorRT knows no other precision.

Weights are converted once, islands are joined by Casts, inputs and outputs stay FP32. Needs onnx, not torch.
"""

from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper, shape_inference

from mtmamba.calib.plan import FP16_MAX, PrecisionPlan
from mtmamba.errors import MtmError
from mtmamba.export.contract import DOMAIN, OPERATORS, SELECTIVE_SCAN, SELECTIVE_SCAN_2D

FP32, FP16 = TensorProto.FLOAT, TensorProto.FLOAT16

ALWAYS_FP32_INPUTS: dict[tuple[str, str], frozenset[int]] = {
    **{
        (DOMAIN, operator.name): frozenset(map(operator.inputs.index, operator.float_inputs))
        for operator in OPERATORS.values()
    },
    ("", "Resize"): frozenset({1, 2}),  # region and scales: FP32 by the operator's definition
}


def to_fp16(model: ModelProto, plan: PrecisionPlan | None = None) -> tuple[ModelProto, dict[str, Any]]:
    """A copy of `model` in FP16 with the plan's islands in FP32, and a report of it.

    Report: `plan`, `fp16_nodes` and `casts` (counts), `fp32_nodes` (name, op, reason). The operators' function bodies are
    kept as they are: they compute in FP32 inside and take either type. Inputs and outputs of the model stay FP32.
    Raises MtmError for a model that is not FP32, or whose tensor types cannot be inferred.
    """
    plan = plan or PrecisionPlan()
    return _Rewriter(model, plan).run()


class _Rewriter:
    def __init__(self, model: ModelProto, plan: PrecisionPlan) -> None:
        self.plan = plan
        self.model = ModelProto()
        self.model.CopyFrom(model)
        self.graph = self.model.graph
        self.floats = _float_tensors(model)
        self.weights = {tensor.name: tensor for tensor in self.graph.initializer}
        self.produced: dict[str, int] = {value.name: FP32 for value in self.graph.input if value.name in self.floats}
        self.copies: dict[tuple[str, int], str] = {}  # (tensor, type) -> name of its copy of that type
        self.nodes: list[NodeProto] = []
        self.new_weights: dict[str, TensorProto] = {}
        self.islands: list[dict[str, str]] = []
        self.casts = self.fp16_nodes = 0

    def run(self) -> tuple[ModelProto, dict[str, Any]]:
        for node in list(self.graph.node):
            self._rewrite(node)
        outputs = [value.name for value in self.graph.output]
        for name in outputs:
            self._output_as_fp32(name)
        del self.graph.node[:]
        self.graph.node.extend(self.nodes)
        used = {name for node in self.nodes for name in node.input} | set(outputs)
        weights = [w for w in (*self.weights.values(), *self.new_weights.values()) if w.name in used]
        del self.graph.initializer[:]
        self.graph.initializer.extend(weights)
        for value in self.graph.value_info:
            if value.name in self.produced:
                value.type.tensor_type.elem_type = self.produced[value.name]
        report = {
            "plan": self.plan.to_dict(),
            "fp16_nodes": self.fp16_nodes,
            "casts": self.casts,
            "fp32_nodes": self.islands,
        }
        return self.model, report

    def _rewrite(self, node: NodeProto) -> None:
        float_inputs = [i for i, name in enumerate(node.input) if name in self.floats]
        float_outputs = [name for name in node.output if name in self.floats]
        if not float_inputs and not float_outputs:
            self.nodes.append(node)
            return
        reason = self.plan.reason(node.name, node.op_type) or self._out_of_range(node)
        wanted = FP32 if reason else FP16
        if reason:
            self.islands.append({"name": node.name, "op": node.op_type, "reason": reason})
        else:
            self.fp16_nodes += 1
        always = ALWAYS_FP32_INPUTS.get((node.domain, node.op_type), frozenset())
        for i in float_inputs:
            node.input[i] = self._as(node.input[i], FP32 if i in always else wanted)
        self._retype(node, wanted)
        self.nodes.append(node)
        self.produced.update(dict.fromkeys(float_outputs, wanted))

    def _retype(self, node: NodeProto, wanted: int) -> None:
        """Nodes whose output type is an attribute."""
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == FP32:
                attribute.i = wanted
            elif (
                node.op_type in ("Constant", "ConstantOfShape")
                and attribute.name == "value"
                and attribute.t.data_type == FP32
            ):
                attribute.t.CopyFrom(_converted(attribute.t, attribute.t.name, wanted))

    def _out_of_range(self, node: NodeProto) -> str | None:
        for name in node.input:
            tensor = self.weights.get(name)
            if tensor is not None and tensor.data_type == FP32:
                values = numpy_helper.to_array(tensor)
                if values.size and np.abs(values).max(initial=0, where=np.isfinite(values)) > FP16_MAX:
                    return f"its constant {name} is beyond FP16's {FP16_MAX:.0f}"
        return None

    def _as(self, name: str, wanted: int) -> str:
        """The name under which float tensor `name` is available in type `wanted`; makes the copy on first need."""
        if name in self.weights:
            return self._weight_as(name, wanted)
        if self.produced[name] == wanted:
            return name
        if (name, wanted) not in self.copies:
            copy = f"{name}_{'fp16' if wanted == FP16 else 'fp32'}"
            self.nodes.append(helper.make_node("Cast", [name], [copy], name=f"{copy}_cast", to=wanted))
            self.copies[name, wanted] = copy
            self.casts += 1
        return self.copies[name, wanted]

    def _weight_as(self, name: str, wanted: int) -> str:
        if wanted == FP32:
            return name
        copy = f"{name}_fp16"
        if copy not in self.new_weights:
            self.new_weights[copy] = _converted(self.weights[name], copy, FP16)
        return copy

    def _output_as_fp32(self, name: str) -> None:
        """Give the graph's output `name` FP32 by renaming what makes it and casting."""
        if self.produced.get(name, FP32) == FP32:
            return
        raw = f"{name}_fp16_output"
        for node in self.nodes:
            for names in (node.input, node.output):
                for i, used in enumerate(names):
                    if used == name:
                        names[i] = raw
        self.nodes.append(helper.make_node("Cast", [raw], [name], name=f"{name}_cast", to=FP32))
        self.casts += 1


def _float_tensors(model: ModelProto) -> set[str]:
    """Names of the main graph's FP32 tensors. Raises MtmError where a type cannot be inferred."""
    # Weights decide no types: without their bytes the copy is small and fits a protobuf message.
    light = ModelProto()
    light.CopyFrom(model)
    sizes = 1024
    for tensor in light.graph.initializer:
        if len(tensor.raw_data) > sizes:
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
    _stand_ins(light)
    inferred = shape_inference.infer_shapes(light, check_type=False)
    values = [*inferred.graph.input, *inferred.graph.output, *inferred.graph.value_info]
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    types.update({tensor.name: tensor.data_type for tensor in model.graph.initializer})
    if any(kind in (FP16, TensorProto.BFLOAT16, TensorProto.DOUBLE) for kind in types.values()):
        raise MtmError("expected a model in FP32, found one with other float types; give the FP32 export")
    unknown = [n for node in model.graph.node for n in node.output if n and not types.get(n)]
    if unknown:
        raise MtmError(
            f"the types of {len(unknown)} tensors ({', '.join(unknown[:3])}, ...) cannot be inferred; "
            "export the model again with mtm-export"
        )
    return {name for name, kind in types.items() if kind == FP32}


def _stand_ins(model: ModelProto) -> None:
    """Put standard operators with outputs of the same type and shape in the place of ours, which onnx cannot infer through."""
    for node in model.graph.node:
        if node.domain == DOMAIN:
            perm = SHAPE_STAND_INS[node.op_type]
            node.CopyFrom(helper.make_node("Transpose", node.input[:1], node.output, perm=perm))


SHAPE_STAND_INS = {SELECTIVE_SCAN.name: [0, 1, 2], SELECTIVE_SCAN_2D.name: [0, 1, 3, 4, 2]}
"""Operator -> the permutation of its first input's axes that gives its output's."""


def _converted(tensor: TensorProto, name: str, wanted: int) -> TensorProto:
    if wanted == FP32:
        return tensor
    values = numpy_helper.to_array(tensor)
    with np.errstate(over="ignore"):
        return numpy_helper.from_array(values.astype(np.float16), name)
