"""Every precision of a whole model, parsed and built by TensorRT for RTX with the plugins in it: the network's layers have
the types that were asked for, and one GPU too old is refused before anything is built."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from mtmamba.errors import MtmError
from mtmamba.files import sha256
from mtmamba.runtime import engine
from mtmamba.runtime.build_cli import main
from mtmamba.runtime.calibrate import calibrate
from mtmamba.runtime.engine import BuildOptions, BuiltEngine, build_engine
from mtmamba.runtime.onnx_model import OnnxModel, load_onnx
from mtmamba.runtime.plugin import PluginLibrary
from mtmamba.runtime.sidecar import read
from mtmamba.runtime.trt import TensorRT

pytestmark = pytest.mark.trt
HALF = {"fp16": "HALF", "bf16": "BF16", "int8": "HALF", "fp8": "HALF"}
Kinds = Counter[tuple[str, str, str]]


@pytest.fixture(scope="module")
def model(small_onnx: Path) -> OnnxModel:
    return load_onnx(small_onnx)


@pytest.fixture(scope="module")
def calibration(model: OnnxModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("calibration") / "calibration.json"
    image = np.random.default_rng(0).normal(size=(1, 3, 32, 32)).astype(np.float32)
    calibrate(model, [image], method="max").write(path)
    return path


@pytest.fixture
def kinds(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kinds]:
    """Filled while an engine is built: (layer type, type of its first input, type of its output) of the network."""
    found: Kinds = Counter()
    original: Callable[..., Any] = engine._build

    def build(trt: TensorRT, builder: Any, network: Any, *rest: Any) -> Any:
        for layer in map(network.get_layer, range(network.num_layers)):
            first = layer.get_input(0).dtype.name if layer.num_inputs else ""
            found[layer.type.name, first, layer.get_output(0).dtype.name] += 1
        return original(trt, builder, network, *rest)

    monkeypatch.setattr(engine, "_build", build)
    yield found


@pytest.mark.parametrize("precision", HALF)
def test_builds_in_every_precision(
    precision: str,
    rtx: TensorRT,
    plugins: PluginLibrary,
    model: OnnxModel,
    calibration: Path,
    kinds: Kinds,
    tmp_path: Path,
) -> None:
    quantised = precision in ("int8", "fp8")
    options = BuildOptions(precision=precision, targets=("sm_89",), calibration=calibration if quantised else None)
    built: BuiltEngine = build_engine(rtx, model, tmp_path / "x.engine", options, plugins)
    half = HALF[precision]
    assert kinds["PLUGIN_V3", half, half] == 9
    assert kinds["PLUGIN_V3", "FLOAT", "FLOAT"] == 0
    products = sum(count for kind, count in kinds.items() if kind[0] in ("MATRIX_MULTIPLY", "CONVOLUTION"))
    assert products == kinds["MATRIX_MULTIPLY", half, half] + kinds["CONVOLUTION", half, half] > 50
    assert kinds["NORMALIZATION", "FLOAT", "FLOAT"] > 20
    assert kinds["SOFTMAX", "FLOAT", "FLOAT"] == 4
    assert kinds["NORMALIZATION", half, half] == kinds["SOFTMAX", half, half] == 0
    low = precision.upper()
    assert bool(kinds["QUANTIZE", half, low]) == quantised
    report = read(built.engine).precision_plan
    assert (report["precision"], report["casts"] > 0) == (precision, True)
    if quantised:
        # Weights are quantised already: one QUANTIZE for each activation, one DEQUANTIZE for it and for each weight.
        assert kinds["QUANTIZE", half, low] <= report["quantised_nodes"]
        assert kinds["DEQUANTIZE", low, half] == kinds["QUANTIZE", half, low] + report["quantised_nodes"]
        assert report["quantised_nodes"] > 50
        assert "--calibration" in built.sidecar.rebuild_command(built.engine)
    assert built.engine.stat().st_size > 100_000


@pytest.mark.parametrize(("precision", "target"), [("fp8", "sm_86"), ("bf16", "sm_75")])
def test_old_gpus_are_refused(
    precision: str,
    target: str,
    rtx: TensorRT,
    plugins: PluginLibrary,
    model: OnnxModel,
    calibration: Path,
    tmp_path: Path,
) -> None:
    options = BuildOptions(precision=precision, targets=("sm_120", target), calibration=calibration)
    with pytest.raises(
        MtmError, match=rf"{precision} needs a GPU of compute capability 8\.\d or later, found [78]\.\d"
    ):
        build_engine(rtx, model, tmp_path / "x.engine", options, plugins)


def test_quantising_needs_this_models_calibration(
    rtx: TensorRT, plugins: PluginLibrary, model: OnnxModel, calibration: Path, tmp_path: Path
) -> None:
    with pytest.raises(MtmError, match="int8 needs a calibration of this model, found none; run mtm-calibrate"):
        BuildOptions(precision="int8")
    other = OnnxModel(**{**model.__dict__, "path": tmp_path / "other.onnx"})
    other.path.write_bytes(model.path.read_bytes() + b"\x00")
    options = BuildOptions(precision="int8", targets=("sm_89",), calibration=calibration)
    with pytest.raises(MtmError, match=r"expected a calibration of .*other\.onnx .*found one of small\.onnx"):
        build_engine(rtx, other, tmp_path / "x.engine", options, plugins)
    assert not (tmp_path / "x.engine").exists()


def test_command_finds_the_calibration(
    plugins: PluginLibrary,
    model: OnnxModel,
    calibration: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("small.onnx").write_bytes(model.path.read_bytes())
    run = CliRunner().invoke
    missing = run(main, ["--fp8", "--target", "sm_89"])
    assert missing.exit_code == 1
    assert "no calibration (*calibration.json)" in missing.stderr
    Path("old.calibration.json").write_text(calibration.read_text().replace(sha256(model.path), "0" * 64))
    foreign = run(main, ["--int8", "--target", "sm_89"])
    assert foreign.exit_code == 1
    assert "found one of small.onnx (000000000000); run mtm-calibrate" in foreign.stderr
    Path("this.calibration.json").write_bytes(calibration.read_bytes())
    monkeypatch.setattr("mtmamba.runtime.build_cli.build_engine", stopped)
    found = run(main, ["--fp16", "--target", "sm_89"])
    assert "passing over old.calibration.json" in found.stdout
    assert "using this.calibration.json" in found.stdout
    assert "stopped before building with this.calibration.json" in found.stderr
    assert "calibration" not in run(main, ["--fp32", "--target", "sm_89"]).stdout


def stopped(trt: TensorRT, model: OnnxModel, output: Path, options: BuildOptions, *rest: Any) -> BuiltEngine:
    raise MtmError(f"stopped before building with {options.calibration.name if options.calibration else 'none'}")
