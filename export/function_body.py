"""The operators as ONNX functions: bodies of standard operators, so that any ONNX runtime runs the exported file.

B batch, D channels, L tokens, N states, G groups, R = D / G; a tile is TILE tokens.
The body is chunked: a `Scan` steps over tiles, so that memory is bounded whatever L is, and within a tile the exponentials, the
inputs and the sum over states are one operator each; only the recurrence itself goes token by token.
"""

from typing import Any

import numpy as np
from onnx import AttributeProto, FunctionProto, GraphProto, NodeProto, TensorProto, helper, numpy_helper

from mtmamba.export.contract import (
    DOMAIN,
    DOMAIN_VERSION,
    SELECTIVE_SCAN,
    SELECTIVE_SCAN_2D,
    SOFTPLUS_ATTRIBUTE,
    Operator,
)

TILE = 16  # tokens; the fastest of 4, 8, 16 and 32 on ONNX Runtime's CPU provider


class _Nodes:
    """A list of nodes that grows; every call hands back its output's name. Integer constants are made once a value;
    `prefix` keeps a subgraph's apart from those of the graph around it."""

    def __init__(self, prefix: str = "") -> None:
        self.list: list[NodeProto] = []
        self.prefix = prefix

    def op(self, kind: str, *inputs: str, name: str, **attributes: Any) -> str:
        self.list.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def split(self, source: str, count: int, axis: int = 0) -> list[str]:
        names = [f"{source}_{i}" for i in range(count)]
        self.list.append(helper.make_node("Split", [source], names, axis=axis, num_outputs=count))
        return names

    def int(self, value: int) -> str:
        name = f"{self.prefix}int_{value}".replace("-", "minus_")
        if any(name in node.output for node in self.list):
            return name
        return self.op("Constant", name=name, value=numpy_helper.from_array(np.array([value], np.int64), name))


def functions(opset: int) -> list[FunctionProto]:
    """The bodies of all operators; opset: of the default domain, 18 or later."""
    return [selective_scan_function(opset), selective_scan_2d_function(opset)]


def selective_scan_function(opset: int) -> FunctionProto:
    """`mtmamba::SelectiveScan`(u, delta [B,D,L], A [D,N], B, C [B,G,N,L], D, delta_bias [D]; delta_softplus) -> y [B,D,L].

    Computes in float32 whatever the tensors' type and answers in u's type. opset: of the default domain, 18 or later.
    """
    f = _Nodes()
    for name in SELECTIVE_SCAN.inputs:
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
    return _function(SELECTIVE_SCAN, f, opset)


def _function(operator: Operator, nodes: _Nodes, opset: int) -> FunctionProto:
    return helper.make_function(
        DOMAIN,
        operator.name,
        list(operator.inputs),
        ["y"],
        nodes.list,
        [helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, DOMAIN_VERSION)],
        attribute_protos=[helper.make_attribute(name, value) for name, value in operator.attributes.items()],
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


def selective_scan_2d_function(opset: int) -> FunctionProto:
    """`mtmamba::SelectiveScan2D`(x [B,G,D,H,W], x_dbl [B,G,K,R+2N,H,W], dt_weight [G,K,D,R], dt_bias [G,K,D], A [G,K,D,N],
    D [G,K,D]) -> y [B,G,H,W,D]: four orders of the map, one `SelectiveScan` over all of them, and their sum.
    """
    f = _Nodes()
    for name in ("x", "x_dbl"):
        f.op("Cast", name, name=f"{name}_32", to=TensorProto.FLOAT)
    for name, source, start in (("batch", "x", 0), ("groups", "x", 1), ("height", "x", 3), ("width", "x", 4)):
        f.op("Shape", source, name=name, start=start, end=start + 1)
    f.op("Shape", "dt_weight", name="rank", start=3, end=4)
    f.op("Shape", "A", name="states", start=3, end=4)

    f.op("Unsqueeze", "x_32", f.int(2), name="x_direction")
    rows, columns = _rows(f, "x_direction"), _columns(f, "x_direction")
    f.op("Concat", rows, columns, _flip(f, rows), _flip(f, columns), name="x_ordered", axis=2)  # [B, G, K, D, L]
    of_map = f.split("x_dbl_32", 4, axis=2)
    ordered = [
        _rows(f, of_map[0]),
        _columns(f, of_map[1]),
        _flip(f, _rows(f, of_map[2])),
        _flip(f, _columns(f, of_map[3])),
    ]
    f.op("Concat", *ordered, name="dbl_ordered", axis=2)  # [B, G, K, R+2N, L]
    f.op("Concat", "rank", "states", "states", name="parts", axis=0)
    f.list.append(helper.make_node("Split", ["dbl_ordered", "parts"], ["low", "B", "C"], axis=3))
    f.op("MatMul", "dt_weight", "low", name="delta")  # [B, G, K, D, L]

    f.op("Mul", "height", "width", name="length")
    f.op("Concat", "batch", f.int(-1), "length", name="shape_channels", axis=0)
    f.op("Concat", "batch", f.int(-1), "states", "length", name="shape_states", axis=0)
    f.op("Concat", f.int(-1), "states", name="shape_A", axis=0)
    scan = [
        f.op("Reshape", source, shape, name=f"{source}_scan")
        for source, shape in (
            ("x_ordered", "shape_channels"),
            ("delta", "shape_channels"),
            ("A", "shape_A"),
            ("B", "shape_states"),
            ("C", "shape_states"),
            ("D", f.int(-1)),
            ("dt_bias", f.int(-1)),
        )
    ]
    f.op(SELECTIVE_SCAN.name, *scan, name="y_scan", domain=DOMAIN, **SELECTIVE_SCAN.attributes)

    f.op("Concat", "batch", "groups", f.int(4), f.int(-1), "length", name="shape_y", axis=0)
    y = f.split(f.op("Reshape", "y_scan", "shape_y", name="y_directions"), 4, axis=2)  # each [B, G, 1, D, L]
    f.op("Add", y[0], _flip(f, y[2]), name="y_rows")
    f.op("Add", y[1], _flip(f, y[3]), name="y_columns")
    f.op("Concat", "batch", "groups", f.int(-1), "height", "width", name="shape_rows", axis=0)
    f.op("Concat", "batch", "groups", f.int(-1), "width", "height", name="shape_columns", axis=0)
    f.op("Transpose", f.op("Reshape", "y_rows", "shape_rows", name="y_hw"), name="rows_last", perm=[0, 1, 3, 4, 2])
    f.op(
        "Transpose",
        f.op("Reshape", "y_columns", "shape_columns", name="y_wh"),
        name="columns_last",
        perm=[0, 1, 4, 3, 2],
    )
    f.op("CastLike", f.op("Add", "rows_last", "columns_last", name="y_32"), "x", name="y")
    return _function(SELECTIVE_SCAN_2D, f, opset)


def _rows(f: _Nodes, source: str) -> str:
    """[B, G, K, C, H, W] -> [B, G, K, C, L] row by row."""
    shape = f"{source}_kept"
    f.op("Constant", name=shape, value=numpy_helper.from_array(np.array([0, 0, 0, 0, -1], np.int64), shape))
    return f.op("Reshape", source, shape, name=f"{source}_flat")


def _columns(f: _Nodes, source: str) -> str:
    """[B, G, K, C, H, W] -> [B, G, K, C, L] column by column."""
    return _rows(f, f.op("Transpose", source, name=f"{source}_turned", perm=[0, 1, 2, 3, 5, 4]))


def _flip(f: _Nodes, source: str) -> str:
    """Reverse the last axis."""
    return f.op("Slice", source, f.int(-1), f.int(-(2**62)), f.int(-1), f.int(-1), name=f"{source}_back")
