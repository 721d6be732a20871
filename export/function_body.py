"""The selective scan as an ONNX function: a body of standard operators, so that any ONNX runtime runs the exported file.

B batch, D channels, L tokens, N states, G groups, R = D / G; a tile is TILE tokens.
The body is chunked: a `Scan` steps over tiles, so that memory is bounded whatever L is, and within a tile the exponentials, the
inputs and the sum over states are one operator each; only the recurrence itself goes token by token.
"""

import numpy as np
from onnx import AttributeProto, FunctionProto, GraphProto, NodeProto, TensorProto, helper, numpy_helper

from mtmamba.export.contract import DOMAIN, SELECTIVE_SCAN, SELECTIVE_SCAN_INPUTS, SOFTPLUS_ATTRIBUTE

TILE = 16  # tokens; the fastest of 4, 8, 16 and 32 on ONNX Runtime's CPU provider


class _Nodes:
    """A list of nodes that grows; every call hands back its output's name. Integer constants are made once a value;
    `prefix` keeps a subgraph's apart from those of the graph around it."""

    def __init__(self, prefix: str = "") -> None:
        self.list: list[NodeProto] = []
        self.prefix = prefix

    def op(self, kind: str, *inputs: str, name: str, **attributes: object) -> str:
        self.list.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def split(self, source: str, count: int) -> list[str]:
        names = [f"{source}_{i}" for i in range(count)]
        self.list.append(helper.make_node("Split", [source], names, axis=0, num_outputs=count))
        return names

    def int(self, value: int) -> str:
        name = f"{self.prefix}int_{value}".replace("-", "minus_")
        if any(name in node.output for node in self.list):
            return name
        return self.op("Constant", name=name, value=numpy_helper.from_array(np.array([value], np.int64), name))


def selective_scan_function(opset: int) -> FunctionProto:
    """`mtmamba::SelectiveScan`(u, delta [B,D,L], A [D,N], B, C [B,G,N,L], D, delta_bias [D]; delta_softplus) -> y [B,D,L].

    Computes in float32 whatever the tensors' type and answers in u's type. opset: of the default domain, 18 or later.
    """
    f = _Nodes()
    for name in SELECTIVE_SCAN_INPUTS:
        f.op("Cast", name, name=f"{name}_32", to=TensorProto.FLOAT)
    _step(f)
    f.op("Mul", "step", "u_32", name="step_u")
    f.op("Shape", "B", name="batch", start=0, end=1)
    f.op("Shape", "B", name="groups", start=1, end=2)
    f.op("Shape", "A", name="states", start=1, end=2)
    f.op("Shape", "u", name="length", start=2, end=3)
    _tiles(f)
    shape = f.op("Concat", "groups", f.int(-1), "states", name="shape_A", axis=0)
    f.op("Reshape", "A_32", shape, name="A_grn")
    zero = f.op("Constant", name="zero_state", value=numpy_helper.from_array(np.zeros(1, np.float32), "zero_state"))
    shape = f.op("Concat", "batch", f.op("Shape", "A_grn", name="grn"), name="shape_h", axis=0)
    f.op("Expand", zero, shape, name="h_start")
    inputs = ["h_start", "step_tiled", "step_u_tiled", "B_32_tiled", "C_32_tiled"]
    f.list.append(helper.make_node("Scan", inputs, ["h_end", "y_tiled"], body=_tile_body(), num_scan_inputs=4))
    f.op("Transpose", "y_tiled", name="y_channels", perm=[2, 3, 4, 0, 1])  # [B, G, R, tiles, TILE]
    shape = f.op("Concat", f.op("Shape", "u", name="batch_channels", end=2), f.int(-1), name="shape_y", axis=0)
    f.op("Reshape", "y_channels", shape, name="y_padded")
    f.op("Slice", "y_padded", f.int(0), "length", f.int(2), name="y_scan")
    f.op("Mul", "u_32", f.op("Unsqueeze", "D_32", f.int(-1), name="D_column"), name="skip")
    f.op("CastLike", f.op("Add", "y_scan", "skip", name="y_32"), "u", name="y")
    return helper.make_function(
        DOMAIN,
        SELECTIVE_SCAN,
        list(SELECTIVE_SCAN_INPUTS),
        ["y"],
        f.list,
        [helper.make_opsetid("", opset)],
        attribute_protos=[helper.make_attribute(SOFTPLUS_ATTRIBUTE, 1)],
    )


def _step(f: _Nodes) -> None:
    """step [B, D, L] = delta + delta_bias, through softplus if the node's attribute says so."""
    f.op("Add", "delta_32", f.op("Unsqueeze", "delta_bias_32", f.int(-1), name="bias_column"), name="step_raw")
    flag = helper.make_node("Constant", [], ["softplus_int"])
    flag.attribute.append(AttributeProto(name="value_int", type=AttributeProto.INT, ref_attr_name=SOFTPLUS_ATTRIBUTE))
    f.list.append(flag)
    f.op("Cast", "softplus_int", name="softplus_flag", to=TensorProto.BOOL)
    f.op("Where", "softplus_flag", f.op("Softplus", "step_raw", name="step_softplus"), "step_raw", name="step")


def _tiles(f: _Nodes) -> None:
    """Pad L to whole tiles and put tiles first: X [B, ..., L] -> X_tiled [tiles, TILE, B, G, R or N].

    Padding steps are 0, which leaves the state as it is.
    """
    f.op("Mod", f.op("Neg", "length", name="minus_length"), f.int(TILE), name="padding")
    f.op("Concat", f.int(0), "padding", name="pads", axis=0)
    f.op("Div", f.op("Add", "length", "padding", name="length_padded"), f.int(TILE), name="tiles")
    channels = f.op("Concat", "batch", "groups", f.int(-1), "tiles", f.int(TILE), name="shape_channels", axis=0)
    states = f.op("Concat", "batch", "groups", "states", "tiles", f.int(TILE), name="shape_states", axis=0)
    for name, shape in (("step", channels), ("step_u", channels), ("B_32", states), ("C_32", states)):
        f.op("Pad", name, "pads", "", f.int(-1), name=f"{name}_padded")
        f.op("Reshape", f"{name}_padded", shape, name=f"{name}_split")
        f.op("Transpose", f"{name}_split", name=f"{name}_tiled", perm=[3, 4, 0, 1, 2])


def _tile_body() -> GraphProto:
    """One tile: state h [B, G, R, N]; step, step*u [TILE, B, G, R]; B, C [TILE, B, G, N] -> h, y [TILE, B, G, R].

    Reads A_grn [G, R, N] of the function around it.
    """
    f = _Nodes("tile_")
    f.op("Mul", f.op("Unsqueeze", "step_t", f.int(-1), name="step_column"), "A_grn", name="exponent")
    f.op("Exp", "exponent", name="decay")
    f.op("Unsqueeze", "step_u_t", f.int(-1), name="step_u_column")
    f.op("Mul", "step_u_column", f.op("Unsqueeze", "B_t", f.int(-2), name="B_row"), name="added")
    decays, addeds = f.split("decay", TILE), f.split("added", TILE)
    h, states = "h_in", []
    for t in range(TILE):
        h = f.op("Add", f.op("Mul", decays[t], h, name=f"kept_{t}"), addeds[t], name=f"h_{t}")
        states.append(h)
    f.op("Concat", *states, name="states_t", axis=0)  # [TILE, B, G, R, N]
    f.op("MatMul", "states_t", f.op("Unsqueeze", "C_t", f.int(-1), name="C_column"), name="y_column")
    f.op("Squeeze", "y_column", f.int(-1), name="y_t")
    f.op("Squeeze", h, f.int(0), name="h_out")

    def value(name: str):  # type: ignore[no-untyped-def]
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, None)

    inputs = [value(name) for name in ("h_in", "step_t", "step_u_t", "B_t", "C_t")]
    return helper.make_graph(f.list, "tile", inputs, [value("h_out"), value("y_t")])
