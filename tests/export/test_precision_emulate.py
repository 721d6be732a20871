"""The emulation computes what 16-bit arithmetic with FP32 sums computes: overflow, rounding, lost small numbers."""

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from mtmamba.export.emulate import emulated
from mtmamba.export.precision import to_precision


def chain(weight, scale):
    """(x @ weight) * scale, reshaped in between."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="product"),
        helper.make_node("Reshape", ["a", "shape"], ["b"], name="reshape"),
        helper.make_node("Mul", ["b", "s"], ["y"], name="scale"),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 4]) for name in ("x", "y")]
    weights = [
        numpy_helper.from_array(np.asarray(weight, np.float32), "w"),
        numpy_helper.from_array(np.array([2, 4]), "shape"),
        numpy_helper.from_array(np.array([scale], np.float32), "s"),
    ]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def run(model, x):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.asarray(x, np.float32)})[0]


@pytest.mark.parametrize(("precision", "kind"), [("fp16", np.float16), ("bf16", ml_dtypes.bfloat16)])
def test_every_result_is_rounded(precision, kind):
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(2, 4)).astype(np.float32), rng.normal(size=(4, 4)).astype(np.float32)
    low, _ = to_precision(chain(w, 0.3), precision)
    found = run(emulated(low), x)

    def rounded(values):
        return np.asarray(values, np.float32).astype(kind).astype(np.float32)

    expected = rounded(rounded(rounded(x) @ rounded(w)) * rounded(0.3))
    step = 2.0**-10 if precision == "fp16" else 2.0**-7
    np.testing.assert_allclose(found, expected, rtol=step, atol=1e-6)  # sums in another order may round another way
    assert (found == expected).mean() > 0.8
    assert (rounded(found) == found).all()
    assert np.abs(found - (x @ w) * np.float32(0.3)).max() > step / 50, "nothing was rounded"


def test_fp16_overflows_where_onnx_runtime_would_not():
    x, w = np.full((2, 4), 300.0), np.full((4, 4), 300.0)
    low, _ = to_precision(chain(w, 1e-3), "fp16")
    assert np.isinf(run(emulated(low), x)).all()
    assert np.isfinite(run(low, x)).all(), "ONNX Runtime rounds in between now: is the emulation still needed?"
    wide, _ = to_precision(chain(w, 1e-3), "bf16")
    np.testing.assert_allclose(run(emulated(wide), x), 360.0, rtol=2e-2)


def test_an_fp32_graph_stays_as_it_is():
    model = chain(np.eye(4), 0.3)
    same = emulated(model)
    assert [node.op_type for node in same.graph.node] == ["MatMul", "Reshape", "Mul"]


def test_16_bit_inputs_are_fed_in_fp32():
    low, _ = to_precision(chain(np.eye(4), 1.0), "fp16", fp32_io=False)
    wide = emulated(low)
    onnx.checker.check_model(wide)
    x = np.full((2, 4), 1.00048828125, np.float32)  # half a step above 1: rounds to even
    np.testing.assert_array_equal(run(wide, x), np.ones((2, 4), np.float32))
