"""The steps of the GPU check: what each runs, for how long at most, and why it cannot run where it cannot."""

import os
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "build" / "gpu-check"
TREE = WORK / "tree"
RESULTS = WORK / "results"
KERNELS = TREE / "plugins" / "tests" / "test_kernel_gpu"
LIBRARY = TREE / "plugins" / "libmtmamba_plugins.so"
HARNESS = WORK / "harness"


@dataclass(frozen=True, kw_only=True)
class Step:
    """command: run in the repository's root. missing: why it cannot run, "" where it can. result: the JSON file it writes."""

    name: str
    summary: str
    command: list[str]
    limit_s: int
    missing: Callable[[], str] = lambda: ""
    result: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What there is to test on. capability: such as "90", "" without a GPU. tensorrt: "" or why there is none."""

    gpu: str | None = None
    capability: str = ""
    driver: str = ""
    headers: str = ""
    headers_missing: str = ""
    tensorrt: str = ""
    tensorrt_missing: str = ""
    versions: dict[str, str] = field(default_factory=dict)


def make_steps(machine: Machine) -> list[Step]:
    python, results = sys.executable, RESULTS
    no_gpu = "" if machine.gpu else "no NVIDIA GPU"
    configure = ["cmake", "-S", ".", "-B", str(TREE), f"-DCMAKE_CUDA_ARCHITECTURES={machine.capability or 90}"]
    harness = ["nvcc", "-std=c++17", "-Iplugins", "-isystem", machine.headers, "plugins/harness/harness.cpp"]
    harness += ["plugins/harness/main.cpp", "-o", str(HARNESS), "-ldl"]
    build = together(configure, ["cmake", "--build", str(TREE), "--parallel"], harness)
    steps = [
        Step(
            name="build",
            summary="the plugin library and its C++ tests, for this GPU",
            command=build,
            limit_s=900,
            missing=lambda: need("cmake", "nvcc") or machine.headers_missing,
        ),
        Step(
            name="cpp",
            summary="the C++ tests that need no GPU, and the kernels against the float64 loop",
            command=["ctest", "--test-dir", str(TREE), "--output-on-failure", "--no-tests=error"],
            limit_s=600,
            missing=lambda: no_gpu or need("ctest"),
        ),
    ]
    for tool, extra in (
        ("memcheck", ["--leak-check", "full"]),
        ("racecheck", ["--racecheck-report", "all"]),
        ("initcheck", []),
        ("synccheck", []),
    ):
        sanitizer = ["compute-sanitizer", "--tool", tool, *extra, "--error-exitcode", "9"]
        steps.append(
            Step(
                name=tool,
                summary=f"every kernel, and both plugins in two contexts, under compute-sanitizer {tool}",
                command=together([*sanitizer, str(KERNELS)], [*sanitizer, str(HARNESS), str(LIBRARY)]),
                limit_s=600,
                missing=lambda: no_gpu or need("compute-sanitizer") or built(KERNELS) or built(HARNESS),
            )
        )
    tests = ["benchmarks/gpu_check_tests.py", "--ignore=tests/plugins/test_cpp.py"]  # these: the step cpp
    no_plugin = lambda: no_gpu or need("nvcc", "cmake") or machine.headers_missing  # noqa: E731
    return [
        *steps,
        Step(
            name="pytest",
            summary="pytest -m gpu: the plugins through the harness, PyTorch, engines where there is TensorRT",
            command=[python, *tests],
            limit_s=900,
            missing=lambda: no_plugin() or need_module("pytest"),
        ),
        Step(
            name="accuracy",
            summary="the plugins' largest errors over all cases",
            command=[python, "benchmarks/accuracy.py", "--only", "plugin", "--json", str(results / "accuracy.json")],
            limit_s=600,
            missing=no_plugin,
            result=results / "accuracy.json",
        ),
        Step(
            name="scan",
            summary="the scan's time, bytes and exps beside mamba_ssm, plain PyTorch and a copy",
            command=[python, "benchmarks/scan.py", "--device", "cuda", "--json", str(results / "scan.json")],
            limit_s=600,
            missing=no_plugin,
            result=results / "scan.json",
        ),
        Step(
            name="model",
            summary="a Swin-T from PyTorch: eager and compiled, FP32 and FP16",
            command=[python, "benchmarks/gpu_check_model.py", "--json", str(results / "model.json")],
            limit_s=900,
            missing=lambda: no_gpu or need_module("torch") or need_module("timm"),
            result=results / "model.json",
        ),
        Step(
            name="engine",
            summary="the same model: ONNX, engine FP32 and FP16, parity with PyTorch by task, a video",
            command=[python, "benchmarks/gpu_check_model.py", "--engine", "--json", str(results / "engine.json")],
            limit_s=1200,
            missing=lambda: no_plugin() or machine.tensorrt_missing,
            result=results / "engine.json",
        ),
    ]


def together(*commands: list[str]) -> list[str]:
    """One after another, to the first that fails."""
    return ["bash", "-c", " && ".join(map(shlex.join, commands))]


def need(*programs: str) -> str:
    """Why a step that calls them cannot run, or "". CUDA's own folder is looked in too."""
    prepend_cuda()
    missing = [name for name in programs if shutil.which(name) is None]
    return f"no {', '.join(missing)} on the PATH" if missing else ""


def prepend_cuda() -> None:
    folder = "/usr/local/cuda/bin"
    if Path(folder).is_dir() and folder not in os.environ["PATH"].split(os.pathsep):
        os.environ["PATH"] += os.pathsep + folder


def need_module(name: str) -> str:
    return "" if find_spec(name) else f"no Python package {name}"


def built(path: Path) -> str:
    return "" if path.is_file() else f"{path.name} was not built"
