"""The plugin library against plugins/ops.yaml: every operator, field, type, format and dimension of the real library."""

import itertools
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

CONTRACT: dict[str, Any] = yaml.safe_load((Path(__file__).resolve().parents[2] / "plugins" / "ops.yaml").read_text())
OPS: dict[str, Any] = CONTRACT["ops"]
TENSORRT_TYPES = {"float32": 0, "float16": 1, "bfloat16": 7}  # nvinfer1::DataType
LINEAR, INT32_FIELD = 0, 5  # nvinfer1::TensorFormat, nvinfer1::PluginFieldType
ENUMERATORS = 16
SIZES = {"B": 2, "G": 3, "D": 12, "L": 77, "H": 5, "W": 7, "K": 4, "R": 6, "N": 16}

pytestmark = pytest.mark.trt
Ask = Callable[[str], str]
Dims = list[list[int]]


@pytest.fixture(scope="module")
def ask(build_tree: Path) -> Ask:
    """ask("question") to the library: see cpp/probe.cpp. One process a question: a crash names its question."""
    command = [str(build_tree / "plugins" / "tests" / "probe"), str(build_tree / "plugins" / "libmtmamba_plugins.so")]

    def one(question: str) -> str:
        done = subprocess.run(command, input=question + "\n", capture_output=True, text=True, check=False)
        assert done.returncode == 0, (question, done.stderr)
        return done.stdout.strip()

    return one


def tensors(op: str) -> list[dict[str, Any]]:
    return [*OPS[op]["inputs"], OPS[op]["output"]]


def value(dim: str, sizes: dict[str, int]) -> int:
    """Of a symbol, or of a sum such as R+2N."""
    return sum(int(factor or 1) * sizes[symbol] for factor, symbol in re.findall(r"(\d?)([A-Z])", dim))


def dims_of(op: str, **changes: int) -> Dims:
    sizes = {**SIZES, **changes}
    return [[value(dim, sizes) for dim in tensor["dims"]] for tensor in tensors(op)]


def text(dims: Dims) -> str:
    return ";".join(",".join(map(str, one)) for one in dims)


def test_operators(ask: Ask) -> None:
    expected = {f"{name} {CONTRACT['version']} {CONTRACT['domain']}" for name in OPS}
    assert set(filter(None, ask("ops").split(";"))) == expected


@pytest.mark.parametrize("op", OPS)
def test_attributes(ask: Ask, op: str) -> None:
    attributes = OPS[op]["attributes"]
    assert all(attribute["type"] == "int" for attribute in attributes)
    assert ask(f"fields {op}") == "".join(f"{attribute['name']} {INT32_FIELD} 1;" for attribute in attributes)


@pytest.mark.parametrize("op, base", list(itertools.product(OPS, range(ENUMERATORS))))
def test_types_and_formats(ask: Ask, op: str, base: int) -> None:
    """Where the first input is of type `base`, every type and format in every position."""
    types = [TENSORRT_TYPES[name] for name in CONTRACT["types"]]
    expected = set()
    for position, tensor in enumerate(tensors(op)):
        accepted = [TENSORRT_TYPES["float32"]] if tensor.get("float32") else types if position == 0 else [base]
        expected |= {f"{position}/{kind}/{LINEAR}" for kind in accepted if kind in types}
    assert set(ask(f"formats {op} {len(OPS[op]['inputs'])} {base}").split()) == expected


@pytest.mark.parametrize("op", OPS)
def test_good_dimensions(ask: Ask, op: str) -> None:
    changes: list[dict[str, int]] = [{}, {"B": 1}, {"H": 1}, {"W": 1}, {"R": 1}, {"L": 1}, {"D": 3}]
    limits = {symbol: bounds for symbol, bounds in OPS[op]["limits"].items() if symbol != "K"}
    changes += [{symbol: bound} for symbol, bounds in limits.items() for bound in bounds]
    for change in changes:
        for kind in CONTRACT["types"]:
            assert ask(f"dims {op} {TENSORRT_TYPES[kind]} {text(dims_of(op, **change))}") == "ok", change
    unknown = [[-1] * len(one) for one in dims_of(op)]
    assert ask(f"dims {op} 0 {text(unknown)}") == "ok"


@pytest.mark.parametrize("op", OPS)
def test_every_wrong_dimension(ask: Ask, op: str) -> None:
    """One dimension of one tensor, then its number of dimensions. (A symbol that stands nowhere else may be anything.)"""
    good = dims_of(op)
    for position, tensor in enumerate(tensors(op)):
        for axis in range(len(tensor["dims"])):
            for wrong in (good[position][axis] + 1, 0, -2):
                bad = [list(one) for one in good]
                bad[position][axis] = wrong
                answer = ask(f"dims {op} 0 {text(bad)}")
                assert answer.startswith(f"{op}: expected "), (tensor["name"], axis, wrong, answer)
        for change in (good[position][:-1], [*good[position], 1]):
            bad = [*good[:position], change, *good[position + 1 :]]
            if change:
                assert "wrong number of dimensions" in ask(f"dims {op} 0 {text(bad)}"), tensor["name"]


@pytest.mark.parametrize("op", OPS)
def test_limits(ask: Ask, op: str) -> None:
    for symbol, (lowest, highest) in OPS[op]["limits"].items():
        for beyond in (lowest - 1, highest + 1):
            answer = ask(f"dims {op} 0 {text(dims_of(op, **{symbol: beyond}))}")
            assert answer.startswith(f"{op}: expected"), (symbol, beyond, answer)
    for multiple, divisor in OPS[op]["multiples"].items():
        answer = ask(f"dims {op} 0 {text(dims_of(op, **{multiple: SIZES[divisor] + 1}))}")
        assert f"expected {multiple} to be a multiple of {divisor}" in answer


@pytest.mark.parametrize("op", OPS)
def test_output_shape(ask: Ask, op: str) -> None:
    dims = dims_of(op)
    assert ask(f"shape {op} {text(dims)}") == ",".join(map(str, dims[-1]))
    for position in range(len(dims) - 1):
        bad = [*dims[:position], [*dims[position], 1], *dims[position + 1 :]]
        assert f"expected {tensors(op)[position]['name']} [" in ask(f"shape {op} {text(bad)}")
    assert f"expected {len(dims) - 1} inputs and 1 output" in ask(f"shape {op} {text([*dims, [1]])}")


def workspace_bytes(element: int, sizes: dict[str, int]) -> int:
    """x channels last, its channels up to a multiple of 8; then, float32 and tokens up to a multiple of 32, B and C in the
    order of each scan, states up to a multiple of 16, and the low rank there too, up to a multiple of 8; and the float32
    sums of four parts, of as many channels as x. Where y is float32 and without gaps, the first of them is there. Each a
    multiple of 256 bytes."""
    images, length = sizes["B"] * sizes["G"], sizes["H"] * sizes["W"]
    pitch, states, rows = (-(-n // m) * m for n, m in ((length, 32), (sizes["N"], 16), (sizes["R"], 8)))
    channels = -(-sizes["D"] // 8) * 8
    parts = [images * length * channels * element, images * 4 * pitch * 2 * states * 4, images * 4 * pitch * rows * 4]
    in_output = element == 4 and channels == sizes["D"]
    parts += [images * length * channels * 4] * (3 if in_output else 4)
    return sum(-(-part // 256) * 256 for part in parts)


def test_workspace(ask: Ask) -> None:
    for kind, number in TENSORRT_TYPES.items():
        assert ask(f"workspace SelectiveScan {number} {text(dims_of('SelectiveScan'))}") == "0"
        expected = workspace_bytes(4 if kind == "float32" else 2, SIZES)
        assert ask(f"workspace SelectiveScan2D {number} {text(dims_of('SelectiveScan2D'))}") == str(expected)


def test_workspace_does_for_smaller_batches(ask: Ask) -> None:
    """TensorRT asks once, with the smallest and the largest shapes; fewer images may be cut into more parts."""

    def asked(batch: int, smallest: int | str = "") -> int:
        return int(
            ask(f"workspace SelectiveScan2D 1 {text(dims_of('SelectiveScan2D', B=batch, G=1, D=384))} {smallest}")
        )

    batches = range(1, 70)
    own, since_one = [asked(B) for B in batches], [asked(B, 1) for B in batches]
    assert since_one == [max(own[:B]) for B in batches]
    assert own != sorted(own) and max(own[9:20]) == asked(20, 10)
    assert since_one == sorted(since_one)
    one = workspace_bytes(2, SIZES | {"B": 1, "G": 1, "D": 384})
    assert since_one[0] == one and since_one[-1] < 69 * one, "the largest takes fewer parts"
