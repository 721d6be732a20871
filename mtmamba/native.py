"""The C++ sources inside the package, and libmtmamba_cpu.so built from them on first need. Needs no torch."""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
from contextlib import suppress
from functools import cache
from pathlib import Path

import mtmamba
from mtmamba.cache import cache_dir, work_dir
from mtmamba.errors import MtmError

CPU_LIBRARY = "libmtmamba_cpu.so"
CPU_SWITCH = "MTMAMBA_CPU_KERNEL"
"""Environment variable: "0" turns the CPU library off."""
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

    choices: compiler flags, the first that work are taken. Two processes may build at once: each does so in a folder of
    its own and renames it into place. Raises MtmError where there is no C++ compiler, no cache, or no choice works.
    """
    compiler = _compiler()
    key = _key(compiler, choices)
    final = cache_dir("cpu") / key
    if not (final / CPU_LIBRARY).is_file():
        with work_dir(final.parent, prefix=f".{key}.") as work:
            ready = work / "ready"
            ready.mkdir()
            _compile(compiler, choices, ready / CPU_LIBRARY)
            with suppress(OSError):  # another process was first; its library is as good
                ready.rename(final)
    return final / CPU_LIBRARY


def _compiler() -> str:
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if name and (found := shutil.which(name)):
            return found
    raise MtmError("no C++ compiler was found ($CXX, c++, g++, clang++); install one (apt install g++)")


def _key(compiler: str, choices: tuple[tuple[str, ...], ...]) -> str:
    """16 hex digits over all that decides the library's bytes; the processor is part of it for -march=native."""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    digest = hashlib.sha256(repr((version, BASE_FLAGS, choices, _processor())).encode())
    sources = source_dir()
    for path in sorted([*(sources / "cpu").iterdir(), *(sources / "kernels").glob("*.h")]):
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
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=COMPILE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            said = f"it took longer than {COMPILE_TIMEOUT_S} s"
            break
        if done.returncode == 0:
            return
        said = done.stderr.strip()[-500:] or f"exit status {done.returncode}"
    raise MtmError(f"{compiler} could not build {CPU_LIBRARY}: {said}")
