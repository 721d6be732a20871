"""What travels with an exported model: tasks, sizes, normalisation, versions. Held in the ONNX file's metadata
(key `mtmamba`, one JSON text) and in an engine's sidecar. Imports neither torch nor onnx."""

import json
import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from mtmamba.config import LARGEST, ModelConfig
from mtmamba.errors import MtmError
from mtmamba.tasks import IMAGENET_MEAN, IMAGENET_STD, Task

METADATA_KEY = "mtmamba"
METADATA_FORMAT = 1
INPUT_NAME = "image"
"""The exported model's input: [B, 3, H, W] float32, RGB in 0..1, minus `mean`, over `std`. Outputs carry the task's name
and are the raw predictions [B, channels, H*output_scale, W*output_scale]. (Where `io` is `picture`: see
`mtmamba.export.picture_io`.)"""

IO_FORMS = ("raw", "picture")
BATCH_NAME = "batch"
"""What the first dimension of inputs and outputs is called in a file where it is free."""


@dataclass(frozen=True, kw_only=True)
class ModelMetadata:
    """input_size: (height, width) in pixels. batch: images a run, the most where their number is free. mean, std: RGB, of
    images in 0..1. versions: package name -> version. checkpoint_sha256: of the checkpoint file the export was made from;
    "" if it was made from a model in memory. io: what goes in and out, one of IO_FORMS. min_batch: the fewest images a
    run, where any number from there to `batch` will do; None where it is always `batch`."""

    config: ModelConfig
    input_size: tuple[int, int]
    batch: int
    versions: dict[str, str]
    checkpoint_sha256: str = ""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    io: str = "raw"
    min_batch: int | None = None

    @property
    def tasks(self) -> tuple[Task, ...]:
        return self.config.task_list

    @property
    def output_size(self) -> tuple[int, int]:
        """(height, width) in pixels of every output."""
        height, width = self.input_size
        return height * self.config.output_scale, width * self.config.output_scale

    @property
    def smallest_batch(self) -> int:
        return self.batch if self.min_batch is None else self.min_batch

    def file_shape(self, shape: tuple[int, ...]) -> list[int | str]:
        """An input's or output's shape as ONNX has it: the batch is a name where it is free."""
        return [self.batch if self.min_batch is None else BATCH_NAME, *shape[1:]]

    @property
    def batch_text(self) -> str:
        """For people: `8`, or `1-8` where it is free."""
        return str(self.batch) if self.min_batch is None else f"{self.min_batch}-{self.batch}"

    def run_size(self, images: int) -> int:
        """How many images a run of `images` (1 to `batch`) takes, once it is filled up to what the model can."""
        return max(images, self.smallest_batch)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of the input: `picture` [B, H, W, 3], else [B, 3, H, W]; B is `batch`."""
        height, width = self.input_size
        return (self.batch, height, width, 3) if self.io == "picture" else (self.batch, 3, height, width)

    @property
    def input_dtype(self) -> str:
        """NumPy's name of the input's type."""
        return "uint8" if self.io == "picture" else "float32"

    def output_shape(self, task: Task) -> tuple[int, ...]:
        """Of the task's output: [B, C, h, w], or as `io` `picture` gives it, with no channels but those of a normal."""
        if self.io == "raw":
            return (self.batch, task.channels, *self.output_size)
        return (self.batch, *self.output_size, *((3,) if task.kind == "normals" else ()))

    def output_dtype(self, task: Task) -> str:
        """NumPy's name of the type of the task's output."""
        if self.io == "raw":
            return "float32"
        return "float16" if task.kind == "depth" else "uint8"

    def to_dict(self) -> dict[str, Any]:
        values = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        return {"format": METADATA_FORMAT, **values, "config": self.config.to_dict()}

    def to_json(self) -> str:
        return json.dumps(self.to_dict())

    @classmethod
    def from_dict(cls, values: Any, source: str) -> "ModelMetadata":
        """Read `to_dict`'s dict; `source` names the file in errors. Raises MtmError where it is not one."""
        if not isinstance(values, dict) or "format" not in values:
            raise MtmError(f"{source}: expected mtmamba metadata, found none; export the model again with mtm-export")
        if values["format"] != METADATA_FORMAT:
            raise MtmError(
                f"{source}: expected mtmamba metadata of format {METADATA_FORMAT}, found {values['format']!r}; export the "
                "model again with this version's mtm-export"
            )
        known = {field.name for field in fields(cls)}
        try:
            given: dict[str, Any] = {
                key: tuple(value) if isinstance(value, list) else value for key, value in values.items() if key in known
            }
            given["config"] = ModelConfig.from_dict(values["config"])
            metadata = cls(**given)
        except MtmError as error:  # of the configuration, which does not know whose it is
            raise MtmError(f"{source}: damaged mtmamba metadata ({error}); export the model again") from error
        except (KeyError, TypeError) as error:
            raise MtmError(
                f"{source}: incomplete mtmamba metadata ({error}); export the model again with mtm-export"
            ) from error
        metadata._check(source)
        return metadata

    def _check(self, source: str) -> None:
        """Raise MtmError where a value has another type or range than it must."""
        size = self.input_size
        whole = all(isinstance(n, int) and 0 < n <= LARGEST["input_size"] for n in (*_items(size), self.batch))
        free = self.min_batch
        whole = whole and (free is None or (isinstance(free, int) and 0 < free < self.batch))
        numbers = (*_items(self.mean), *_items(self.std))
        real = all(isinstance(n, (int, float)) and math.isfinite(n) for n in numbers)
        if not (
            whole and len(_items(size)) == 2 and real and len(numbers) == 6 and all(n > 0 for n in _items(self.std))
        ):
            raise MtmError(f"{source}: damaged mtmamba metadata (sizes or normalisation); export again with mtm-export")
        if self.io not in IO_FORMS:
            raise MtmError(f"{source}: expected io to be one of {', '.join(IO_FORMS)}, found {self.io!r}; export again")

    @classmethod
    def from_json(cls, text: str | None, source: str) -> "ModelMetadata":
        """Read `to_json`'s text (None: there was none)."""
        try:
            values = json.loads(text) if text else None
        except json.JSONDecodeError as error:
            raise MtmError(
                f"{source}: its mtmamba metadata is no JSON ({error}); export the model again with mtm-export"
            ) from error
        return cls.from_dict(values, source)


def _items(value: Any) -> tuple[Any, ...]:
    """A tuple's items; of anything else, one item that is no number."""
    return value if isinstance(value, tuple) else (None,)
