"""Explicit quantisation: QuantizeLinear and DequantizeLinear around matrix products and convolutions with weights.

Weights are stored as INT8 or FP8 (E4M3) with a scale a channel, activations get one scale a tensor; zero points are 0.
Products of two activations (attention), the scan, norms and softmax stay as they are, and so do the layer that reads the
image and what the plan keeps. Needs onnx, not torch.

T tasks: a task-stacked weight is [T, rows, columns], one matrix a task. ONNX allows scales along one axis only, so either
every task has one or every output channel does (common to all tasks): whichever lies closer to the weights.
"""

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, helper, numpy_helper

from mtmamba.calib.calibration import Range
from mtmamba.calib.plan import FP16_SMALLEST_NORMAL, PrecisionPlan
from mtmamba.errors import MtmError
from mtmamba.export.graph import MOVES

OLDEST_OPSET = 19  # the first whose QuantizeLinear takes FP16 scales and FP8
LARGEST = {"int8": 127.0, "fp8": 448.0}
_TYPES: dict[str, Any] = {"int8": np.dtype(np.int8), "fp8": np.dtype(ml_dtypes.float8_e4m3fn)}

IMAGE_REASON = "it reads the image: hardly any of the work, and most of the loss"

Weight = npt.NDArray[np.float32]


def quantize(model: ModelProto, precision: str, ranges: Mapping[str, Range], plan: PrecisionPlan) -> dict[str, Any]:
    """Quantise the FP32 `model` in place, to "int8" or "fp8".

    ranges: tensor -> its range. Report: `quantised_nodes` (count), `not_quantised` (name, op, reason).
    Raises MtmError for an opset before 19.
    """
    opset = next(entry.version for entry in model.opset_import if not entry.domain)
    if opset < OLDEST_OPSET:
        raise MtmError(
            f"{precision} needs ONNX opset {OLDEST_OPSET} or later, found {opset}; export again with mtm-export --opset 20"
        )
    return _Quantizer(model, precision, ranges, plan).run()


def quantisable(model: ModelProto) -> dict[str, tuple[int, int]]:
    """Node name -> (index of its activation, index of its weight), for matrix products and convolutions of the two."""
    weights = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) > 1}
    found = {}
    for node in model.graph.node:
        if node.op_type in ("MatMul", "Conv") and sum(name in weights for name in node.input[:2]) == 1:
            weight = 0 if node.input[0] in weights else 1
            found[node.name] = (1 - weight, weight)
    return found


def _moved_inputs(model: ModelProto) -> set[str]:
    """The model's inputs, and what is only moved from them (padded, reshaped)."""
    found = {value.name for value in model.graph.input}
    for node in model.graph.node:
        if node.op_type in MOVES and node.input[0] in found:
            found.update(node.output)
    return found


class _Quantizer:
    def __init__(self, model: ModelProto, precision: str, ranges: Mapping[str, Range], plan: PrecisionPlan) -> None:
        self.graph, self.ranges, self.plan = model.graph, ranges, plan
        self.precision, self.type, self.largest = precision, _TYPES[precision], LARGEST[precision]
        self.sites = quantisable(model)
        self.image = _moved_inputs(model)
        self.weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self.done: dict[str, str] = {}  # tensor or weight -> its dequantised name
        self.nodes: list[NodeProto] = []
        self.zero = self._constant(f"{precision}_zero", np.zeros((), self.type))

    def run(self) -> dict[str, Any]:
        skipped: list[dict[str, str]] = []
        for node in self.graph.node:
            if node.name in self.sites:
                activation, weight = self.sites[node.name]
                reason = self._reason(node, node.input[activation])
                if reason:
                    skipped.append({"name": node.name, "op": node.op_type, "reason": reason})
                else:
                    node.input[activation] = self._activation(node.input[activation])
                    node.input[weight] = self._weight(node, weight)
            self.nodes.append(node)
        del self.graph.node[:]
        self.graph.node.extend(self.nodes)
        used = {name for node in self.nodes for name in node.input} | {value.name for value in self.graph.output}
        del self.graph.initializer[:]
        self.graph.initializer.extend(tensor for name, tensor in self.weights.items() if name in used)
        return {"quantised_nodes": len(self.sites) - len(skipped), "not_quantised": skipped}

    def _reason(self, node: NodeProto, activation: str) -> str | None:
        """Why this node is not quantised, or None."""
        fp32 = self.plan.reason(node.name, node.op_type)
        if fp32:
            return f"it stays FP32: {fp32}"
        if activation in self.image:
            return IMAGE_REASON
        if activation not in self.ranges:
            return f"the calibration has no range of {activation}"
        return self.plan.reason_16_bits(node.name)

    def _constant(self, name: str, values: npt.NDArray[Any]) -> str:
        self.weights[name] = numpy_helper.from_array(values, name)
        return name

    def _activation(self, name: str) -> str:
        """QuantizeLinear and DequantizeLinear behind tensor `name`, shared by all that read it; the latter's output."""
        if name not in self.done:
            item = self.ranges[name]
            clip = item.largest if self.precision == "fp8" or item.clip is None else item.clip
            scale = self._constant(f"{name}_scale", _scale(np.float32(clip), self.largest))
            names = [name, f"{name}_{self.precision}", f"{name}_dequantised"]
            kinds = ("QuantizeLinear", "DequantizeLinear")
            for kind, source, target in zip(kinds, names[:2], names[1:], strict=True):
                self.nodes.append(helper.make_node(kind, [source, scale, self.zero], [target], name=f"{target}_node"))
            self.done[name] = names[-1]
        return self.done[name]

    def _weight(self, node: NodeProto, index: int) -> str:
        """The weight as INT8 or FP8 and a DequantizeLinear; the latter's output."""
        name = node.input[index]
        values = numpy_helper.to_array(self.weights[name]).astype(np.float32)
        axis, scale = self._best_axis(values, _channel_axes(node, index, values.shape))
        key = f"{name}_axis{axis}"
        if key not in self.done:
            shaped = _along(scale, axis, values.ndim)
            stored = self._constant(f"{key}_{self.precision}", self._stored(values, shaped))
            scales = self._constant(f"{key}_scale", scale)
            zeros = self._constant(f"{key}_zero", np.zeros(scale.shape, self.type))
            target = f"{key}_dequantised"
            self.nodes.append(
                helper.make_node(
                    "DequantizeLinear", [stored, scales, zeros], [target], name=f"{target}_node", axis=axis
                )
            )
            self.done[key] = target
        return self.done[key]

    def _best_axis(self, values: Weight, axes: tuple[int, ...]) -> tuple[int, npt.NDArray[np.float32]]:
        """The axis, and the scales along it, that change the weights least in the square mean."""

        def made(axis: int) -> tuple[float, int, npt.NDArray[np.float32]]:
            others = tuple(i for i in range(values.ndim) if i != axis)
            scale = _scale(np.abs(values).max(axis=others), self.largest)
            shaped = _along(scale, axis, values.ndim)
            return (
                float(np.square(self._stored(values, shaped).astype(np.float32) * shaped - values).sum()),
                axis,
                scale,
            )

        return min((made(axis) for axis in axes), key=lambda item: item[0])[1:]

    def _stored(self, values: Weight, scale: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
        scaled = np.clip(values / scale, -self.largest, self.largest)
        return (np.rint(scaled) if self.precision == "int8" else scaled).astype(self.type)


def _scale(clip: Any, largest: float) -> npt.NDArray[np.float32]:
    """Scales that FP16 holds exactly and in full precision, so that they are the same wherever they are used."""
    scale = np.maximum(np.asarray(clip, np.float32) / largest, FP16_SMALLEST_NORMAL)
    return scale.astype(np.float16).astype(np.float32)


def _along(scale: npt.NDArray[np.float32], axis: int, rank: int) -> npt.NDArray[np.float32]:
    return scale.reshape([-1 if i == axis else 1 for i in range(rank)])


def _channel_axes(node: NodeProto, index: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The axes along which this weight may have a scale an entry: its output channels, and its tasks."""
    if node.op_type == "Conv":
        return (0,)
    rank = len(shape)
    out = rank - 1 if index == 1 else rank - 2
    return (out, 0) if rank == 3 and shape[0] > 1 else (out,)
