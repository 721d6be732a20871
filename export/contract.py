"""The exported operator's name, inputs and ONNX schema: what export writes and runtimes look for. Needs onnx, not torch."""

from onnx import ModelProto, defs

DOMAIN = "mtmamba"
DOMAIN_VERSION = 1
SELECTIVE_SCAN = "SelectiveScan"
SELECTIVE_SCAN_INPUTS = ("u", "delta", "A", "B", "C", "D", "delta_bias")
SELECTIVE_SCAN_FLOAT_INPUTS = ("A", "D", "delta_bias")
"""Inputs that are float32 whatever the type of the others."""
SOFTPLUS_ATTRIBUTE = "delta_softplus"


def register_schema() -> None:
    """Tell onnx about the operator, once a process; the torch exporter needs to find its schema."""
    if defs.has(SELECTIVE_SCAN, DOMAIN_VERSION, DOMAIN):
        return
    parameter, attribute = defs.OpSchema.FormalParameter, defs.OpSchema.Attribute
    defs.register_schema(
        defs.OpSchema(
            SELECTIVE_SCAN,
            DOMAIN,
            DOMAIN_VERSION,
            inputs=[
                parameter(name, "tensor(float)" if name in SELECTIVE_SCAN_FLOAT_INPUTS else "T")
                for name in SELECTIVE_SCAN_INPUTS
            ],
            outputs=[parameter("y", "T")],
            type_constraints=[("T", ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"], "u, delta, B, C and y")],
            attributes=[
                attribute(SOFTPLUS_ATTRIBUTE, defs.OpSchema.AttrType.INT, "1: the step is softplus(delta + bias)")
            ],
        )
    )


def count_nodes(model: ModelProto) -> int:
    """How many operator nodes of our domain the model's main graph holds."""
    return sum(node.domain == DOMAIN for node in model.graph.node)
