"""What is installed here, what is missing, what that costs, and how to get it. Nothing here fails: it reports."""

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

import cv2

from mtmamba.errors import MtmError
from mtmamba.native import CPU_SWITCH, build_cpu_library
from mtmamba.runtime import gpu, toolchain, trt
from mtmamba.runtime.plugin_build import cached_library
from mtmamba.runtime.video_out import encoder

_TIMEOUT_S = 60


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing looked for. found: what is there, for people. cost: what is not possible without it. cure: how to get
    it. The last two are "" where it is there."""

    name: str
    ok: bool
    found: str
    cost: str = ""
    cure: str = ""


def examine() -> list[Finding]:
    """Look for everything mtmamba can use; takes a few seconds, mostly PyTorch's import."""
    return [finding for check in CHECKS for finding in check()]


def _finding(name: str, found: str | None, cost: str, cure: str) -> Finding:
    if found:
        return Finding(name=name, ok=True, found=found)
    return Finding(name=name, ok=False, found="not found", cost=cost, cure=cure)


def check_python() -> list[Finding]:
    version = ".".join(str(part) for part in sys.version_info[:3])
    return [Finding(name="Python", ok=True, found=version)]  # an older one than 3.10 cannot even read this file


def check_gpu() -> list[Finding]:
    gpus = []
    for device in gpu.find_gpus():
        major, minor = device.compute_capability
        gpus.append(f"{device.name}, sm_{major}{minor}, {device.memory_mib / 1024:.0f} GiB")
    cuda, release = gpu.cuda_of_driver(), gpu.driver_release()
    driver = f"{release or 'release unknown'}, CUDA up to {cuda[0]}.{cuda[1]}" if cuda else None
    cost = "engines can be built (mtm-build-engine --target) but not run; mtm-run uses the CPU"
    install = "install NVIDIA's driver: https://www.nvidia.com/drivers"
    return [
        _finding("NVIDIA GPU", "; ".join(gpus), cost, "use a machine with an NVIDIA GPU"),
        _finding("NVIDIA driver", driver, "no GPU can be used", install),
    ]


def check_build_tools() -> list[Finding]:
    cost = "the TensorRT plugin library cannot be built here"
    compiler = next(filter(None, (_tool_version(name) for name in ("c++", "g++", "clang++"))), None)
    return [
        _attempt("CUDA toolkit", cost, lambda: _tool_version(str(toolchain.find_nvcc()), "release") or "nvcc"),
        _finding("C++ compiler", compiler, cost, "apt-get install g++"),
        _finding("CMake", _tool_version("cmake"), cost, "pip install cmake"),
    ]


def check_tensorrt() -> list[Finding]:
    names = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT for RTX"}
    cost = "no engines of this flavour (one of the two is enough)"
    return [
        *(_finding(names[flavour], _trt_version(flavour), cost, trt.INSTALL[flavour]) for flavour in trt.FLAVOURS),
        _attempt("TensorRT headers", "the TensorRT plugin library cannot be built here", _headers),
        check_plugin_library(),
    ]


def check_plugin_library() -> Finding:
    """Not built is no fault where it can be: the first engine builds it."""
    name = "plugin library"
    cost = "no engine can be built or run here"
    try:
        library = cached_library()
    except MtmError as error:
        return Finding(name=name, ok=False, found="not found", cost=cost, cure=str(error))
    if library is None:
        return Finding(name=name, ok=True, found="not built yet; mtm-build-engine builds it when it needs it")
    return Finding(name=name, ok=True, found=str(library))


def check_runtimes() -> list[Finding]:
    bindings = _version("cuda.bindings", "cuda-bindings")
    cost = "backend tensorrt cannot run"
    return [check_onnxruntime(), _finding("cuda-bindings", bindings, cost, "pip install cuda-bindings")]


def check_onnxruntime() -> Finding:
    cost, cure = "backend onnxruntime cannot run", "pip install 'mtmamba[cpu]' (or 'mtmamba[gpu]')"
    try:
        import onnxruntime
    except ImportError as error:
        return Finding(name="ONNX Runtime", ok=False, found=f"does not load ({error})", cost=cost, cure=cure)
    available = onnxruntime.get_available_providers()
    providers = [name for name in ("CUDA", "CPU") if f"{name}ExecutionProvider" in available]
    return Finding(name="ONNX Runtime", ok=True, found=f"{onnxruntime.__version__}, {' and '.join(providers)}")


def check_torch() -> list[Finding]:
    """PyTorch is imported in a process of its own: this one must not load it, and a broken one must not break it."""
    code = "import torch; print(torch.__version__, 'CUDA' if torch.cuda.is_available() else 'CPU', sep=', ')"
    cost = "no training, no export, no backend torch (running an exported model needs none)"
    return [
        _finding("PyTorch", _run([sys.executable, "-c", code]), cost, "pip install 'mtmamba[model]'"),
        _finding("timm", _version("timm", "timm"), "no training, no export", "pip install 'mtmamba[model]'"),
        _finding(
            "mamba-ssm",
            _version("mamba_ssm", "mamba-ssm"),
            "training uses mtmamba's own scan, which is slower on a GPU",
            "pip install 'mtmamba[mamba-ssm]' (needs CUDA)",
        ),
    ]


def check_cpu_library() -> list[Finding]:
    """The scans' C++ library for the CPU, built here if it is not there yet."""
    cost = "training and backend torch are several times slower on the CPU"
    if os.environ.get(CPU_SWITCH) == "0":
        return [_finding("CPU scan library", None, cost, f"unset {CPU_SWITCH}, which turns it off")]
    return [_attempt("CPU scan library", cost, lambda: str(build_cpu_library()))]


def check_video() -> list[Finding]:
    """Which encoder videos are written with, and whether OpenCV can open a window."""
    cure = "pip install av"
    try:
        found = encoder()
    except MtmError:
        found = ""
    h264 = f"PyAV {importlib.metadata.version('av')}, {found}" if found == "libx264" else None
    gui = next((line.split()[-1] for line in cv2.getBuildInformation().splitlines() if "GUI:" in line), "NONE")
    return [
        _finding("video writing", found, "mtm-run writes pictures only", cure),
        _finding("H.264", h264, "videos are MPEG-4: players show them, web browsers do not", cure),
        _finding(
            "window", None if gui == "NONE" else f"OpenCV {cv2.__version__}, {gui}", "mtm-run --show does not work",
            "pip uninstall opencv-python-headless, then pip install opencv-python",
        ),
    ]  # fmt: skip


CHECKS: tuple[Callable[[], list[Finding]], ...] = (
    check_python,
    check_gpu,
    check_build_tools,
    check_tensorrt,
    check_runtimes,
    check_torch,
    check_cpu_library,
    check_video,
)


def _attempt(name: str, cost: str, look: Callable[[], str]) -> Finding:
    """What `look` found; where it raises MtmError, its sentence is the cure."""
    try:
        return Finding(name=name, ok=True, found=look())
    except MtmError as error:
        return Finding(name=name, ok=False, found="not found", cost=cost, cure=str(error))


def _trt_version(flavour: str) -> str | None:
    try:
        return trt.resolve(flavour).version
    except MtmError:
        return None


def _headers() -> str:
    folder = toolchain.headers_dir()
    return f"{toolchain.headers_version(folder)} in {folder}"


def _tool_version(name: str, word: str = "") -> str | None:
    """The first line of `name --version` that has `word` in it; None where the tool is not there or does not run."""
    path = shutil.which(name)
    lines = (_run([path, "--version"]) or "").splitlines() if path else []
    return next((line.strip() for line in lines if word in line), None)


def _run(arguments: list[str]) -> str | None:
    """A program's output; None where it does not run, fails, or takes too long."""
    try:
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _version(module: str, *distributions: str) -> str | None:
    """The version of the first of `distributions` that is installed, if the module is there; nothing is imported."""
    try:
        if importlib.util.find_spec(module) is None:
            return None
    except ModuleNotFoundError:  # a parent package is missing
        return None
    for name in distributions:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "installed, version unknown"
