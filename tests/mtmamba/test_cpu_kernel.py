"""The C++ library on the CPU: accuracy, tails, hostile maps, gradients, determinism, building, and doing without it."""

import ctypes
import logging
import shutil
import subprocess
import sys
from itertools import product

import numpy as np
import pytest
import torch
from cases import CASES, MAP, SCAN, Case, check_isolation, inputs

from mtmamba import native
from mtmamba.errors import MtmError
from mtmamba.native import CPU_LIBRARY, CPU_SWITCH, build_cpu_library, cpu_library
from mtmamba.ops import cpu_kernel, selective_scan, selective_scan_2d
from mtmamba.ops.selective_scan import selective_scan_backward
from mtmamba.ops.selective_scan_2d import selective_scan_2d_backward

FUNCTIONS = {
    "exp2": (0, np.exp2, 1.5),
    "softplus": (1, lambda x: np.logaddexp(0, x), 4.0),
    "sigmoid": (2, lambda x: np.exp(-np.logaddexp(0, -x)), 4.0),
}
"""Number, truth, allowed error in units in the last place: as plugins/cpu/simd.h says (largest measured: 1.14, 3.11, 2.22)."""
# Instruction sets without AVX-512 take other code; every x86-64 processor has the first, most the second.
LEVELS = {"native": ("-march=native", "-fopenmp"), "sse2": ("-march=x86-64",), "avx2": ("-march=x86-64-v3",)}


@pytest.fixture(autouse=True)
def library(monkeypatch):
    monkeypatch.setenv(CPU_SWITCH, "1")
    if cpu_library() is None:
        pytest.skip("the CPU library cannot be built here")


@pytest.fixture(params=LEVELS)
def level(request, monkeypatch):
    """The library built for a level of the instruction set, in the place of the usual one."""
    if request.param != "native" and native.platform.machine() != "x86_64":
        pytest.skip("not an x86-64 processor")
    if request.param == "avx2" and " avx2 " not in native._processor():
        pytest.skip("this processor has no AVX2")
    built = ctypes.CDLL(str(build_cpu_library((LEVELS[request.param],))))
    monkeypatch.setattr(cpu_kernel, "cpu_library", lambda: built)
    return built


def apply(library, number, x):
    values = np.array(x, np.float32)
    library.mtmambaCpuFunction(number, ctypes.c_void_p(values.ctypes.data), ctypes.c_int64(values.size))
    return values


@pytest.mark.parametrize("name", FUNCTIONS)
def test_accuracy(level, name):
    number, truth, allowed = FUNCTIONS[name]
    spread = np.concatenate([np.linspace(-126, 127, 1_000_003), np.geomspace(1e-30, 1, 10_001)])
    x = np.concatenate([spread, -spread]).astype(np.float32)
    x = x[np.abs(x) < (126 if name == "exp2" else 87)]  # results are normal numbers
    with np.errstate(over="ignore"):
        expected = truth(x.astype(np.float64))
    found = apply(level, number, x)
    units = np.abs(found - expected) / np.spacing(expected.astype(np.float32)).astype(np.float64)
    assert units.max() <= allowed


def test_edges_of_functions(level):
    x = [np.nan, np.inf, -np.inf, 0, -0.0, 200, -200, 3e38, -3e38, 1e-45, -140]
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        for number, truth, _ in FUNCTIONS.values():
            expected = truth(np.array(x, np.float64)).astype(np.float32)
            np.testing.assert_allclose(apply(level, number, x), expected, rtol=1e-6, atol=1e-44)
    assert apply(level, 0, [0.0])[0] == 1, "a step of 0 keeps the state as it is"


def map_tensors(**sizes):
    return {name: torch.from_numpy(value).float() for name, value in inputs(MAP, **sizes).items()}


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.op} {case}")
def test_case(level, case):
    tensors = [torch.from_numpy(value).float() for value in case.arrays("float32").values()]
    y = selective_scan(*tensors, case.softplus) if case.op == SCAN else selective_scan_2d(*tensors)
    case.check(y.numpy(), "float32")


@pytest.mark.parametrize("op", [SCAN, MAP])
def test_poison_stays_in_its_channel(level, op):
    function = selective_scan if op == SCAN else selective_scan_2d
    check_isolation(op, lambda arrays: function(*(torch.from_numpy(value).float() for value in arrays.values())))


def scan_tensors(batch=2, channels=40, groups=2, states=16, length=150, seed=0):
    g = torch.Generator().manual_seed(seed)
    shapes = [(batch, channels, length)] * 2 + [(channels, states)] + [(batch, groups, states, length)] * 2
    tensors = [torch.randn(shape, generator=g) for shape in [*shapes, (channels,), (channels,)]]
    tensors[2] = -tensors[2].exp()
    return tensors


@pytest.mark.parametrize("softplus", [True, False])
@pytest.mark.parametrize(
    "change",
    [
        *({"length": length} for length in (1, 2, 63, 64, 65, 128, 129, 1008)),
        *({"states": states} for states in (1, 3, 17, 64)),
        *({"channels": channels, "groups": groups} for channels, groups in ((1, 1), (20, 20), (300, 1), (34, 2))),
        {"batch": 1, "groups": 1},
    ],
    ids=str,
)
def test_gradients(level, change, softplus):
    """Against those of the vectorised path in float64, which finite differences check (test_ops.py)."""
    tensors = scan_tensors(**change)
    if not softplus:
        tensors[1], tensors[6] = tensors[1].abs(), tensors[6].abs()
    grad_y = torch.randn(tensors[0].shape, generator=torch.Generator().manual_seed(1))
    found = selective_scan_backward(grad_y, *tensors, softplus)
    expected = selective_scan_backward(grad_y.double(), *(x.double() for x in tensors), softplus)
    for name, a, b, x in zip(("u", "delta", "A", "B", "C", "D", "bias"), found, expected, tensors, strict=True):
        assert a.shape == x.shape and a.dtype == x.dtype
        assert (a - b).abs().max() <= 1e-5 * max(1.0, b.abs().max()), name


def test_gradients_of_hostile_steps(level):
    for value in (-50.0, 50.0):
        tensors = scan_tensors()
        tensors[1].fill_(value)
        grad_y = torch.ones_like(tensors[0])
        found = selective_scan_backward(grad_y, *tensors, True)
        expected = selective_scan_backward(grad_y.double(), *(x.double() for x in tensors), True)
        for a, b in zip(found, expected, strict=True):
            assert (a - b).abs().max() <= 1e-5 * b.abs().max()


def map_gradients(tensors, seed=1):
    """Those of the C++ library, and those of the vectorised path in float64."""
    x = tensors["x"]
    shape = (*x.shape[:2], *x.shape[3:], x.shape[2])
    grad_y = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(x.dtype)
    found = selective_scan_2d_backward(grad_y, *tensors.values())
    return found, selective_scan_2d_backward(grad_y.double(), *(v.double() for v in tensors.values()))


def worst_gradients(tensors):
    """Error of each gradient as a fraction of its largest value, shapes and dtypes checked."""
    errors = {}
    for (name, x), a, b in zip(tensors.items(), *map_gradients(tensors), strict=True):
        assert a.shape == x.shape and a.dtype == x.dtype and b.isfinite().all()
        errors[name] = ((a.double() - b).abs().max() / b.abs().max().clamp(min=1.0)).item()
    return errors


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"B": 3},
        *({"D": D} for D in (1, 15, 16, 17, 33)),
        *({"N": N} for N in (1, 3, 17, 64)),
        *({"H": H, "W": W} for H, W in ((1, 1), (1, 65), (64, 1), (17, 33))),
        *({"R": R} for R in (1, 16, 17, 48)),
        {"G": 20, "D": 4},
        {"B": 1, "G": 1, "D": 300},  # several parts of the channels
    ],
    ids=str,
)
def test_map_gradients(level, change):
    errors = worst_gradients(map_tensors(**change))
    assert max(errors.values()) <= 1e-5, errors


@pytest.mark.parametrize(
    "name, value", [("dt_bias", -50.0), ("dt_bias", 50.0), ("A", -1e-4), ("A", -1e3), ("x", 1e4), ("x_dbl", 10.0)]
)
def test_gradients_of_hostile_maps(level, name, value):
    tensors = map_tensors(H=18, W=16)
    tensors[name] = torch.full_like(tensors[name], value)
    errors = worst_gradients(tensors)
    assert max(errors.values()) <= 1e-5, errors


def test_poisoned_gradient_stays_in_its_channel(level):
    tensors = map_tensors()
    grad_y = torch.ones(1, 2, 5, 7, 20)
    clean = selective_scan_2d_backward(grad_y, *tensors.values())
    grad_y[0, 1, 2, 3, 7] = torch.nan
    found = selective_scan_2d_backward(grad_y, *tensors.values())
    others = torch.tensor([c for c in range(20) if c != 7])
    for (name, _), a, b in zip(tensors.items(), found, clean, strict=True):
        own, own_clean = (v[0, 1] if name.startswith("x") else v[1] for v in (a, b))  # of group 1
        if name != "x_dbl":  # which every channel shares
            channel = 0 if name == "x" else 1
            assert not own.select(channel, 7).isfinite().all(), name
            assert torch.equal(own.index_select(channel, others), own_clean.index_select(channel, others)), name
        assert torch.equal(*(v[:, 0] if name.startswith("x") else v[0] for v in (a, b))), name


@pytest.mark.parametrize("dtype, tolerance", [(torch.float16, 1e-3), (torch.bfloat16, 8e-3)])
def test_low_precision_gradients(dtype, tolerance):
    tensors = map_tensors()
    for name in ("x", "x_dbl"):
        tensors[name] = tensors[name].to(dtype)
    assert max(worst_gradients(tensors).values()) <= tolerance


def test_grad_y_of_another_shape_is_refused():
    tensors = map_tensors()
    with pytest.raises(ValueError, match=r"expected grad_y \[B, G, H, W, D\]"):
        selective_scan_2d_backward(torch.ones(1, 2, 20, 5, 7), *tensors.values())


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_low_precision_tensors(kind):
    case = Case(op=MAP)
    tensors = {name: torch.from_numpy(value).float() for name, value in case.arrays(kind).items()}
    for name in ("x", "x_dbl"):
        tensors[name] = tensors[name].to(getattr(torch, kind))  # the parameters stay float32
    y = selective_scan_2d(**tensors)
    assert y.dtype == getattr(torch, kind)
    case.check(y.double().numpy(), kind)


def test_same_bits_for_any_number_of_threads():
    before = torch.get_num_threads()
    tensors, maps = scan_tensors(batch=3), list(map_tensors(B=2, D=50).values())
    grad_y = torch.randn(2, 2, 5, 7, 50)
    results = []
    try:
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            one = [selective_scan(*tensors), selective_scan_2d(*maps)]
            one += selective_scan_backward(tensors[0], *tensors, True)
            results.append([*one, *selective_scan_2d_backward(grad_y, *maps)])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_what_the_library_does_not_take():
    x = torch.ones(2)
    assert cpu_kernel.takes(16, x)
    assert not cpu_kernel.takes(65, x)
    assert not cpu_kernel.takes(16, x, x.double())
    assert not cpu_kernel.takes(16, x, torch.empty(0))
    assert not cpu_kernel.takes(16, x, torch.empty(2, device="meta"))
    tensors = scan_tensors(states=65, length=9)
    assert selective_scan(*tensors).isfinite().all()  # the vectorised path does


def test_switched_off(monkeypatch):
    monkeypatch.setenv(CPU_SWITCH, "0")
    assert cpu_library() is None
    assert not cpu_kernel.takes(16, torch.ones(1))


def test_out_of_memory_is_said(monkeypatch):
    class Empty:
        @staticmethod
        def mtmambaCpuSelectiveScan(*arguments):
            return 1

    monkeypatch.setattr(cpu_kernel, "cpu_library", lambda: Empty)
    with pytest.raises(MemoryError, match="mtmambaCpuSelectiveScan: no memory"):
        selective_scan(*scan_tensors())


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """An empty cache, and nothing remembered of an earlier load."""
    monkeypatch.setenv("MTMAMBA_CACHE", str(tmp_path / "cache"))
    native._load.cache_clear()
    yield tmp_path / "cache" / "cpu"
    native._load.cache_clear()


def test_without_a_compiler_it_is_said_once(fresh, monkeypatch, caplog):
    monkeypatch.setattr(native.shutil, "which", lambda name: None)
    tensors = scan_tensors()
    caplog.set_level(logging.WARNING)
    first, second = selective_scan(*tensors), selective_scan(*tensors)
    assert torch.equal(first, second)
    assert ["no C++ compiler was found" in record.message for record in caplog.records] == [True]


def test_failing_build_is_said_and_done_without(fresh, monkeypatch, tmp_path, caplog):
    compiler = tmp_path / "broken"
    compiler.write_text("#!/bin/sh\necho no space left >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(MtmError, match="could not build libmtmamba_cpu.so: no space left"):
        build_cpu_library()
    caplog.set_level(logging.WARNING)
    assert selective_scan(*scan_tensors()).isfinite().all()
    assert "no space left" in caplog.text
    assert list(fresh.iterdir()) == [], "nothing half-made stays"


def test_flags_that_the_compiler_does_not_know(fresh):
    path = build_cpu_library((("-march=no-such-processor",), ("-O1",)))
    assert path.name == CPU_LIBRARY
    assert ctypes.CDLL(str(path)).mtmambaCpuLanes() in (4, 8, 16)


def test_built_once_for_all(fresh, monkeypatch):
    path = build_cpu_library((("-O1",),))
    before = path.stat().st_mtime_ns
    assert build_cpu_library((("-O1",),)) == path
    assert path.stat().st_mtime_ns == before
    monkeypatch.setattr(native, "_processor", lambda: "another")
    assert native._key(native._compiler(), (("-O1",),)) != path.parent.name


def test_sources_decide_the_key(fresh, monkeypatch, tmp_path):
    copy = tmp_path / "plugins"
    shutil.copytree(native.source_dir(), copy)
    monkeypatch.setattr(native, "source_dir", lambda: copy)
    keys = {native._key("c++", ())}
    for name in ("cpu/simd.h", "kernels/step.h"):
        with (copy / name).open("a") as file:
            file.write("// changed\n")
        keys.add(native._key("c++", ()))
    assert len(keys) == 3


def test_two_processes_at_once(fresh):
    code = "from mtmamba.native import build_cpu_library; print(build_cpu_library((('-O1',),)))"
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = {process.communicate(timeout=120)[0] for process in both}
    assert [process.returncode for process in both] == [0, 0]
    assert len(outputs) == 1
    assert len(list(fresh.iterdir())) == 1


def test_export_sees_an_operator_not_the_library():
    class Scan(torch.nn.Module):
        def forward(self, *tensors):
            return selective_scan_2d(*tensors)

    program = torch.export.export(Scan(), tuple(map_tensors().values()))
    assert [str(n.target) for n in program.graph.nodes if n.op == "call_function"] == [
        "mtmamba.selective_scan_2d.default"
    ]


def test_strides_and_gradients_through_autograd():
    tensors = map_tensors()
    tensors["x"] = tensors["x"].transpose(-1, -2).contiguous().transpose(-1, -2)
    inputs = [x.clone().requires_grad_() for x in tensors.values()]
    selective_scan_2d(*inputs).sum().backward()
    exact = [x.double().requires_grad_() for x in tensors.values()]
    selective_scan_2d(*exact).sum().backward()
    for (name, _), a, b in zip(product(tensors, [0]), inputs, exact, strict=True):
        assert (a.grad - b.grad).abs().max() <= 1e-5 * max(1.0, b.grad.abs().max()), name
