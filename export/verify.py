"""Is the exported file the model? PyTorch against ONNX Runtime on random images, task by task."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnx import ModelProto

from mtmamba.errors import MtmError
from mtmamba.metadata import INPUT_NAME, METADATA_KEY, ModelMetadata
from mtmamba.model import MTMamba

TOLERANCE = 1e-4
"""Largest allowed difference of an FP32 export: absolute for predictions up to 1, relative to the largest beyond."""


@dataclass(frozen=True, kw_only=True)
class TaskDifference:
    """max_abs, rms: of ONNX Runtime minus PyTorch. scale: the largest PyTorch prediction. tolerance: allowed max_abs."""

    task: str
    max_abs: float
    rms: float
    scale: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.max_abs <= self.tolerance  # False for NaN

    def to_dict(self) -> dict[str, Any]:
        return {**self.__dict__, "passed": self.passed}


def compare(model: MTMamba, onnx_model: ModelProto | Path, *, images: int = 2, seed: int = 0) -> list[TaskDifference]:
    """Run `images` random batches of the exported size, or of the smallest and of the largest where it is free, through both
    and return every task's worst difference."""
    source = onnx_model.SerializeToString() if isinstance(onnx_model, ModelProto) else str(onnx_model)
    session = onnxruntime.InferenceSession(source, _options(), providers=["CPUExecutionProvider"])
    text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
    metadata = ModelMetadata.from_json(text, "the export")
    rng = np.random.default_rng(seed)
    differences: dict[str, TaskDifference] = {}
    for batch in sorted({metadata.smallest_batch, metadata.batch}) * images:
        image = random_image(rng, (batch, *metadata.input_shape[1:]))
        with torch.no_grad():
            expected = {name: value.numpy() for name, value in model(torch.from_numpy(image)).items()}
        found = dict(zip(expected, session.run(list(expected), {INPUT_NAME: image}), strict=True))
        for name, value in expected.items():
            now = _difference(name, value, found[name])
            if name not in differences or not now.max_abs <= differences[name].max_abs:
                differences[name] = now
    return list(differences.values())


def require_equal(differences: list[TaskDifference]) -> None:
    """Raise MtmError naming every task that differs by more than its tolerance."""
    failed = [d for d in differences if not d.passed]
    if failed:
        listing = ", ".join(f"{d.task} by {d.max_abs:.2e} (allowed {d.tolerance:.2e})" for d in failed)
        raise MtmError(
            f"the export is not the model: ONNX Runtime differs from PyTorch in {listing}; no file was written. Try another "
            "--opset, and report this with the output of mtm-doctor"
        )


def random_image(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Normalised float32 images [B, 3, H, W]: coarse blobs and pixel noise, so that every scale has something to see."""
    batch, channels, height, width = shape
    coarse = rng.normal(size=(batch, channels, -(-height // 16), -(-width // 16)))
    blobs = np.kron(coarse, np.ones((16, 16)))[:, :, :height, :width]
    return np.ascontiguousarray(blobs + 0.5 * rng.normal(size=shape), dtype=np.float32)


def _difference(task: str, expected: np.ndarray, found: np.ndarray) -> TaskDifference:
    if found.shape != expected.shape:
        raise MtmError(f"the export is not the model: {task} has shape {found.shape}, expected {expected.shape}")
    error = np.abs(found.astype(np.float64) - expected)
    scale = float(np.abs(expected).max())
    return TaskDifference(
        task=task,
        max_abs=float(error.max()),
        rms=float(np.sqrt(np.mean(error**2))),
        scale=scale,
        tolerance=TOLERANCE * max(1.0, scale),
    )


def _options() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    return options
