"""The operator as an ONNX function, in ONNX Runtime, against the float64 loop."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from mtmamba.export.contract import (
    DOMAIN,
    DOMAIN_VERSION,
    SELECTIVE_SCAN,
    SELECTIVE_SCAN_2D,
)
from mtmamba.export.function_body import TILE, functions
from mtmamba.ops import selective_scan_2d_reference, selective_scan_reference

BASE = {"batch": 1, "channels": 6, "groups": 2, "states": 4, "length": 37}


def make_inputs(batch, channels, groups, states, length):
    rng = np.random.default_rng(0)
    arrays = {
        "u": rng.normal(size=(batch, channels, length)),
        "delta": rng.normal(size=(batch, channels, length)),
        "A": -np.exp(rng.normal(size=(channels, states))),
        "B": rng.normal(size=(batch, groups, states, length)),
        "C": rng.normal(size=(batch, groups, states, length)),
        "D": rng.normal(size=channels),
        "delta_bias": rng.normal(size=channels),
    }
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def run(feeds, opset=20, dtype=np.float32, operator=SELECTIVE_SCAN, shape=None, **attributes):
    def typed(name):
        return np.float32 if name in operator.float_inputs else dtype

    feeds = {name: value.astype(typed(name)) for name, value in feeds.items()}
    kinds = {name: helper.np_dtype_to_tensor_dtype(value.dtype) for name, value in feeds.items()}
    first = operator.inputs[0]
    graph = helper.make_graph(
        [helper.make_node(operator.name, list(operator.inputs), ["y"], domain=DOMAIN, **attributes)],
        "g",
        [helper.make_tensor_value_info(name, kinds[name], value.shape) for name, value in feeds.items()],
        [helper.make_tensor_value_info("y", kinds[first], shape or feeds[first].shape)],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, DOMAIN_VERSION)]
    model = helper.make_model(graph, functions=functions(opset), ir_version=10, opset_imports=opsets)
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


def assert_close(feeds, tolerance=2e-6, **options):
    expected = selective_scan_reference(**feeds, delta_softplus=bool(options.get("delta_softplus", 1)))
    found = run(feeds, **options).astype(np.float64)
    assert np.isfinite(found).all()
    assert np.abs(found - expected).max() <= tolerance * max(1.0, np.abs(expected).max())


@pytest.mark.parametrize("length", [1, 2, TILE - 1, TILE, TILE + 1, 1008])
def test_lengths(length):
    assert_close(make_inputs(**{**BASE, "length": length}))


@pytest.mark.parametrize(
    "change",
    [{"batch": 3}, {"groups": 1}, {"channels": 20, "groups": 20}, {"states": 1}, {"states": 16}, {"states": 64}],
    ids=str,
)
def test_shapes(change):
    assert_close(make_inputs(**{**BASE, **change}))


@pytest.mark.parametrize("opset", [18, 19, 20, 21, 22, 23])
def test_opsets(opset):
    assert_close(make_inputs(**BASE), opset=opset)


def test_attribute_reaches_the_body():
    feeds = make_inputs(**BASE)
    feeds["delta"], feeds["delta_bias"] = np.abs(feeds["delta"]), np.abs(feeds["delta_bias"])
    assert_close(feeds, delta_softplus=0)


@pytest.mark.parametrize(
    "name, value", [("delta", -50), ("delta", 50), ("A", -1e-4), ("A", -1e3), ("u", 1e4), ("B", 1e4), ("C", 1e4)]
)
def test_hostile_values(name, value):
    feeds = make_inputs(**{**BASE, "length": 300})
    feeds[name] = np.full_like(feeds[name], value)
    assert_close(feeds, tolerance=1e-5)


def test_fp16_tensors_are_computed_in_fp32():
    feeds = make_inputs(**{**BASE, "length": 300})
    half = {
        name: value if name in SELECTIVE_SCAN.float_inputs else value.astype(np.float16).astype(np.float32)
        for name, value in feeds.items()
    }
    expected = selective_scan_reference(**half)
    found = run(half, dtype=np.float16)
    assert found.dtype == np.float16
    assert np.abs(found - expected).max() <= 2**-11 * np.abs(expected).max() * 1.1  # the rounding of y alone


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_input_stays_in_its_channel(bad):
    feeds = make_inputs(**BASE)
    clean = run(feeds)
    feeds["u"][0, 1, 10] = bad
    found = run(feeds)
    assert not np.isfinite(found[0, 1, 10])
    others = [0, 2, 3, 4, 5]
    np.testing.assert_array_equal(found[:, others], clean[:, others])


def map_inputs(height, width, B=2, G=3, D=4, N=5, R=2):
    rng = np.random.default_rng(0)
    arrays = {
        "x": rng.normal(size=(B, G, D, height, width)),
        "x_dbl": rng.normal(size=(B, G, 4, R + 2 * N, height, width)),
        "dt_weight": rng.normal(size=(G, 4, D, R)),
        "dt_bias": rng.normal(size=(G, 4, D)),
        "A": -np.exp(rng.normal(size=(G, 4, D, N))),
        "D": rng.normal(size=(G, 4, D)),
    }
    return {name: array.astype(np.float32) for name, array in arrays.items()}


@pytest.mark.parametrize("opset", [18, 20, 23])
@pytest.mark.parametrize("height, width", [(1, 1), (1, 9), (6, 1), (5, 7), (TILE, 3)])
def test_two_dimensional_scan(height, width, opset):
    feeds = map_inputs(height, width)
    expected = selective_scan_2d_reference(**feeds)
    found = run(feeds, opset, operator=SELECTIVE_SCAN_2D, shape=expected.shape)
    assert np.abs(found - expected).max() <= 3e-6 * max(1.0, np.abs(expected).max())


def test_two_dimensional_scan_of_fp16_tensors():
    feeds = map_inputs(5, 7)
    half = {
        name: value if name in SELECTIVE_SCAN_2D.float_inputs else value.astype(np.float16).astype(np.float32)
        for name, value in feeds.items()
    }
    expected = selective_scan_2d_reference(**half)
    found = run(half, dtype=np.float16, operator=SELECTIVE_SCAN_2D, shape=expected.shape)
    assert found.dtype == np.float16
    assert np.abs(found - expected).max() <= 2**-11 * np.abs(expected).max() * 1.1
