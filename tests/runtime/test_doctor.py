"""mtm-doctor: it reports, whatever is missing, and never fails."""

import json
import sys

import pytest
from click.testing import CliRunner

from mtmamba.errors import MtmError
from mtmamba.runtime import doctor, gpu, toolchain, trt
from mtmamba.runtime.doctor import Finding
from mtmamba.runtime.doctor_cli import main, render


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with Python and OpenCV and nothing else."""

    def missing(*arguments: object) -> None:
        raise MtmError("found none; install it")

    monkeypatch.setattr(gpu, "find_gpus", list)
    monkeypatch.setattr(gpu, "cuda_of_driver", lambda: None)
    monkeypatch.setattr(gpu, "driver_release", lambda: None)
    for module, name in ((toolchain, "find_nvcc"), (toolchain, "headers_dir"), (trt, "resolve")):
        monkeypatch.setattr(module, name, missing)
    for name in ("cached_library", "build_cpu_library"):
        monkeypatch.setattr(doctor, name, missing)
    monkeypatch.setattr(doctor, "_run", lambda arguments: None)
    monkeypatch.setattr(doctor, "_version", lambda *names: None)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch takes seconds to import: say what it would."""
    run = doctor._run
    monkeypatch.setattr(doctor, "_run", lambda args: "2.9.0, CPU" if "-c" in args else run(args))


NAMES = {
    "Python", "NVIDIA GPU", "NVIDIA driver", "CUDA toolkit", "C++ compiler", "CMake", "TensorRT", "TensorRT for RTX",
    "TensorRT headers", "plugin library", "ONNX Runtime", "cuda-bindings", "PyTorch", "timm", "mamba-ssm", "CPU scan library",
    "video writing", "H.264", "window",
}  # fmt: skip


@pytest.mark.usefixtures("bare")
def test_a_bare_machine_is_told_what_each_thing_costs_and_how_to_get_it() -> None:
    result = CliRunner().invoke(main, ["--json"], catch_exceptions=False)
    assert result.exit_code == 0
    findings = {finding["name"]: finding for finding in json.loads(result.stdout)["findings"]}
    assert set(findings) == NAMES
    missing = {name for name, finding in findings.items() if not finding["ok"]}
    assert missing >= NAMES - {"Python", "video writing", "H.264"}
    for name in missing:
        assert findings[name]["cost"] and findings[name]["cure"], name
    assert findings["ONNX Runtime"]["cure"].startswith("pip install 'mtmamba[cpu]'")


@pytest.mark.usefixtures("quick")
def test_what_is_here_is_found() -> None:
    findings = {finding.name: finding for finding in doctor.examine()}
    assert set(findings) == NAMES
    import onnxruntime

    assert findings["ONNX Runtime"].found.startswith(onnxruntime.__version__)
    assert "CPU" in findings["ONNX Runtime"].found
    assert findings["Python"].found == sys.version.split()[0]
    assert findings["PyTorch"].found == "2.9.0, CPU"
    assert findings["video writing"].found in ("libx264", "mpeg4")
    assert findings["NVIDIA GPU"].ok == bool(gpu.find_gpus())


def test_a_gpu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    card = gpu.Gpu(index=0, name="NVIDIA L4", compute_capability=(8, 9), memory_mib=23034)
    monkeypatch.setattr(gpu, "find_gpus", lambda: [card])
    monkeypatch.setattr(gpu, "cuda_of_driver", lambda: (13, 0))
    monkeypatch.setattr(gpu, "driver_release", lambda: "580.65.06")
    found = [finding.found for finding in doctor.check_gpu()]
    assert found == ["NVIDIA L4, sm_89, 22 GiB", "580.65.06, CUDA up to 13.0"]


@pytest.mark.parametrize("width", [60, 100, 200])
def test_the_table_says_all_in_any_width(width: int) -> None:
    findings = [
        Finding(name="Python", ok=True, found="3.12.1"),
        Finding(name="CMake", ok=False, found="not found", cost="no plugin [x]", cure="pip install cmake"),
    ]
    text = render(findings, width=width, colour=False)
    assert all(len(line.rstrip()) <= width for line in text.splitlines())
    for part in ("Python", "yes", "3.12.1", "CMake", "no plugin [x]", "-> pip install cmake", "1 found, 1 missing"):
        assert part in text
