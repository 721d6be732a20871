"""The C++ and CUDA sources inside the package, and the libraries that PyTorch's operators call, built from them on first
need: libmtmamba_cpu.so, and libmtmamba_cuda.so for one kind of GPU. Needs no torch."""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

import mtmamba
from mtmamba.cache import cache_dir, work_dir
from mtmamba.errors import MtmError

CPU_LIBRARY = "libmtmamba_cpu.so"
CPU_SWITCH = "MTMAMBA_CPU_KERNEL"
"""Environment variable: "0" turns the CPU library off."""
CUDA_LIBRARY = "libmtmamba_cuda.so"
CUDA_SWITCH = "MTMAMBA_CUDA_KERNEL"
"""Environment variable: "0" turns the CUDA library off."""
CUDA_SOURCES = (
    "torch_cuda/forward.cu",
    "torch_cuda/backward.cu",
    "torch_cuda/backward_2d.cu",
    "selective_scan/launch.cu",
    "selective_scan_2d/launch.cu",
)
CUDA_FLAGS = (
    *("-std=c++17", "-O3", "-w", "-shared", "-cudart=static"),
    *("-Xcompiler=-fPIC,-fvisibility=hidden", "--threads=0"),
)
COMPILE_TIMEOUT_S = 300
# No -ffast-math: NaN and Inf must go through. Contraction to fused multiply-add is all that is allowed to change bits.
BASE_FLAGS = (
    *("-std=c++17", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"),
    *("-shared", "-fPIC", "-fvisibility=hidden", "-w"),
)
FLAG_CHOICES = (("-march=native", "-fopenmp"), ("-march=native",), ("-fopenmp",), ())
"""Tried in this order until the compiler takes them."""

log = logging.getLogger(__name__)


def source_dir() -> Path:
    """The C++ sources: inside the installed package, or beside it in a checkout. Raises MtmError where there are none."""
    package = Path(mtmamba.__file__).resolve().parent
    for folder in (package / "plugins", package.parent / "plugins"):
        if (folder / "CMakeLists.txt").is_file():
            return folder
    raise MtmError(
        f"expected the plugin sources in {package / 'plugins'}, found none; install mtmamba again, or name a built "
        "library with --plugin"
    )


def cpu_library() -> ctypes.CDLL | None:
    """The CPU library, built if the cache has none for this machine; None where it is turned off or cannot be built
    (said once, in the log)."""
    return None if os.environ.get(CPU_SWITCH) == "0" else _load()


@cache
def _load() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(str(build_cpu_library()))
    except (MtmError, OSError) as error:
        log.warning("scans on the CPU take the slower PyTorch path: %s", error)
        return None


def build_cpu_library(choices: tuple[tuple[str, ...], ...] = FLAG_CHOICES) -> Path:
    """The file of the CPU library for this machine's compiler and processor, built if the cache has none.

    choices: compiler flags, the first that work are taken. Raises MtmError where there is no C++ compiler, no cache, or no
    choice works.
    """
    compiler = _compiler()
    folder = cache_dir("cpu") / _key(compiler, choices)
    return _built(folder / CPU_LIBRARY, lambda output: _compile(compiler, choices, output))


def cuda_library(capability: tuple[int, int]) -> ctypes.CDLL | None:
    """The CUDA library for GPUs of a compute capability, built if the cache has none; None where it is turned off or cannot
    be built (said once, in the log)."""
    return None if os.environ.get(CUDA_SWITCH) == "0" else _load_cuda(capability)


@cache
def _load_cuda(capability: tuple[int, int]) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(str(build_cuda_library(capability)))
    except (MtmError, OSError) as error:
        log.warning("scans on the GPU take the slower PyTorch path: %s", error)
        return None


def build_cuda_library(capability: tuple[int, int]) -> Path:
    """The file of the CUDA library for a compute capability such as (9, 0), built if the cache has none.

    Raises MtmError where there is no nvcc or no cache, or nvcc cannot build it.
    """
    nvcc = find_nvcc()
    if nvcc is None:
        raise MtmError(
            "expected nvcc on the PATH, in $CUDA_HOME or in /usr/local/cuda, found none; install the CUDA toolkit 12 or 13"
        )
    architecture = "".join(map(str, capability))
    target = f"-gencode=arch=compute_{architecture},code=sm_{architecture}"
    sources = source_dir()
    command = [str(nvcc), *CUDA_FLAGS, target, f"-I{sources}", *(str(sources / name) for name in CUDA_SOURCES)]
    folder = cache_dir("cuda") / _cuda_key(nvcc, target)

    def build(output: Path) -> None:
        log.info("building %s for GPUs of compute capability %d.%d", CUDA_LIBRARY, *capability)
        if said := _failure([*command, "-o", str(output)]):
            raise MtmError(f"{nvcc} could not build {CUDA_LIBRARY}: {said}")

    return _built(folder / CUDA_LIBRARY, build)


def find_nvcc() -> Path | None:
    """The CUDA compiler: $CUDACXX, the PATH, $CUDA_HOME, $CUDA_PATH, /usr/local/cuda."""
    homes = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    choices = [
        os.environ.get("CUDACXX"),
        "nvcc",
        *(f"{home}/bin/nvcc" for home in homes if home),
        "/usr/local/cuda/bin/nvcc",
    ]
    found = (shutil.which(choice) for choice in choices if choice)
    return next((Path(path) for path in found if path), None)


def _built(library: Path, build: Callable[[Path], None]) -> Path:
    """`library`, a file of a cache folder of its own, built if it is not there. Two processes may do so at once: each builds
    in a folder of its own and renames it into place."""
    final = library.parent
    if not library.is_file():
        with work_dir(final.parent, prefix=f".{final.name}.") as work:
            ready = work / "ready"
            ready.mkdir()
            build(ready / library.name)
            with suppress(OSError):  # another process was first; its library is as good
                ready.rename(final)
    return library


def _compiler() -> str:
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if name and (found := shutil.which(name)):
            return found
    raise MtmError("no C++ compiler was found ($CXX, c++, g++, clang++); install one (apt install g++)")


def _key(compiler: str, choices: tuple[tuple[str, ...], ...]) -> str:
    """16 hex digits over all that decides the library's bytes; the processor is part of it for -march=native."""
    sources = source_dir()
    settings = (compiler_version(compiler), BASE_FLAGS, choices, _processor())
    return _digest(settings, [*(sources / "cpu").iterdir(), *(sources / "kernels").glob("*.h")])


def _cuda_key(nvcc: Path, target: str) -> str:
    """The same for the CUDA library. nvcc has a C++ compiler do the host's part."""
    sources = source_dir()
    folders = ("torch_cuda", "kernels", "selective_scan", "selective_scan_2d")
    files = [path for folder in folders for path in (sources / folder).iterdir() if path.is_file()]
    return _digest((compiler_version(nvcc), compiler_version("c++"), CUDA_FLAGS, CUDA_SOURCES, target), files)


def compiler_version(compiler: str | Path) -> str:
    """All a compiler says of its version; its name where it says nothing."""
    try:
        done = subprocess.run([str(compiler), "--version"], capture_output=True, text=True, check=False)
    except OSError:
        return str(compiler)
    return done.stdout.strip() or str(compiler)


def _digest(settings: tuple[object, ...], files: list[Path]) -> str:
    digest = hashlib.sha256(repr(settings).encode())
    for path in sorted(files):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _processor() -> str:
    """The processor's model and what it can do."""
    wanted = ("model name", "flags", "Features", "CPU part")
    with suppress(OSError):
        text = Path("/proc/cpuinfo").read_text()
        return "\n".join(sorted({line for line in text.splitlines() if line.startswith(wanted)}))
    return f"{platform.machine()} {platform.processor()}"


def _compile(compiler: str, choices: tuple[tuple[str, ...], ...], output: Path) -> None:
    sources = source_dir()
    said = ""
    for flags in choices:
        command = [
            compiler,
            *BASE_FLAGS,
            *flags,
            f"-I{sources}",
            str(sources / "cpu" / "library.cpp"),
            "-o",
            str(output),
        ]
        said = _failure(command)
        if not said:
            return
    raise MtmError(f"{compiler} could not build {CPU_LIBRARY}: {said}")


def _failure(command: list[str]) -> str:
    """What a compiler said last before it failed; "" where it did not."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=COMPILE_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return f"it took longer than {COMPILE_TIMEOUT_S} s"
    if done.returncode == 0:
        return ""
    return (done.stderr.strip() or done.stdout.strip())[-500:] or f"exit status {done.returncode}"
