"""PyTorch's CUDA library without a GPU: its source under the block emulator, called as the operators call it. Of the forward
kernels only that they get what they are given; tests/plugins/cpp has the rest."""

import ctypes
import hashlib
import subprocess
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mtmamba import native
from mtmamba.ops import cuda_kernel, selective_scan, selective_scan_2d
from mtmamba.ops.selective_scan import selective_scan_backward
from mtmamba.ops.selective_scan_2d import selective_scan_2d_backward

ROOT = Path(__file__).resolve().parents[2]
SCHEDULES = (0, 1, 2)
"""In order, the last first, by chance: bits that are the same under all three are the race test."""
GUARD = 4096
TOLERANCES = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}


@pytest.fixture(scope="session")
def library() -> ctypes.CDLL:
    """plugins/torch_cuda on the emulator, kept in build/ for as long as no source changes."""
    nvcc = native.find_nvcc()
    if nvcc is None:
        pytest.skip("no CUDA toolkit: its headers are needed")
    emulator = ROOT / "tests" / "plugins" / "emulator"
    names = ("kernels", "torch_cuda", "selective_scan", "selective_scan_2d")
    folders = (*(ROOT / "plugins" / name for name in names), emulator)
    sources = sorted(path for folder in folders for path in folder.iterdir())
    source = ROOT / "tests" / "plugins" / "backward" / "emulated.cpp"
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in (source, *sources))).hexdigest()[:16]
    built = ROOT / "build" / "backward-tests" / f"emulated-{digest}.so"
    if not built.is_file():
        built.parent.mkdir(parents=True, exist_ok=True)
        flags = "-fPIC,-fvisibility=hidden,-U_FORTIFY_SOURCE,-Wall,-Wextra,-Werror,-Wno-unknown-pragmas"
        includes = [f"-I{folder}" for folder in (ROOT / "plugins", emulator)]
        # nvcc hands a .cpp file to the C++ compiler, with its headers.
        command = [nvcc, "-std=c++17", "-O2", "-shared", f"-Xcompiler={flags}", *includes, source, "-o", built]
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-4000:]
    return ctypes.CDLL(str(built))


class Emulated:
    """Calls of `cuda_kernel` that go to the emulator, with workspaces of NaN and a guard behind each."""

    def __init__(self) -> None:
        self.schedule = 0
        self.workspaces: list[tuple[Tensor, int]] = []

    def place(self, device: torch.device, workspace: Tensor) -> ctypes.Structure:
        memory = torch.full((workspace.numel() + GUARD,), 0xFF, dtype=torch.uint8)
        self.workspaces.append((memory, workspace.numel()))
        return cuda_kernel._Place(0, self.schedule, memory.data_ptr())

    def run(self, function: Callable[..., tuple[Tensor, ...]], *arguments: object) -> tuple[Tensor, ...]:
        """The results, the same bits under every schedule; the workspace is as large as it must be, and no larger."""
        results = []
        for self.schedule in SCHEDULES:
            results.append(function(*arguments))
        for other in results[1:]:
            for a, b in zip(results[0], other, strict=True):
                assert torch.equal(a.nan_to_num(nan=123.0), b.nan_to_num(nan=123.0)), "a race"
        for memory, size in self.workspaces:
            assert (memory[size:] == 0xFF).all(), "written past the workspace's end"
            assert not (memory[size - 4 : size] == 0xFF).all(), "the workspace is larger than need be"
        self.workspaces.clear()
        return results[0]


@pytest.fixture
def emulated(library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulated]:
    calls = Emulated()
    monkeypatch.setattr(cuda_kernel, "_library", lambda device: library)
    monkeypatch.setattr(cuda_kernel, "_place", calls.place)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch, "empty_like", lambda x: torch.full_like(x, torch.nan))
    yield calls


def scan_tensors(
    batch: int = 1, channels: int = 6, groups: int = 2, states: int = 16, length: int = 70, softplus: bool = True
) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    shapes = [(batch, channels, length)] * 2 + [(channels, states)] + [(batch, groups, states, length)] * 2
    tensors = [torch.randn(shape, generator=g) for shape in [*shapes, (channels,), (channels,)]]
    tensors[2] = -tensors[2].exp()
    if not softplus:
        tensors[1], tensors[6] = tensors[1].abs(), tensors[6].abs()
    return tensors


def map_tensors(
    B: int = 1, G: int = 2, D: int = 5, H: int = 7, W: int = 6, R: int = 3, N: int = 16
) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    shapes = {
        "x": (B, G, D, H, W),
        "x_dbl": (B, G, 4, R + 2 * N, H, W),
        "dt_weight": (G, 4, D, R),
        "dt_bias": (G, 4, D),
        "A": (G, 4, D, N),
        "D": (G, 4, D),
    }
    tensors = {name: torch.randn(shape, generator=g) for name, shape in shapes.items()}
    tensors["A"] = -tensors["A"].exp()
    return tensors


def errors(found: tuple[Tensor, ...], expected: tuple[Tensor, ...], given: list[Tensor]) -> list[float]:
    """Of each gradient, as a fraction of its largest value."""
    for a, b, x in zip(found, expected, given, strict=True):
        assert a.shape == x.shape and a.dtype == x.dtype and b.isfinite().all()
    return [
        ((a.double() - b).abs().max() / b.abs().max().clamp(min=1.0)).item()
        for a, b in zip(found, expected, strict=True)
    ]


def scan_errors(emulated: Emulated, tensors: list[Tensor], softplus: bool = True) -> list[float]:
    grad_y = torch.randn(tensors[0].shape, generator=torch.Generator().manual_seed(1)).to(tensors[0].dtype)
    found = emulated.run(cuda_kernel.scan_backward, grad_y, *tensors, softplus)
    return errors(found, selective_scan_backward(grad_y.double(), *(x.double() for x in tensors), softplus), tensors)


def map_errors(emulated: Emulated, tensors: dict[str, Tensor]) -> list[float]:
    x, given = tensors["x"], list(tensors.values())
    shape = (*x.shape[:2], *x.shape[3:], x.shape[2])
    grad_y = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(x.dtype)
    found = emulated.run(cuda_kernel.scan_2d_backward, grad_y, *given)
    return errors(found, selective_scan_2d_backward(grad_y.double(), *(v.double() for v in given)), given)


def test_forward(emulated: Emulated) -> None:
    maps = list(map_tensors(B=2).values())
    for softplus in (True, False):
        tensors = scan_tensors(batch=2, softplus=softplus)
        found = cuda_kernel.scan(*tensors, softplus)
        expected = selective_scan(*(x.double() for x in tensors), softplus)
        assert (found - expected).abs().max() <= 2e-6 * expected.abs().max()
    expected = selective_scan_2d(*(x.double() for x in maps))
    assert (cuda_kernel.scan_2d(*maps) - expected).abs().max() <= 2e-6 * expected.abs().max()
    low = [x.half() if i < 2 else x for i, x in enumerate(maps)]
    assert (cuda_kernel.scan_2d(*low) - expected).abs().max() <= 4e-3 * expected.abs().max()
    for memory, size in emulated.workspaces:
        assert (memory[size:] == 0xFF).all(), "written past the workspace's end"


@pytest.mark.parametrize("softplus", [True, False])
@pytest.mark.parametrize(
    "change",
    [
        {},
        *({"length": length} for length in (1, 2, 8, 31, 32, 33, 64, 65)),
        *({"states": states} for states in (1, 3, 4, 5, 15)),
        *({"states": states, "length": 19, "channels": 3, "groups": 1} for states in (17, 64)),
        *({"channels": channels, "groups": 1, "length": 35} for channels in (1, 31, 32, 33)),
        {"channels": 20, "groups": 20, "length": 33},
        {"batch": 3, "length": 33},
        {"length": 400, "channels": 3, "groups": 1},  # more chunks than are on their way at once
    ],
    ids=str,
)
def test_scan(emulated: Emulated, change: dict[str, int], softplus: bool) -> None:
    assert max(scan_errors(emulated, scan_tensors(**change, softplus=softplus), softplus)) <= TOLERANCES[torch.float32]


@pytest.mark.parametrize(
    "change",
    [
        {},
        *({"H": H, "W": W} for H, W in ((1, 1), (1, 33), (32, 1), (5, 13))),
        *({"N": N, "G": 1} for N in (1, 4, 5)),
        {"N": 64, "G": 1, "D": 2, "H": 3},
        *({"R": R, "G": 1} for R in (1, 16, 17, 48)),
        {"D": 33, "G": 1},
        {"B": 3, "H": 3},
        {"G": 5, "D": 1, "H": 3},
    ],
    ids=str,
)
def test_map(emulated: Emulated, change: dict[str, int]) -> None:
    assert max(map_errors(emulated, map_tensors(**change))) <= TOLERANCES[torch.float32]


@pytest.mark.parametrize(
    "index, value", [(1, -50.0), (1, 50.0), (2, -1e-4), (2, -1e3), (0, 1e4), (3, 1e4), (4, 1e4), (6, -50.0)]
)
def test_hostile_scan(emulated: Emulated, index: int, value: float) -> None:
    tensors = scan_tensors(length=200)
    tensors[index] = torch.full_like(tensors[index], value)
    assert max(scan_errors(emulated, tensors)) <= 1e-5


@pytest.mark.parametrize(
    "name, value", [("dt_bias", -50.0), ("dt_bias", 50.0), ("A", -1e-4), ("A", -1e3), ("x", 1e4), ("x_dbl", 10.0)]
)
def test_hostile_map(emulated: Emulated, name: str, value: float) -> None:
    tensors = map_tensors(H=9, W=8)
    tensors[name] = torch.full_like(tensors[name], value)
    assert max(map_errors(emulated, tensors)) <= 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision(emulated: Emulated, dtype: torch.dtype) -> None:
    scan = [x if i in (2, 5, 6) else x.to(dtype) for i, x in enumerate(scan_tensors())]
    assert max(scan_errors(emulated, scan)) <= TOLERANCES[dtype]
    maps = {name: x.to(dtype) if name.startswith("x") else x for name, x in map_tensors().items()}
    assert max(map_errors(emulated, maps)) <= TOLERANCES[dtype]


def test_types_that_differ_are_taken_as_the_wider(emulated: Emulated) -> None:
    tensors = scan_tensors(length=33)
    tensors[0], tensors[5] = tensors[0].half(), tensors[5].bfloat16()
    grad_y = torch.randn(tensors[0].shape, generator=torch.Generator().manual_seed(1))
    found = emulated.run(cuda_kernel.scan_backward, grad_y, *tensors, True)
    expected = selective_scan_backward(grad_y.double(), *(x.double() for x in tensors), True)
    by_tensor = errors(found, expected, tensors)
    assert by_tensor[0] <= 1e-3 and by_tensor[5] <= 8e-3 and max(by_tensor[1:5]) <= 2e-6


def test_strides(emulated: Emulated) -> None:
    tensors = scan_tensors(length=33)
    grad_y = torch.randn(tensors[0].shape)
    plain = emulated.run(cuda_kernel.scan_backward, grad_y, *tensors, True)
    apart = [x.repeat_interleave(2, dim=-1)[..., ::2] for x in (grad_y, *tensors)]
    assert not apart[0].is_contiguous()
    strided = emulated.run(cuda_kernel.scan_backward, *apart, True)
    assert all(torch.equal(a, b) for a, b in zip(plain, strided, strict=True))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_poison_stays_in_its_channel(emulated: Emulated, bad: float) -> None:
    tensors = map_tensors()
    grad_y = torch.ones(1, 2, 7, 6, 5)
    clean = emulated.run(cuda_kernel.scan_2d_backward, grad_y, *tensors.values())
    tensors["x"][0, 1, 3, 2, 2] = bad
    grad_y[0, 1, 4, 4, 3] = bad
    found = emulated.run(cuda_kernel.scan_2d_backward, grad_y, *tensors.values())
    others = torch.tensor([0, 1, 2, 4])
    for (name, _), a, b in zip(tensors.items(), found, clean, strict=True):
        own, own_clean = (v[0, 1] if name.startswith("x") else v[1] for v in (a, b))
        if name != "x_dbl":  # which every channel shares
            channel = 0 if name == "x" else 1
            assert not own.select(channel, 3).isfinite().all(), name
            assert torch.equal(own.index_select(channel, others), own_clean.index_select(channel, others)), name
        assert torch.equal(*(v[:, 0] if name.startswith("x") else v[0] for v in (a, b))), name


def test_what_no_launch_can_do_is_an_error(emulated: Emulated, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = scan_tensors(states=65, length=2)
    with pytest.raises(RuntimeError, match="mtmambaCudaSelectiveScanBackward: error 1$"):  # cudaErrorInvalidValue
        cuda_kernel.scan_backward(tensors[0], *tensors, True)
    monkeypatch.setattr(cuda_kernel, "_place", lambda device, workspace: cuda_kernel._Place(7, 0, workspace.data_ptr()))
    with pytest.raises(RuntimeError, match="mtmambaCudaSelectiveScan2DBackward: error 101$"):  # no such device
        cuda_kernel.scan_2d_backward(torch.ones(1, 2, 7, 6, 5), *map_tensors().values())
