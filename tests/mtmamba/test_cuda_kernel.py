"""The CUDA library for PyTorch, without a GPU: how it is called, built and done without.

What it computes: test_cuda_kernel_gpu.py on a GPU; tests/plugins/test_backward.py, its gradients on the block emulator.
"""

import ctypes
import logging
import shutil
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from cuda_tensors import map_tensors, scan_tensors

from mtmamba import native
from mtmamba.errors import MtmError
from mtmamba.native import CUDA_LIBRARY, CUDA_SWITCH, build_cuda_library, cuda_library
from mtmamba.ops import cuda_kernel
from mtmamba.ops.selective_scan import selective_scan_backward


class Recorder:
    """In the library's place: keeps what it is called with, and answers `error`."""

    def __init__(self, error=0, workspace=64):
        self.calls, self.error = [], error

        def size(arguments):
            self.calls.append(("bytes", arguments._obj))
            return workspace

        self.mtmambaCudaSelectiveScan2DBytes = size
        self.mtmambaCudaSelectiveScanBackwardBytes = self.mtmambaCudaSelectiveScan2DBackwardBytes = size

    def __getattr__(self, name):
        def call(arguments, outputs, place):
            self.calls.append((name, arguments._obj, getattr(outputs, "_obj", outputs), place._obj))
            return self.error

        return call

    @staticmethod
    def mtmambaCudaErrorText(error):
        return f"text of {error}".encode()


@pytest.fixture
def recorder(monkeypatch):
    """A device and a stream that are not the first, and memory on the CPU."""
    recorder = Recorder()
    recorder.guards = []

    @contextmanager
    def guard(device):
        recorder.guards.append(device)
        yield

    streams = {1: SimpleNamespace(cuda_stream=0x5EED)}
    place = cuda_kernel._place
    second = torch.device("cuda", 1)
    monkeypatch.setattr(cuda_kernel, "_library", lambda device: recorder)
    monkeypatch.setattr(cuda_kernel, "_place", lambda device, workspace: place(second, workspace))
    monkeypatch.setattr(torch.cuda, "device", guard)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: streams[device.index])
    return recorder


def fields(structure):
    return {name: getattr(structure, name) for name, _ in structure._fields_}


def test_scan_hands_over_pointers_sizes_and_stream(recorder):
    tensors = scan_tensors()
    tensors[0] = tensors[0].bfloat16()
    tensors[1], tensors[3], tensors[4] = (tensors[i].bfloat16() for i in (1, 3, 4))
    y = cuda_kernel.scan(*tensors, softplus=False)
    ((name, arguments, outputs, place),) = recorder.calls
    assert name == "mtmambaCudaSelectiveScan"
    pointers = dict(zip(("u", "delta", "A", "B", "C", "D", "delta_bias"), (x.data_ptr() for x in tensors), strict=True))
    sizes = {"batch": 2, "channels": 6, "groups": 2, "states": 16, "length": 70}
    assert fields(arguments) == {**pointers, **sizes, "type": 2, "softplus": 0}
    assert outputs.value == y.data_ptr() and y.dtype == torch.bfloat16
    assert (place.device, place.stream, place.workspace) == (1, 0x5EED, None)
    assert recorder.guards == [tensors[0].device]


def test_map_hands_over_pointers_sizes_and_workspace(recorder):
    tensors = map_tensors()
    cuda_kernel.scan_2d(*tensors)
    (size, (name, arguments, _, place)) = recorder.calls
    assert size == ("bytes", arguments) and name == "mtmambaCudaSelectiveScan2D"
    pointers = dict(zip(("x", "x_dbl", "dt_weight", "dt_bias", "A", "D"), (x.data_ptr() for x in tensors), strict=True))
    sizes = {"batch": 1, "groups": 2, "channels": 5, "height": 7, "width": 6, "rank": 3, "states": 16}
    assert fields(arguments) == {**pointers, **sizes, "type": 0}
    assert place.workspace


def test_gradients_go_where_the_answer_is(recorder):
    tensors = scan_tensors()
    grad_y = torch.ones_like(tensors[0])
    found = cuda_kernel.scan_backward(grad_y, *tensors, softplus=True)
    _, (name, arguments, outputs, _) = recorder.calls
    assert name == "mtmambaCudaSelectiveScanBackward" and arguments.softplus == 1
    assert list(fields(outputs).values()) == [x.data_ptr() for x in (grad_y, *found)]
    maps = map_tensors()
    found = cuda_kernel.scan_2d_backward(torch.ones(1, 2, 7, 6, 5), *maps)
    name, _, outputs, _ = recorder.calls[-1]
    assert name == "mtmambaCudaSelectiveScan2DBackward"
    assert list(fields(outputs).values())[1:] == [x.data_ptr() for x in found]


def test_an_error_of_the_library_is_raised(recorder):
    recorder.error = 9
    with pytest.raises(RuntimeError, match="mtmambaCudaSelectiveScan2D: text of 9"):
        cuda_kernel.scan_2d(*map_tensors())


def like(dtype=torch.float32, device="cuda:0", count=1):
    return SimpleNamespace(device=torch.device(device), dtype=dtype, numel=lambda: count)


def test_what_the_library_takes(monkeypatch):
    monkeypatch.setattr(cuda_kernel, "_library", lambda device: object())
    assert cuda_kernel.takes(16, like(), like(torch.bfloat16))
    assert not cuda_kernel.takes(65, like())
    assert not cuda_kernel.takes(16, like(), like(torch.float64))
    assert not cuda_kernel.takes(16, like(), like(count=0))
    assert not cuda_kernel.takes(16, like(), like(device="cuda:1"))
    assert not cuda_kernel.takes(16, like(), like(device="cpu"))
    assert not cuda_kernel.takes(16, like(device="cpu"))
    monkeypatch.setattr(cuda_kernel, "_library", lambda device: None)
    assert not cuda_kernel.takes(16, like())


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """An empty cache, and nothing remembered of an earlier load."""
    monkeypatch.setenv("MTMAMBA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv(CUDA_SWITCH, "1")
    native._load_cuda.cache_clear()
    yield tmp_path / "cache" / "cuda"
    native._load_cuda.cache_clear()


def test_without_nvcc_it_is_said_once(fresh, monkeypatch, caplog):
    monkeypatch.setattr(native, "find_nvcc", lambda: None)
    caplog.set_level(logging.WARNING)
    assert cuda_library((9, 0)) is None
    assert cuda_library((9, 0)) is None
    assert ["expected nvcc on the PATH" in record.message for record in caplog.records] == [True]
    assert "scans on the GPU take the slower PyTorch path" in caplog.text


def test_switched_off(fresh, monkeypatch):
    monkeypatch.setenv(CUDA_SWITCH, "0")
    monkeypatch.setattr(native, "build_cuda_library", lambda capability: pytest.fail("built though it is off"))
    assert cuda_library((9, 0)) is None


def test_failing_build_leaves_nothing(fresh, monkeypatch, tmp_path):
    compiler = tmp_path / "nvcc"
    compiler.write_text('#!/bin/sh\n[ "$1" = --version ] && exit 0\necho "no such architecture: $*" >&2\nexit 1\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CUDACXX", str(compiler))
    with pytest.raises(MtmError, match=r"(?s)could not build libmtmamba_cuda.so: .*arch=compute_103,code=sm_103"):
        build_cuda_library((10, 3))
    assert list(fresh.iterdir()) == []


def test_key_follows_what_decides_the_library(monkeypatch, tmp_path):
    copy = tmp_path / "plugins"
    shutil.copytree(native.source_dir(), copy)
    monkeypatch.setattr(native, "source_dir", lambda: copy)
    nvcc = tmp_path / "nvcc"
    keys = [native._cuda_key(nvcc, "sm_90"), native._cuda_key(nvcc, "sm_80")]
    for name in ("kernels/backward_pass.cuh", "torch_cuda/arguments.h", "selective_scan/launch.cu"):
        with (copy / name).open("a") as file:
            file.write("// changed\n")
        keys.append(native._cuda_key(nvcc, "sm_90"))
    assert len(set(keys)) == 5
    (copy / "cpu" / "another.h").write_text("// of the CPU library")
    assert native._cuda_key(nvcc, "sm_90") == keys[-1]


@pytest.fixture(scope="module")
def built():
    if native.find_nvcc() is None:
        pytest.skip("no CUDA toolkit: nvcc was not found")
    return build_cuda_library((9, 0))


def test_real_library_says_how_much_workspace(built):
    library = ctypes.CDLL(str(built))
    assert built.name == CUDA_LIBRARY
    arguments = cuda_kernel._map_arguments([x.half() if i < 2 else x for i, x in enumerate(map_tensors())])
    function = library.mtmambaCudaSelectiveScan2DBackwardBytes
    function.restype = ctypes.c_int64
    planes, channels, length, states, rank = 2, 5, 42, 16, 3
    chunks, blocks = 2, 1
    chunk_sums = planes * chunks * channels * (3 * states + states + 2 + rank)
    sums = planes * blocks * (rank + 2 * states) * length + planes * channels * length  # of x_dbl's gradient and x's
    assert function(ctypes.byref(arguments)) == 4 * (chunk_sums + sums)
    arguments.type = 3
    assert function(ctypes.byref(arguments)) == -1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: its tests call the library")
def test_real_library_answers_an_error_where_there_is_no_gpu(built, monkeypatch, recorder):
    monkeypatch.setattr(cuda_kernel, "_library", lambda device: ctypes.CDLL(str(built)))
    for call in (
        lambda: cuda_kernel.scan(*scan_tensors(), softplus=True),
        lambda: cuda_kernel.scan_2d(*map_tensors()),
        lambda: cuda_kernel.scan_backward(scan_tensors()[0], *scan_tensors(), softplus=True),
        lambda: cuda_kernel.scan_2d_backward(torch.ones(1, 2, 7, 6, 5), *map_tensors()),
    ):
        with pytest.raises(RuntimeError, match="^mtmambaCudaSelectiveScan(2D)?(Backward)?: .*(CUDA|device|driver)"):
            call()


def test_gradients_of_another_shape_are_refused():
    tensors = scan_tensors()
    with pytest.raises(ValueError, match="expected grad_y of u's shape"):
        selective_scan_backward(tensors[0][..., 1:], *tensors, True)
