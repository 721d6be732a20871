"""FP16 in the graph: islands stay FP32, nothing else does, and the numbers hold."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from mtmamba import load_checkpoint
from mtmamba.calib.plan import PrecisionPlan
from mtmamba.errors import MtmError
from mtmamba.export.precision import FP16, FP32, to_fp16
from mtmamba.export.torch_to_onnx import export_model
from mtmamba.metadata import INPUT_NAME


@pytest.fixture(scope="module")
def exported(golden_folder):
    return export_model(load_checkpoint(golden_folder / "mtmamba_nyud_tiny.pth.tar"), input_size=(64, 96))


@pytest.fixture(scope="module")
def half(exported):
    return to_fp16(exported)


def element_types(model):
    graph = onnx.shape_inference.infer_shapes(model).graph
    values = (*graph.value_info, *graph.input, *graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    types.update({node.output[0]: node.attribute[0].i for node in model.graph.node if node.op_type == "Cast"})
    return types | {tensor.name: tensor.data_type for tensor in model.graph.initializer}


def test_islands_and_the_rest(half):
    model, report = half
    onnx.checker.check_model(model)
    types = element_types(model)
    for node in model.graph.node:
        if node.op_type in ("LayerNormalization", "Softmax"):
            assert types[node.input[0]] == FP32, node.name
        elif node.op_type in ("MatMul", "Conv", "Add", "Gelu", "SelectiveScan2D"):
            assert types[node.input[0]] == FP16, node.name
    assert {entry["op"] for entry in report["fp32_nodes"]} == {"LayerNormalization", "Softmax"}
    assert all(entry["reason"] for entry in report["fp32_nodes"])


def test_scan_parameters_stay_fp32(half):
    model, _ = half
    types = element_types(model)
    scans = [node for node in model.graph.node if node.op_type == "SelectiveScan2D"]
    assert len(scans) == 12
    for node in scans:
        assert [types[name] for name in node.input] == [FP16, FP16, FP32, FP32, FP32, FP32]


def test_inputs_and_outputs_stay_fp32(half):
    model, _ = half
    for value in (*model.graph.input, *model.graph.output):
        assert value.type.tensor_type.elem_type == FP32


def test_weights_are_kept_once(half, exported):
    model, _ = half
    assert len({t.name for t in model.graph.initializer}) == len(model.graph.initializer)
    big = [t for t in exported.graph.initializer if t.data_type == FP32 and len(t.dims) > 1]
    total = sum(len(t.raw_data) for t in big)
    now = sum(len(t.raw_data) for t in model.graph.initializer if len(t.dims) > 1 and t.data_type in (FP16, FP32))
    assert now < 0.75 * total  # A alone stays FP32, a fifth of this small model


def test_predictions_hold(half, golden_folder):
    arrays = np.load(golden_folder / "mtmamba_nyud_tiny.npz")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(half[0].SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    found = dict(zip(names, session.run(None, {INPUT_NAME: arrays["image"]}), strict=True))
    assert (found["semseg"].argmax(1) == arrays["out.semseg"].argmax(1)).mean() > 0.995
    for task in names:
        expected = arrays[f"out.{task}"]
        assert np.abs(found[task] - expected).max() < 0.02 * np.abs(expected).max(), task
        assert np.abs(found[task] - expected).max() > 1e-5, "this was not FP16"


def small_model(weight=1.0):
    """Two products and a Softmax between them."""
    nodes = [
        helper.make_node("Mul", ["x", "w"], ["a"], name="first"),
        helper.make_node("Softmax", ["a"], ["b"], name="soft", axis=-1),
        helper.make_node("Mul", ["b", "b"], ["y"], name="second"),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3]) for name in ("x", "y")]
    weights = [numpy_helper.from_array(np.full(3, weight, np.float32), "w")]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_a_constant_beyond_fp16_keeps_its_node_in_fp32():
    _, report = to_fp16(small_model(1e6))
    assert {entry["name"]: entry["reason"] for entry in report["fp32_nodes"]}["first"].startswith(
        "its constant w is beyond"
    )


def test_plan_names_nodes():
    plan = PrecisionPlan(fp32_nodes={"second": "because"})
    _, report = to_fp16(small_model(), plan)
    assert [entry["name"] for entry in report["fp32_nodes"]] == ["soft", "second"]
    assert report["casts"] == 2  # x to FP16, a to FP32; b and y are FP32 already


def test_twice_is_refused(half):
    with pytest.raises(MtmError, match="expected a model in FP32"):
        to_fp16(half[0])


def test_original_is_untouched(exported):
    before = exported.SerializeToString(deterministic=True)
    to_fp16(exported)
    assert exported.SerializeToString(deterministic=True) == before
