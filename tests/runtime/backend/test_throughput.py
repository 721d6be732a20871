"""What makes the TensorRT backend fast: CUDA graphs, two batches on their way, kernels that are kept. Without a GPU against
the fakes in conftest; with one (marker gpu) against the synchronous path."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mtmamba.metadata import ModelMetadata
from mtmamba.runtime import gpu
from mtmamba.runtime.backends import Backend, open_backend
from mtmamba.runtime.backends.kernel_cache import CachedKernels, Kernels, open_kernels
from mtmamba.runtime.trt import Messages, TensorRT

Filled = Callable[[Backend, float], np.ndarray]


class TestGraph:
    def test_from_the_second_run_on_the_engine_is_a_graph(self, rig: Any, filled: Filled, elsewhere: Any) -> None:
        with open_backend(rig.path) as backend:
            for value in (1.0, 2.0, 3.0):
                assert backend.infer(filled(backend, value))["depth"].max() == value
            assert rig.cuda.calls.count("cudaGraphLaunch") == 2 and rig.engine.runs == 3
            assert len(rig.cuda.graphs) == 1, "the captured graph is kept beside its executable"
            outside = elsewhere(filled(backend, 4.0)), elsewhere(np.empty((1, 1, 48, 64), np.float32))
            backend.infer_on_gpu(outside[0], {"depth": outside[1]})
            assert (outside[1].array == 4).all()
            assert backend.infer(filled(backend, 5.0))["depth"].max() == 5  # its own buffers again
        assert not rig.cuda.graphs and not rig.cuda.memory

    @pytest.mark.parametrize("function", ["cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate", ""])
    def test_what_cannot_be_captured_runs_without(self, rig: Any, function: str, filled: Filled) -> None:
        rig.cuda.fail = function
        rig.engine.capturable = bool(function)
        with open_backend(rig.path) as backend:
            for value in (1.0, 2.0, 3.0):
                assert backend.infer(filled(backend, value))["depth"].max() == value
            assert "cudaGraphLaunch" not in rig.cuda.calls
            assert function != "cudaStreamBeginCapture" or rig.cuda.calls.count(function) == 1, "tried again and again"


class TestSubmit:
    def test_two_batches_overlap_and_keep_their_order(self, rig: Any, filled: Filled) -> None:
        with open_backend(rig.path) as backend:
            assert backend.depth == 2
            results = [backend.submit(filled(backend, value)) for value in (1.0, 2.0)]
            assert rig.engine.runs == 0, "submit waited"
            found = [result()["depth"] for result in results]
            for value in (3.0, 4.0, 5.0, 6.0):  # graphs in both contexts by now
                results.append(backend.submit(filled(backend, value)))
                found.append(results[-1]()["depth"])
            assert [depth.max() for depth in found] == [1, 2, 3, 4, 5, 6]
            assert backend.engine_ms == 1.25
            assert rig.cuda.calls.count("cudaGraphLaunch") == 4
        assert not rig.cuda.memory and not rig.cuda.graphs

    def test_a_third_at_once_is_refused_and_close_waits_for_the_rest(self, rig: Any, filled: Filled) -> None:
        with open_backend(rig.path) as backend:
            for value in (1.0, 2.0):
                backend.submit(filled(backend, value))
            with pytest.raises(ValueError, match="2 batches are on their way already"):
                backend.submit(filled(backend, 3.0))
            rig.cuda.calls.clear()
        assert rig.cuda.calls.index("cudaStreamSynchronize") < rig.cuda.calls.index("cudaFree")
        assert not rig.cuda.memory

    def test_no_room_for_the_second_context(self, rig: Any, filled: Filled) -> None:
        contexts = iter([rig.engine.create_execution_context(), None])
        rig.engine.create_execution_context = lambda: next(contexts)
        with open_backend(rig.path) as backend:
            results = [backend.submit(filled(backend, value)) for value in (1.0, 2.0, 3.0)]
            assert [result()["depth"].max() for result in results] == [1, 2, 3] and backend.depth == 1
        assert not rig.cuda.memory


@pytest.mark.gpu
@pytest.mark.trt
def test_real_batches_on_their_way_answer_as_those_alone(toy_onnx: Path, metadata: ModelMetadata) -> None:
    if not gpu.find_gpus():
        pytest.skip("no NVIDIA GPU here")
    from mtmamba.runtime.engine import BuildOptions, build_engine
    from mtmamba.runtime.onnx_model import load_onnx
    from mtmamba.runtime.trt import resolve

    path = toy_onnx.with_suffix(".engine")
    build_engine(resolve(), load_onnx(toy_onnx), path, BuildOptions(), None)
    rng = np.random.default_rng(0)
    images = [rng.normal(size=(1, 3, *metadata.input_size)).astype(np.float32) for _ in range(9)]
    with open_backend(path) as backend:
        alone = [backend.infer(image) for image in images]
        waiting, found = [], []
        for image in images:
            waiting.append(backend.submit(image))
            if len(waiting) == backend.depth:
                found.append(waiting.pop(0)())
                assert 0 < backend.engine_ms < 1000
        found += [result() for result in waiting]
    for one, other in zip(alone, found, strict=True):
        for name, value in one.items():
            np.testing.assert_array_equal(other[name], value)


class FakeRtxEngine:
    """TensorRT for RTX's runtime configuration and cache, as it documents them. Making a context compiles the kernels."""

    def __init__(self, accepts: bool = True) -> None:
        self.compiled: bytes | None = None
        self.accepts = accepts

    def create_runtime_config(self) -> Any:
        def attach(made: Any) -> None:
            config.attached = made

        config = SimpleNamespace(create_runtime_cache=lambda: self, set_runtime_cache=attach, attached=None)
        return config

    def create_execution_context(self, config: Any) -> str:
        assert config.attached is self
        self.compiled = self.compiled or b"compiled"
        return "context"

    def deserialize(self, data: bytes) -> bool:
        self.compiled = data if self.accepts else None
        return self.accepts

    def serialize(self) -> bytearray:
        return bytearray(self.compiled or b"")


class TestKernels:
    """What TensorRT for RTX compiles on the first run is there on the second."""

    def opened(self, path: Path, accepts: bool = True) -> tuple[FakeRtxEngine, Kernels]:
        engine = FakeRtxEngine(accepts)
        return engine, CachedKernels(engine, path)

    def test_they_are_kept(self, tmp_path: Path) -> None:
        path = tmp_path / "kernels.bin"
        engine, kernels = self.opened(path)
        assert engine.compiled is None and kernels.context() == "context"
        kernels.close()
        assert path.read_bytes() == b"compiled"
        written = path.stat().st_mtime_ns
        engine, kernels = self.opened(path)
        assert engine.compiled == b"compiled"
        kernels.context()
        kernels.close()
        kernels.close()  # twice is fine
        assert path.stat().st_mtime_ns == written, "the same was written again"

    def test_those_of_another_driver_are_made_again(self, tmp_path: Path) -> None:
        path = tmp_path / "kernels.bin"
        path.write_bytes(b"old")
        _, kernels = self.opened(path, accepts=False)
        kernels.context()
        kernels.close()
        assert path.read_bytes() == b"compiled"

    def test_a_run_does_not_fail_for_them(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        _, kernels = self.opened(tmp_path / "file" / "kernels.bin")
        kernels.context()
        kernels.close()

    def test_the_full_tensorrt_needs_none(self) -> None:
        trt = TensorRT(flavour="tensorrt", module=None, logger=None, messages=Messages())
        kernels = open_kernels(trt, SimpleNamespace(create_execution_context=lambda: "context"), "0" * 64, "GPU")
        assert type(kernels) is Kernels and kernels.context() == "context"
        kernels.close()
