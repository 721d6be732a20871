"""Small ONNX files with our operator and a body for it, TensorRT for RTX, and one plugin library for all tests."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mtmamba.cache import CACHE_VARIABLE
from mtmamba.config import preset
from mtmamba.errors import MtmError
from mtmamba.export.metadata import write_metadata
from mtmamba.metadata import ModelMetadata
from mtmamba.runtime import gpu
from mtmamba.runtime.plugin import PluginLibrary, load_plugins
from mtmamba.runtime.toolchain import find_toolchain
from mtmamba.runtime.trt import TensorRT, resolve

CACHE = Path(__file__).resolve().parents[3] / "build" / "tests-cache"
B, D, G, N, L = 1, 32, 4, 16, 64


@pytest.fixture(scope="session", autouse=True)
def cache() -> Iterator[Path]:
    """One cache for all tests, kept between runs, so that the plugin library is built once; not the user's own."""
    before = os.environ.get(CACHE_VARIABLE)
    os.environ[CACHE_VARIABLE] = str(CACHE)
    yield CACHE
    if before is None:
        del os.environ[CACHE_VARIABLE]
    else:
        os.environ[CACHE_VARIABLE] = before


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "compute_capabilities", lambda: ())


@pytest.fixture(scope="session")
def rtx() -> TensorRT:
    try:
        return resolve("tensorrt-rtx")
    except MtmError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def plugins(rtx: TensorRT) -> PluginLibrary:
    """The real library, built from the sources if the cache has none, loaded into TensorRT."""
    try:
        find_toolchain()
    except MtmError as error:
        pytest.skip(str(error))
    return load_plugins(rtx)


def stand_in_body() -> onnx.FunctionProto:
    """A body of the right shapes, y = u * D: nothing but its being imported matters here."""
    inputs = ["u", "delta", "A", "B", "C", "D", "delta_bias"]
    nodes = [
        helper.make_node("Constant", [], ["last"], value=numpy_helper.from_array(np.array([-1]), "last")),
        helper.make_node("Unsqueeze", ["D", "last"], ["column"]),
        helper.make_node("Mul", ["u", "column"], ["y"]),
    ]
    opsets = [helper.make_opsetid("", 18)]
    return helper.make_function("mtmamba", "SelectiveScan", inputs, ["y"], nodes, opsets, ["delta_softplus"])


def scan_model(
    scans: int = 2,
    softplus: int = 1,
    states: int = N,
    body: bool = True,
    metadata: bool = True,
    length: int | str = L,
) -> onnx.ModelProto:
    """image [B, D, L] -> linear -> `scans` SelectiveScan nodes one after another -> y [B, D, L]. states: of A alone."""
    rng = np.random.default_rng(0)
    shapes = {"A": (D, states), "D": (D,), "bias": (D,), "to_u": (D, D), "to_bc": (G * N, D)}
    weights = [numpy_helper.from_array(-abs(rng.normal(size=s)).astype(np.float32), k) for k, s in shapes.items()]
    weights.append(numpy_helper.from_array(np.array([B, G, N, L]), "bc_shape"))
    nodes = [
        helper.make_node("MatMul", ["to_u", "image"], ["u0"]),
        helper.make_node("MatMul", ["to_bc", "image"], ["flat"]),
        helper.make_node("Reshape", ["flat", "bc_shape"], ["bc"]),
    ]
    for i in range(scans):
        inputs = [f"u{i}", f"u{i}", "A", "bc", "bc", "D", "bias"]
        scan = helper.make_node(
            "SelectiveScan", inputs, [f"u{i + 1}"], domain="mtmamba", name=f"scan{i}", delta_softplus=softplus
        )
        nodes.append(scan)
    nodes.append(helper.make_node("Relu", [f"u{scans}"], ["y"]))
    value = helper.make_tensor_value_info
    image, y = value("image", TensorProto.FLOAT, [B, D, length]), value("y", TensorProto.FLOAT, [B, D, L])
    return finished(helper.make_graph(nodes, "scans", [image], [y], weights), body, metadata)


def slow_model(layers: int = 300) -> onnx.ModelProto:
    """Takes TensorRT a few seconds: convolutions with a softmax after each."""
    rng = np.random.default_rng(0)
    nodes, weights, last = [], [], "image"
    for i in range(layers):
        weights.append(numpy_helper.from_array(rng.normal(size=(64, 64, 3, 3)).astype(np.float32), f"w{i}"))
        nodes.append(helper.make_node("Conv", [last, f"w{i}"], [f"c{i}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Softmax", [f"c{i}"], [f"s{i}"], axis=1 + i % 2))
        last = f"s{i}"
    value = helper.make_tensor_value_info
    shape = [1, 64, 56, 56]
    image, y = value("image", TensorProto.FLOAT, shape), value(last, TensorProto.FLOAT, shape)
    return finished(helper.make_graph(nodes, "slow", [image], [y], weights), body=False, metadata=True)


def finished(graph: onnx.GraphProto, body: bool, metadata: bool) -> onnx.ModelProto:
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("mtmamba", 1)]
    model = helper.make_model(graph, functions=[stand_in_body()] if body else [], ir_version=10, opset_imports=opsets)
    if metadata:
        config = preset("synthetic", "nano")
        write_metadata(model, ModelMetadata(config=config, input_size=(64, 96), batch=1, versions={}))
    return model


@pytest.fixture
def make_model() -> Callable[..., onnx.ModelProto]:
    """make_model(scans=2, softplus=1, states=16, body=True, metadata=True, length=64)."""
    return scan_model


@pytest.fixture
def make_slow_model() -> Callable[..., onnx.ModelProto]:
    return slow_model


@pytest.fixture
def scan_onnx(tmp_path: Path) -> Path:
    """best.onnx in a folder of its own: two SelectiveScan nodes, their body, our metadata."""
    path = tmp_path / "best.onnx"
    onnx.save(scan_model(), str(path))
    return path
