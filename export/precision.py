"""FP32 graph -> the same graph in another precision, in the graph itself: strongly typed TensorRT knows no other.

Weights are converted once, FP32 islands are joined by Casts, inputs and outputs stay FP32 or not as asked. Needs onnx, not
torch.
"""

from typing import Any

import ml_dtypes
import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from mtmamba.calib.calibration import Calibration
from mtmamba.calib.plan import FP16_MAX, PRECISIONS, QUANTISED, PrecisionPlan
from mtmamba.errors import MtmError
from mtmamba.export.contract import DOMAIN, OPERATORS
from mtmamba.export.graph import BF16, FP16, FP32, MOVES, float_tensors, fold_weights
from mtmamba.export.quantize import quantize

NUMPY_TYPES = {FP16: np.dtype(np.float16), BF16: np.dtype(ml_dtypes.bfloat16)}
_SUFFIX = {FP32: "fp32", FP16: "fp16", BF16: "bf16"}

ALWAYS_FP32_INPUTS: dict[tuple[str, str], frozenset[int]] = {
    **{
        (DOMAIN, operator.name): frozenset(map(operator.inputs.index, operator.float_inputs))
        for operator in OPERATORS.values()
    },
    ("", "Resize"): frozenset({1, 2}),  # region and scales: FP32 by the operator's definition
}


def to_precision(
    model: ModelProto,
    precision: str,
    calibration: Calibration | None = None,
    *,
    plan: PrecisionPlan | None = None,
    fp32_io: bool = True,
) -> tuple[ModelProto, dict[str, Any]]:
    """A copy of the FP32 `model` in `precision` (one of `PRECISIONS`), and a report of it.

    plan: what stays higher; default the calibration's, or the built-in one. int8 and fp8 need `calibration`, whose ranges
    give the scales. fp32_io: whether the model's inputs and outputs stay FP32. Report: `plan`; `low_nodes`, `casts`,
    `quantised_nodes` (counts); `fp32_nodes` and `not_quantised` (name, op, reason). The operators' function bodies stay
    as they are: they compute in FP32 inside and take any type.
    Raises MtmError for an unknown precision, a model that is not FP32 or whose types cannot be inferred, and where int8
    or fp8 has no calibration.
    """
    if precision not in PRECISIONS:
        raise MtmError(f"unknown precision {precision!r}; known: {', '.join(PRECISIONS)}")
    copy = ModelProto()
    copy.CopyFrom(model)
    if precision == "fp32":
        return copy, {}
    plan = plan or (calibration.plan(precision) if calibration else PrecisionPlan())
    fold_weights(copy)
    quantised: dict[str, Any] = {"quantised_nodes": 0, "not_quantised": []}
    if precision in QUANTISED:
        if calibration is None or not calibration.ranges:
            raise MtmError(f"{precision} needs the ranges of a calibration; make one with mtm-calibrate IMAGES")
        quantised = quantize(copy, precision, calibration.ranges, plan)
    half = BF16 if precision == "bf16" else FP16
    report = _Rewriter(copy, plan, half, fp32_io).run()
    return copy, {"precision": precision, **report, **quantised}


def to_fp16(model: ModelProto, plan: PrecisionPlan | None = None) -> tuple[ModelProto, dict[str, Any]]:
    """`to_precision(model, "fp16", plan=plan)`."""
    return to_precision(model, "fp16", plan=plan)


class _Rewriter:
    """Rewrites `model` in place. half: the 16-bit type."""

    def __init__(self, model: ModelProto, plan: PrecisionPlan, half: int, fp32_io: bool) -> None:
        self.model, self.graph, self.plan, self.half = model, model.graph, plan, half
        self.io = FP32 if fp32_io else half
        self.floats = float_tensors(model)
        self.weights = {tensor.name: tensor for tensor in self.graph.initializer}
        self.produced = {value.name: self.io for value in self.graph.input if value.name in self.floats}
        self.copies: dict[tuple[str, int], str] = {}  # (tensor, type) -> name of its copy of that type
        self.nodes: list[NodeProto] = []
        self.new_weights: dict[str, TensorProto] = {}
        self.islands: list[dict[str, str]] = []
        self.casts = self.low_nodes = 0

    def run(self) -> dict[str, Any]:
        nodes = list(self.graph.node)
        for node, reason in zip(nodes, self._reasons(nodes), strict=True):
            self._rewrite(node, reason)
        outputs = [value.name for value in self.graph.output]
        for name in outputs:
            self._type_output(name)
        del self.graph.node[:]
        self.graph.node.extend(self.nodes)
        used = {name for node in self.nodes for name in node.input} | set(outputs)
        weights = [w for w in (*self.weights.values(), *self.new_weights.values()) if w.name in used]
        del self.graph.initializer[:]
        self.graph.initializer.extend(weights)
        self._note_types()
        return {
            "plan": self.plan.to_dict(),
            "low_nodes": self.low_nodes,
            "casts": self.casts,
            "fp32_nodes": self.islands,
        }

    def _note_types(self) -> None:
        """Every float tensor's type, in the graph's value_info."""
        types = {**self.produced, **{copy: kind for (_, kind), copy in self.copies.items()}}
        for value in (*self.graph.value_info, *self.graph.input, *self.graph.output):
            if value.name in types:
                value.type.tensor_type.elem_type = types.pop(value.name)
        self.graph.value_info.extend(helper.make_tensor_value_info(name, kind, None) for name, kind in types.items())

    def _reasons(self, nodes: list[NodeProto]) -> list[str | None]:
        """Why each node stays FP32, or None. A node that only moves data between FP32 nodes stays with them: a Cast down
        and up again would cost accuracy and time for nothing."""
        reasons = [self.plan.reason(node.name, node.op_type) or self._out_of_range(node) for node in nodes]
        readers: dict[str, list[int]] = {}
        for index, node in enumerate(nodes):
            for name in node.input:
                readers.setdefault(name, []).append(index)
        outputs = {value.name for value in self.graph.output} if self.io != FP32 else set()
        for_fp32 = [False] * len(nodes)  # what it makes is read in FP32 only
        for index in reversed(range(len(nodes))):
            read_by = [i for name in nodes[index].output for i in readers.get(name, [])]
            leaves = any(name in outputs for name in nodes[index].output)
            for_fp32[index] = not leaves and all(
                reasons[i] or (nodes[i].op_type in MOVES and for_fp32[i]) for i in read_by
            )
        fp32 = set()  # tensors that FP32 nodes make
        for index, node in enumerate(nodes):
            moved = [name for name in node.input if name in self.floats and name not in self.weights]
            if (
                not reasons[index]
                and node.op_type in MOVES
                and for_fp32[index]
                and moved
                and all(name in fp32 for name in moved)
            ):
                reasons[index] = "moves data from one FP32 node to another"
            if reasons[index]:
                fp32.update(node.output)
        return reasons

    def _rewrite(self, node: NodeProto, reason: str | None) -> None:
        float_inputs = [i for i, name in enumerate(node.input) if name in self.floats]
        float_outputs = [name for name in node.output if name in self.floats]
        if not float_inputs and not float_outputs:
            self.nodes.append(node)
            return
        wanted = FP32 if reason else self.half
        if reason:
            self.islands.append({"name": node.name, "op": node.op_type, "reason": reason})
        else:
            self.low_nodes += 1
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
        """bfloat16 has FP32's range: nothing is out of it."""
        for name in node.input if self.half == FP16 else ():
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
            copy = f"{name}_{_SUFFIX[wanted]}"
            self.nodes.append(helper.make_node("Cast", [name], [copy], name=f"{copy}_cast", to=wanted))
            self.copies[name, wanted] = copy
            self.casts += 1
        return self.copies[name, wanted]

    def _weight_as(self, name: str, wanted: int) -> str:
        if wanted == FP32:
            return name
        copy = f"{name}_{_SUFFIX[wanted]}"
        if copy not in self.new_weights:
            self.new_weights[copy] = _converted(self.weights[name], copy, wanted)
        return copy

    def _type_output(self, name: str) -> None:
        """Give the graph's output `name` its type, by renaming what makes it and casting."""
        made = self.produced.get(name, self.io)
        if made == self.io:
            return
        raw = f"{name}_{_SUFFIX[made]}_output"
        for node in self.nodes:
            for names in (node.input, node.output):
                for i, used in enumerate(names):
                    if used == name:
                        names[i] = raw
        self.nodes.append(helper.make_node("Cast", [raw], [name], name=f"{name}_cast", to=self.io))
        self.produced[raw], self.produced[name] = made, self.io
        self.casts += 1


def _converted(tensor: TensorProto, name: str, wanted: int) -> TensorProto:
    if wanted == FP32:
        return tensor
    values = numpy_helper.to_array(tensor)
    with np.errstate(over="ignore"):
        return numpy_helper.from_array(values.astype(NUMPY_TYPES[wanted]), name)
