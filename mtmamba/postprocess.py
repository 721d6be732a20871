"""From the model's raw outputs to predictions. C channels, h w the output's size, H W the size wanted.

Raw outputs are resized first (bilinear, corners not aligned, as the paper's evaluation does), then turned into
predictions. For labels this is the choice that gives right edges: the arg max of interpolated scores crosses between
two classes at the sub-pixel place where their scores are equal, while resized labels (nearest) give steps as large as
a model pixel and are off by up to half of one.
"""

import cv2
import numpy as np
import numpy.typing as npt

from mtmamba.tasks import Task

Prediction = npt.NDArray[np.uint8] | npt.NDArray[np.float32]
Planes = npt.NDArray[np.float32]  # [C, h, w]


def postprocess(raw: Planes, task: Task, size: tuple[int, int]) -> Prediction:
    """One image's prediction for one task, at `size` (height, width).

    raw: [C, h, w] float32. Returns, by the task's kind:
    labels: [H, W] uint8, the class; saliency, boundary: [H, W] float32 in 0..1; depth: [H, W] float32 >= 0 in the
    task's unit; normals: [H, W, 3] float32 unit vectors (a zero vector stays zero).
    """
    if raw.shape[0] != task.channels:
        raise ValueError(f"{task.name}: expected {task.channels} channels, found shape {raw.shape}")
    if task.kind == "labels":
        return _labels(raw, size)
    if task.kind == "saliency":  # softmax over two is the sigmoid of the difference
        return _sigmoid(_resize(raw[1] - raw[0], size))
    if task.kind == "boundary":
        return _sigmoid(_resize(raw[0], size))
    if task.kind == "depth":
        return np.maximum(_resize(raw[0], size), 0)
    return _normals(raw, size)


def postprocess_all(raw: dict[str, Planes], tasks: tuple[Task, ...], size: tuple[int, int]) -> dict[str, Prediction]:
    """`postprocess` for every one of `tasks`: {task name: prediction}."""
    return {task.name: postprocess(raw[task.name], task, size) for task in tasks}


def _resize(plane: npt.NDArray[np.float32], size: tuple[int, int]) -> npt.NDArray[np.float32]:
    """[h, w] -> [H, W], bilinear with half-pixel centres (what torch calls align_corners=False)."""
    if plane.shape == size:
        return plane
    return np.asarray(cv2.resize(np.ascontiguousarray(plane), size[::-1], interpolation=cv2.INTER_LINEAR), np.float32)


def _labels(raw: Planes, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    if raw.shape[1:] == size:
        return np.argmax(raw, axis=0).astype(np.uint8)
    # A running arg max: memory of a few planes, not of C, at the full size. Ties go to the lower class, as in argmax.
    best = _resize(raw[0], size)
    labels = np.zeros(size, np.uint8)
    for index in range(1, raw.shape[0]):
        plane = _resize(raw[index], size)
        labels[plane > best] = index
        best = np.maximum(plane, best)
    return labels


def _normals(raw: Planes, size: tuple[int, int]) -> npt.NDArray[np.float32]:
    vectors = np.stack([_resize(plane, size) for plane in raw], axis=-1)
    length = np.sqrt(np.einsum("hwc,hwc->hw", vectors, vectors))
    return vectors / np.maximum(length, 1e-12)[:, :, None]


def _sigmoid(x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return 0.5 + 0.5 * np.tanh(0.5 * x)  # overflows nowhere
