"""The plugin project, built once into build/plugins-tests (kept between runs; CMake knows what changed)."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mtmamba.errors import MtmError
from mtmamba.runtime.toolchain import find_toolchain

ROOT = Path(__file__).resolve().parents[2]


def run(*command: str | Path) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command[0]} failed:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="session")
def repository() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def build_tree() -> Path:
    """The build folder of the root CMake project, all targets built."""
    try:
        toolchain = find_toolchain()
    except MtmError as error:
        pytest.skip(str(error))
    tree = ROOT / "build" / "plugins-tests"
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    settings = [f"-DCMAKE_CUDA_COMPILER={toolchain.nvcc}", f"-DPython3_EXECUTABLE={sys.executable}"]
    run(toolchain.cmake, "-S", ROOT, "-B", tree, *generator, *settings)
    run(toolchain.cmake, "--build", tree, "--parallel", "2")
    return tree
