"""One picture a task. All pictures are [H, W, 3] uint8 BGR, and predictions are at the picture's size (`postprocess`).

What needs explaining (class colours, a depth scale) comes back apart, as the `Legend` that the mosaic draws below.
"""

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from mtmamba.postprocess import Prediction
from mtmamba.tasks import Task

Colour = tuple[int, int, int]  # BGR, 0..255
Picture = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

DEPTH_MAP = cv2.COLORMAP_TURBO  # red is near, blue is far: small steps stay visible over the whole range
DISPARITY_UNIT = "px"  # a depth task in pixels is disparity: large is near
HEAT_MAP = cv2.COLORMAP_INFERNO  # perceptually uniform, dark where there is nothing
LINE_COLOUR: Colour = (60, 200, 255)  # amber: far from most things in a photograph


@dataclass(frozen=True, kw_only=True)
class Chip:
    """A colour, its name, and the share of the pixels it covers (None: not a share of pixels)."""

    name: str
    colour: Colour
    share: float | None = None


@dataclass(frozen=True, kw_only=True)
class Ramp:
    """A colour scale: `colours` [n, 3] BGR from `low` to `high`, in `unit`."""

    colours: Picture
    low: float
    high: float
    unit: str = ""


@dataclass(frozen=True, kw_only=True)
class Legend:
    """What stands below a tile: colour chips, or a colour scale."""

    chips: tuple[Chip, ...] = ()
    ramp: Ramp | None = None


@dataclass(kw_only=True)
class DepthScale:
    """The depth range the colours span: the 2nd to the 98th percentile, smoothed over a video's frames so that colours
    do not flicker. momentum: the share of the old range in the new one; 0 for pictures that have nothing to do with
    each other.
    """

    momentum: float = 0.9
    low: float | None = field(default=None, init=False)
    high: float | None = field(default=None, init=False)

    def update(self, depth: Floats) -> tuple[float, float]:
        """Take in one frame's depth [H, W]; return the (low, high) to draw it with, low < high."""
        if self.low is None or self.high is None:
            self.low, self.high = _span(depth)
        elif self.momentum < 1:  # else the first range stays
            low, high = _span(depth)
            self.low = self.momentum * self.low + (1 - self.momentum) * low
            self.high = self.momentum * self.high + (1 - self.momentum) * high
        return self.low, max(self.high, self.low + 1e-3 * max(1.0, abs(self.low)))

    def after(self, depth: Floats) -> "DepthScale":
        """Take in one frame's depth [H, W]; return a scale of its own to draw that frame with, which nothing changes."""
        fixed = DepthScale(momentum=1.0)
        fixed.low, fixed.high = self.update(depth)
        return fixed


def _span(depth: Floats) -> tuple[float, float]:
    sample = depth[::4, ::4]
    sample = sample[np.isfinite(sample)]
    low, high = (float(value) for value in np.percentile(sample, (2, 98))) if sample.size else (0.0, 1.0)
    return low, high


def paint(image: Picture, prediction: Prediction, task: Task, scale: DepthScale) -> tuple[Picture, Legend]:
    """The picture of one task's prediction over `image`, and its legend."""
    if task.kind == "labels":
        return paint_labels(image, np.asarray(prediction, np.uint8), task)
    values = np.asarray(prediction, np.float32)
    if not np.isfinite(values).all():
        values = np.nan_to_num(values)
    if task.kind == "depth":
        low, high = scale.update(values)
        return paint_depth(values, low, high, task.unit, near_is_high=task.unit == DISPARITY_UNIT)
    if task.kind == "normals":
        return paint_normals(values)
    return paint_boundary(image, values) if task.kind == "boundary" else paint_saliency(image, values)


def palette_bgr(task: Task) -> Picture:
    """[256, 3]: the task's palette as BGR; unused labels are mid grey."""
    table = np.full((256, 3), 128, np.uint8)
    table[: len(task.palette)] = np.array(task.palette, np.uint8)[:, ::-1]
    return table


def paint_labels(image: Picture, labels: npt.NDArray[np.uint8], task: Task) -> tuple[Picture, Legend]:
    """Class colours blended with the dimmed grey picture, a light line between classes; the background class stays
    picture."""
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    colours = _look_up(labels, palette_bgr(task))
    picture = np.asarray(cv2.addWeighted(grey, 0.35, colours, 0.65, 0), np.uint8)
    if "background" in task.classes:
        background = labels == task.classes.index("background")
        cv2.copyTo(cv2.convertScaleAbs(image, alpha=0.45), background.view(np.uint8), picture)
    seams = np.zeros(labels.shape, bool)
    seams[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    seams[1:] |= labels[1:] != labels[:-1]
    strength = 0.5 * min(1.0, 0.12 / max(float(seams.mean()), 1e-6))  # lines everywhere would hide the colours
    lighter = np.rint(np.arange(256) * (1 - strength) + 235 * strength).astype(np.uint8)
    cv2.copyTo(cv2.LUT(picture, lighter), seams.view(np.uint8), picture)
    return picture, Legend(chips=class_chips(labels, task))


def class_chips(labels: npt.NDArray[np.uint8], task: Task) -> tuple[Chip, ...]:
    """The classes present, the largest area first."""
    counts = cv2.calcHist([labels], [0], None, [256], [0, 256]).ravel()[: len(task.classes)].astype(int)
    order = np.argsort(-counts, kind="stable")
    table = palette_bgr(task)
    return tuple(
        Chip(name=task.classes[index], colour=_bgr(table[index]), share=float(counts[index] / labels.size))
        for index in order
        if counts[index]
    )


def paint_depth(
    depth: Floats, low: float, high: float, unit: str, *, near_is_high: bool = False
) -> tuple[Picture, Legend]:
    """Depth as colour, near warm and far cool, cut to low..high."""
    levels = _bytes(255 * np.clip((depth - low) / (high - low), 0, 1))
    colours = _colours(DEPTH_MAP) if near_is_high else _colours(DEPTH_MAP)[::-1]
    return _look_up(levels, colours), Legend(ramp=Ramp(colours=colours, low=low, high=high, unit=unit))


def paint_normals(normals: Floats) -> tuple[Picture, Legend]:
    """The usual coding of unit vectors: red, green, blue = (x, y, z) from -1..1 to 0..255."""
    rgb = normals + 1
    rgb *= 127.5
    np.clip(rgb, 0, 255, out=rgb)
    axes = (("x", (128, 128, 255)), ("y", (128, 255, 128)), ("z", (255, 128, 128)))
    chips = tuple(Chip(name=name, colour=colour) for name, colour in axes)
    return np.asarray(cv2.cvtColor(_bytes(rgb), cv2.COLOR_RGB2BGR), np.uint8), Legend(chips=chips)


def paint_boundary(image: Picture, probability: Floats) -> tuple[Picture, Legend]:
    """Boundaries as amber lines over the dimmed picture, as opaque as they are probable."""
    dim = np.asarray(cv2.convertScaleAbs(image, alpha=0.35), np.uint8)
    picture = _mix(dim, np.broadcast_to(np.array(LINE_COLOUR, np.uint8), image.shape), probability)
    shades = np.linspace(0, 1, 256, dtype=np.float32)[:, None] * np.array(LINE_COLOUR, np.float32)
    return picture, Legend(ramp=Ramp(colours=shades.astype(np.uint8), low=0, high=1, unit="probability"))


def paint_saliency(image: Picture, probability: Floats) -> tuple[Picture, Legend]:
    """Saliency as heat over the dimmed grey picture: what is not salient stays picture."""
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    probability = np.clip(probability, 0, 1)
    heat = _look_up(_bytes(255 * probability), _colours(HEAT_MAP))
    below = np.asarray(cv2.convertScaleAbs(grey, alpha=0.5), np.uint8)
    picture = _mix(below, heat, np.float32(0.85) * np.sqrt(probability))
    return picture, Legend(ramp=Ramp(colours=_colours(HEAT_MAP), low=0, high=1, unit="probability"))


def _mix(below: Picture, above: Picture, alpha: Floats) -> Picture:
    mixed = cv2.subtract(above, below, dtype=cv2.CV_32F)
    cv2.multiply(mixed, cv2.merge([np.clip(alpha, 0, 1)] * 3), dst=mixed)
    return _bytes(cv2.add(mixed, below, dst=mixed, dtype=cv2.CV_32F))


def _bytes(values: npt.NDArray[Any]) -> Picture:
    """Floats in 0..255, rounded."""
    return np.asarray(cv2.convertScaleAbs(values), np.uint8)


def _look_up(levels: npt.NDArray[np.uint8], colours: Picture) -> Picture:
    """The colour [256, 3] of every one of `levels` [H, W]."""
    return np.asarray(cv2.applyColorMap(levels, np.ascontiguousarray(colours)[:, None]), np.uint8)


@lru_cache(maxsize=4)
def _colours(colour_map: int) -> Picture:
    """[256, 3] BGR: a colour map from its first colour to its last."""
    colours = np.asarray(cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, None], colour_map), np.uint8)[:, 0]
    colours.flags.writeable = False
    return colours


def _bgr(colour: npt.NDArray[np.uint8]) -> Colour:
    return int(colour[0]), int(colour[1]), int(colour[2])
