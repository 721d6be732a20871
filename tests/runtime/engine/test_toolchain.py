"""What building the plugins needs, and the sentences where it is missing."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import mtmamba
from mtmamba.cache import cache_dir
from mtmamba.errors import MtmError
from mtmamba.runtime import toolchain
from mtmamba.runtime.toolchain import Toolchain

VERSION_HEADER = """
#define TRT_MAJOR_ENTERPRISE 10
#define NV_TENSORRT_MAJOR TRT_MAJOR_ENTERPRISE //!< major
#define NV_TENSORRT_MINOR 14
#define NV_TENSORRT_PATCH 1
#define NV_TENSORRT_BUILD 48
"""


@pytest.fixture
def chain(tmp_path: Path) -> Toolchain:
    """A toolchain of names alone, with two source files."""
    sources = tmp_path / "plugins"
    (sources / "kernels").mkdir(parents=True)
    (sources / "CMakeLists.txt").write_text("project(x)")
    (sources / "kernels" / "a.cuh").write_text("// a")
    tool = Path("/bin/true")
    return Toolchain(
        sources=sources,
        nvcc=tool,
        nvcc_version="13.0",
        compiler_version="12",
        cmake=tool,
        headers=tmp_path,
        headers_version="10.14.1.48",
    )


def test_key_follows_everything_that_decides_the_library(chain: Toolchain) -> None:
    keys = {chain.key()}
    for change in ({"nvcc_version": "13.1"}, {"compiler_version": "13"}, {"headers_version": "11.0.0.0"}):
        keys.add(replace(chain, **change).key())
    keys.add(replace(chain, architectures="89").key())
    (chain.sources / "kernels" / "a.cuh").write_text("// b")
    keys.add(chain.key())
    (chain.sources / "kernels" / "a.cuh").rename(chain.sources / "kernels" / "b.cuh")
    keys.add(chain.key())
    assert len(keys) == 7


def test_key_is_the_same_elsewhere(chain: Toolchain, tmp_path: Path) -> None:
    key = chain.key()
    shutil.copytree(chain.sources, tmp_path / "copy")
    (tmp_path / "copy" / "notes.md").write_text("not a source")
    (tmp_path / "copy" / "cpu").mkdir()
    (tmp_path / "copy" / "cpu" / "scan.h").write_text("// of the CPU library")
    assert replace(chain, sources=tmp_path / "copy", nvcc=Path("/bin/false")).key() == key


def test_sources_are_found() -> None:
    assert (toolchain.source_dir() / "kernels" / "selective_scan.cuh").is_file()


def test_sources_in_an_installed_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "site-packages" / "mtmamba"
    (package / "plugins").mkdir(parents=True)
    monkeypatch.setattr(mtmamba, "__file__", str(package / "__init__.py"))
    with pytest.raises(MtmError, match="expected the plugin sources in .*install mtmamba again"):
        toolchain.source_dir()
    (package / "plugins" / "CMakeLists.txt").write_text("")
    assert toolchain.source_dir() == package / "plugins"


def test_no_nvcc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain.shutil, "which", lambda name: None)
    with pytest.raises(MtmError, match="needs nvcc, found none.*install the CUDA toolkit.*--plugin"):
        toolchain.find_nvcc()
    with pytest.raises(MtmError, match="needs CMake 3.22 or newer, found none.*pip install cmake"):
        toolchain.find_cmake()


def test_nvcc_is_found_in_cuda_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.write_text("#!/bin/sh\n")
    nvcc.chmod(0o755)
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CUDACXX", raising=False)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert toolchain.find_nvcc() == nvcc


def test_headers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "include").mkdir()
    monkeypatch.setenv("TENSORRT_ROOT", str(tmp_path))
    with pytest.raises(MtmError, match=r"TENSORRT_ROOT is .*no include/NvInferRuntime\.h in it"):
        toolchain.headers_dir()
    (tmp_path / "include" / toolchain.HEADER).write_text("")
    assert toolchain.headers_dir() == tmp_path / "include"
    assert toolchain.headers_version(tmp_path / "include") == "unknown"
    (tmp_path / "include" / "NvInferVersion.h").write_text(VERSION_HEADER)
    assert toolchain.headers_version(tmp_path / "include") == "10.14.1.48"


def test_no_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TENSORRT_ROOT", raising=False)
    monkeypatch.setattr(toolchain, "SYSTEM_HEADERS", ())
    monkeypatch.setattr(toolchain, "find_spec", lambda name: None)
    with pytest.raises(MtmError, match="C\\+\\+ headers.*pip install --no-deps kernel-lens"):
        toolchain.headers_dir()


def test_cache_that_cannot_be_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MTMAMBA_CACHE", str(tmp_path / "file"))
    with pytest.raises(MtmError, match="expected a cache folder that can be written.*MTMAMBA_CACHE"):
        cache_dir("plugins")


def test_cache_places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("MTMAMBA_CACHE", str(tmp_path / "mine"))
    assert cache_dir("a", "b") == tmp_path / "mine" / "a" / "b"
    monkeypatch.delenv("MTMAMBA_CACHE")
    assert cache_dir("a") == tmp_path / "xdg" / "mtmamba" / "a"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_dir("a") == tmp_path / "home" / ".cache" / "mtmamba" / "a"
