"""The TensorRT backend with an engine of a free batch, against the fakes in conftest."""

from typing import Any

import numpy as np
import pytest

from mtmamba.errors import MtmError
from mtmamba.runtime.backends import open_backend

FREE = pytest.mark.parametrize("rig", [(4, "float32", 1)], indirect=True, ids=str)


def images_of(count: int, first: float = 0.0) -> np.ndarray:
    """Image i is first + i all over."""
    values = first + np.arange(count, dtype=np.float32)
    return np.broadcast_to(values[:, None, None, None], (count, 3, 48, 64)).copy()


def depths(outputs: dict[str, np.ndarray]) -> list[float]:
    return [float(depth.max()) for depth in outputs["depth"]]


@FREE
def test_what_is_there_is_copied_and_run(rig: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    copy = rig.cuda.copy
    monkeypatch.setitem(rig.cuda._functions, "cudaMemcpyAsync", lambda *a: sizes.append(a[2]) or copy(*a))
    with open_backend(rig.path) as backend:
        channels = sum(task.channels for task in backend.metadata.tasks)
        for count in (3, 1, 4, 2):
            sizes.clear()
            found = backend.infer(images_of(count, 5.0))
            assert depths(found) == [5.0 + index for index in range(count)]
            assert found["normals"].shape == (count, 3, 48, 64)
            assert sum(sizes) == 4 * count * (3 + channels) * 48 * 64, "the whole buffers were copied"
    assert not rig.cuda.memory


@pytest.mark.parametrize("rig", [(4, "float32", 2)], indirect=True, ids=str)
def test_too_few_are_filled_up_to_the_smallest(rig: Any) -> None:
    with open_backend(rig.path) as backend:
        assert depths(backend.infer(images_of(1, 7.0))) == [7.0]
        with pytest.raises(ValueError, match=r"images \[1..4, 3, 48, 64\]"):
            backend.infer(images_of(5))


@FREE
def test_a_graph_lasts_as_long_as_the_batch_stays_the_same(rig: Any) -> None:
    with open_backend(rig.path) as backend:
        launched = []
        for count in (4, 4, 4, 2, 2, 4, 4):
            assert depths(backend.infer(images_of(count, 1.0))) == [1.0 + index for index in range(count)]
            launched.append(rig.cuda.calls.count("cudaGraphLaunch"))
            assert len(rig.cuda.graphs) <= 1
        assert launched == [0, 1, 2, 2, 3, 3, 4]
        assert rig.engine.shapes_set == 3
    assert not rig.cuda.graphs and not rig.cuda.memory


@FREE
def test_two_batches_of_other_sizes_on_their_way(rig: Any) -> None:
    with open_backend(rig.path) as backend:
        waiting, found = [], []
        for number, count in enumerate((4, 4, 4, 4, 3, 1, 4)):
            waiting.append((count, 10.0 * number, backend.submit(images_of(count, 10.0 * number))))
            if len(waiting) == backend.depth:
                found.append(waiting.pop(0))
                assert depths(found[-1][2]()) == [found[-1][1] + index for index in range(found[-1][0])]
        for count, first, result in waiting:
            assert depths(result()) == [first + index for index in range(count)]
    assert not rig.cuda.graphs and not rig.cuda.memory


@FREE
def test_arrays_on_the_gpu(rig: Any, elsewhere: Any) -> None:
    with open_backend(rig.path) as backend:
        backend.infer(images_of(2))
        depth = np.empty((3, 1, 48, 64), np.float32)
        found = backend.infer_on_gpu(elsewhere(images_of(3, 2.0)), {"depth": elsewhere(depth)})
        assert depth[:, 0, 5, 5].tolist() == [2.0, 3.0, 4.0] and found["normals"].shape == (3, 3, 48, 64)
        assert depths(backend.infer(images_of(2, 1.0))) == [1.0, 2.0]
        with pytest.raises(MtmError, match=r"image: expected a contiguous array float32 \[1..4, 3, 48, 64\]"):
            backend.infer_on_gpu(elsewhere(images_of(5)), {})
        with pytest.raises(MtmError, match=r"depth: expected a contiguous array float32 \[2, 1, 48, 64\]"):
            backend.infer_on_gpu(elsewhere(images_of(2)), {"depth": elsewhere(depth)})
        del found


@FREE
@pytest.mark.parametrize(("free", "profile"), [(True, (1, 3)), (True, (2, 4)), (False, (4, 4))])
def test_an_engine_of_another_range(rig: Any, free: bool, profile: tuple[int, int]) -> None:
    rig.engine.free, rig.engine.profile = free, profile
    with pytest.raises(
        MtmError, match=f"expected batches of 1-4, as its sidecar promises, found {profile[0]}-{profile[1]}"
    ):
        open_backend(rig.path)
    assert not rig.cuda.memory


def test_a_free_engine_behind_a_fixed_sidecar(rig: Any) -> None:
    rig.engine.free = True
    with pytest.raises(MtmError, match=r"expected the sizes of its sidecar, found image \[-1, 3, 48, 64\]"):
        open_backend(rig.path)
    assert not rig.cuda.memory


@FREE
def test_a_batch_that_tensorrt_refuses(rig: Any) -> None:
    with open_backend(rig.path) as backend:
        backend._context.set_input_shape = lambda name, shape: False
        with pytest.raises(MtmError, match="TensorRT refused a batch of 2; build the engine again"):
            backend.infer(images_of(2))
