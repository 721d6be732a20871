"""INT8 and FP8: explicit Q/DQ around products with weights, and nowhere else; scales that hold."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from mtmamba.calib.calibration import Calibration, Range
from mtmamba.calib.plan import BUILT_IN_MODULES, PrecisionPlan
from mtmamba.errors import MtmError
from mtmamba.export.emulate import emulated
from mtmamba.export.precision import to_precision

T, IN, OUT, TOKENS = 3, 16, 8, 10
STORED = {"int8": TensorProto.INT8, "fp8": TensorProto.FLOAT8E4M3FN}
RNG = np.random.default_rng(0)
TASK_SCALES = np.array([0.01, 1.0, 30.0])[:, None, None]
OUT_SCALES = np.geomspace(0.01, 30, OUT)


def value(name, shape):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def weights_by(which):
    w = RNG.normal(size=(T, IN, OUT))
    return (w * (TASK_SCALES if which == "task" else OUT_SCALES)).astype(np.float32)


def stacked_model(weight, opset=20):
    """image [1,3,4,4] is there to be an input; x [T, TOKENS, IN] @ weight [T, IN, OUT], then Softmax, then x @ x^T."""
    nodes = [
        helper.make_node("Identity", ["image"], ["same"], name="same"),
        helper.make_node("Conv", ["same", "kernel"], ["first"], name="first"),
        helper.make_node("Reshape", ["first", "to_x"], ["x_raw"], name="reshape"),
        helper.make_node("Relu", ["x_raw"], ["x"], name="relu"),
        helper.make_node("MatMul", ["x", "w"], ["product"], name="product"),
        helper.make_node("Softmax", ["product"], ["soft"], name="soft", axis=-1),
        helper.make_node("Transpose", ["soft"], ["turned"], name="turn", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["soft", "turned"], ["y"], name="attention"),
    ]
    kernel = RNG.normal(size=(T * IN, 3, 1, 1)).astype(np.float32)
    initializers = [
        numpy_helper.from_array(kernel, "kernel"),
        numpy_helper.from_array(weight, "w"),
        numpy_helper.from_array(np.array([T, TOKENS, IN]), "to_x"),
    ]
    graph = helper.make_graph(
        nodes, "g", [value("image", [1, 3, 2, 5])], [value("y", [T, TOKENS, TOKENS])], initializers
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def calibrated(high=4.0):
    ranges = {name: Range(low=-high, high=high) for name in ("image", "same", "first", "x", "soft", "product")}
    return Calibration(onnx="x", onnx_sha256="", method="max", images=1, ranges=ranges)


def quantised(precision, which="out", **options):
    return to_precision(stacked_model(weights_by(which)), precision, calibrated(), **options)


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_quantises_products_with_weights_and_nothing_else(precision):
    model, report = quantised(precision)
    onnx.checker.check_model(model, full_check=True)
    nodes = {node.name: node for node in model.graph.node}
    makers = {name: node for node in model.graph.node for name in node.output}
    assert {makers[name].op_type for name in nodes["product"].input} == {"DequantizeLinear"}
    assert all(name not in makers or makers[name].op_type != "DequantizeLinear" for name in nodes["attention"].input)
    assert report["quantised_nodes"] == 1
    assert [entry["name"] for entry in report["not_quantised"]] == ["first"]
    assert "reads the image" in report["not_quantised"][0]["reason"]
    kinds = [node.op_type for node in model.graph.node]
    assert (kinds.count("QuantizeLinear"), kinds.count("DequantizeLinear")) == (1, 2)


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_weights_are_stored_low_and_once(precision):
    model, _ = quantised(precision)
    stored = [t for t in model.graph.initializer if t.data_type == STORED[precision] and len(t.dims) == 3]
    assert [list(t.dims) for t in stored] == [[T, IN, OUT]]
    assert not [t for t in model.graph.initializer if len(t.dims) == 3 and t.data_type != STORED[precision]]


@pytest.mark.parametrize(("which", "axis"), [("task", 0), ("out", 2)])
def test_stacked_weights_get_scales_along_the_axis_that_fits(which, axis):
    weight = weights_by(which)
    model, _ = to_precision(stacked_model(weight), "int8", calibrated())
    node = next(n for n in model.graph.node if n.op_type == "DequantizeLinear" and "w_axis" in n.name)
    assert helper.get_node_attr_value(node, "axis") == axis
    tensors = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    stored, scale = (tensors[name] for name in node.input[:2])
    assert scale.dtype == np.float16
    shape = [1, 1, 1]
    shape[axis] = -1
    rebuilt = stored.astype(np.float32) * scale.astype(np.float32).reshape(shape)
    assert np.abs(rebuilt - weight).max() <= scale.max() * 0.51 + 1e-6
    others = tuple(i for i in range(3) if i != axis)
    per_channel = np.abs(rebuilt - weight).max(axis=others) / np.abs(weight).max(axis=others)
    assert per_channel.max() < 0.006, "half a step of 127, in every channel however small"


def test_weights_that_a_node_splits_are_quantised_too():
    model = stacked_model(weights_by("out"))
    model.graph.node.insert(0, helper.make_node("Split", ["w"], ["w0", "w1"], name="split", axis=2, num_outputs=2))
    next(node for node in model.graph.node if node.name == "product").input[1] = "w1"
    low, report = to_precision(model, "int8", calibrated())
    assert report["quantised_nodes"] == 1
    assert "Split" not in {node.op_type for node in low.graph.node}


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_numbers_hold(precision):
    model = stacked_model(weights_by("out") * np.float32(0.02))
    low, _ = to_precision(model, precision, calibrated(12.0))
    image = np.clip(RNG.normal(size=(1, 3, 2, 5)), -1.5, 1.5).astype(np.float32)
    expected, found = run(model, image), run(emulated(low), image)
    error = np.abs(found - expected).max() / np.abs(expected).max()
    assert 1e-5 < error < {"int8": 0.03, "fp8": 0.06}[precision]


def run(model, image):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"image": image})[0]


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_empty_and_tiny_channels_keep_scales_fp16_holds(precision):
    weight = weights_by("out")
    weight[..., 0], weight[..., 1] = 0, 1e-7
    model, _ = to_precision(stacked_model(weight), precision, calibrated(1e-6))
    scales = [numpy_helper.to_array(t) for t in model.graph.initializer if "_scale" in t.name]
    assert len(scales) == 2
    assert all(scale.dtype == np.float16 and scale.min() >= 2.0**-14 for scale in scales)
    stored = next(t for t in model.graph.initializer if t.data_type == STORED[precision] and len(t.dims) == 3)
    assert not numpy_helper.to_array(stored)[..., 0].astype(np.float32).any()


def test_plans_hold():
    _, report = quantised("int8", plan=PrecisionPlan(not_quantised={"product": "because"}))
    assert {e["name"]: e["reason"] for e in report["not_quantised"]}["product"] == "because"
    _, report = quantised("int8", plan=PrecisionPlan(fp32_nodes={"product": "wide"}))
    assert {e["name"]: e["reason"] for e in report["not_quantised"]}["product"] == "it stays FP32: wide"
    assert "product" in {entry["name"] for entry in report["fp32_nodes"]}


def test_the_built_in_plan_holds_by_module():
    model = stacked_model(weights_by("out"))
    product = next(node for node in model.graph.node if node.name == "product")
    for name, kept in (("stages.1.ctm.ss2d/product", True), ("stages.1.ctm.in_proj/product", False)):
        product.name = name
        _, report = to_precision(model, "int8", calibrated())
        assert report["quantised_nodes"] == (not kept)
        reasons = {entry["name"]: entry["reason"] for entry in report["not_quantised"]}
        assert reasons.get(name) == (BUILT_IN_MODULES["ctm.ss2d"] if kept else None)
        _, report = to_precision(model, "int8", calibrated(), plan=PrecisionPlan(not_quantised={name: "because"}))
        assert {entry["name"]: entry["reason"] for entry in report["not_quantised"]}[name] == "because"
    assert PrecisionPlan().reason_16_bits("stages.0.stm.0.ss2d/matmul") is None
    assert PrecisionPlan().reason_16_bits("other_ctm.ss2d/matmul") is None


def test_int8_clips_where_the_calibration_says():
    ranges = {"x": Range(low=-100.0, high=4.0, clip=2.54)}
    made = Calibration(onnx="x", onnx_sha256="", method="percentile", images=1, ranges=ranges)
    scales = {}
    for precision in ("int8", "fp8"):
        model, _ = to_precision(stacked_model(weights_by("out")), precision, made)
        scale = next(t for t in model.graph.initializer if t.name.startswith("x_scale"))
        scales[precision] = float(numpy_helper.to_array(scale))
    assert scales["int8"] == pytest.approx(2.54 / 127, rel=1e-3)
    assert scales["fp8"] == pytest.approx(100 / 448, rel=1e-3), "FP8 has the digits for the whole range"


def test_tensors_without_a_range_stay():
    made = Calibration(onnx="x", onnx_sha256="", method="max", images=1, ranges={"y": Range(low=0.0, high=1.0)})
    _, report = to_precision(stacked_model(weights_by("out")), "int8", made)
    assert report["quantised_nodes"] == 0
    assert "no range of x" in {e["name"]: e["reason"] for e in report["not_quantised"]}["product"]


def test_needs_a_calibration_and_a_late_opset():
    with pytest.raises(MtmError, match="int8 needs the ranges of a calibration"):
        to_precision(stacked_model(weights_by("out")), "int8")
    with pytest.raises(MtmError, match="fp8 needs ONNX opset 19 or later, found 18; .*--opset 20"):
        to_precision(stacked_model(weights_by("out"), opset=18), "fp8", calibrated())
