"""From a decoded picture and its labels to a sample of the network's size: where to look (a `View`), how colours
change (`Colours`), and the tensors that come of them.

One view serves picture and labels, so they stay aligned. Pixels are moved by torchvision: the picture with bilinear,
antialiased interpolation, labels with the nearest pixel, which never blends a value with its neighbour's or with the
mark of a pixel that does not count. Raw samples are laid out as `mtmamba.data.labels` says, but with `image` uint8,
0..255, and everything at the picture's own size.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as nnf
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from mtmamba.data.labels import ignored_value
from mtmamba.tasks import IGNORE_LABEL, IMAGENET_MEAN, IMAGENET_STD, Task

Sample = dict[str, Tensor]
Size = tuple[int, int]  # (height, width), pixels

SCALES = (0.5, 2.0)
OFFSETS = (-32.0, 32.0)  # of 255
GAINS = SATURATIONS = (0.5, 1.5)
HUES = (-0.1, 0.1)  # of the colour circle


@dataclass(frozen=True, kw_only=True)
class View:
    """What is looked at: the window of height x width pixels at (top, left) of the picture, which may reach beyond it.
    zoom: how much larger things appear than in the unaugmented picture. flip: mirrored left to right, last."""

    top: int
    left: int
    height: int
    width: int
    zoom: float = 1.0
    flip: bool = False


@dataclass(frozen=True, kw_only=True)
class Colours:
    """Changes of the picture's values 0..255: an offset added, a gain (the recipe calls it contrast), a factor of the
    saturation, a shift of the hue; None where one is not made. gain_last: the gain after the others, not before."""

    offset: float | None = None
    gain: float | None = None
    saturation: float | None = None
    hue: float | None = None
    gain_last: bool = False


def fitting_window(picture: Size, size: Size) -> Size:
    """(height, width) of the window, in the picture's pixels, that is shown in `size` pixels: `size` itself, or, where
    the picture is larger, what makes it just fit, its aspect kept."""
    shrink = max(1.0, picture[0] / size[0], picture[1] / size[1])
    return round(size[0] * shrink), round(size[1] * shrink)


def centred_view(picture: Size, size: Size) -> View:
    """The whole picture, in the middle."""
    height, width = fitting_window(picture, size)
    return View(top=(picture[0] - height) // 2, left=(picture[1] - width) // 2, height=height, width=width)


def random_view(picture: Size, size: Size, rng: np.random.Generator, scales: tuple[float, float] = SCALES) -> View:
    """A view at a scale of `scales` (from, to) times the unaugmented one, mirrored half the time. Along each axis, a
    window that is smaller than the picture lies anywhere in it, a larger one has the picture in its middle."""
    scale = rng.uniform(*scales)
    whole = fitting_window(picture, size)
    height, width = (max(1, round(side / scale)) for side in whole)
    top, left = (
        int(rng.integers(0, spare + 1)) if spare >= 0 else spare // 2
        for spare in (picture[0] - height, picture[1] - width)
    )
    zoom = math.sqrt(whole[0] * whole[1] / (height * width))
    return View(top=top, left=left, height=height, width=width, zoom=zoom, flip=bool(rng.random() < 0.5))


def random_colours(rng: np.random.Generator) -> Colours:
    """Each change is made half the time."""

    def draw(span: tuple[float, float]) -> float | None:
        value, wanted = rng.uniform(*span), rng.random() < 0.5
        return float(value) if wanted else None

    return Colours(
        offset=draw(OFFSETS),
        gain=draw(GAINS),
        saturation=draw(SATURATIONS),
        hue=draw(HUES),
        gain_last=bool(rng.random() < 0.5),
    )


def change_colours(image: Tensor, colours: Colours) -> Tensor:
    """image: [3, H, W] uint8 RGB, in and out."""
    if colours.offset is not None:
        image = (image.to(torch.int16) + round(colours.offset)).clamp(0, 255).to(torch.uint8)
    if colours.gain is not None and not colours.gain_last:
        image = F.adjust_brightness(image, colours.gain)
    if colours.saturation is not None:
        image = F.adjust_saturation(image, colours.saturation)
    if colours.hue is not None:
        image = F.adjust_hue(image, colours.hue)
    if colours.gain is not None and colours.gain_last:
        image = F.adjust_brightness(image, colours.gain)
    return image


def look(raw: Sample, tasks: Sequence[Task], size: Size, output_scale: int, view: View, colours: Colours) -> Sample:
    """The sample that a view of a raw sample is: the image at `size`, labels at `output_scale` times that."""
    image = _image(raw["image"], size, view, colours)
    output = (output_scale * size[0], output_scale * size[1])
    return {"image": image, **{task.name: _label(raw[task.name], task, output, view) for task in tasks}}


def _crop(pixels: Tensor, view: View) -> Tensor:
    """The part of [C, H, W] that is in the view's window; at least a pixel of it is."""
    bottom, right = view.top + view.height, view.left + view.width
    return pixels[:, max(view.top, 0) : bottom, max(view.left, 0) : right]


def _pad(inside: Tensor, view: View, fill: float | Sequence[float]) -> Tensor:
    """[C, height, width]: the window whose inner part `_crop` cut out."""
    top, left = max(-view.top, 0), max(-view.left, 0)
    bottom, right = view.height - top - inside.shape[1], view.width - left - inside.shape[2]
    return F.pad(inside, [left, top, right, bottom], fill=fill) if max(top, left, bottom, right) else inside


def _image(image: Tensor, size: Size, view: View, colours: Colours) -> Tensor:
    picture = image.shape[-2:]
    mean = [round(255 * value) for value in IMAGENET_MEAN]  # next to the padding's 0, for the border's interpolation
    image = _pad(change_colours(_crop(image, view), colours), view, mean)
    if image.shape[-2:] != size:
        image = F.resize(image, list(size), InterpolationMode.BILINEAR, antialias=True)
    image = F.normalize(F.to_dtype(image, torch.float32, scale=True), IMAGENET_MEAN, IMAGENET_STD)
    for axis, start, length in ((1, view.top, view.height), (2, view.left, view.width)):
        centre = start + (torch.arange(size[axis - 1]) + 0.5) * (length / size[axis - 1])
        outside = (centre < 0) | (centre >= picture[axis - 1])
        image.index_fill_(axis, outside.nonzero()[:, 0], 0.0)
    return (F.horizontal_flip(image) if view.flip else image).contiguous()


def _label(label: Tensor, task: Task, size: Size, view: View) -> Tensor:
    planes = _pad(_crop(label if label.ndim == 3 else label[None], view), view, ignored_value(task.kind))
    if task.kind == "boundary" and (view.height > size[0] or view.width > size[1]):
        planes = _shrink_lines(planes, size)
    elif planes.shape[-2:] != size:
        planes = F.resize(planes, list(size), InterpolationMode.NEAREST_EXACT)
    if view.flip:
        planes = F.horizontal_flip(planes)
    if task.kind == "depth":
        # Seen z times larger, a thing is z times nearer; its disparity is z times larger.
        planes = planes * view.zoom if task.unit == "px" else planes / view.zoom
    if task.kind == "normals" and view.flip:
        planes = torch.cat([-planes[:1], planes[1:]])
    return (planes if label.ndim == 3 else planes[0]).contiguous()


def _shrink_lines(edge: Tensor, size: Size) -> Tensor:
    """[1, *size]: the largest value of the pixels that fall into each, so that a line one pixel wide does not break."""
    nearest = F.resize(edge, list(size), InterpolationMode.NEAREST_EXACT)
    strength = nnf.adaptive_max_pool2d(edge.masked_fill(edge == IGNORE_LABEL, 0.0), list(size))
    return strength.masked_fill(nearest == IGNORE_LABEL, float(IGNORE_LABEL))
