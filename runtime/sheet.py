"""What a frame's pages are drawn from. Sheets are made in the frames' order; drawing one (`views`) needs nothing of the frames
before it, so that may be done anywhere and at any time.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mtmamba.draw import DepthScale
from mtmamba.postprocess import Planes, postprocess
from mtmamba.runtime.preprocess import Image
from mtmamba.runtime.sources import Frame
from mtmamba.tasks import Task


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """image: the source [H, W, 3] uint8 BGR. planes: {task: the model's outputs for it}, as `postprocess` takes them.
    size: (width, height) of the source that the pages are laid out for. scale: to draw depth with; drawing does not change
    it. name, note: what the source's tile says, such as the file's name and the time."""

    image: Image
    planes: Mapping[str, Planes]
    size: tuple[int, int]
    scale: DepthScale
    name: str
    note: str


class Sheets:
    """Makes the sheets of one source, with what `tasks` need. Holds the smoothed depth range, so give it a video's frames in
    order.

    total: how many frames there will be, None where nobody knows. still: the frames are pictures that have nothing to do
    with each other (a folder), so nothing is smoothed. one_size: all pages have the first one's size, whatever the frames'
    (they become a video).
    """

    def __init__(
        self, tasks: tuple[Task, ...], *, total: int | None = None, still: bool = False, one_size: bool = False
    ) -> None:
        self._tasks = tasks
        self._depth = next((task for task in tasks if task.kind == "depth"), None)
        self._total, self._one_size = total, one_size
        self._scale = DepthScale(momentum=0.0 if still else 0.9)
        self._size: tuple[int, int] | None = None

    def make(self, frame: Frame, planes: Mapping[str, Planes]) -> Sheet:
        if self._size is None or not self._one_size:
            self._size = frame.image.shape[1], frame.image.shape[0]
        scale = self._scale
        if self._depth is not None:
            raw = planes[self._depth.name]
            depth = postprocess(raw, self._depth, (raw.shape[-2], raw.shape[-1]))
            scale = scale.after(np.asarray(depth, np.float32))
        drawn = {task.name: planes[task.name] for task in self._tasks}
        note = caption(frame, self._total)
        return Sheet(image=frame.image, planes=drawn, size=self._size, scale=scale, name=frame.source, note=note)


def caption(frame: Frame, total: int | None) -> str:
    """Such as "frame 60 of 250    0:02.40"; a picture of a folder is "picture 3 of 12"."""
    of = f" of {total}" if total else ""
    if frame.time_s is None:
        return f"picture {frame.index + 1}{of}" if total != 1 else ""
    minutes, seconds = divmod(frame.time_s, 60)
    return f"frame {frame.index + 1}{of}    {int(minutes)}:{seconds:05.2f}"
