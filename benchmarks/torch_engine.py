"""A stand-in for TensorRT whose engines are PyTorch functions, for a GPU that no TensorRT at hand runs on.

What mtm-run does around an engine is then real: memory on the device and pinned on the host, copies, streams, events, the
captured graph, two batches on their way, arrays of others. TensorRT itself is not.
"""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from mtmamba.files import sha256
from mtmamba.metadata import INPUT_NAME, ModelMetadata
from mtmamba.runtime import gpu
from mtmamba.runtime.device_array import DeviceArray
from mtmamba.runtime.sidecar import Sidecar, sidecar_path
from mtmamba.runtime.trt import Messages, TensorRT
from mtmamba.tasks import Task

VERSION = "0.0.0"
Function = Callable[[Tensor], dict[str, Tensor]]
"""From the model's input on the GPU to its outputs there, of the shapes and types that the metadata says. Without a wait for
the GPU in it."""


class Context:
    def __init__(self, engine: "Engine") -> None:
        self._engine, self._addresses = engine, dict[str, int]()
        self._batch = engine.metadata.batch if engine.metadata.min_batch is None else 0

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        fits = self._engine.metadata.smallest_batch <= shape[0] <= self._engine.metadata.batch
        self._batch = shape[0] if fits else self._batch
        return fits

    def execute_async_v3(self, stream: int) -> bool:
        with torch.inference_mode(), torch.cuda.stream(torch.cuda.ExternalStream(stream)):
            for name, output in self._engine.function(self._tensor(INPUT_NAME)).items():
                self._tensor(name).copy_(output)
        return True

    def _tensor(self, name: str) -> Tensor:
        shape, dtype = self._engine.tensors[name]
        shape = (self._batch, *shape[1:])
        return torch.as_tensor(DeviceArray(address=self._addresses[name], shape=shape, dtype=dtype), device="cuda")


class Engine:
    def __init__(self, metadata: ModelMetadata, function: Function) -> None:
        self.metadata, self.function = metadata, function
        self.tensors = {INPUT_NAME: (metadata.input_shape, metadata.input_dtype)}
        self.tensors |= {
            task.name: (metadata.output_shape(task), metadata.output_dtype(task)) for task in metadata.tasks
        }
        self.num_io_tensors = len(self.tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        shape = self.tensors[name][0]
        return shape if self.metadata.min_batch is None else (-1, *shape[1:])

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        least, most = self.metadata.smallest_batch, self.metadata.batch
        return [(batch, *self.tensors[name][0][1:]) for batch in (least, most, most)]

    def get_tensor_dtype(self, name: str) -> str:
        return self.tensors[name][1]

    def get_tensor_mode(self, name: str) -> bool:
        return name == INPUT_NAME

    def create_execution_context(self) -> Context:
        return Context(self)


def tensorrt_of(function: Function, metadata: ModelMetadata) -> TensorRT:
    """What `mtmamba.runtime.trt.resolve` is to answer, so that any engine is this function."""
    runtime = SimpleNamespace(deserialize_cuda_engine=lambda data: Engine(metadata, function))
    module = SimpleNamespace(
        __version__=VERSION, Runtime=lambda logger: runtime, nptype=np.dtype, TensorIOMode=SimpleNamespace(INPUT=True)
    )
    return TensorRT(flavour="tensorrt", module=module, logger=None, messages=Messages())


def write_engine(path: Path, metadata: ModelMetadata) -> Path:
    """A file by that name, and the sidecar that goes with it."""
    path.write_bytes(b"PyTorch")
    sidecar = Sidecar(
        flavour="tensorrt", tensorrt_version=VERSION, compute_capabilities=gpu.compute_capabilities(), plugin_hash="",
        plugin_ops=(), onnx_path="", onnx_sha256="", engine_sha256=sha256(path), engine_bytes=path.stat().st_size,
        precision="fp16", metadata=metadata,
    )  # fmt: skip
    sidecar_path(path).write_text(sidecar.to_json(), encoding="utf-8")
    return path


def picture_io(function: Function, metadata: ModelMetadata, dtype: torch.dtype) -> Function:
    """The function with the inputs and outputs of `mtmamba.export.picture_io`. dtype: what it is given."""
    mean, std = (torch.tensor(values, device="cuda", dtype=torch.float32) for values in (metadata.mean, metadata.std))

    def outputs(pictures: Tensor) -> dict[str, Tensor]:
        images = ((pictures.float() / 255 - mean) / std).permute(0, 3, 1, 2).to(dtype)
        raw = function(images)
        return {task.name: _finished(raw[task.name].float(), task) for task in metadata.tasks}

    return outputs


def _finished(raw: Tensor, task: Task) -> Tensor:
    """raw: [B, C, h, w]."""
    if task.kind == "labels":
        return raw.argmax(1).byte()
    if task.kind == "depth":
        return raw[:, 0].clamp(0, 65504).half()
    if task.kind == "normals":
        return (torch.nn.functional.normalize(raw, dim=1).permute(0, 2, 3, 1) * 127.5 + 127.5).round().byte()
    score = raw[:, 0] if task.kind == "boundary" else raw[:, 1] - raw[:, 0]
    return (255 * score.sigmoid()).round().byte()
