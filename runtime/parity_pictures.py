"""The pictures of a parity page: for each task the image that differs most, predicted by both, and where they differ."""

from dataclasses import dataclass

import cv2
import numpy as np

from mtmamba.draw import HEAT_MAP, DepthScale, Picture, paint
from mtmamba.postprocess import Prediction, postprocess
from mtmamba.runtime.backends.base import Array
from mtmamba.runtime.parity_figures import angle_map
from mtmamba.runtime.preprocess import resize_image
from mtmamba.runtime.sources import Frame
from mtmamba.tasks import Task

WIDTH = 480  # pixels, of a picture on the page
_NEAR_ZERO = 1e-12
_DIFFERS = (60, 60, 235)  # BGR: red


@dataclass(frozen=True, kw_only=True)
class Exhibit:
    """One task on one image. image, reference, candidate, difference: [h, w, 3] uint8 BGR, `WIDTH` wide. note: what the
    colours of `difference` mean."""

    task: Task
    name: str
    image: Picture
    reference: Picture
    candidate: Picture
    difference: Picture
    note: str


def exhibit(task: Task, frame: Frame, reference: Array, candidate: Array) -> Exhibit:
    """Draw the raw predictions [C, h, w] of both models over the frame. What is NaN or infinite is drawn as something."""
    with np.errstate(invalid="ignore", over="ignore"):
        return _exhibit(task, frame, reference, candidate)


def _exhibit(task: Task, frame: Frame, reference: Array, candidate: Array) -> Exhibit:
    size = (reference.shape[1], reference.shape[2])
    image = resize_image(frame.image, size)
    ours, theirs = (postprocess(raw, task, size) for raw in (reference, candidate))
    scale = DepthScale(momentum=1)  # the reference's depth range colours both
    pictures = [paint(image, prediction, task, scale)[0] for prediction in (ours, theirs)]
    difference, note = _difference(image, ours, theirs, task, (reference, candidate))
    small = [_to_width(picture) for picture in (image, *pictures, difference)]
    return Exhibit(
        task=task,
        name=frame.name,
        image=small[0],
        reference=small[1],
        candidate=small[2],
        difference=small[3],
        note=note,
    )


def _difference(
    image: Picture, ours: Prediction, theirs: Prediction, task: Task, raw: tuple[Array, Array]
) -> tuple[Picture, str]:
    if task.kind == "labels":
        differs = ours != theirs
        picture = np.asarray(cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR) // 2, np.uint8)
        picture[differs] = _DIFFERS
        return picture, f"red: {100 * float(differs.mean()):.3g} % of the pixels"
    if task.kind == "normals":
        return _heat(angle_map(*raw), "°")
    error = np.abs(np.asarray(theirs, np.float64) - ours)
    return _heat(error, f" {task.unit}" if task.kind == "depth" else "")


def _heat(error: np.ndarray, unit: str) -> tuple[Picture, str]:
    """From black at 0 to bright at the largest, so that the smallest differences show where they are."""
    error = np.nan_to_num(error, nan=0.0, posinf=0.0, neginf=0.0)
    largest = float(error.max())
    levels = np.rint(255 * error / max(largest, _NEAR_ZERO)).astype(np.uint8)
    return np.asarray(cv2.applyColorMap(levels, HEAT_MAP), np.uint8), f"black 0 to bright {largest:.2g}{unit}"


def _to_width(picture: Picture) -> Picture:
    height = max(1, round(picture.shape[0] * WIDTH / picture.shape[1]))
    grows = picture.shape[1] < WIDTH
    method = cv2.INTER_NEAREST if grows else cv2.INTER_AREA  # enlarged pixels stay pixels: each is a prediction
    return np.asarray(cv2.resize(picture, (WIDTH, height), interpolation=method), np.uint8)
