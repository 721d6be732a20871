"""mtm-build-engine as it is typed: exit status, sentences, files."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner, Result

from mtmamba.runtime import trt
from mtmamba.runtime.build_cli import main
from mtmamba.runtime.plugin import PluginLibrary
from mtmamba.runtime.trt import TensorRT

MakeModel = Callable[..., onnx.ModelProto]
TARGET = ("--target", "sm_89")
pytestmark = pytest.mark.trt


@pytest.fixture(autouse=True)
def folder(plugins: PluginLibrary, no_gpu: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, empty. The plugin library is there already."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def failed(result: Result, status: int = 1) -> str:
    """What a run that failed as it should said on stderr."""
    assert result.exit_code == status, result.output
    assert result.stdout in ("", "using best.onnx\n")
    assert "Traceback" not in result.stderr
    return result.stderr


def test_finds_the_only_model(scan_onnx: Path, folder: Path) -> None:
    result = run(*TARGET)
    assert result.exit_code == 0, result.stderr
    assert "using best.onnx" in result.stdout
    assert "2 of them mtmamba plugins: one for every operator of ours" in result.stdout
    assert result.stderr == ""
    assert names(folder) == ["best.fp32.engine", "best.fp32.engine.json", "best.onnx"]


def test_json(scan_onnx: Path, rtx: TensorRT, folder: Path) -> None:
    result = run("best.onnx", "--target", "sm_89, SM_120", "-o", "sub/x.engine", "--workspace", "32", "--json")
    answer = json.loads(result.stdout)
    assert answer["engine"] == "sub/x.engine"
    assert answer["sidecar"] == "sub/x.engine.json"
    assert answer["bytes"] == (folder / "sub" / "x.engine").stat().st_size
    assert (answer["plugin_layers"], answer["precision"]) == (2, "fp32")
    assert answer["compute_capabilities"] == ["8.9", "12.0"]
    assert (answer["flavour"], answer["tensorrt_version"]) == (rtx.flavour, rtx.version)
    assert Path(answer["plugin_library"]).is_file()
    assert answer["layers"] > 2 and answer["seconds"] > 0


def test_none_and_several_models(folder: Path, scan_onnx: Path) -> None:
    shutil.copy(scan_onnx, "other.onnx")
    assert "2 files could be the ONNX model" in failed(run(*TARGET))
    for name in ("best.onnx", "other.onnx"):
        (folder / name).unlink()
    assert "make one with mtm-export" in failed(run(*TARGET))


def test_no_gpu_and_no_target(scan_onnx: Path) -> None:
    assert "no GPU here to build for; name the GPU architecture the engine is for with --target" in failed(run())


def test_bad_options(scan_onnx: Path) -> None:
    assert "unknown --target 'sm_1'" in failed(run("--target", "sm_1"))
    assert "Invalid value for '--flavour'" in failed(run("--flavour", "lite"), status=2)
    assert "Invalid value for '--workspace'" in failed(run("--workspace", "0"), status=2)
    assert "No such option" in failed(run("--int4"), status=2)


def test_no_tensorrt(scan_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trt, "_import", lambda flavour: f"{trt.MODULES[flavour]} is not installed")
    assert "expected TensorRT, found none that works" in failed(run(*TARGET))


def test_bad_models(folder: Path, make_model: MakeModel) -> None:
    (folder / "bad.onnx").write_bytes(b"not a model at all")
    assert "bad.onnx: " in failed(run("bad.onnx", *TARGET))
    (folder / "empty.onnx").write_bytes(b"")
    assert "found an empty file" in failed(run("empty.onnx", *TARGET))
    assert "found nothing there" in failed(run("none.onnx", *TARGET))
    onnx.save(make_model(metadata=False), "foreign.onnx")
    assert "expected mtmamba metadata, found none" in failed(run("foreign.onnx", *TARGET))
    result = run("foreign.onnx", *TARGET, "--json")
    assert result.exit_code == 1
    assert "expected mtmamba metadata" in json.loads(result.stdout)["error"]


def test_bad_plugins(folder: Path, scan_onnx: Path) -> None:
    assert "expected a plugin library file, found nothing there" in failed(
        run(*TARGET, "--plugin", "none.so", "best.onnx")
    )
    (folder / "text.so").write_text("hello")
    assert "a file that cannot be loaded" in failed(run(*TARGET, "--plugin", "text.so", "best.onnx"))


def test_unwritable_output(scan_onnx: Path) -> None:
    assert "cannot write into" in failed(run("best.onnx", *TARGET, "-o", "best.onnx/x.engine"))


def test_interrupt_leaves_nothing(folder: Path, make_slow_model: MakeModel) -> None:
    onnx.save(make_slow_model(), "slow.onnx")
    code = "from mtmamba.runtime.build_cli import main; main()"
    command = [sys.executable, "-c", code, "slow.onnx", *TARGET]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not list(folder.glob(".*.part.engine")):  # the build is about to begin
        time.sleep(0.05)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    started = time.monotonic()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, (out, err)
    assert "interrupted" in err
    assert time.monotonic() - started < 20
    assert names(folder) == ["slow.onnx"]
