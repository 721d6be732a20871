"""The C++ example compiles against TensorRT's headers, without a warning."""

import subprocess
from pathlib import Path

import pytest

from mtmamba.errors import MtmError
from mtmamba.runtime.toolchain import find_nvcc, headers_dir

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "examples" / "cpp" / "main.cpp"

pytestmark = pytest.mark.trt


def compiled(source, tmp_path):
    """The compiler's process. TensorRT's parser header is its own where it has one, else the one beside this file."""
    try:
        headers, nvcc = headers_dir(), find_nvcc()
    except MtmError as error:
        pytest.skip(str(error))
    flags = ["-std=c++17", "-c", "-Xcompiler=-Wall,-Wextra,-Werror"]
    places = [f"-isystem={headers}", f"-isystem={Path(__file__).parent}"]
    command = [str(nvcc), *flags, *places, str(source), "-o", str(tmp_path / "main.o")]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_compiles_without_a_warning(tmp_path):
    done = compiled(SOURCE, tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "main.o").stat().st_size > 1000


def test_the_compilation_would_notice(tmp_path):
    """A call that TensorRT does not have."""
    broken = tmp_path / "broken.cpp"
    broken.write_text(SOURCE.read_text().replace("enqueueV3", "enqueueV4"))
    done = compiled(broken, tmp_path)
    assert done.returncode != 0 and "enqueueV4" in done.stderr


def test_operators_of_the_example_are_the_contract(tmp_path):
    import yaml

    contract = yaml.safe_load((ROOT / "plugins" / "ops.yaml").read_text())
    listed = ", ".join(f'"{op}"' for op in contract["ops"])
    assert f"{{{listed}}}" in SOURCE.read_text()
    assert f'getCreator(op, "{contract["version"]}", "{contract["domain"]}")' in SOURCE.read_text()
