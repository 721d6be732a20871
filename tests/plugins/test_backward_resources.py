"""What the compiler says of the backward kernels, for every architecture."""

import hashlib
import re
import subprocess
from pathlib import Path

import pytest

from mtmamba import native

ROOT = Path(__file__).resolve().parents[2]
ARCHITECTURES = ("80", "86", "89", "90", "120")
REGISTERS = 128  # a thread, at most: four blocks of N = 16 to a multiprocessor


@pytest.fixture(scope="session")
def report() -> str:
    """What ptxas -v says, kept in build/backward-tests/ for as long as no source changes."""
    nvcc = native.find_nvcc()
    if nvcc is None:
        pytest.skip("no CUDA toolkit: nvcc was not found")
    source = ROOT / "tests" / "plugins" / "backward" / "fast_paths.cu"
    sources = [source, *sorted((ROOT / "plugins" / "kernels").iterdir())]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]
    kept = ROOT / "build" / "backward-tests" / f"resource-usage-{digest}.txt"
    if not kept.is_file():
        kept.parent.mkdir(parents=True, exist_ok=True)
        targets = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in ARCHITECTURES]
        warnings = ["-Werror=all-warnings", "-Xcompiler=-Wall,-Wextra,-Werror"]
        command = [nvcc, "-std=c++17", "-O3", "--threads=2", "-Xptxas=-v", *warnings, *targets]
        output = kept.with_suffix(".o")
        command += [f"-I{ROOT / 'plugins'}", "-c", source, "-o", output]
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-4000:]
        output.unlink()
        kept.write_text(done.stderr)
    return kept.read_text()


def test_fast_paths_do_not_spill(report: str) -> None:
    pattern = (
        r"Compiling entry function '(\w+)' for 'sm_(\d+)'"
        r".*?(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers"
    )
    entries = re.findall(pattern, report, re.DOTALL)
    kernels = {name for name, *_ in entries}
    assert len(kernels) == 8, "summary and chunk, of one dimension and of two, float and half"
    assert {(name, arch) for name, arch, *_ in entries} == {(name, arch) for name in kernels for arch in ARCHITECTURES}
    assert not [entry for entry in entries if entry[2] != "0" or entry[3] != "0"]
    assert max(int(registers) for *_, registers in entries) <= REGISTERS
