"""The Python interface: predictions of pictures, raw tensors, threads, and what it refuses."""

import ctypes
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from mtmamba.errors import MtmError
from mtmamba.metadata import ModelMetadata
from mtmamba.postprocess import postprocess
from mtmamba.runtime import Model, Predictions, load
from mtmamba.runtime import device_array as device
from mtmamba.runtime.backends import open_backend
from mtmamba.runtime.preprocess import preprocess

UNITS = {"semseg": np.uint8, "human_parts": np.uint8}  # the others are float32


@pytest.fixture
def picture() -> np.ndarray:
    """[30, 50, 3] uint8 RGB."""
    return np.random.default_rng(2).integers(0, 256, (30, 50, 3), np.uint8)


def by_hand(path: Path, picture: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    with open_backend(path) as backend:
        raw = backend.infer(preprocess(np.ascontiguousarray(picture[:, :, ::-1]), backend.metadata)[None])
        size = (picture.shape[0], picture.shape[1])
        found = {task.name: postprocess(raw[task.name][0], task, size) for task in backend.metadata.tasks}
        return found, {name: value[0] for name, value in raw.items()}


def test_a_picture(toy_onnx: Path, picture: np.ndarray, metadata: ModelMetadata) -> None:
    expected, raw = by_hand(toy_onnx, picture)
    with load(toy_onnx) as model:
        found = model(picture)
        assert (model.tasks, model.input_size) == (metadata.tasks, metadata.input_size)
    assert list(found) == list(expected) == [task.name for task in metadata.tasks]
    for name, value in expected.items():
        assert found[name].dtype == UNITS.get(name, np.float32)
        np.testing.assert_array_equal(found[name], value)
        np.testing.assert_array_equal(getattr(found, name), value)
        np.testing.assert_array_equal(found.raw[name], raw[name])
    assert found.normals.shape == (30, 50, 3) and found.semseg.shape == (30, 50)
    np.testing.assert_allclose(np.linalg.norm(found.normals, axis=-1), 1, atol=1e-5)
    assert found.depth.min() >= 0 and 0 <= found.edge.min() <= found.edge.max() <= 1


class OnlyDlpack:
    """What an array needs to be read, and no more."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __dlpack__(self, **options: Any) -> object:
        return self.array.__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.array.__dlpack_device__()


def test_an_array_with_dlpack_alone(toy_onnx: Path, picture: np.ndarray, metadata: ModelMetadata) -> None:
    images = np.zeros((1, 3, *metadata.input_size), np.float32)
    with load(toy_onnx) as model:
        np.testing.assert_array_equal(model(OnlyDlpack(picture)).depth, model(picture).depth)
        np.testing.assert_array_equal(model.infer(OnlyDlpack(images))["depth"], model.infer(images)["depth"])


def test_arrays_that_numpy_refuses(toy_onnx: Path, metadata: ModelMetadata) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed (mtmamba[model])")
    images = torch.zeros(1, 3, *metadata.input_size, requires_grad=True)
    with load(toy_onnx) as model:
        model.infer(images.detach())
        for call in (model, model.infer):
            with pytest.raises(MtmError, match=r"found a Tensor that NumPy cannot read .*; call \.detach\(\) on it"):
                call(images)
            with pytest.raises(MtmError, match="found a list that NumPy cannot read .*; give a NumPy array"):
                call([[1, 2], [3]])


def test_channels_are_red_green_blue(toy_onnx: Path, picture: np.ndarray) -> None:
    with load(toy_onnx) as model:
        assert not np.array_equal(model(picture).depth, model(picture[:, :, ::-1]).depth)


@pytest.mark.parametrize("batch", [1, 3])
def test_pictures(tmp_path: Path, make_toy: Callable[..., Path], batch: int) -> None:
    path = make_toy(tmp_path / "toy.onnx", batch=batch)
    pictures = np.random.default_rng(0).integers(0, 256, (4, 20, 24, 3), np.uint8)
    with load(path) as model:
        together = model(pictures)
        for index in range(4):
            alone = model(pictures[index])
            for name in together:
                assert together[name].shape == (4, *alone[name].shape)
                np.testing.assert_allclose(together[name][index], alone[name], atol=1e-5)
                np.testing.assert_allclose(together.raw[name][index], alone.raw[name], atol=1e-5)


def test_predictions_do_not_change(toy_onnx: Path, picture: np.ndarray) -> None:
    with load(toy_onnx) as model:
        found = model(picture)
    assert isinstance(found, Predictions) and "depth float32 [30, 50]" in repr(found)
    with pytest.raises(AttributeError, match="predictions do not change"):
        found.depth = 0  # type: ignore[misc]
    with pytest.raises(TypeError):
        found.raw["depth"] = 0  # type: ignore[index]
    with pytest.raises(AttributeError, match="no prediction of 'flow'; this model's tasks are semseg"):
        _ = found.flow


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((30, 50, 3), np.float32), np.zeros((3, 30, 50), np.uint8), np.zeros((30, 50), np.uint8),
        np.zeros((0, 50, 3), np.uint8), np.zeros((0, 30, 50, 3), np.uint8), "picture.png", None,
    ],
    ids=["float", "channels first", "grey", "no rows", "no pictures", "a path", "nothing"],
)  # fmt: skip
def test_what_is_no_picture(toy_onnx: Path, wrong: Any) -> None:
    with load(toy_onnx) as model, pytest.raises(MtmError, match=r"expected a picture \[H, W, 3\]"):
        model(wrong)


def test_tensors(toy_onnx: Path, metadata: ModelMetadata) -> None:
    images = np.random.default_rng(0).normal(size=(3, 3, *metadata.input_size)).astype(np.float32)
    with open_backend(toy_onnx) as backend:
        expected = [backend.infer(image[None]) for image in images]
    with load(str(toy_onnx)) as model:
        found = model.infer(images)
        depth = np.empty_like(found["depth"])
        into = model.infer(images, out={"depth": depth})
        assert into["depth"] is depth
        for name in found:
            np.testing.assert_array_equal(found[name], np.concatenate([one[name] for one in expected]))
            np.testing.assert_array_equal(into[name], found[name])
        for wrong in (images.astype(np.float64), images[0], images[:, :, 1:], images[:0]):
            with pytest.raises(MtmError, match=r"expected float32 images \[n, 3, 48, 64\]"):
                model.infer(wrong)
        for out in ({"depth": depth[:2]}, {"depth": depth.astype(np.float64)}, {"depth": [1]}, {"flow": depth}):
            with pytest.raises(MtmError, match=r"out\['(depth|flow)'\]: expected"):
                model.infer(images, out=out)


class OnGpu:
    """Claims to be in GPU memory."""

    __cuda_array_interface__ = {"shape": (1, 3, 48, 64), "typestr": "<f4", "data": (1, False), "version": 3}


def test_an_array_on_the_gpu_needs_an_engine(toy_onnx: Path) -> None:
    with load(toy_onnx) as model, pytest.raises(MtmError, match="backend onnxruntime takes NumPy arrays"):
        model.infer(OnGpu())


class TestThreads:
    def test_each_gets_its_own_answer(self, toy_onnx: Path) -> None:
        pictures = np.random.default_rng(0).integers(0, 256, (40, 48, 64, 3), np.uint8)
        with load(toy_onnx, contexts=3) as model:
            expected = [model(picture).depth for picture in pictures]
            with ThreadPoolExecutor(8) as pool:
                found = list(pool.map(lambda picture: model(picture).depth, pictures))
        for one, other in zip(expected, found, strict=True):
            np.testing.assert_array_equal(one, other)

    def test_as_many_at_once_as_there_are_contexts(self, toy_onnx: Path, metadata: ModelMetadata) -> None:
        model = load(toy_onnx, contexts=2)
        running, most, lock = 0, 0, threading.Lock()
        lanes = set()

        def slow(self: Any, images: np.ndarray) -> dict[str, np.ndarray]:
            nonlocal running, most
            with lock:
                assert id(self) not in lanes, "one context in two threads"
                lanes.add(id(self))
                running += 1
                most = max(most, running)
            time.sleep(0.02)
            with lock:
                lanes.discard(id(self))
                running -= 1
            return {}

        kind = type(model._first)
        images = np.zeros((1, 3, *metadata.input_size), np.float32)
        with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(6) as pool:
            patch.setattr(kind, "infer", slow)
            list(pool.map(lambda _: model.infer(images), range(12)))
        model.close()
        assert most == 2

    def test_closing_waits_for_the_calls_under_way(self, toy_onnx: Path, metadata: ModelMetadata) -> None:
        model = load(toy_onnx)
        images = np.zeros((1, 3, *metadata.input_size), np.float32)
        started, ended = threading.Event(), []

        def slow(self: Any, images: np.ndarray) -> dict[str, np.ndarray]:
            started.set()
            time.sleep(0.1)
            ended.append(True)
            return {}

        with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(1) as pool:
            patch.setattr(type(model._first), "infer", slow)
            call = pool.submit(model.infer, images)
            started.wait()
            model.close()
            assert ended == [True]
            call.result()
        model.close()
        with pytest.raises(MtmError, match="this model is closed; load it again"):
            model.infer(images)

    def test_a_failing_call_gives_its_context_back(self, toy_onnx: Path, picture: np.ndarray) -> None:
        with load(toy_onnx, contexts=1) as model:
            for _ in range(3):
                with pytest.raises(MtmError):
                    model.infer(OnGpu())
            assert model(picture).depth.shape == (30, 50)


def test_a_checkpoint(tmp_path: Path, picture: np.ndarray) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed (mtmamba[model])")
    from dataclasses import replace

    from mtmamba import MTMamba, preset, save_checkpoint

    torch.manual_seed(0)
    config = replace(preset("synthetic", "nano", tasks=("semseg", "depth")), input_size=(32, 32))
    save_checkpoint(tmp_path / "best.pth", MTMamba(config))
    with load(tmp_path / "best.pth") as model, ThreadPoolExecutor(2) as pool:
        one, other = pool.map(model, [picture, picture])
    assert list(one) == ["semseg", "depth"]
    np.testing.assert_array_equal(one.depth, other.depth)


def test_it_needs_no_torch(toy_onnx: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = sys.modules['timm'] = None\n"
        "import mtmamba.runtime\n"
        "assert 'numpy' not in sys.modules, 'importing the package imports more than it should'\n"
        "import numpy as np\n"
        f"with mtmamba.runtime.load({str(toy_onnx)!r}) as model:\n"
        "    print(model(np.zeros((8, 9, 3), np.uint8)).depth.shape)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout.strip()) == (0, "(8, 9)"), result.stderr


@pytest.mark.parametrize("contexts", [0, -1])
def test_no_contexts(toy_onnx: Path, contexts: int) -> None:
    with pytest.raises(MtmError, match="expected contexts of at least 1"):
        load(toy_onnx, contexts=contexts)


def test_names_are_handed_out_lazily() -> None:
    import mtmamba.runtime as runtime

    assert runtime.Model is Model and {"load", "Predictions"} <= set(dir(runtime))
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        _ = runtime.lode


class TestDlpack:
    """NumPy's capsules have the same layout as a GPU array's."""

    @pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64, np.uint8, np.int64])
    def test_a_capsule_is_looked_into(self, dtype: type) -> None:
        array = np.arange(24, dtype=dtype).reshape(2, 3, 4)[1:]
        found = device.from_dlpack(array, array.__dlpack__())
        assert found is not None and found.address == array.ctypes.data
        assert (found.shape, np.dtype(found.dtype)) == ((1, 3, 4), array.dtype)

    def test_memory_that_starts_later(self) -> None:
        memory = np.zeros(10, np.float32)
        shape = (ctypes.c_int64 * 2)(2, 3)
        tensor = device._DLTensor(memory.ctypes.data, 2, 0, 2, 2, 32, 1, shape, None, 16)
        make = ctypes.pythonapi.PyCapsule_New
        make.restype, make.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
        found = device.from_dlpack(memory, make(ctypes.addressof(tensor), b"dltensor", None))
        assert found is not None and (found.address, found.shape) == (memory.ctypes.data + 16, (2, 3))

    def test_holes_are_refused(self) -> None:
        array = np.zeros((4, 6), np.float32)[:, ::2]
        assert device.from_dlpack(array, array.__dlpack__()) is None

    def test_host_memory_is_not_the_gpus(self) -> None:
        array = np.zeros(3, np.float32)
        assert not device.is_on_gpu(array)
        with pytest.raises(MtmError, match="image: expected an array on the GPU, found a ndarray"):
            device.view(array, "image", (3,), np.float32, lambda stream: None)


@pytest.mark.gpu
@pytest.mark.trt
def test_an_engine_reads_and_writes_where_arrays_lie(toy_onnx: Path, metadata: ModelMetadata) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed (mtmamba[model])")
    if not torch.cuda.is_available():
        pytest.skip("PyTorch has no CUDA here")
    from mtmamba.runtime.engine import BuildOptions, build_engine
    from mtmamba.runtime.onnx_model import load_onnx
    from mtmamba.runtime.trt import resolve

    path = toy_onnx.with_suffix(".engine")
    build_engine(resolve(), load_onnx(toy_onnx), path, BuildOptions(), None)
    images = torch.randn(1, 3, *metadata.input_size, device="cuda")
    with load(path) as model:
        expected = model.infer(images.cpu().numpy())
        depth = torch.full((1, 1, *metadata.output_size), float("nan"), device="cuda")
        found = model.infer(images, out={"depth": depth})
        assert found["depth"] is depth
        for name, value in expected.items():
            seen = depth if name == "depth" else torch.as_tensor(found[name], device="cuda")
            np.testing.assert_allclose(seen.cpu().numpy(), value, rtol=1e-5, atol=1e-5)
        with ThreadPoolExecutor(4) as pool:  # one engine, several contexts
            for again in pool.map(lambda _: model.infer(images.cpu().numpy()), range(16)):
                np.testing.assert_allclose(again["depth"], expected["depth"], rtol=1e-5, atol=1e-5)


DOCUMENT = Path(__file__).parents[2] / "docs" / "python-api.md"


def code_blocks(info: str) -> list[str]:
    return re.findall(rf"^```{info}\n(.*?)^```", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_the_documentation_runs(
    tmp_path: Path, make_toy: Callable[..., Path], picture: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All blocks one after another, as a reader types them; `image` is there."""
    make_toy(tmp_path / "best.onnx")
    monkeypatch.chdir(tmp_path)
    blocks = code_blocks("python")
    assert len(blocks) == 7
    names: dict[str, Any] = {"image": picture}
    for block in blocks:
        exec(compile(block, str(DOCUMENT), "exec"), names)
    assert len(names["depths"]) == 16 and names["depths"][0].shape == (30, 50)


@pytest.mark.gpu
@pytest.mark.trt
def test_the_documentation_runs_on_the_gpu(toy_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed (mtmamba[model])")
    from mtmamba.runtime.engine import BuildOptions, build_engine
    from mtmamba.runtime.onnx_model import load_onnx
    from mtmamba.runtime.trt import resolve

    build_engine(resolve(), load_onnx(toy_onnx), toy_onnx.with_name("best.engine"), BuildOptions(), None)
    monkeypatch.chdir(toy_onnx.parent)
    (block,) = code_blocks("python gpu")
    exec(compile(block, str(DOCUMENT), "exec"), {"load": load})


def test_predictions_that_are_no_numbers(toy_onnx: Path, picture: np.ndarray) -> None:
    model = onnx.load(str(toy_onnx))
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "depth.b")
    bias.CopyFrom(numpy_helper.from_array(np.array([np.nan], np.float32), bias.name))
    onnx.save(model, str(toy_onnx))
    with load(toy_onnx) as loaded, pytest.raises(MtmError, match="the model's depth holds NaN or infinite values"):
        loaded(picture)
