"""16 bits in the graph: islands stay FP32, nothing else does, and the numbers hold."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from mtmamba import load_checkpoint
from mtmamba.calib.plan import PrecisionPlan
from mtmamba.errors import MtmError
from mtmamba.export.graph import BF16, FP16, FP32, MOVES
from mtmamba.export.precision import to_fp16, to_precision
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
    assert len(scans) == 9
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


def test_every_fp32_node_has_a_reason(half):
    model, report = half
    types = element_types(model)
    reasons = {entry["name"] for entry in report["fp32_nodes"] if entry["reason"]}
    made_fp32 = {
        node.name
        for node in model.graph.node
        if node.op_type not in ("Cast", "Constant") and types.get(node.output[0]) == FP32
    }
    assert made_fp32 == reasons


def makers(model):
    return {name: node for node in model.graph.node for name in node.output}


def ping_pongs(model):
    """Casts of what was just cast from the very type it is now cast to, with nothing computed in between."""
    made, types, found = makers(model), element_types(model), []
    for node in model.graph.node:
        if node.op_type != "Cast":
            continue
        source = made.get(node.input[0])
        while source is not None and source.op_type in MOVES:
            source = made.get(source.input[0])
        if source is not None and source.op_type == "Cast" and types.get(source.input[0]) == node.attribute[0].i:
            found.append(node.name)
    return found


def test_casts_are_few_and_none_undoes_another(half):
    model, report = half
    casts = sum(node.op_type == "Cast" for node in model.graph.node)
    assert casts == report["casts"]
    ends = len(model.graph.input) + len(model.graph.output)
    assert casts <= 2 * len(report["fp32_nodes"]) + ends, "an island has one way in and one way out"
    assert ping_pongs(model) == []


def test_data_moves_between_fp32_nodes_in_fp32():
    """soft1 -> transpose -> reshape -> soft2: no Cast between them; but one where an FP16 node reads the same."""
    nodes = [
        helper.make_node("Softmax", ["x"], ["a"], name="soft1", axis=-1),
        helper.make_node("Transpose", ["a"], ["b"], name="turn", perm=[1, 0]),
        helper.make_node("Reshape", ["b", "shape"], ["c"], name="reshape"),
        helper.make_node("Softmax", ["c"], ["d"], name="soft2", axis=-1),
        helper.make_node("Transpose", ["a"], ["e"], name="for_fp16", perm=[1, 0]),
        helper.make_node("Mul", ["e", "e"], ["f"], name="mul"),
        helper.make_node("Softmax", ["f"], ["g"], name="soft3", axis=-1),
    ]
    values = [helper.make_tensor_value_info("x", FP32, [2, 3]), helper.make_tensor_value_info("y", FP32, [4, 3])]
    shape = numpy_helper.from_array(np.array([2, 3]), "shape")
    nodes.append(helper.make_node("Concat", ["d", "g"], ["y"], name="both", axis=0))
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [shape])
    model, report = to_fp16(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))
    onnx.checker.check_model(model)
    moved = {e["name"] for e in report["fp32_nodes"] if e["reason"] == "moves data from one FP32 node to another"}
    assert moved == {"turn", "reshape", "both"}
    assert ping_pongs(model) == []


def test_bf16(exported):
    model, report = to_precision(exported, "bf16")
    onnx.checker.check_model(model)
    types = element_types(model)
    scans = [node for node in model.graph.node if node.op_type == "SelectiveScan2D"]
    assert all([types[name] for name in node.input] == [BF16, BF16, FP32, FP32, FP32, FP32] for node in scans)
    assert FP16 not in types.values()
    _, wide = to_precision(small_model(1e6), "bf16")
    assert [entry["name"] for entry in wide["fp32_nodes"]] == ["soft"], "bfloat16 holds 1e6"


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_inputs_and_outputs_in_16_bits_where_asked(precision):
    model, report = to_precision(small_model(), precision, fp32_io=False)
    onnx.checker.check_model(model)
    kind = FP16 if precision == "fp16" else BF16
    assert {v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)} == {kind}
    assert report["casts"] == 2  # around the Softmax


def test_fp32_is_a_copy_and_other_names_are_refused():
    model = small_model()
    same, report = to_precision(model, "fp32")
    assert same == model
    assert same is not model
    assert report == {}
    with pytest.raises(MtmError, match="unknown precision 'fp4'; known: fp32, fp16, bf16, int8, fp8"):
        to_precision(model, "fp4")


def test_nodes_are_named_after_their_modules(exported):
    names = [node.name for node in exported.graph.node]
    assert len(set(names)) == len(names)
    by_operator = {node.name: node.op_type for node in exported.graph.node}
    scans = sorted(name.rpartition("/")[0] for name, kind in by_operator.items() if kind == "SelectiveScan2D")
    stages = [[f"stages.{s}.{part}.ss2d" for part in ("ctm", "stm.0", "stm.1")] for s in range(3)]
    assert scans == sum(stages, [])


def test_twice_is_refused(half):
    with pytest.raises(MtmError, match="expected a model in FP32"):
        to_fp16(half[0])


def test_original_is_untouched(exported):
    before = exported.SerializeToString(deterministic=True)
    to_fp16(exported)
    assert exported.SerializeToString(deterministic=True) == before
