"""What building the plugin library needs: its sources, a CUDA compiler, CMake, TensorRT's C++ headers."""

import hashlib
import os
import re
import shutil
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from mtmamba import native
from mtmamba.errors import MtmError
from mtmamba.native import compiler_version, source_dir

HEADER = "NvInferRuntime.h"
SYSTEM_HEADERS = (
    "/usr/include",
    "/usr/include/x86_64-linux-gnu",
    "/usr/include/aarch64-linux-gnu",
    "/usr/local/include",
    "/usr/local/tensorrt/include",
    "/opt/tensorrt/include",
)
OTHER_FOLDERS = ("cpu/", "torch_cuda/", "harness/")  # sources of other libraries, no part of the plugin library
SOURCE_SUFFIXES = (".txt", ".h", ".cuh", ".cu", ".cpp")


@dataclass(frozen=True, kw_only=True)
class Toolchain:
    """sources: the folder of plugins/CMakeLists.txt. headers: the folder of NvInferRuntime.h. architectures: as CMake
    takes them, "" for the project's own list."""

    sources: Path
    nvcc: Path
    nvcc_version: str
    compiler_version: str
    cmake: Path
    headers: Path
    headers_version: str
    architectures: str = ""

    def key(self) -> str:
        """16 hex digits over everything that decides the library's bytes."""
        digest = hashlib.sha256()
        for part in (self.nvcc_version, self.compiler_version, self.headers_version, self.architectures):
            digest.update(part.encode() + b"\0")
        for path in sorted(path for path in self.sources.rglob("*") if path.suffix in SOURCE_SUFFIXES):
            name = path.relative_to(self.sources).as_posix()
            if not name.startswith(OTHER_FOLDERS):
                digest.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
        return digest.hexdigest()[:16]


def find_toolchain() -> Toolchain:
    """What this machine has. Raises MtmError naming the first thing that is missing and how to get it."""
    sources, headers, nvcc = source_dir(), headers_dir(), find_nvcc()
    return Toolchain(
        sources=sources,
        nvcc=nvcc,
        nvcc_version=compiler_version(nvcc),
        compiler_version=compiler_version(os.environ.get("CXX", "c++")),
        cmake=find_cmake(),
        headers=headers,
        headers_version=headers_version(headers),
        architectures=os.environ.get("CUDAARCHS", ""),
    )


def find_nvcc() -> Path:
    """As `native.find_nvcc`; raises MtmError where there is none."""
    if found := native.find_nvcc():
        return found
    raise MtmError(
        "building the TensorRT plugins needs nvcc, found none on the PATH, in $CUDA_HOME or in /usr/local/cuda; "
        "install the CUDA toolkit 12 or 13 (NVIDIA's packages cuda-nvcc-13-0 and cuda-cudart-dev-13-0 are enough), or "
        "name a built library with --plugin"
    )


def find_cmake() -> Path:
    found = shutil.which("cmake")
    if not found:
        raise MtmError(
            "building the TensorRT plugins needs CMake 3.22 or newer, found none on the PATH; install it (pip install "
            "cmake), or name a built library with --plugin"
        )
    return Path(found)


def headers_dir() -> Path:
    """The folder of TensorRT's C++ headers: $TENSORRT_ROOT/include, system folders, the kernel-lens package.

    Raises MtmError where there are none, also where TENSORRT_ROOT is set and has none.
    """
    root = os.environ.get("TENSORRT_ROOT")
    if root:
        if not (Path(root) / "include" / HEADER).is_file():
            raise MtmError(f"TENSORRT_ROOT is {root}, but there is no include/{HEADER} in it; correct or unset it")
        return Path(root) / "include"
    spec = find_spec("kernel_lens")
    packaged = [Path(place) / "include" / "tensorrt" for place in (spec and spec.submodule_search_locations) or ()]
    for folder in (*map(Path, SYSTEM_HEADERS), *packaged):
        if (folder / HEADER).is_file():
            return folder
    raise MtmError(
        f"building the TensorRT plugins needs TensorRT's C++ headers, found no {HEADER}; pip install --no-deps "
        "kernel-lens, or set TENSORRT_ROOT to a TensorRT folder, or name a built library with --plugin"
    )


def headers_version(headers: Path) -> str:
    """Such as "10.14.1.48", read from NvInferVersion.h; "unknown" where it says nothing."""
    path = headers / "NvInferVersion.h"
    text = path.read_text(errors="replace") if path.is_file() else ""
    values = dict(re.findall(r"#define\s+(\w+)\s+(\w+)", text))
    parts = []
    for name in ("NV_TENSORRT_MAJOR", "NV_TENSORRT_MINOR", "NV_TENSORRT_PATCH", "NV_TENSORRT_BUILD"):
        value = str(values.get(name, ""))
        parts.append(str(values.get(value, value)))
    return ".".join(parts) if all(part.isdigit() for part in parts) else "unknown"
