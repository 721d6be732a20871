"""The Python interface: `load` a model file, call it on pictures, get predictions. docs/python-api.md shows it.

Shapes: N images, H W a picture's size, h w the model's output size, C a task's channels.
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from mtmamba.errors import MtmError
from mtmamba.metadata import ModelMetadata
from mtmamba.postprocess import Prediction, postprocess
from mtmamba.runtime.backends import Backend, open_backend
from mtmamba.runtime.backends.base import Array
from mtmamba.runtime.device_array import is_on_gpu, on_host
from mtmamba.runtime.preprocess import preprocess
from mtmamba.tasks import Task

CONTEXTS = 4


def load(path: str | Path, *, backend: str | None = None, contexts: int = CONTEXTS, device: int = 0) -> "Model":
    """Load an .engine, .onnx or .pth file. backend: "tensorrt", "onnxruntime" or "torch"; by default the file's own.

    contexts: how many calls may run at once from different threads; further ones wait. Each costs memory only when it
    is first needed. device: the index of the GPU, where it runs on one. Raises MtmError, in one sentence, for whatever
    cannot be loaded here.
    """
    if contexts < 1:
        raise MtmError(f"load: expected contexts of at least 1, found {contexts}")
    return Model(open_backend(Path(path), backend, device=device), contexts)


class Predictions(Mapping[str, Prediction]):
    """What a model says of one picture, or of N of one size: `predictions["depth"]` or `predictions.depth`.

    By the task's kind, with [N, ...] in front for a batch: labels [H, W] uint8; saliency and boundary [H, W] float32,
    probabilities; depth [H, W] float32 in the task's unit; normals [H, W, 3] float32, unit vectors.
    raw: what the model itself gave, task name -> [C, h, w] float32 (with picture I/O: the prediction at its own size).
    """

    __slots__ = ("_predictions", "raw")
    _predictions: dict[str, Prediction]
    raw: Mapping[str, Array]

    def __init__(self, predictions: dict[str, Prediction], raw: dict[str, Array]) -> None:
        object.__setattr__(self, "_predictions", predictions)
        object.__setattr__(self, "raw", MappingProxyType(raw))

    def __getitem__(self, task: str) -> Prediction:
        return self._predictions[task]

    def __getattr__(self, task: str) -> Prediction:
        if task.startswith("_") or task not in self._predictions:
            raise AttributeError(f"no prediction of {task!r}; this model's tasks are {', '.join(self)}")
        return self._predictions[task]

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("predictions do not change; copy the arrays")

    def __iter__(self) -> Iterator[str]:
        return iter(self._predictions)

    def __len__(self) -> int:
        return len(self._predictions)

    def __repr__(self) -> str:
        return f"Predictions({', '.join(f'{name} {value.dtype} {list(value.shape)}' for name, value in self.items())})"


class Model:
    """A loaded model, for any number of threads; a context manager that frees what it holds.

    metadata: what the file says of itself. device: where it runs, for people.
    """

    def __init__(self, first: Backend, contexts: int) -> None:
        self.path = first.model
        self.metadata: ModelMetadata = first.metadata
        self.device = first.device
        self._first = first
        self._idle = [first]
        self._made, self._contexts = 1, contexts
        self._change = threading.Condition()
        self._closed = False

    @property
    def tasks(self) -> tuple[Task, ...]:
        """What it predicts, in the order of its outputs."""
        return self.metadata.tasks

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) in pixels that pictures are resized to."""
        return self.metadata.input_size

    def __call__(self, image: npt.ArrayLike) -> Predictions:
        """Predict from a picture [H, W, 3], or N of one size [N, H, W, 3], uint8 RGB, of any size.

        Predictions have the picture's size. Raises MtmError for another shape or type, where the device fails, and
        where the model answers with NaN or infinite values.
        """
        images = on_host(image)
        if images.dtype != np.uint8 or images.ndim not in (3, 4) or images.shape[-1] != 3 or 0 in images.shape:
            raise MtmError(
                "expected a picture [H, W, 3] or pictures [N, H, W, 3] of uint8, RGB, found "
                f"{images.dtype} {list(images.shape)}; convert it, or give normalised tensors to infer()"
            )
        batch = images if images.ndim == 4 else images[None]
        bgr = np.ascontiguousarray(batch[..., ::-1])
        raw = self._infer_host(np.stack([preprocess(picture, self.metadata) for picture in bgr]))
        self._require_finite(raw)
        size = (batch.shape[1], batch.shape[2])
        found: dict[str, Any] = {
            t.name: np.stack([postprocess(planes, t, size) for planes in raw[t.name]]) for t in self.tasks
        }
        if images.ndim == 4:
            return Predictions(found, raw)
        single = {name: value[0] for name, value in found.items()}
        return Predictions(single, {name: value[0] for name, value in raw.items()})

    def infer(self, tensor: Any, out: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The model alone, no resizing and no postprocessing: raw predictions {task name: [n, C, h, w]}.

        tensor: [n, 3, height, width] float32 at `input_size`, RGB in 0..1 minus `metadata.mean` over `metadata.std`. (A
        model with picture I/O takes [n, height, width, 3] uint8 and gives `mtmamba.export.picture_io`'s forms.) A
        NumPy array gives float32 NumPy arrays, for any n. An array on the GPU (torch, CuPy, PyCUDA: anything with DLPack
        or the CUDA array interface), which needs an engine and an n that it takes at once, is read where it lies and gives
        `DeviceArray`s, complete on return.
        out: arrays to write into, by task name, of the same kind as `tensor` and of the results' shapes.
        Raises MtmError for another shape, type or place, and where the device fails.
        """
        if is_on_gpu(tensor):
            with self._lane() as lane:
                return lane.infer_on_gpu(tensor, out or {})
        images = on_host(tensor)
        wanted, dtype = self.metadata.input_shape[1:], self.metadata.input_dtype
        if images.dtype != dtype or images.ndim != 4 or images.shape[1:] != wanted or not len(images):
            how = ", normalised" if self.metadata.io == "raw" else " of RGB"
            raise MtmError(
                f"expected {dtype} images [n, {', '.join(map(str, wanted))}]{how}, found {images.dtype} "
                f"{list(images.shape)}; for pictures call the model itself"
            )
        raw = self._infer_host(images)
        if out is None:
            return raw
        for name, target in out.items():
            _copy_into(name, raw, target)
        return {**raw, **out}

    def _infer_host(self, images: Array) -> dict[str, Array]:
        size = self.metadata.batch
        with self._lane() as lane:
            parts = [lane.infer(images[start : start + size]) for start in range(0, len(images), size)]
        return parts[0] if len(parts) == 1 else {n: np.concatenate([part[n] for part in parts]) for n in parts[0]}

    def _require_finite(self, raw: dict[str, Array]) -> None:
        # max and min pass NaN on, and make no copy as big as the predictions
        broken = [name for name, value in raw.items() if not np.isfinite((value.max(), value.min())).all()]
        if broken:
            raise MtmError(
                f"{self.path}: the model's {', '.join(broken)} holds NaN or infinite values: the file is damaged, or too "
                "low a precision overflowed; compare it with mtm-parity, and make it again"
            )

    @contextmanager
    def _lane(self) -> Iterator[Backend]:
        """A backend that no other thread uses; waits for one where all contexts are busy."""
        with self._change:
            while not self._closed and not self._idle and self._made == self._contexts:
                self._change.wait()
            if self._closed:
                raise MtmError(f"{self.path}: this model is closed; load it again")
            if not self._idle:
                self._idle.append(self._first.another())
                self._made += 1
            lane = self._idle.pop()
        try:
            yield lane
        finally:
            with self._change:
                self._idle.append(lane)
                self._change.notify_all()

    def close(self) -> None:
        """Free the device's memory, once the calls under way have ended. Calling it twice is fine."""
        with self._change:
            self._closed = True
            self._change.notify_all()
            while len(self._idle) < self._made:
                self._change.wait()
            for lane in self._idle:
                if lane is not self._first:
                    lane.close()
            self._first.close()  # the last: it holds what the others share
            self._idle, self._made = [], 0

    def __enter__(self) -> "Model":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        height, width = self.input_size
        names = ", ".join(task.name for task in self.tasks)
        return f"Model({self.path.name}: {names}; {height}x{width}, {self._first.name} on {self.device})"


def _copy_into(name: str, raw: dict[str, Array], target: Any) -> None:
    wanted = raw.get(name)
    same = isinstance(target, np.ndarray) and wanted is not None and target.shape == wanted.shape
    if not same or wanted is None or target.dtype != wanted.dtype:
        found = f"{target.dtype} {list(target.shape)}" if isinstance(target, np.ndarray) else type(target).__name__
        shape = f"a NumPy array {wanted.dtype} {list(wanted.shape)}" if wanted is not None else ""
        raise MtmError(f"out[{name!r}]: expected {shape or 'one of ' + ', '.join(raw)}, found {found}")
    target[...] = raw[name]
