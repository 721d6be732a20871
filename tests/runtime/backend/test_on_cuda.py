"""The TensorRT backend on a real CUDA runtime, with a small MTMamba in PyTorch in the engine's place: no TensorRT is
needed, and memory, copies, streams, captured graphs and the kernels are those of the GPU."""

import json
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

torch = pytest.importorskip("torch", reason="PyTorch is not installed (mtmamba[model])")
sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))

import torch_engine  # noqa: E402

from mtmamba import MTMamba, preset  # noqa: E402
from mtmamba.metadata import ModelMetadata  # noqa: E402
from mtmamba.postprocess import postprocess  # noqa: E402
from mtmamba.runtime import load  # noqa: E402
from mtmamba.runtime.backends import open_backend, tensorrt_backend  # noqa: E402
from mtmamba.runtime.cuda import call, import_cudart  # noqa: E402
from mtmamba.runtime.preprocess import preprocess  # noqa: E402

pytestmark = pytest.mark.gpu
SIZE = (64, 96)
Make = Callable[..., tuple[Path, Any, ModelMetadata]]


@pytest.fixture
def put_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """put_in_place(function, metadata): an engine file that is this function."""
    if not torch.cuda.is_available():
        pytest.skip("PyTorch has no CUDA here")

    def put(function: torch_engine.Function, metadata: ModelMetadata) -> Path:
        stand_in = torch_engine.tensorrt_of(function, metadata)
        monkeypatch.setattr(tensorrt_backend, "resolve", lambda flavour: stand_in)
        return torch_engine.write_engine(tmp_path / "toy.engine", metadata)

    return put


@pytest.fixture
def engine(put_in_place: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Make:
    """engine(batch=1, min_batch=None, io="raw"): the engine's file, the model on the GPU that it stands for, its
    metadata."""
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)

    def make(batch: int = 1, min_batch: int | None = None, io: str = "raw") -> tuple[Path, Any, ModelMetadata]:
        torch.manual_seed(0)
        metadata = metadata_of(batch, min_batch, io)
        model = MTMamba(metadata.config).eval().cuda()
        expected(model, images_of(1))  # compiles the operators
        function = model if io == "raw" else torch_engine.picture_io(model, metadata, torch.float32)
        return put_in_place(function, metadata), model, metadata

    return make


def metadata_of(batch: int, min_batch: int | None = None, io: str = "raw") -> ModelMetadata:
    config = replace(preset("synthetic", "nano"), input_size=SIZE)
    return ModelMetadata(config=config, input_size=SIZE, batch=batch, versions={}, io=io, min_batch=min_batch)


def images_of(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 3, *SIZE)).astype(np.float32)


def expected(model: Any, images: np.ndarray) -> dict[str, np.ndarray]:
    with torch.inference_mode():
        return {name: value.cpu().numpy() for name, value in model(torch.from_numpy(images).cuda()).items()}


def same(found: dict[str, Any], wanted: dict[str, np.ndarray]) -> None:
    assert list(found) == list(wanted)
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-4 * np.abs(value).max(), err_msg=name)


def test_runs_and_replays_of_the_graph_answer_as_the_model(engine: Make) -> None:
    path, model, _ = engine()
    with open_backend(path) as backend:
        for seed in range(5):
            images = images_of(1, seed)
            same(backend.infer(images), expected(model, images))
            assert 0 < backend.engine_ms < 1000
            assert (backend._graph is not None) == (seed > 0), "the engine was not captured"  # type: ignore[attr-defined]


def test_batches_on_their_way_keep_their_order(engine: Make) -> None:
    path, model, _ = engine(batch=2)
    with open_backend(path) as backend:
        waiting, found = [], []
        for seed in range(9):
            waiting.append(backend.submit(images_of(2, seed)))
            if len(waiting) == backend.depth:
                found.append(waiting.pop(0)())
        found += [result() for result in waiting]
        assert backend.depth == 2
    for seed, outputs in enumerate(found):
        same(outputs, expected(model, images_of(2, seed)))


def test_a_free_batch(engine: Make) -> None:
    path, model, _ = engine(batch=4, min_batch=1)
    with open_backend(path) as backend:
        for seed, count in enumerate((4, 4, 4, 1, 1, 3, 4, 2)):
            images = images_of(count, seed)
            same(backend.infer(images), expected(model, images))


@pytest.mark.parametrize("library", ["torch", "cupy"])
def test_arrays_of_others_are_read_and_written_where_they_lie(engine: Make, library: str) -> None:
    other = pytest.importorskip(library)
    on_gpu = (lambda array: torch.from_numpy(array).cuda()) if library == "torch" else other.asarray
    path, model, metadata = engine()
    images = images_of(1)
    wanted = expected(model, images)
    with load(path) as loaded:
        depth = on_gpu(np.full((1, 1, *metadata.output_size), np.nan, np.float32))
        for _ in range(3):
            found = loaded.infer(on_gpu(images), out={"depth": depth})
            assert found["depth"] is depth
            same({name: torch.as_tensor(value, device="cuda").cpu().numpy() for name, value in found.items()}, wanted)
            same(loaded.infer(images), wanted)  # between them its own buffers, and its graph


def test_threads_share_an_engine(engine: Make) -> None:
    path, model, _ = engine()
    wanted = [expected(model, images_of(1, seed)) for seed in range(4)]
    with load(path) as loaded, ThreadPoolExecutor(4) as pool:
        for seed, found in enumerate(pool.map(lambda index: loaded.infer(images_of(1, index % 4)), range(32))):
            same(found, wanted[seed % 4])


def test_two_gpus_at_the_same_time(put_in_place: Callable[..., Path]) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("only one GPU")
    metadata = metadata_of(1)
    models = []
    for device in range(2):
        torch.manual_seed(device)  # of other weights, so that they cannot be taken for each other
        models.append(MTMamba(metadata.config).eval().to(f"cuda:{device}"))
    path = put_in_place(lambda images: models[images.device.index](images), metadata)

    def wanted_of(device: int, images: np.ndarray) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            outputs = models[device](torch.from_numpy(images).to(f"cuda:{device}"))
        return {name: value.cpu().numpy() for name, value in outputs.items()}

    wanted = [[wanted_of(device, images_of(1, seed)) for seed in range(4)] for device in range(2)]

    def run(device: int) -> None:
        with open_backend(path, device=device) as backend:
            for seed in range(12):
                np.testing.assert_allclose(
                    backend.infer(images_of(1, seed % 4))["depth"],
                    wanted[device][seed % 4]["depth"],
                    rtol=1e-3,
                    atol=1e-4,
                )

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run, range(2)))


def test_all_memory_is_given_back(put_in_place: Callable[..., Path]) -> None:
    """Of contexts, streams, buffers and graphs. The engine is one that holds none itself: products of matrices would."""
    metadata = metadata_of(4)
    path = put_in_place(
        lambda images: {task.name: images[:, :1].expand(-1, task.channels, -1, -1) for task in metadata.tasks}, metadata
    )
    images, cudart = images_of(4), import_cudart()

    def free() -> int:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        return int(cudart.cudaMemGetInfo()[1])

    def use() -> None:
        with open_backend(path) as backend:
            for _ in range(3):  # the third is a replay
                for result in [backend.submit(images) for _ in range(2)]:
                    np.testing.assert_array_equal(result()["depth"], images[:, :1])

    use()
    before = free()
    for _ in range(40):
        use()
    assert before - free() <= 4 << 20, "of eighty contexts, each of 5 MB"


def test_a_failure_of_cuda_is_one_sentence(engine: Make) -> None:
    path, _, _ = engine()
    cudart = import_cudart()
    from mtmamba.errors import MtmError

    with pytest.raises(MtmError, match=r"toy: CUDA's cudaMalloc failed on the GPU \(.*memory.*\)"):
        call(cudart, "toy", "the GPU", cudart.cudaMalloc, 1 << 50)
    with open_backend(path) as backend:  # and goes on after it
        assert np.isfinite(backend.infer(images_of(1))["depth"]).all()


def test_a_video_with_pictures_in_and_predictions_out(
    engine: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """mtm-run from the first byte to the finished video; the raw predictions it keeps are the model's."""
    pytest.importorskip("av", reason="PyAV is not installed")
    from mtmamba.runtime.run_cli import main

    path, model, metadata = engine(batch=2, io="picture")
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(1)
    pictures = [cv2.GaussianBlur(rng.integers(0, 256, (*SIZE, 3), np.uint8), (0, 0), 3) for _ in range(7)]
    for index, picture in enumerate(pictures):
        cv2.imwrite(f"p_{index:02d}.png", picture)
    arguments = ["p_%02d.png", "--model", str(path), "-o", "out.mp4", "--save-raw", "raw", "--json"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert (answer["backend"], answer["frames"]) == ("tensorrt", 7) and answer["engine_ms_p50"] > 0
    assert Path("out.mp4").stat().st_size > 1000
    raw = replace(metadata, io="raw", batch=1)
    for index, picture in enumerate(pictures):
        outputs = expected(model, preprocess(picture, raw)[None])
        with np.load(f"raw/p_{index:02d}.npz") as saved:
            for task in metadata.tasks:
                wanted, found = postprocess(outputs[task.name][0], task, SIZE), saved[task.name]
                if task.kind == "labels":
                    assert (wanted == found).mean() > 0.999
                else:
                    np.testing.assert_allclose(found, wanted, atol=0.01, rtol=2e-3, err_msg=task.name)
