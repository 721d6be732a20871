"""Configuring the plugin project alone, and its refusals. Nothing of it is compiled here."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mtmamba.errors import MtmError
from mtmamba.runtime.toolchain import Toolchain, find_toolchain

pytestmark = pytest.mark.trt


@pytest.fixture(scope="module")
def toolchain() -> Toolchain:
    try:
        return find_toolchain()
    except MtmError as error:
        pytest.skip(str(error))


def configure(toolchain: Toolchain, tree: Path, *settings: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [str(toolchain.cmake), "-S", str(toolchain.sources), "-B", str(tree), *settings]
    command += [f"-DCMAKE_CUDA_COMPILER={toolchain.nvcc}", f"-DPython3_EXECUTABLE={sys.executable}"]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})


def architectures(tree: Path) -> str:
    lines = (tree / "CMakeCache.txt").read_text().splitlines()
    return next(line.split("=", 1)[1] for line in lines if line.startswith("CMAKE_CUDA_ARCHITECTURES"))


def test_standalone_and_again(toolchain: Toolchain, tmp_path: Path) -> None:
    for _ in range(2):  # the second time the default must not fall back to the compiler's own
        done = configure(toolchain, tmp_path)
        assert done.returncode == 0, done.stderr
        assert "TensorRT headers: " in done.stdout
        assert architectures(tmp_path).split(";")[:4] == ["80", "86-real", "89-real", "90-real"]


def test_architectures_can_be_chosen(toolchain: Toolchain, tmp_path: Path) -> None:
    assert configure(toolchain, tmp_path, "-DCMAKE_CUDA_ARCHITECTURES=89-real").returncode == 0
    assert architectures(tmp_path) == "89-real"


def test_tensorrt_root_without_headers(toolchain: Toolchain, tmp_path: Path) -> None:
    done = configure(toolchain, tmp_path / "tree", TENSORRT_ROOT=str(tmp_path))
    assert done.returncode != 0
    assert "there is no include/NvInferRuntime.h" in " ".join(done.stderr.split())


def test_tensorrt_root_is_taken_first(toolchain: Toolchain, tmp_path: Path) -> None:
    (tmp_path / "root" / "include").mkdir(parents=True)
    (tmp_path / "root" / "include" / "NvInferRuntime.h").write_text("")
    done = configure(toolchain, tmp_path / "tree", TENSORRT_ROOT=str(tmp_path / "root"))
    assert f"TensorRT headers: {tmp_path}/root/include" in done.stdout
