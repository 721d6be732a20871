"""The import rules: what each folder may import, checked on the source of every file."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Folder -> what it must not import. One-way: mtmamba <- calib <- export <- runtime.
HEAVY = {"torch", "timm", "torchvision"}
FORBIDDEN = {
    "mtmamba": {
        "onnx",
        "onnxruntime",
        "onnxscript",
        "tensorrt",
        "tensorrt_rtx",
        "mtmamba.export",
        "mtmamba.runtime",
        "mtmamba.calib",
    },
    "calib": {"tensorrt", "tensorrt_rtx", "mtmamba.export", "mtmamba.runtime"},
    "export": {"onnxruntime", "tensorrt", "tensorrt_rtx", "mtmamba.runtime"},
    "runtime": HEAVY | {"onnxscript", "tensorrt", "tensorrt_rtx"},
}
ALLOWED = {  # the one file of each folder that is there to touch what the others must not
    "export/verify.py": {"onnxruntime"},
    "runtime/trt.py": {"tensorrt", "tensorrt_rtx"},
    "runtime/backends/torch_backend.py": {"torch", "timm"},
}


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_import_rules(folder):
    files = list((ROOT / folder).rglob("*.py"))
    assert files
    for path in files:
        allowed = ALLOWED.get(path.relative_to(ROOT).as_posix(), set())
        for name in imported(path):
            for forbidden in FORBIDDEN[folder] - allowed:
                assert name != forbidden and not name.startswith(forbidden + "."), f"{path} imports {name}"


def test_plugins_hold_no_python():
    assert not list((ROOT / "plugins").rglob("*.py"))


MODULES_WITHOUT_TORCH = (
    "mtmamba, mtmamba.calib.plan, mtmamba.data.labels, mtmamba.data_cli, mtmamba.export.metadata, "
    "mtmamba.export.picture_io, mtmamba.export.precision, mtmamba.info_cli, mtmamba.metadata, mtmamba.metrics, "
    "mtmamba.runtime.api, mtmamba.runtime.bench_cli, mtmamba.runtime.build_cli, "
    "mtmamba.runtime.cache_cli, mtmamba.runtime.calibrate_cli, mtmamba.runtime.doctor_cli, mtmamba.runtime.eval_cli, "
    "mtmamba.runtime.model_cache, mtmamba.runtime.parity_cli, mtmamba.runtime.report_cli, mtmamba.runtime.run_cli, "
    "mtmamba.runtime.sensitivity_cli, mtmamba.runtime.triton_cli, mtmamba.tasks, mtmamba.train_cli"
)


def test_deployment_needs_no_torch():
    """What runs where a model is deployed imports with torch made impossible to import."""
    code = f"import sys; sys.modules['torch'] = sys.modules['timm'] = None; import {MODULES_WITHOUT_TORCH}"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_package_import_is_light():
    code = "import mtmamba, sys; print([m for m in ('torch', 'numpy', 'onnx', 'cv2') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_files_are_short():
    long = {
        path.relative_to(ROOT).as_posix(): lines
        for folder in (*FORBIDDEN, "plugins", "tests", "benchmarks", "examples")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".cu", ".cuh", ".cpp", ".h") and (lines := len(path.read_text().splitlines())) > 400
    }
    assert long == {}
