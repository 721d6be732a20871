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
MAMBA = WORK / "mamba"
ENCODERS = ("swin-tiny", "swin-large")


@dataclass(frozen=True, kw_only=True)
class Step:
    """command: run in the repository's root. missing: why it cannot run, "" where it can. result: the JSON file it writes.
    alone: it measures time, or others need it; the rest run side by side."""

    name: str
    summary: str
    command: list[str]
    limit_s: int
    missing: Callable[[], str] = lambda: ""
    result: Path | None = None
    alone: bool = False


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What there is to test on. capability: such as "90", "" without a GPU. tensorrt: "" or why there is none. mamba: the
    unpacked source package of mamba_ssm."""

    gpu: str | None = None
    capability: str = ""
    driver: str = ""
    headers: str = ""
    headers_missing: str = ""
    tensorrt: str = ""
    tensorrt_missing: str = ""
    mamba: str = ""
    versions: dict[str, str] = field(default_factory=dict)


def make_steps(machine: Machine) -> list[Step]:
    """In the order they run: what others need, what is right (while mamba_ssm compiles), then times."""
    return [*_builds(machine), *_checks(machine), *_times(machine)]


def _no_gpu(machine: Machine) -> str:
    return "" if machine.gpu else "no NVIDIA GPU"


def _no_plugin(machine: Machine) -> str:
    return _no_gpu(machine) or need("nvcc", "cmake") or machine.headers_missing


def _builds(machine: Machine) -> list[Step]:
    configure = ["cmake", "-S", ".", "-B", str(TREE), f"-DCMAKE_CUDA_ARCHITECTURES={machine.capability or 90}"]
    harness = ["nvcc", "-std=c++17", "-Iplugins", "-isystem", machine.headers, "plugins/harness/harness.cpp"]
    harness += ["plugins/harness/main.cpp", "-o", str(HARNESS), "-ldl"]
    return [
        Step(
            name="build",
            summary="the plugin library and its C++ tests, for this GPU",
            command=together(configure, ["cmake", "--build", str(TREE), "--parallel"], harness),
            limit_s=900,
            missing=lambda: need("cmake", "nvcc") or machine.headers_missing,
            alone=True,
        ),
        Step(
            name="mamba",
            summary="mamba_ssm's CUDA scan from its source package, to compare with",
            command=[sys.executable, "benchmarks/gpu_check_mamba.py", machine.mamba],
            limit_s=900,
            missing=lambda: _no_gpu(machine) or need("nvcc") or ("" if machine.mamba else "no --mamba"),
        ),
    ]


def _times(machine: Machine) -> list[Step]:
    def timed(name: str, summary: str, *command: str, missing: Callable[[], str], limit_s: int = 600) -> Step:
        result = RESULTS / f"{name}.json"
        full = [sys.executable, *command, "--json", str(result)]
        return Step(
            name=name, summary=summary, command=full, limit_s=limit_s, missing=missing, result=result, alone=True
        )

    no_plugin = lambda: _no_plugin(machine)  # noqa: E731
    no_torch = lambda: _no_gpu(machine) or need_module("torch") or need_module("timm")  # noqa: E731
    no_engine = lambda: _no_plugin(machine) or machine.tensorrt_missing  # noqa: E731
    model = "benchmarks/gpu_check_model.py"

    def compiled(name: str, summary: str) -> Step:
        program, result = WORK / name, RESULTS / f"{name}.json"
        compiler = ["nvcc", "-std=c++17", "-O3", f"-arch=sm_{machine.capability or 90}", "-Iplugins"]
        make = shlex.join([*compiler, f"benchmarks/{name}.cu", "-o", str(program)])
        return Step(
            name=name,
            summary=summary,
            command=["bash", "-c", f"{make} && {program} > {result}"],
            limit_s=300,
            missing=lambda: _no_gpu(machine) or need("nvcc"),
            result=result,
            alone=True,
        )

    return [
        timed(
            "scan",
            "the scan's time, bytes and exps beside mamba_ssm, plain PyTorch and a copy",
            *("benchmarks/scan.py", "--device", "cuda"),
            missing=no_plugin,
        ),
        timed(
            "counters",
            "the scan kernel's stalls, pipes and traffic, from Nsight Compute",
            "benchmarks/gpu_check_counters.py",
            missing=lambda: _no_plugin(machine) or need("ncu"),
        ),
        compiled("pipes", "what exponentials, multiply-adds and the tensor cores' products take beside each other"),
        compiled("plans", "every plan of the two-dimensional scan at every size: what mapPlan follows"),
        timed(
            "pipeline",
            "mtm-run's pipeline against its slowest stage alone, on this machine's cores",
            "benchmarks/pipeline.py",
            missing=lambda: need_module("av") or need_module("rich"),
        ),
        timed(
            "video",
            "mtm-run's pipeline on a video, PyTorch's kernels in the engine's place",
            "benchmarks/gpu_check_video.py",
            missing=lambda: no_torch() or need_module("av") or need_module("rich") or need_module("cuda.bindings"),
        ),
        *(
            timed(
                f"model-{encoder}",
                f"a {encoder} in PyTorch: with mamba_ssm's scan, eager, compiled, as a CUDA graph",
                *(model, "--encoder", encoder),
                missing=no_torch,
                limit_s=900,
            )
            for encoder in ENCODERS
        ),
        *(
            timed(
                f"engine-{encoder}",
                f"a {encoder}: ONNX, engines in FP32 and FP16, parity with PyTorch by task, a video",
                *(model, "--engine", "--encoder", encoder),
                missing=no_engine,
                limit_s=1200,
            )
            for encoder in ENCODERS
        ),
        timed(
            "train",
            "training steps beside mamba_ssm's scan; mtm-train on rendered rooms, mtm-eval of what it learned",
            "benchmarks/gpu_check_train.py",
            missing=lambda: no_torch() or need_module("lightning_fabric"),
            limit_s=1200,
        ),
    ]


def _checks(machine: Machine) -> list[Step]:
    steps = [
        Step(
            name="cpp",
            summary="the C++ tests that need no GPU, and the kernels against the float64 loop",
            command=["ctest", "--test-dir", str(TREE), "--output-on-failure", "--no-tests=error"],
            limit_s=600,
            missing=lambda: _no_gpu(machine) or need("ctest"),
        )
    ]
    for tool, extra, cases in (
        ("memcheck", ["--leak-check", "full"], []),
        ("racecheck", ["--racecheck-report", "all"], ["few"]),  # all of them would take an hour
        ("initcheck", [], []),
        ("synccheck", [], []),
    ):
        sanitizer = ["compute-sanitizer", "--tool", tool, *extra, "--error-exitcode", "9"]
        steps.append(
            Step(
                name=tool,
                summary=f"every kernel, and both plugins in two contexts, under compute-sanitizer {tool}",
                command=together([*sanitizer, str(KERNELS), *cases], [*sanitizer, str(HARNESS), str(LIBRARY)]),
                limit_s=600,
                missing=lambda: _no_gpu(machine) or need("compute-sanitizer") or built(KERNELS) or built(HARNESS),
            )
        )
    tests = ["benchmarks/gpu_check_tests.py", "--ignore=tests/plugins/test_cpp.py"]  # these: the step cpp
    accuracy = RESULTS / "accuracy.json"
    return [
        *steps,
        Step(
            name="pytest",
            summary="pytest -m gpu: the plugins through the harness, PyTorch, engines where there is TensorRT",
            command=[sys.executable, *tests],
            limit_s=900,
            missing=lambda: _no_plugin(machine) or need_module("pytest"),
        ),
        Step(
            name="accuracy",
            summary="the plugins' largest errors over all cases",
            command=[sys.executable, "benchmarks/accuracy.py", "--only", "plugin", "--json", str(accuracy)],
            limit_s=600,
            missing=lambda: _no_plugin(machine),
            result=accuracy,
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
    try:
        found = find_spec(name) is not None
    except ModuleNotFoundError:  # the package that it is in
        found = False
    return "" if found else f"no Python package {name}"


def built(path: Path) -> str:
    return "" if path.is_file() else f"{path.name} was not built"
