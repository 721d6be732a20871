"""Building the library on first need, with a CMake that only pretends."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mtmamba.errors import MtmError
from mtmamba.runtime import plugin_build
from mtmamba.runtime.plugin_build import LIBRARY, REPORT, build_library, cached_library
from mtmamba.runtime.toolchain import Toolchain

# Configures with -S SOURCES -B TREE and builds with --build TREE; notes every build in BUILDS.
FAKE_CMAKE = """#!/bin/sh
if [ "$1" = "--build" ]; then
    echo "$2" >> "{folder}/builds"
    {build}
else
    while [ "$1" != "-B" ]; do shift; done
    mkdir -p "$2"
    echo "-- Configuring done"
fi
"""
WORKS = f"""
    for i in 1 2 3; do echo "[$i/3] Building something"; sleep 0.2; done
    echo library > "$2/{LIBRARY}"; echo report > "$2/{REPORT}"
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Toolchain]:
    """fake(shell) makes the toolchain that `build_library` finds; its CMake runs `shell` for a build."""
    sources = tmp_path / "plugins"
    sources.mkdir()
    (sources / "CMakeLists.txt").write_text("project(x)")
    monkeypatch.setenv("MTMAMBA_CACHE", str(tmp_path / "cache"))

    def make(shell: str) -> Toolchain:
        cmake = tmp_path / "cmake"
        cmake.write_text(FAKE_CMAKE.format(folder=tmp_path, build=shell))
        cmake.chmod(0o755)
        tool = Path("/bin/true")
        chain = Toolchain(
            sources=sources,
            nvcc=tool,
            nvcc_version="13",
            compiler_version="12",
            cmake=cmake,
            headers=tmp_path,
            headers_version="10",
        )
        monkeypatch.setattr(plugin_build, "find_toolchain", lambda: chain)
        return chain

    return make


def leftovers(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "cache" / "plugins").iterdir())


def test_built_once_with_progress(fake: Callable[[str], Toolchain], tmp_path: Path) -> None:
    chain = fake(WORKS)
    assert cached_library(chain) is None
    steps: list[tuple[int, int]] = []
    library = build_library(lambda done, total: steps.append((done, total)))
    assert steps == [(1, 3), (2, 3), (3, 3)]
    assert library.read_text() == "library\n"
    assert cached_library(chain) == library
    assert build_library() == library
    assert len((tmp_path / "builds").read_text().splitlines()) == 1
    assert leftovers(tmp_path) == [chain.key()]
    assert sorted(path.name for path in library.parent.iterdir()) == ["build.log", LIBRARY, REPORT]


def test_other_sources_are_built_anew(fake: Callable[[str], Toolchain], tmp_path: Path) -> None:
    chain = fake(WORKS)
    first = build_library()
    (chain.sources / "CMakeLists.txt").write_text("project(y)")
    assert build_library() != first
    assert len((tmp_path / "builds").read_text().splitlines()) == 2


def test_failure_quotes_the_compiler(fake: Callable[[str], Toolchain], tmp_path: Path) -> None:
    chain = fake('echo "[1/3] Building a"; echo "a.cu(3): error: expected a semicolon" >&2; exit 2')
    with pytest.raises(MtmError, match=r"(?s)building the TensorRT plugins failed.*expected a semicolon") as caught:
        build_library()
    log = tmp_path / "cache" / "plugins" / f"{chain.key()}.log"
    assert str(log) in str(caught.value)
    assert "expected a semicolon" in log.read_text()
    assert leftovers(tmp_path) == [log.name]
    assert cached_library(chain) is None


def test_build_without_a_library(fake: Callable[[str], Toolchain]) -> None:
    fake("echo done")
    with pytest.raises(MtmError, match=f"ended without {LIBRARY}"):
        build_library()


def test_two_processes_at_once(fake: Callable[[str], Toolchain], tmp_path: Path) -> None:
    chain = fake(WORKS)
    code = f"""
from pathlib import Path
from mtmamba.runtime import plugin_build
from mtmamba.runtime.toolchain import Toolchain
chain = Toolchain(**{ {key: str(value) for key, value in vars(chain).items()}!r})
chain = Toolchain(**{{**vars(chain), "sources": Path(chain.sources), "cmake": Path(chain.cmake)}})
plugin_build.find_toolchain = lambda: chain
print(plugin_build.build_library())
"""
    command = [sys.executable, "-c", code]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    results = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], results
    assert len((tmp_path / "builds").read_text().splitlines()) == 2, "the two did not overlap: the test shows nothing"
    assert len({out for out, _ in results}) == 1
    assert leftovers(tmp_path) == [chain.key()]
    assert (cached_library(chain) or Path()).read_text() == "library\n"


def test_interrupted_build_leaves_nothing(fake: Callable[[str], Toolchain], tmp_path: Path) -> None:
    fake(WORKS)

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_library(interrupt)
    assert leftovers(tmp_path) == []


def test_architectures_reach_cmake(fake: Callable[[str], Toolchain], tmp_path: Path) -> None:
    chain = fake(WORKS)
    command = plugin_build._configure_command(replace(chain, architectures="87;89"), tmp_path)
    assert "-DCMAKE_CUDA_ARCHITECTURES=87;89" in command
    assert not [part for part in plugin_build._configure_command(chain, tmp_path) if "ARCHITECTURES" in part]
