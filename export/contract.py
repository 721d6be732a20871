"""The exported operators' names, inputs and ONNX schemas: what export writes and runtimes look for. Needs onnx, not torch."""

from dataclasses import dataclass, field

import yaml
from onnx import ModelProto, defs
from onnx.helper import make_attribute

from mtmamba.native import source_dir

DOMAIN = "mtmamba"
DOMAIN_VERSION = 1
SOFTPLUS_ATTRIBUTE = "delta_softplus"


@dataclass(frozen=True, kw_only=True)
class Operator:
    """float_inputs: inputs that are float32 whatever the type of the others. attributes: integers, name -> default."""

    name: str
    inputs: tuple[str, ...]
    float_inputs: frozenset[str]
    attributes: dict[str, int] = field(default_factory=dict)


def _read_contract() -> dict[str, Operator]:
    contract = yaml.safe_load((source_dir() / "ops.yaml").read_text(encoding="utf-8"))
    return {
        name: Operator(
            name=name,
            inputs=tuple(entry["name"] for entry in operator["inputs"]),
            float_inputs=frozenset(entry["name"] for entry in operator["inputs"] if entry.get("float32")),
            attributes={entry["name"]: entry["default"] for entry in operator["attributes"]},
        )
        for name, operator in contract["ops"].items()
    }


OPERATORS = _read_contract()
"""Operator name -> operator, as plugins/ops.yaml says."""
SELECTIVE_SCAN, SELECTIVE_SCAN_2D = OPERATORS["SelectiveScan"], OPERATORS["SelectiveScan2D"]


def register_schemas() -> None:
    """Tell onnx about the operators, once a process; the torch exporter needs to find their schemas."""
    for operator in OPERATORS.values():
        if not defs.has(operator.name, DOMAIN_VERSION, DOMAIN):
            defs.register_schema(_schema(operator))


def _schema(operator: Operator) -> defs.OpSchema:
    parameter, attribute = defs.OpSchema.FormalParameter, defs.OpSchema.Attribute
    return defs.OpSchema(
        operator.name,
        DOMAIN,
        DOMAIN_VERSION,
        inputs=[parameter(name, "tensor(float)" if name in operator.float_inputs else "T") for name in operator.inputs],
        outputs=[parameter("y", "T")],
        type_constraints=[("T", ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"], "the other tensors")],
        attributes=[attribute(name, make_attribute(name, value)) for name, value in operator.attributes.items()],
    )


def count_nodes(model: ModelProto) -> int:
    """How many operator nodes of our domain the model's main graph holds."""
    return sum(node.domain == DOMAIN for node in model.graph.node)
