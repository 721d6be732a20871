"""Precision plans: which nodes of an exported model stay FP32 in an FP16 engine, each with its reason."""

from dataclasses import dataclass, field
from typing import Any

FP16_MAX = 65504.0
"""Largest finite float16."""

BUILT_IN_OPS: dict[str, str] = {
    "LayerNormalization": "mean and variance of wide activations overflow or cancel in FP16",
    "Softmax": "the exponentials' sum loses small probabilities in FP16",
    "InstanceNormalization": "mean and variance of wide activations overflow or cancel in FP16",
    "ReduceMean": "long sums lose accuracy in FP16",
    "ReduceSum": "long sums lose accuracy in FP16",
    "Exp": "overflows FP16 from 11.1 on",
    "Pow": "squares overflow FP16 from 256 on",
}


@dataclass(frozen=True, kw_only=True)
class PrecisionPlan:
    """fp32_ops: operator type -> why every node of it stays FP32. fp32_nodes: node name -> why this one does.

    The default is the conservative built-in plan that holds without calibration.
    """

    fp32_ops: dict[str, str] = field(default_factory=lambda: dict(BUILT_IN_OPS))
    fp32_nodes: dict[str, str] = field(default_factory=dict)

    def reason(self, name: str, op_type: str) -> str | None:
        """Why this node must stay FP32, or None if it need not."""
        return self.fp32_nodes.get(name) or self.fp32_ops.get(op_type)

    def to_dict(self) -> dict[str, Any]:
        return {"fp32_ops": dict(self.fp32_ops), "fp32_nodes": dict(self.fp32_nodes)}
