"""Builds libmtmamba_plugins.so on first need, with the repository's own CMake project, and keeps it in the cache."""

import os
import re
import shutil
import subprocess
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from mtmamba.cache import cache_dir, work_dir
from mtmamba.errors import MtmError
from mtmamba.runtime.toolchain import Toolchain, find_toolchain

LIBRARY = "libmtmamba_plugins.so"
REPORT = "resource-usage.txt"
LOG_LINES = 12  # of a failed build, quoted in the error

OnStep = Callable[[int, int], None]
"""Called with (steps done, steps in all)."""


def cached_library(toolchain: Toolchain | None = None) -> Path | None:
    """The library that `build_library` would answer with at once, or None if it has to be built first."""
    path = _folder((toolchain or find_toolchain()).key()) / LIBRARY
    return path if path.is_file() else None


def build_library(on_step: OnStep | None = None) -> Path:
    """The plugin library for this machine's compilers and headers, built if the cache has none.

    Two processes may do so at once: each builds in a folder of its own and renames it into place, and the later one
    takes what the earlier one left. Raises MtmError where a tool is missing or the build fails.
    """
    toolchain = find_toolchain()
    key = toolchain.key()
    final = _folder(key)
    if not (final / LIBRARY).is_file():
        with work_dir(final.parent, prefix=f".{key}.") as work:
            ready = _build(toolchain, work, final.with_suffix(".log"), on_step or _ignore)
            with suppress(OSError):  # another process was first; its library is as good
                ready.rename(final)
    if not (final / LIBRARY).is_file():
        raise MtmError(
            f"{final}: expected the built plugin library in it, found none; delete that folder and try again"
        )
    return final / LIBRARY


def _ignore(done: int, total: int) -> None: ...


def _folder(key: str) -> Path:
    return cache_dir("plugins") / key


def _build(toolchain: Toolchain, work: Path, failed_log: Path, on_step: OnStep) -> Path:
    """Build in `work`; the folder in it that holds the library, the compiler's report on registers and spills, and the
    build's log. Where the build fails its log is kept as `failed_log`."""
    tree, ready = work / "tree", work / "ready"
    ready.mkdir()
    log = ready / "build.log"
    for command in (
        _configure_command(toolchain, tree),
        [str(toolchain.cmake), "--build", str(tree), "--parallel"],
    ):
        if tail := _run(command, log, on_step):
            shutil.copy2(log, failed_log)
            lines = "\n  ".join(line for line in tail if line)
            raise MtmError(f"building the TensorRT plugins failed (whole log: {failed_log}):\n  {lines}")
    for name in (LIBRARY, REPORT):
        if not (tree / name).is_file():
            shutil.copy2(log, failed_log)
            raise MtmError(f"the build of the TensorRT plugins ended without {name}; report this with {failed_log}")
        shutil.copy2(tree / name, ready / name)
    return ready


def _configure_command(toolchain: Toolchain, tree: Path) -> list[str]:
    settings = {
        "CMAKE_BUILD_TYPE": "Release",
        "CMAKE_CUDA_COMPILER": str(toolchain.nvcc),
        "TENSORRT_INCLUDE_DIR": str(toolchain.headers),
    }
    if toolchain.architectures:
        settings["CMAKE_CUDA_ARCHITECTURES"] = toolchain.architectures
    options = [f"-D{name}={value}" for name, value in settings.items()]
    if shutil.which("ninja") and "CMAKE_GENERATOR" not in os.environ:
        options += ["-G", "Ninja"]
    return [str(toolchain.cmake), "-S", str(toolchain.sources), "-B", str(tree), *options]


def _run(command: list[str], log: Path, on_step: OnStep) -> list[str]:
    """Run one step with its output appended to `log`; its last lines where it failed, [] where it succeeded."""
    tail: deque[str] = deque(maxlen=LOG_LINES)
    with log.open("a", encoding="utf-8") as file:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
        assert process.stdout is not None
        try:
            for line in process.stdout:
                file.write(line)
                tail.append(line.rstrip())
                _report(line, on_step)
            status = process.wait()
        finally:
            process.stdout.close()
            if process.poll() is None:  # interrupted: ninja and make stop their compilers when told to stop
                process.terminate()
                process.wait()
    return (list(tail) or ["it said nothing"]) if status != 0 else []


def _report(line: str, on_step: OnStep) -> None:
    """Ninja counts "[3/7]", make "[ 42%]"."""
    if match := re.match(r"\[\s*(\d+)(?:/(\d+)|%)\]", line):
        on_step(int(match[1]), int(match[2] or 100))
