"""SelectiveScan2D from an ONNX node to an engine: parsed as our plugin, in every type, by TensorRT for RTX with no GPU."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mtmamba.cache import CACHE_VARIABLE
from mtmamba.config import preset
from mtmamba.errors import MtmError
from mtmamba.metadata import ModelMetadata
from mtmamba.runtime.engine import BuildOptions, BuiltEngine, build_engine
from mtmamba.runtime.onnx_model import OnnxModel, count_ops
from mtmamba.runtime.plugin import PluginLibrary, load_plugins
from mtmamba.runtime.trt import TensorRT, resolve

pytestmark = pytest.mark.trt
SIZES = {"G": 2, "D": 32, "H": 6, "W": 8, "K": 4, "R": 3, "N": 16}


@pytest.fixture(scope="module", autouse=True)
def cache(repository: Path) -> Iterator[None]:
    """The tests' cache, not the user's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_VARIABLE, os.environ.get(CACHE_VARIABLE, str(repository / "build" / "tests-cache")))
        yield


@pytest.fixture(scope="module")
def rtx() -> TensorRT:
    try:
        return resolve("tensorrt-rtx")
    except MtmError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def plugins(rtx: TensorRT, build_tree: Path) -> PluginLibrary:
    return load_plugins(rtx, build_tree / "plugins" / "libmtmamba_plugins.so")


def model_of(kind: int, sizes: dict[str, int], features: int | None = None) -> onnx.ModelProto:
    """image [1, G, D, H, W] -> cast -> SelectiveScan2D -> cast -> y, x_dbl a constant of `kind`."""
    G, D, H, W, K, R, N = (sizes[symbol] for symbol in "GDHWKRN")
    rng = np.random.default_rng(0)
    shapes = {"dt_weight": (G, K, D, R), "dt_bias": (G, K, D), "A": (G, K, D, N), "D": (G, K, D)}
    weights = [numpy_helper.from_array(-abs(rng.normal(size=s)).astype(np.float32), k) for k, s in shapes.items()]
    dbl = rng.normal(size=(1, G, K, features or R + 2 * N, H, W)).astype(np.float32)
    weights.append(numpy_helper.from_array(dbl, "dbl_32"))
    nodes = [
        helper.make_node("Cast", ["image"], ["x"], to=kind),
        helper.make_node("Cast", ["dbl_32"], ["x_dbl"], to=kind),
        helper.make_node("SelectiveScan2D", ["x", "x_dbl", *shapes], ["scanned"], name="scan", domain="mtmamba"),
        helper.make_node("Cast", ["scanned"], ["y"], to=TensorProto.FLOAT),
    ]
    value = helper.make_tensor_value_info
    image, y = value("image", TensorProto.FLOAT, [1, G, D, H, W]), value("y", TensorProto.FLOAT, [1, G, H, W, D])
    graph = helper.make_graph(nodes, "map", [image], [y], weights)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("mtmamba", 1)]
    return helper.make_model(graph, ir_version=10, opset_imports=opsets)


def build(rtx: TensorRT, plugins: PluginLibrary, folder: Path, proto: onnx.ModelProto) -> BuiltEngine:
    path = folder / "map.onnx"
    onnx.save(proto, str(path))
    metadata = ModelMetadata(config=preset("synthetic", "nano"), input_size=(64, 96), batch=1, versions={})
    model = OnnxModel(path=path, proto=proto, metadata=metadata, op_counts=count_ops(proto))
    return build_engine(rtx, model, folder / "map.engine", BuildOptions(targets=("sm_89",)), plugins)


def test_library_has_both_plugins(plugins: PluginLibrary) -> None:
    assert plugins.ops == {"SelectiveScan", "SelectiveScan2D"}


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_engine(rtx: TensorRT, plugins: PluginLibrary, tmp_path: Path, kind: int) -> None:
    built = build(rtx, plugins, tmp_path, model_of(kind, SIZES))
    assert built.plugin_layers == 1
    assert built.engine.stat().st_size > 10_000


def test_wrong_shape_is_quoted(rtx: TensorRT, plugins: PluginLibrary, tmp_path: Path) -> None:
    with pytest.raises(MtmError, match=r"x_dbl \[B, G, K, R\+2N, H, W\], found .*R\+2N is 35 by the other tensors"):
        build(rtx, plugins, tmp_path, model_of(TensorProto.FLOAT, SIZES, features=36))


def test_wrong_directions_are_quoted(rtx: TensorRT, plugins: PluginLibrary, tmp_path: Path) -> None:
    with pytest.raises(MtmError, match="SelectiveScan2D: expected K = 4, found 3"):
        build(rtx, plugins, tmp_path, model_of(TensorProto.FLOAT, {**SIZES, "K": 3}))
