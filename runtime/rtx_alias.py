"""TensorRT for RTX 1.7's parser opens `libtensorrt_rtx.so` when it meets a plugin and ends the process if there is
none; the Python package ships `libtensorrt_rtx.so.1` alone. A shared object that has the one name and needs the other,
loaded before parsing, answers the parser's search by name."""

import ctypes
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from mtmamba.cache import cache_dir, work_dir
from mtmamba.errors import MtmError

NAME = "libtensorrt_rtx.so"


def provide_unversioned_name() -> None:
    """Make NAME findable in this process. `tensorrt_rtx` must have been imported. Raises MtmError where there is no C
    compiler to make the object with, or it fails."""
    try:
        ctypes.CDLL(NAME, mode=ctypes.RTLD_GLOBAL)
        return
    except OSError:  # not on the library path, and not loaded by us before
        pass
    real = _loaded_library()
    key = hashlib.sha256(f"{real} {real.stat().st_size} {real.stat().st_mtime_ns}".encode()).hexdigest()[:16]
    alias = cache_dir("tensorrt-rtx", key) / NAME
    if not alias.exists():
        _compile(real, alias)
    try:
        ctypes.CDLL(str(alias), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise MtmError(f"{alias}: expected to load it as {NAME}, found: {error}; delete it and try again") from error


def _loaded_library() -> Path:
    """The file of TensorRT-RTX's library that this process has loaded."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = Path(line.split(maxsplit=5)[-1])
        if path.name.startswith(NAME):
            return path
    raise MtmError(f"expected tensorrt_rtx to have loaded {NAME}, found it not loaded; install tensorrt-rtx-cu13 again")


def _compile(real: Path, alias: Path) -> None:
    compiler = next((path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None)
    by_hand = f"or do without by hand: ln -s {real} FOLDER/{NAME}, and set LD_LIBRARY_PATH=FOLDER"
    if compiler is None:
        raise MtmError(
            f"TensorRT for RTX's ONNX parser opens {NAME}, which its package lacks, and there is no C compiler to make "
            f"one with; install one (apt install gcc), {by_hand}"
        )
    with work_dir(alias.parent) as folder:
        made = folder / NAME
        options = ["-shared", "-fPIC", "-x", "c", os.devnull, "-o", str(made), f"-Wl,-soname,{NAME}"]
        link = ["-Wl,--no-as-needed", f"-L{real.parent}", f"-l:{real.name}"]
        done = subprocess.run([compiler, *options, *link], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise MtmError(f"{compiler} could not make {NAME}: {done.stderr.strip()[-500:]}; repair it, {by_hand}")
        made.replace(alias)
