"""The C++ tests, and what the compiler says of the kernels."""

import re
import subprocess
from pathlib import Path

import pytest

from mtmamba.runtime import gpu

ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_120")
REGISTERS = 65536 // (3 * 128)  # of a scan's kernel at most: three blocks of 128 threads share a multiprocessor

pytestmark = pytest.mark.trt


def ctest(tree: Path, name: str) -> str:
    command = ["ctest", "--test-dir", str(tree), "-R", f"^{name}$", "--output-on-failure", "--no-tests=error"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout


@pytest.mark.parametrize("name", ["test_kernel_emulated", "test_dims", "test_plugin", "test_enqueue", "test_emulator"])
def test_cpp(build_tree: Path, name: str) -> None:
    assert re.search(rf"{name} \.+ +Passed", ctest(build_tree, name))


@pytest.mark.gpu
def test_kernel_on_gpu(build_tree: Path) -> None:
    if not gpu.compute_capabilities():
        pytest.skip("no NVIDIA GPU here")
    assert re.search(r"test_kernel_gpu \.+ +Passed", ctest(build_tree, "test_kernel_gpu"))


def usage(report: str) -> dict[tuple[str, str], tuple[int, int]]:
    """(kernel, architecture) -> (registers, bytes spilled) from what ptxas -v wrote."""
    pattern = (
        r"Compiling entry function '(\w+)' for '(sm_\d+)'"
        r".*?(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers"
    )
    entries = re.findall(pattern, report, re.DOTALL)
    return {(kernel, arch): (int(regs), int(stores) + int(loads)) for kernel, arch, stores, loads, regs in entries}


def test_kernels_do_not_spill(build_tree: Path) -> None:
    found = usage((build_tree / "plugins" / "resource-usage.txt").read_text())
    assert {arch for _, arch in found} == set(ARCHITECTURES)
    kernels = {kernel for kernel, _ in found}
    # <T, channels of a block> and <T, channels of four lanes>, T = float, half and bfloat16.
    line = r"selectiveScanKernelI(f|6__half|13__nv_bfloat16)Li(8|16|32)E"
    plane = r"mapScanKernelI(f|6__half|13__nv_bfloat16)Li(1|2)E"
    scans = {kernel for kernel in kernels if re.search(line, kernel)}
    maps = {kernel for kernel in kernels if re.search(plane, kernel)}
    assert (len(scans), len(maps)) == (9, 6)
    assert {(kernel, arch) for kernel in kernels for arch in ARCHITECTURES} == set(found)
    spills = {key: spilled for key, (_, spilled) in found.items() if spilled}
    assert not spills
    assert max(registers for (kernel, _), (registers, _) in found.items() if kernel in scans) <= REGISTERS
    # Eight pairs of warps on a multiprocessor that has the shared memory for them.
    halves = {kernel for kernel in maps if "mapScanKernelIf" not in kernel}
    eights = {
        registers for (kernel, arch), (registers, _) in found.items() if kernel in halves and arch in ("sm_80", "sm_90")
    }
    assert max(eights) <= 128


def test_library_needs_no_tensorrt(build_tree: Path) -> None:
    library = build_tree / "plugins" / "libmtmamba_plugins.so"
    needed = subprocess.run(["readelf", "-d", str(library)], capture_output=True, text=True, check=True).stdout
    libraries = re.findall(r"NEEDED.*\[(.+)\]", needed)
    assert libraries
    assert not [name for name in libraries if "nvinfer" in name or "tensorrt" in name or "cudart" in name]
    symbols = subprocess.run(["nm", "-D", "--defined-only", str(library)], capture_output=True, text=True, check=True)
    exported = {line.split()[-1] for line in symbols.stdout.splitlines() if line.split()[-2] == "T"}
    assert exported == {
        "getCreators",
        "getPluginCreators",
        "setLoggerFinder",
        "mtmambaSetLogCallback",
        "mtmambaPluginHash",
    }


def test_sources_are_formatted(repository: Path) -> None:
    formatter = pytest.importorskip("clang_format", reason="clang-format is not installed: pip install clang-format")
    folders = (repository / "plugins", repository / "tests" / "plugins")
    sources = [path for folder in folders for path in folder.rglob("*") if path.suffix in (".h", ".cpp", ".cu", ".cuh")]
    assert len(sources) >= 10
    done = subprocess.run(
        [formatter.get_executable("clang-format"), "--dry-run", "--Werror", *map(str, sources)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
