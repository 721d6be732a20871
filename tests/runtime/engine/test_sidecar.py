"""The sidecar: round trip, and what is said where it does not fit."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mtmamba.config import preset
from mtmamba.errors import MtmError
from mtmamba.files import sha256
from mtmamba.metadata import ModelMetadata
from mtmamba.runtime import sidecar
from mtmamba.runtime.sidecar import Sidecar, sidecar_path

HERE = {"flavour": "tensorrt-rtx", "tensorrt_version": "1.7.1", "plugin_hash": "a" * 64, "compute_capability": "8.9"}


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """best.fp16.engine and its sidecar, in the working folder."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "best.fp16.engine"
    path.write_bytes(b"engine")
    sidecar_path(path).write_text(made(path).to_json())
    return path


def made(path: Path) -> Sidecar:
    metadata = ModelMetadata(config=preset("nyudv2", "nano"), input_size=(448, 576), batch=2, versions={"onnx": "1"})
    return Sidecar(
        flavour="tensorrt-rtx",
        tensorrt_version="1.7.1",
        compute_capabilities=("8.9", "12.0"),
        plugin_hash="a" * 64,
        plugin_ops=("SelectiveScan",),
        onnx_path="best.onnx",
        onnx_sha256="b" * 64,
        engine_sha256=sha256(path),
        engine_bytes=6,
        precision="fp16",
        precision_plan={"kept": ["norm"]},
        metadata=metadata,
        options=("--flavour", "tensorrt-rtx", "--target", "sm_89,sm_120"),
    )


def test_round_trip(engine: Path) -> None:
    assert sidecar.read(engine) == made(engine)
    assert json.loads(sidecar_path(engine).read_text())["format"] == sidecar.FORMAT


def test_all_agrees(engine: Path) -> None:
    assert sidecar.check(engine, **HERE) == made(engine)
    unknown = {"plugin_hash": None, "compute_capability": None}
    assert sidecar.check(engine, **{**HERE, **unknown}) == made(engine)


REBUILD = (
    "Rebuild it: mtm-build-engine best.onnx --fp16 --output best.fp16.engine --flavour tensorrt-rtx "
    "--target sm_89,sm_120"
)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"tensorrt_version": "1.8.0"}, "it was built by tensorrt-rtx 1.7.1, and 1.8.0 is installed"),
        ({"flavour": "tensorrt"}, "it was built by tensorrt-rtx 1.7.1, and this is tensorrt 1.7.1"),
        ({"plugin_hash": "c" * 64}, "it was built with plugins aaaaaaaaaaaa, and these are cccccccccccc"),
        ({"compute_capability": "9.0"}, "for GPUs of compute capability 8.9, 12.0, and this one has 9.0"),
    ],
)
def test_mismatch(engine: Path, change: dict[str, str], sentence: str) -> None:
    with pytest.raises(MtmError) as caught:
        sidecar.check(engine, **{**HERE, **change})
    assert sentence in str(caught.value)
    assert str(caught.value).endswith(REBUILD)


def test_several_mismatches_are_all_told(engine: Path) -> None:
    with pytest.raises(MtmError, match=r"1\.8\.0 is installed; it was built with plugins .*; it was built for GPUs"):
        sidecar.check(engine, **{**HERE, "tensorrt_version": "1.8.0", "plugin_hash": "c", "compute_capability": "9.0"})


def test_engine_of_another_build(engine: Path) -> None:
    engine.write_bytes(b"other!")
    with pytest.raises(MtmError, match="its bytes are not those its sidecar was written for"):
        sidecar.check(engine, **HERE)


def test_engine_without_plugins(engine: Path) -> None:
    sidecar_path(engine).write_text(replace(made(engine), plugin_hash="", plugin_ops=()).to_json())
    sidecar.check(engine, **HERE)


def test_missing_files(engine: Path) -> None:
    sidecar_path(engine).unlink()
    with pytest.raises(MtmError, match=r"expected its sidecar best\.fp16\.engine\.json beside it, found none"):
        sidecar.check(engine, **HERE)
    engine.unlink()
    with pytest.raises(MtmError, match="expected a TensorRT engine file, found nothing there"):
        sidecar.check(engine, **HERE)


def test_other_format(engine: Path) -> None:
    values = json.loads(sidecar_path(engine).read_text())
    sidecar_path(engine).write_text(json.dumps({**values, "format": 99}))
    with pytest.raises(MtmError, match="sidecar of format 2, found 99; build the engine again with mtm-build-engine"):
        sidecar.read(engine)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"format": 1}'])
def test_not_a_sidecar(engine: Path, text: str) -> None:
    sidecar_path(engine).write_text(text)
    with pytest.raises(MtmError, match=r"best\.fp16\.engine\.json"):
        sidecar.read(engine)


def test_incomplete(engine: Path) -> None:
    values = json.loads(sidecar_path(engine).read_text())
    del values["engine_sha256"]
    sidecar_path(engine).write_text(json.dumps(values))
    with pytest.raises(MtmError, match="incomplete engine sidecar.*engine_sha256"):
        sidecar.read(engine)


def test_rebuild_command_elsewhere(engine: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "other place").mkdir()
    monkeypatch.chdir(tmp_path / "other place")
    command = made(engine).rebuild_command(Path("..") / engine.name)
    assert f"mtm-build-engine {tmp_path}/best.onnx --fp16" in command


@pytest.mark.parametrize(
    ("built", "here", "compatible", "loads"),
    [
        ("10.8.0", "10.14.1", True, True),
        ("10.8.0", "10.8.0", False, True),
        ("10.8.0", "10.14.1", False, False),
        ("10.14.1", "10.8.0", True, False),  # forward alone
        ("10.8.0", "11.1.0", True, False),
    ],
)
def test_a_version_compatible_engine(engine: Path, built: str, here: str, compatible: bool, loads: bool) -> None:
    made_so = replace(made(engine), tensorrt_version=built, version_compatible=compatible)
    sidecar_path(engine).write_text(made_so.to_json())
    if loads:
        assert sidecar.check(engine, **{**HERE, "tensorrt_version": here}).carries_code is compatible
    else:
        with pytest.raises(MtmError, match=f"built by tensorrt-rtx {built}, and {here} is installed"):
            sidecar.check(engine, **{**HERE, "tensorrt_version": here})
