"""The plugins without TensorRT: created, configured and refused on any machine; run, against the float64 loop, on a GPU."""

import math
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cases import CASES, DTYPES, MAP, SCAN, TYPES, Case, check_isolation, inputs, type_of

from mtmamba.cache import CACHE_VARIABLE
from mtmamba.errors import MtmError
from mtmamba.export.contract import OPERATORS
from mtmamba.runtime import gpu
from mtmamba.runtime import harness as harness_module
from mtmamba.runtime.harness import Harness, PluginInstance
from mtmamba.runtime.toolchain import find_nvcc, find_toolchain, headers_dir

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def harness() -> Iterator[Harness]:
    """Of the library in the tests' cache, built if it is not there: TensorRT's headers are enough, hence no mark `trt`."""
    try:
        find_toolchain()
    except MtmError as error:
        pytest.skip(str(error))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_VARIABLE, os.environ.get(CACHE_VARIABLE, str(ROOT / "build" / "tests-cache")))
        with Harness() as opened:
            yield opened


def feeds_of(case: Case, kind: str) -> dict[str, Any]:
    return {name: value.astype(DTYPES[type_of(case.op, name, kind)]) for name, value in case.arrays(kind).items()}


def plugin_of(harness: Harness, case: Case, kind: str) -> PluginInstance:
    shapes = {name: value.shape for name, value in case.arrays(kind).items()}
    return harness.plugin(case.op, shapes, kind, **case.attributes)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.op} {case}")
def test_created_for_every_case(harness: Harness, case: Case, kind: str) -> None:
    with_plugin = plugin_of(harness, case, kind)
    first = case.arrays()["u" if case.op == SCAN else "x"].shape
    expected = first if case.op == SCAN else (*first[:2], *first[3:], first[2])
    assert with_plugin.output_shape == expected
    assert with_plugin.workspace_bytes >= 0
    with_plugin.close()


def test_workspace_of_the_map_is_counted(harness: Harness) -> None:
    """float32 sums beside a half-precision output."""
    case = Case(op=MAP)
    needed = plugin_of(harness, case, "float16").workspace_bytes
    assert needed >= 4 * math.prod(plugin_of(harness, case, "float16").output_shape)


@pytest.mark.parametrize(
    "op, change, kind, attributes, message",
    [
        (SCAN, {"B": (2, 2, 15, 37)}, "float32", {}, "expected B .B, G, N, L., found .2, 2, 15, 37.: N is 16"),
        (SCAN, {"u": (2, 12)}, "float32", {}, "expected u .B,D,L., found 2 dimensions"),
        (SCAN, {"A": (12, 65)}, "float32", {}, "SelectiveScan: expected"),
        (SCAN, {}, "float32", {"delta_softplus": 2}, "expected delta_softplus to be 0 or 1, found 2"),
        (SCAN, {}, "float32", {"other": 1}, "unknown attribute other"),
        (MAP, {"D": (2, 3, 20)}, "bfloat16", {}, "K is 4 in the tensors before it"),
        (MAP, {}, "float64", {}, "expected one of SelectiveScan, SelectiveScan2D in float32, float16, bfloat16"),
        ("Scan", {}, "float32", {}, "found Scan in float32"),
        (SCAN, {"u": (1,) * 9}, "float32", {}, "at most 8 dimensions"),
    ],
)
def test_what_the_plugin_refuses(
    harness: Harness, op: str, change: dict[str, tuple[int, ...]], kind: str, attributes: dict[str, int], message: str
) -> None:
    shapes = {name: value.shape for name, value in inputs(op if op in OPERATORS else SCAN).items()} | change
    with pytest.raises(MtmError, match=message):
        harness.plugin(op, shapes, kind, **attributes)


def test_missing_input_is_named(harness: Harness) -> None:
    with pytest.raises(MtmError, match="SelectiveScan: expected the inputs u, .* found u; name each"):
        harness.plugin(SCAN, {"u": (1, 2, 3)})


def test_missing_library(harness: Harness, tmp_path: Path) -> None:
    with pytest.raises(MtmError, match="no-such.so: expected the mtmamba plugin library, found no such file"):
        Harness(tmp_path / "no-such.so")


def test_another_library(tmp_path: Path, harness: Harness) -> None:
    text = tmp_path / "text.so"
    text.write_text("not a library")
    with pytest.raises(MtmError, match="text.so.*(file too short|invalid ELF header)"):
        Harness(text)
    with pytest.raises(MtmError, match="found one without mtmambaSetLogCallback"):
        Harness(harness_module.harness_library())


def test_no_compiler(harness: Harness, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setenv("CUDACXX", "false")
    with pytest.raises(MtmError, match="false could not build libmtmamba_harness.so: it said nothing"):
        harness_module.harness_library()
    assert not list(tmp_path.rglob("*.so")), "nothing half-made stays"


def test_no_gpu(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "find_gpus", list)
    case = Case(op=SCAN)
    with pytest.raises(MtmError, match="running a plugin needs an NVIDIA GPU and its driver, found none"):
        plugin_of(harness, case, "float32").run(feeds_of(case, "float32"))


def test_arrays_that_do_not_fit(harness: Harness) -> None:
    case = Case(op=SCAN)
    feeds = feeds_of(case, "float16")
    with pytest.raises(MtmError, match="expected u float32 .*, found float16"):
        plugin_of(harness, case, "float32").run(feeds)
    with pytest.raises(MtmError, match=r"expected C float16 .*, found float16 \[2, 2, 16, 36\]"):
        plugin_of(harness, case, "float16").run(feeds | {"C": feeds["C"][..., :-1]})


def on_device(shape: tuple[int, ...], typestr: str, strides: tuple[int, ...] | None = None) -> Any:
    """What looks like an array on a GPU; nothing here may read it."""
    interface = {"shape": shape, "typestr": typestr, "data": (4096, False), "version": 3, "strides": strides}
    return SimpleNamespace(__cuda_array_interface__=interface)


CODES = {"float32": "<f4", "float16": "<f2", "bfloat16": "<V2"}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"x": np.zeros(1)}, "expected x in the GPU's memory .*, found ndarray"),
        ({"x": on_device((1, 2, 20, 5, 7), "<f4")}, "expected x as contiguous float16 .*, found <f4"),
        ({"x": on_device((1, 2, 20, 5, 8), "<f2")}, r"found <f2 \[1, 2, 20, 5, 8\]"),
        ({"x": on_device((1, 2, 20, 5, 7), "<f2", (1400, 700, 2, 280, 40))}, "found .* strides"),
        ({"A": on_device((2, 4, 20, 16), "<f2")}, "expected A as contiguous float32"),
        ({"output": on_device((1, 2, 20, 5, 7), "<f2")}, "expected the output as contiguous float16 .1, 2, 5, 7, 20."),
        ({"workspace": None}, "expected a workspace of [0-9]+ bytes, found none"),
        ({"workspace": on_device((3,), "<f4")}, "expected a contiguous workspace of [0-9]+ bytes, found one of 12"),
    ],
)
def test_buffers_that_do_not_fit(harness: Harness, change: dict[str, Any], message: str) -> None:
    case = Case(op=MAP)
    plugin = plugin_of(harness, case, "float16")
    buffers = {
        name: on_device(shape, CODES[plugin.types[name]], None if name == "A" else dense(shape, plugin.types[name]))
        for name, shape in plugin.shapes.items()
    }
    buffers["output"] = on_device(plugin.output_shape, "<f2")
    buffers["workspace"] = on_device((plugin.workspace_bytes,), "|u1")
    buffers |= change
    output, workspace = buffers.pop("output"), buffers.pop("workspace")
    with pytest.raises(MtmError, match=message):
        plugin.enqueue(buffers, output, workspace)


def dense(shape: tuple[int, ...], kind: str) -> tuple[int, ...]:
    return tuple(DTYPES[kind].itemsize * math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


@pytest.mark.skipif(bool(gpu.find_gpus()), reason="with a GPU the kernel would run, on addresses that are none")
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("op", [SCAN, MAP])
def test_enqueue_reaches_cuda(harness: Harness, op: str, kind: str) -> None:
    """Without a GPU all that can be seen is that the launch was tried, and its failure answered in the plugin's words."""
    plugin = plugin_of(harness, Case(op=op), kind)
    buffers = {name: on_device(shape, CODES[plugin.types[name]]) for name, shape in plugin.shapes.items()}
    workspace = on_device((max(1, plugin.workspace_bytes),), "|u1")
    with pytest.raises(MtmError, match=f"{op}: the kernel did not start: .*(CUDA|device|driver)"):
        plugin.enqueue(buffers, on_device(plugin.output_shape, CODES[kind]), workspace)


def test_the_program(harness: Harness, tmp_path: Path) -> None:
    """plugins/harness/main.cpp, as benchmarks/gpu_check.sh builds it: compiled everywhere, of use on a GPU."""
    source, program = ROOT / "plugins", tmp_path / "harness"
    flags = ["-std=c++17", "-Xcompiler=-Wall,-Wextra,-Werror", f"-I{source}", f"-isystem={headers_dir()}"]
    files = [str(source / "harness" / name) for name in ("harness.cpp", "main.cpp")]
    command = [str(find_nvcc()), *flags, *files, "-o", str(program), "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    done = subprocess.run([str(program), str(harness.library)], capture_output=True, text=True, check=False)
    assert done.returncode == (0 if gpu.find_gpus() else 77), done.stdout + done.stderr


@pytest.mark.gpu
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.op} {case}")
def test_case_on_the_gpu(harness: Harness, case: Case, kind: str) -> None:
    plugin = plugin_of(harness, case, kind)
    case.check(plugin.run(feeds_of(case, kind)), kind)
    plugin.close()


@pytest.mark.gpu
@pytest.mark.parametrize("op", [SCAN, MAP])
def test_poison_stays_in_its_channel_on_the_gpu(harness: Harness, op: str) -> None:
    plugin = plugin_of(harness, Case(op=op), "float32")
    check_isolation(op, lambda arrays: plugin.run({name: value.astype(np.float32) for name, value in arrays.items()}))


@pytest.mark.gpu
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("op", [SCAN, MAP])
def test_two_contexts_on_two_streams_give_the_bits_of_one(harness: Harness, op: str, kind: str) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch, for streams and memory on the GPU")
    case = Case(op=op, sizes={"D": 96, **({"L": 1008} if op == SCAN else {"H": 28, "W": 36})})
    alone = plugin_of(harness, case, kind).run(feeds_of(case, kind))
    plugins = [plugin_of(harness, case, kind) for _ in range(2)]
    tensors = {
        name: torch.from_numpy(value).to("cuda", getattr(torch, type_of(op, name, kind)))
        for name, value in case.arrays(kind).items()
    }
    empty = {"dtype": getattr(torch, kind), "device": "cuda"}
    outputs = [[torch.full(plugin.output_shape, torch.nan, **empty) for _ in range(20)] for plugin in plugins]
    scratch = [torch.empty(max(1, plugin.workspace_bytes), dtype=torch.uint8, device="cuda") for plugin in plugins]
    streams = [torch.cuda.Stream() for _ in plugins]
    torch.cuda.synchronize()
    for turn in range(20):
        for plugin, ours, workspace, stream in zip(plugins, outputs, scratch, streams, strict=True):
            plugin.enqueue(tensors, ours[turn], workspace, stream.cuda_stream)
    torch.cuda.synchronize()
    for y in (*outputs[0], *outputs[1]):
        assert np.array_equal(y.double().cpu().numpy(), alone.astype(np.float64))
