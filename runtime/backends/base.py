"""What every backend is. Shapes: B the model's batch (or the most), H W the model's input size, Ho Wo its output size."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from copy import copy
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from mtmamba.errors import MtmError
from mtmamba.metadata import ModelMetadata

Array = npt.NDArray[Any]
"""Of the type that the metadata says: float32, or what `mtmamba.export.picture_io` puts in its place."""

Result = Callable[[], dict[str, Array]]
"""Waits for a submitted batch and returns what `Backend.infer` would have."""


class Backend(ABC):
    """A loaded model. A context manager: leaving the block frees what it holds.

    name: the backend's name. model: the file. metadata: what the file says of itself. device: where it runs, for
    people. engine_ms: milliseconds of the model alone in the last `infer` (no pre- or postprocessing), for the whole
    batch. depth: how many batches it can have on their way, see `submit`.
    """

    name: ClassVar[str]
    depth: int = 1

    def __init__(self, model: Path, metadata: ModelMetadata, device: str) -> None:
        self.model = model
        self.metadata = metadata
        self.device = device
        self.engine_ms = float("nan")

    def infer(self, images: npt.ArrayLike) -> dict[str, Array]:
        """What the model says of 1 to `metadata.batch` images.

        images: [n, 3, H, W] float32, RGB, normalised. Returns {task name: [n, channels, Ho, Wo] float32}, tasks in the
        model's order. (With `metadata.io` `picture`: the forms of `mtmamba.export.picture_io`.) A batch shorter than the
        model can run is padded with zeros for it and cut again. Raises ValueError for another shape or type (a caller's
        bug, no user's), MtmError where the device fails.
        """
        batch, count = self._whole_batch(images)
        return self._cut(self._execute(batch), count)

    def submit(self, images: npt.ArrayLike) -> Result:
        """`infer` in two halves: begin now, and wait in the call of what is returned, which sets `engine_ms`.

        Up to `depth` may be on their way; results are asked for in the order of their submission.
        """
        outputs = self.infer(images)
        return lambda: outputs

    def _whole_batch(self, images: npt.ArrayLike) -> tuple[Array, int]:
        """Checked and padded to a batch that the model runs, and how many there were."""
        (batch, *shape), dtype = self.metadata.input_shape, np.dtype(self.metadata.input_dtype)
        given = np.asarray(images)
        if given.shape[1:] != tuple(shape) or not 1 <= given.shape[0] <= batch or given.dtype != dtype:
            dims = ", ".join(map(str, shape))
            raise ValueError(f"expected {dtype} images [1..{batch}, {dims}], found {given.dtype} {list(given.shape)}")
        count = given.shape[0]
        missing = self.metadata.run_size(count) - count
        if missing:
            given = np.concatenate([given, np.zeros((missing, *shape), dtype)])
        return np.ascontiguousarray(given), count

    def _cut(self, outputs: dict[str, Array], count: int) -> dict[str, Array]:
        types = {task.name: self.metadata.output_dtype(task) for task in self.metadata.tasks}
        return {name: np.asarray(outputs[name][:count], dtype) for name, dtype in types.items()}

    @abstractmethod
    def _execute(self, images: Array) -> dict[str, Array]:
        """Run one batch of `metadata.input_shape` (or as many fewer images as the model allows), set `engine_ms`, return
        {task name: `metadata.output_shape`} that later calls do not overwrite."""

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
