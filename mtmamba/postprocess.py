"""From the model's outputs to predictions. C channels, h w the output's size, H W the size wanted.

Raw outputs are resized first (bilinear, corners not aligned, as the paper's evaluation does), then turned into
predictions. For labels this is the choice that gives right edges: the arg max of interpolated scores crosses between
two classes at the sub-pixel place where their scores are equal, while resized labels (nearest) give steps as large as
a model pixel and are off by up to half of one. A model exported with picture I/O (`mtmamba.export.picture_io`) has taken
the arg max itself, so its labels do have such steps; in exchange only bytes leave the GPU.
"""

import cv2
import numpy as np
import numpy.typing as npt

from mtmamba.tasks import Task

Prediction = npt.NDArray[np.uint8] | npt.NDArray[np.float32]
Raw = npt.NDArray[np.float32]  # [C, h, w]
Final = npt.NDArray[np.uint8] | npt.NDArray[np.float16]  # [h, w], normals [h, w, 3]
Planes = Raw | Final  # what a model gives for one image and task
Plane = npt.NDArray[np.float32]  # [h, w] or [H, W]


def postprocess(planes: Planes, task: Task, size: tuple[int, int]) -> Prediction:
    """One image's prediction for one task, at `size` (height, width).

    planes: raw outputs [C, h, w] float32, or a prediction as `mtmamba.export.picture_io` has it (uint8, or float16).
    Returns, by the task's kind:
    labels: [H, W] uint8, the class; saliency, boundary: [H, W] float32 in 0..1; depth: [H, W] float32 >= 0 in the
    task's unit; normals: [H, W, 3] float32 unit vectors (a zero vector stays zero).
    """
    if planes.ndim == 2 or planes.dtype == np.uint8:
        return _from_picture(planes, task, size)
    raw: Raw = np.ascontiguousarray(planes, np.float32)
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


def _resize(plane: Plane, size: tuple[int, int], out: Plane | None = None) -> Plane:
    """[h, w] -> [H, W], bilinear with half-pixel centres (what torch calls align_corners=False). `out`: memory to use."""
    if plane.shape == size:
        return plane
    plane = np.ascontiguousarray(plane)
    return np.asarray(cv2.resize(plane, size[::-1], dst=out, interpolation=cv2.INTER_LINEAR), np.float32)


def _from_picture(prediction: Planes, task: Task, size: tuple[int, int]) -> Prediction:
    """What the model has made of its outputs, at the wanted size and in this module's forms."""
    if prediction.ndim != (3 if task.kind == "normals" else 2):
        raise ValueError(f"{task.name}: expected {task.kind} as a prediction, found shape {prediction.shape}")
    if task.kind == "labels":
        return _nearest(np.asarray(prediction, np.uint8), size)
    values: Raw = np.asarray(prediction, np.float32)
    if task.kind == "depth":
        return _resize(values, size)
    if task.kind == "normals":
        vectors = values / np.float32(127.5) - np.float32(1)
        return _unit([_resize(vectors[:, :, axis], size) for axis in range(3)])
    return _resize(values / np.float32(255), size)


def _nearest(labels: npt.NDArray[np.uint8], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """[h, w] -> [H, W], each pixel that of the model it lies in."""
    if labels.shape == size:
        return labels
    return np.asarray(cv2.resize(labels, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT), np.uint8)


def _labels(raw: Raw, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    if raw.shape[1:] == size:
        return np.argmax(raw, axis=0).astype(np.uint8)
    # A running arg max: memory of a few planes, not of C, at the full size. Ties go to the lower class, as in argmax.
    enlarges = size[0] * size[1] > 4 * raw[0].size  # else leaving out takes longer than what is left out
    first, *others = that_can_win(raw) if enlarges else range(raw.shape[0])
    best, plane = _resize(raw[first], size), np.empty(size, np.float32)
    labels, better = np.full(size, first, np.uint8), np.empty(size, bool)
    for index in others:
        _resize(raw[index], size, out=plane)
        np.greater(plane, best, out=better)
        np.maximum(labels, better.view(np.uint8) * np.uint8(index), out=labels)  # a later class has a higher number
        np.maximum(plane, best, out=best)
    return labels


def that_can_win(raw: Raw) -> list[int]:
    """The classes that may have the highest score somewhere once scores [C, h, w] are resized, in order. A resized score lies
    between those of the four pixels around it: a class whose highest of four is nowhere another's lowest does not win."""
    if min(raw.shape[1:]) < 2:
        return list(range(raw.shape[0]))
    step = max(1, 65_536 // raw[0].size)  # planes at a time: few calls, and what they make stays in the cache
    blocks = [raw[index : index + step] for index in range(0, raw.shape[0], step)]
    to_beat = _of_four(np.minimum, blocks[0]).max(axis=0)
    for block in blocks[1:]:
        np.maximum(to_beat, _of_four(np.minimum, block).max(axis=0), out=to_beat)
    to_beat *= np.where(to_beat > 0, np.float32(1 - 1e-5), np.float32(1 + 1e-5))  # more than rounding changes
    loses = [(_of_four(np.maximum, block) < to_beat).all(axis=(1, 2)) for block in blocks]  # NaN stays
    return [int(index) for index in np.flatnonzero(~np.concatenate(loses))]


def _of_four(which: np.ufunc, planes: Raw) -> Raw:
    across = which(planes[:, :, 1:], planes[:, :, :-1])
    return np.asarray(which(across[:, 1:], across[:, :-1]), np.float32)


def _normals(raw: Raw, size: tuple[int, int]) -> npt.NDArray[np.float32]:
    return _unit([_resize(plane, size) for plane in raw])


def _unit(axes: list[Plane]) -> npt.NDArray[np.float32]:
    """The x, y and z [H, W] of vectors, as unit vectors [H, W, 3]."""
    x, y, z = axes
    length = np.maximum(np.sqrt(x * x + y * y + z * z), 1e-12)
    return np.asarray(cv2.merge([axis / length for axis in axes]), np.float32)


def _sigmoid(x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return 0.5 + 0.5 * np.tanh(0.5 * x)  # overflows nowhere
