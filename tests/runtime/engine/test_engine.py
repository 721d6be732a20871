"""Engines really built by TensorRT for RTX with the real plugin library, on a machine that needs no GPU."""

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import onnx
import pytest

from mtmamba.errors import MtmError
from mtmamba.files import sha256
from mtmamba.runtime import engine, gpu, onnx_model, sidecar
from mtmamba.runtime.build_progress import PhaseTree
from mtmamba.runtime.engine import BuildOptions, BuiltEngine, build_engine, compute_capabilities_for
from mtmamba.runtime.onnx_model import load_onnx
from mtmamba.runtime.plugin import PluginLibrary
from mtmamba.runtime.trt import Messages, TensorRT

MakeModel = Callable[..., onnx.ModelProto]
SM89 = BuildOptions(targets=("sm_89",))
trt_needed = pytest.mark.trt


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def weights_of(model: onnx.ModelProto) -> dict[str, list[float]]:
    return {tensor.name: onnx.numpy_helper.to_array(tensor).tolist() for tensor in model.graph.initializer}


def build(rtx: TensorRT, plugins: PluginLibrary | None, path: Path, options: BuildOptions = SM89) -> BuiltEngine:
    return build_engine(rtx, load_onnx(path), path.with_name("made.engine"), options, plugins)


@trt_needed
@pytest.mark.parametrize("scans", [1, 5])
def test_every_operator_becomes_a_plugin_layer(
    rtx: TensorRT, plugins: PluginLibrary, tmp_path: Path, make_model: MakeModel, scans: int
) -> None:
    path = tmp_path / "best.onnx"
    onnx.save(make_model(scans=scans), str(path))
    before = sha256(path)
    built = build(rtx, plugins, path)
    assert built.plugin_layers == scans
    assert built.layers > scans
    assert built.engine.stat().st_size == built.sidecar.engine_bytes > 10_000
    assert sha256(path) == before, "the file keeps its function bodies"
    assert names(tmp_path) == ["best.onnx", "made.engine", "made.engine.json"]


@trt_needed
def test_without_a_body_in_the_file(
    rtx: TensorRT, plugins: PluginLibrary, tmp_path: Path, make_model: MakeModel
) -> None:
    onnx.save(make_model(body=False), str(tmp_path / "best.onnx"))
    assert build(rtx, plugins, tmp_path / "best.onnx").plugin_layers == 2


@trt_needed
def test_imported_body_is_an_error(
    rtx: TensorRT, plugins: PluginLibrary, scan_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def keep_bodies(model: onnx.ModelProto, ops: frozenset[str]) -> Iterator[None]:
        yield

    monkeypatch.setattr(onnx_model, "without_bodies", keep_bodies)
    with pytest.raises(MtmError, match="expected 2 plugin layers in the network, found 0.*function body instead"):
        build(rtx, plugins, scan_onnx)
    assert names(scan_onnx.parent) == ["best.onnx"]


@trt_needed
def test_sidecar_says_what_was_built(rtx: TensorRT, plugins: PluginLibrary, scan_onnx: Path) -> None:
    options = BuildOptions(targets=("sm_89", "sm_120", "sm_89"), workspace_mib=64)
    built = build(rtx, plugins, scan_onnx, options)
    read = sidecar.check(
        built.engine,
        flavour=rtx.flavour,
        tensorrt_version=rtx.version,
        plugin_hash=plugins.hash,
        compute_capability="12.0",
    )
    assert read == built.sidecar
    assert read.compute_capabilities == ("8.9", "12.0")
    assert read.plugin_ops == ("SelectiveScan",)
    assert (read.onnx_path, read.onnx_sha256) == ("best.onnx", sha256(scan_onnx))
    assert read.engine_sha256 == sha256(built.engine)
    assert read.metadata == load_onnx(scan_onnx).metadata
    assert "--target sm_89,sm_120,sm_89 --workspace 64" in read.rebuild_command(built.engine)


@trt_needed
def test_two_targets_make_a_larger_engine(rtx: TensorRT, plugins: PluginLibrary, scan_onnx: Path) -> None:
    one = build(rtx, plugins, scan_onnx).sidecar.engine_bytes
    two = build(rtx, plugins, scan_onnx, BuildOptions(targets=("sm_89", "sm_120"))).sidecar.engine_bytes
    assert two > one


@trt_needed
def test_model_without_our_operators(rtx: TensorRT, tmp_path: Path, make_model: MakeModel) -> None:
    onnx.save(make_model(scans=0), str(tmp_path / "plain.onnx"))
    built = build(rtx, None, tmp_path / "plain.onnx")
    assert (built.plugin_layers, built.sidecar.plugin_hash) == (0, "")


@trt_needed
def test_operator_without_a_plugin(rtx: TensorRT, plugins: PluginLibrary, scan_onnx: Path) -> None:
    for library in (None, PluginLibrary(path=plugins.path, hash="", ops=frozenset({"Other"}))):
        with pytest.raises(MtmError, match=r"needs plugins for SelectiveScan, found .*leave --plugin away"):
            build(rtx, library, scan_onnx)


@trt_needed
def test_weights_past_one_message(
    rtx: TensorRT, plugins: PluginLibrary, scan_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inline = build(rtx, plugins, scan_onnx).sidecar.engine_bytes
    monkeypatch.setattr(onnx_model, "INLINE_LIMIT", 100)
    model = load_onnx(scan_onnx)
    before = weights_of(model.proto)
    assert before
    large = build_engine(rtx, model, scan_onnx.with_name("made.engine"), SM89, plugins)
    assert large.plugin_layers == 2
    assert abs(large.sidecar.engine_bytes - inline) < inline // 10
    assert weights_of(model.proto) == before, "the weights are back in the model"


@trt_needed
def test_no_room_for_large_weights(
    rtx: TensorRT, plugins: PluginLibrary, scan_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_model, "INLINE_LIMIT", 100)
    monkeypatch.setattr(tempfile, "tempdir", str(scan_onnx))  # no folder
    with pytest.raises(MtmError, match="no room for a copy of the model's weights.*TMPDIR"):
        build(rtx, plugins, scan_onnx)


@trt_needed
def test_external_data(rtx: TensorRT, plugins: PluginLibrary, tmp_path: Path, make_model: MakeModel) -> None:
    path = tmp_path / "best.onnx"
    onnx.save(make_model(), str(path), save_as_external_data=True, location="best.bin", size_threshold=0)
    assert build(rtx, plugins, path).plugin_layers == 2


@trt_needed
def test_bad_attribute_is_quoted(rtx: TensorRT, plugins: PluginLibrary, tmp_path: Path, make_model: MakeModel) -> None:
    onnx.save(make_model(softplus=2), str(tmp_path / "best.onnx"))
    with pytest.raises(MtmError, match=r"cannot parse it: .*node scan0, SelectiveScan.*to be 0 or 1, found 2"):
        build(rtx, plugins, tmp_path / "best.onnx")


@trt_needed
def test_bad_shape_is_quoted(rtx: TensorRT, plugins: PluginLibrary, tmp_path: Path, make_model: MakeModel) -> None:
    onnx.save(make_model(states=15), str(tmp_path / "best.onnx"))
    with pytest.raises(MtmError, match=r"could not build the engine: .*N is 15 in the tensors before it"):
        build(rtx, plugins, tmp_path / "best.onnx")
    assert names(tmp_path) == ["best.onnx"]


@trt_needed
def test_unknown_operator_is_quoted(
    rtx: TensorRT, plugins: PluginLibrary, tmp_path: Path, make_model: MakeModel
) -> None:
    model = make_model()
    model.graph.node[-1].op_type, model.graph.node[-1].domain = "Mystery", "theirs"
    model.opset_import.append(onnx.helper.make_opsetid("theirs", 1))
    onnx.save(model, str(tmp_path / "best.onnx"))
    with pytest.raises(MtmError, match=r"cannot parse it: .*Mystery"):
        build(rtx, plugins, tmp_path / "best.onnx")


@trt_needed
def test_unwritable_output(rtx: TensorRT, plugins: PluginLibrary, scan_onnx: Path) -> None:
    model = load_onnx(scan_onnx)
    with pytest.raises(MtmError, match="cannot write into .*--output"):
        build_engine(rtx, model, scan_onnx / "made.engine", SM89, plugins)  # a file where a folder should be


@trt_needed
def test_old_engine_survives_a_failure(
    rtx: TensorRT, plugins: PluginLibrary, scan_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = build(rtx, plugins, scan_onnx)
    before = built.engine.read_bytes(), built.sidecar_path.read_bytes()

    def fail(*args: object) -> None:
        raise MtmError("no luck")

    monkeypatch.setattr(engine, "_make_sidecar", fail)
    with pytest.raises(MtmError, match="no luck"):
        build(rtx, plugins, scan_onnx)
    assert (built.engine.read_bytes(), built.sidecar_path.read_bytes()) == before
    assert len(names(scan_onnx.parent)) == 3


@trt_needed
def test_fp16(rtx: TensorRT, plugins: PluginLibrary, scan_onnx: Path) -> None:
    """The plugin in FP16, its A, D and delta_bias in FP32."""
    built = build(rtx, plugins, scan_onnx, BuildOptions(precision="fp16", targets=("sm_89",)))
    assert built.plugin_layers == 2
    assert built.sidecar.precision_plan["low_nodes"] > 0


@trt_needed
def test_fp16_plan_travels(
    rtx: TensorRT, plugins: PluginLibrary, scan_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rewriting itself has tests of its own; here it adds a node, which must be in the engine."""

    def to_precision(
        model: onnx.ModelProto, precision: str, calibration: Any
    ) -> tuple[onnx.ModelProto, dict[str, Any]]:
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        copy.graph.node[-1].output[0] = "before"
        copy.graph.node.append(onnx.helper.make_node("Exp", ["before"], ["y"]))
        return copy, {"kept_fp32": ["scan0"]}

    fake = ModuleType("mtmamba.export.precision")
    fake.to_precision = to_precision  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mtmamba.export.precision", fake)
    fp32 = build(rtx, plugins, scan_onnx)
    fp16 = build(rtx, plugins, scan_onnx, BuildOptions(precision="fp16", targets=("sm_89",)))
    assert fp16.layers == fp32.layers + 1
    assert (fp16.sidecar.precision, fp16.sidecar.precision_plan) == ("fp16", {"kept_fp32": ["scan0"]})
    assert json.loads(fp16.sidecar_path.read_text())["precision_plan"] == {"kept_fp32": ["scan0"]}


@trt_needed
def test_progress_rises_to_one(rtx: TensorRT, plugins: PluginLibrary, scan_onnx: Path) -> None:
    seen: list[float] = []
    build_engine(
        rtx, load_onnx(scan_onnx), scan_onnx.with_name("x"), SM89, plugins, lambda done, phase: seen.append(done)
    )
    assert seen == sorted(seen)
    assert seen[-1] == 1
    assert len(set(seen)) > 10


def test_phases_within_phases() -> None:
    tree = PhaseTree()
    tree.start("all", None, 4)
    tree.step("all", 0)
    assert tree.fraction == 0.25
    tree.start("part", "all", 2)
    tree.step("part", 0)
    assert (tree.fraction, tree.innermost) == (0.375, "part")
    tree.finish("part")
    assert tree.fraction == 0.375, "never falls"
    tree.step("unknown", 7)
    tree.finish("all")
    assert (tree.fraction, tree.innermost) == (1.0, "")


def fake_trt(**members: object) -> TensorRT:
    """A flavour with nothing in it but its name; `members` are its compute capabilities, if it has any."""
    module = SimpleNamespace(__version__="10.9.0")
    if members:
        module.ComputeCapability = SimpleNamespace(__members__=members)
    flavour = "tensorrt-rtx" if members else "tensorrt"
    return TensorRT(flavour=flavour, module=module, logger=None, messages=Messages())


def test_targets_become_compute_capabilities(no_gpu: None) -> None:
    rtx = fake_trt(NONE=0, CURRENT=1, SM89=2, SM120=3)
    assert compute_capabilities_for(rtx, ("sm_120", "sm_89", "sm_120")) == ("12.0", "8.9")
    with pytest.raises(MtmError, match="unknown --target 'sm_90'; tensorrt-rtx 10.9.0 knows sm_89, sm_120"):
        compute_capabilities_for(rtx, ("sm_90",))
    with pytest.raises(MtmError, match=r"no GPU here to build for; .*--target \(sm_89, sm_120\)"):
        compute_capabilities_for(rtx, ())


def test_a_gpu_that_rtx_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    """As an H100 is none of TensorRT-RTX 1.7's (benchmarks/results)."""
    rtx = fake_trt(SM89=2, SM120=3)
    monkeypatch.setattr(gpu, "compute_capabilities", lambda: ("9.0", "8.9"))
    with pytest.raises(
        MtmError, match=r"runs on sm_89, sm_120, and the GPU here is of compute capability 9\.0; install"
    ):
        compute_capabilities_for(rtx, ())
    assert compute_capabilities_for(rtx, (), 1) == ("8.9",)
    assert compute_capabilities_for(fake_trt(), ()) == ("9.0",)


def test_full_tensorrt_builds_where_it_runs(no_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MtmError, match="--target needs TensorRT for RTX"):
        compute_capabilities_for(fake_trt(), ("sm_89",))
    with pytest.raises(MtmError, match="no GPU here, and tensorrt 10.9.0 builds only on the GPU"):
        compute_capabilities_for(fake_trt(), ())
    monkeypatch.setattr(gpu, "compute_capabilities", lambda: ("9.0", "8.9"))
    assert compute_capabilities_for(fake_trt(), ()) == ("9.0",)


def test_unknown_precision() -> None:
    with pytest.raises(MtmError, match="unknown precision 'int4'; known: fp32, fp16, bf16, int8, fp8"):
        BuildOptions(precision="int4")
