"""What every backend is. Shapes: B the model's batch, H W the model's input size, Ho Wo its output size."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from copy import copy
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from mtmamba.errors import MtmError
from mtmamba.metadata import ModelMetadata

Array = npt.NDArray[np.float32]


class Backend(ABC):
    """A loaded model. A context manager: leaving the block frees what it holds.

    name: the backend's name. model: the file. metadata: what the file says of itself. device: where it runs, for
    people. engine_ms: milliseconds of the model alone in the last `infer` (no pre- or postprocessing), for the whole
    batch.
    """

    name: ClassVar[str]

    def __init__(self, model: Path, metadata: ModelMetadata, device: str) -> None:
        self.model = model
        self.metadata = metadata
        self.device = device
        self.engine_ms = float("nan")

    def infer(self, images: npt.ArrayLike) -> dict[str, Array]:
        """Raw predictions of 1 to `metadata.batch` images.

        images: [n, 3, H, W] float32, RGB, normalised. Returns {task name: [n, channels, Ho, Wo] float32}, tasks in the
        model's order. A short batch is padded with zeros for the model and cut again. Raises ValueError for another
        shape or type (a caller's bug, no user's), MtmError where the device fails.
        """
        batch, (height, width) = self.metadata.batch, self.metadata.input_size
        images = np.asarray(images)
        if images.shape[1:] != (3, height, width) or not 1 <= images.shape[0] <= batch or images.dtype != np.float32:
            raise ValueError(
                f"expected float32 images [1..{batch}, 3, {height}, {width}], found {images.dtype} {list(images.shape)}"
            )
        count = images.shape[0]
        if count < batch:
            images = np.concatenate([images, np.zeros((batch - count, 3, height, width), np.float32)])
        outputs = self._execute(np.ascontiguousarray(images))
        return {task.name: np.asarray(outputs[task.name][:count], np.float32) for task in self.metadata.tasks}

    @abstractmethod
    def _execute(self, images: Array) -> dict[str, Array]:
        """Run one full batch [B, 3, H, W], set `engine_ms`, return {task name: [B, channels, Ho, Wo]} that later calls
        do not overwrite."""

    def another(self) -> "Backend":
        """The same model for another thread to use at the same time. What is large is shared: close the others before
        this one. Raises MtmError where the device has no room."""
        return copy(self)  # sessions and modules take calls from many threads; only `engine_ms` is the caller's own

    def infer_on_gpu(self, image: Any, out: Mapping[str, Any]) -> dict[str, Any]:
        """Raw predictions of an array in GPU memory, left there; see `mtmamba.runtime.api.Model.infer`. Raises MtmError
        where this backend reads host memory alone."""
        raise MtmError(
            f"{self.model}: backend {self.name} takes NumPy arrays, found an array on the GPU; copy it to the host, or "
            "build an engine with mtm-build-engine"
        )

    def close(self) -> None:
        """Free the device's memory. Calling it twice is fine."""
        return

    def __enter__(self) -> "Backend":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
