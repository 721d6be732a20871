"""Precision plans: which nodes of an exported model stay in a higher precision, each with its reason."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

FP16_MAX = 65504.0
"""Largest finite float16."""
FP16_SMALLEST_NORMAL = 2.0**-14
"""Smallest float16 with all its 11 bits of precision."""

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8")
"""Of an engine. int8 and fp8 quantise matrix products and convolutions; all else in them is fp16."""
QUANTISED = ("int8", "fp8")

BUILT_IN_OPS: dict[str, str] = {
    "LayerNormalization": "mean and variance of wide activations overflow or cancel in 16 bits",
    "Softmax": "the exponentials' sum loses small probabilities in 16 bits",
    "InstanceNormalization": "mean and variance of wide activations overflow or cancel in 16 bits",
    "ReduceMean": "long sums lose accuracy in 16 bits",
    "ReduceSum": "long sums lose accuracy in 16 bits",
    "Exp": "overflows FP16 from 11.1 on",
    "Pow": "squares overflow FP16 from 256 on",
}

BUILT_IN_MODULES: dict[str, str] = {
    "ctm.ss2d": "the cross-task block's maps, the tasks' and the shared one, have unlike ranges and would get one scale",
}
"""End of a module's path -> why its products and convolutions stay in 16 bits in an int8 or fp8 engine."""


@dataclass(frozen=True, kw_only=True)
class PrecisionPlan:
    """fp32_ops: operator type -> why every node of it stays FP32. fp32_nodes: node name -> why this one does.
    not_quantised: node name -> why this one stays in 16 bits in an int8 or fp8 engine, beside `BUILT_IN_MODULES`.

    The default is the conservative built-in plan that holds without calibration.
    """

    fp32_ops: Mapping[str, str] = field(default_factory=lambda: dict(BUILT_IN_OPS))
    fp32_nodes: Mapping[str, str] = field(default_factory=dict)
    not_quantised: Mapping[str, str] = field(default_factory=dict)

    def reason(self, name: str, op_type: str) -> str | None:
        """Why this node must stay FP32, or None if it need not."""
        return self.fp32_nodes.get(name) or self.fp32_ops.get(op_type)

    def reason_16_bits(self, name: str) -> str | None:
        """Why this node must not be quantised, or None if it may be. Nodes are named MODULE/NODE."""
        module = f".{name.rpartition('/')[0]}"
        built_in = (reason for end, reason in BUILT_IN_MODULES.items() if module.endswith(f".{end}"))
        return self.not_quantised.get(name) or next(built_in, None)

    def to_dict(self) -> dict[str, Any]:
        return {
            "fp32_ops": dict(self.fp32_ops),
            "fp32_nodes": dict(self.fp32_nodes),
            "not_quantised": dict(self.not_quantised),
        }
