"""ONNX Runtime: on CUDA where this ONNX Runtime and this machine have it, else on the CPU."""

import logging
import time
from pathlib import Path
from typing import Any

from mtmamba.errors import MtmError
from mtmamba.metadata import INPUT_NAME, METADATA_KEY, ModelMetadata
from mtmamba.runtime.backends.base import Array, Backend

logger = logging.getLogger(__name__)

_ERRORS_ONLY = 3  # ONNX Runtime's severity: 2 warning, 3 error, 4 fatal


class OnnxBackend(Backend):
    """An exported .onnx file. Raises MtmError where ONNX Runtime is missing, the file is no ONNX model, it has no
    mtmamba metadata, or its inputs and outputs are not what the metadata says."""

    name = "onnxruntime"

    def __init__(self, model: Path, device: int = 0) -> None:
        self._session: Any = _open_session(model, device)
        metadata = ModelMetadata.from_json(_metadata_text(self._session, model), str(model))
        _check(self._session, metadata, model)
        provider = self._session.get_providers()[0].removesuffix("ExecutionProvider")
        super().__init__(model, metadata, "GPU (CUDA)" if provider == "CUDA" else provider)
        self._names = [task.name for task in metadata.tasks]

    def _execute(self, images: Array) -> dict[str, Array]:
        start = time.perf_counter()
        outputs = self._session.run(self._names, {INPUT_NAME: images})
        self.engine_ms = (time.perf_counter() - start) * 1e3
        return dict(zip(self._names, outputs, strict=True))

    def close(self) -> None:
        self._session = None


def _open_session(model: Path, device: int) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MtmError(
            f"backend onnxruntime: expected the package onnxruntime, found none ({error}); install it with "
            "pip install 'mtmamba[cpu]', or 'mtmamba[gpu]' for an NVIDIA GPU"
        ) from error
    available = onnxruntime.get_available_providers()
    providers = [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in available]
    if "CUDAExecutionProvider" in providers and hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()  # finds CUDA and cuDNN in the nvidia-* wheels
    chosen = [(name, {"device_id": device} if name.startswith("CUDA") else {}) for name in providers]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    try:
        # The fallback would try the very same again, and announce it on stdout, where a command's JSON goes.
        return onnxruntime.InferenceSession(str(model), options, providers=chosen, enable_fallback=0)
    except Exception as error:  # ONNX Runtime's exceptions share no base but Exception
        logger.debug("ONNX Runtime refused %s", model, exc_info=True)
        reason = " ".join(str(error).split())[:200]
        raise MtmError(
            f"{model}: expected an ONNX model ONNX Runtime can load, found one it refuses ({reason}); export it again "
            "with mtm-export"
        ) from error


def _metadata_text(session: Any, model: Path) -> str | None:
    try:
        properties = session.get_modelmeta().custom_metadata_map
    except UnicodeDecodeError as error:
        raise MtmError(
            f"{model}: expected metadata in UTF-8, found other bytes ({error}); export the model again with mtm-export"
        ) from error
    text: str | None = properties.get(METADATA_KEY)
    return text


def _check(session: Any, metadata: ModelMetadata, model: Path) -> None:
    """The file's inputs and outputs are those its metadata promises (a dimension may be free, and a free batch must be)."""
    inputs, outputs = session.get_inputs(), {node.name: node for node in session.get_outputs()}
    shape, dtype = metadata.file_shape(metadata.input_shape), metadata.input_dtype
    if [node.name for node in inputs] != [INPUT_NAME] or not _fits(inputs[0], shape, dtype):
        found = ", ".join(f"{node.name} {node.type} {node.shape}" for node in inputs)
        raise MtmError(
            f"{model}: expected one input {INPUT_NAME} {dtype} {shape}, found {found}; export it again with mtm-export"
        )
    for task in metadata.tasks:
        shape, dtype = metadata.file_shape(metadata.output_shape(task)), metadata.output_dtype(task)
        node = outputs.get(task.name)
        if node is None or not _fits(node, shape, dtype):
            found = f"only {', '.join(outputs)}" if node is None else f"{node.type} {node.shape}"
            raise MtmError(
                f"{model}: expected an output {task.name} {dtype} {shape}, found {found}; export it again with "
                "mtm-export"
            )


_TYPES = {"float32": "tensor(float)", "float16": "tensor(float16)", "uint8": "tensor(uint8)"}


def _fits(node: Any, shape: list[int | str], dtype: str) -> bool:
    return (
        node.type == _TYPES[dtype]
        and len(node.shape) == len(shape)
        and all(not isinstance(found, int) or found == want for found, want in zip(node.shape, shape, strict=True))
    )
