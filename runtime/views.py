"""What is shown of a frame: one page with everything on it, or a picture a task."""

from collections.abc import Callable

from mtmamba.draw import DepthScale, Picture, paint
from mtmamba.postprocess import Planes
from mtmamba.runtime.backends import Backend
from mtmamba.runtime.mosaic import Facts, Mosaic, depth_first
from mtmamba.runtime.outputs import WHOLE, Outputs, Pages
from mtmamba.runtime.preprocess import resize_image
from mtmamba.runtime.sources import Frame, Source
from mtmamba.tasks import Task

Draw = Callable[[Frame, dict[str, Planes]], Callable[[], Pages]]
"""Given a frame and the model's outputs, what draws its pages: see `open_view`."""
VIEWS = ("mosaic", "tasks")


def page_names(view: str, tasks: tuple[Task, ...]) -> tuple[str, ...]:
    """The pages a view has."""
    return (WHOLE,) if view == "mosaic" else tuple(task.name for task in tasks)


def open_view(outputs: Outputs, source: Source, backend: Backend, tasks: tuple[Task, ...], total: int | None) -> Draw:
    """How a frame's pages are drawn, in two halves. The first holds a video's depth range and page size, so it is given the
    frames in order, by one thread; what it returns draws one, on any thread."""
    still, one_size = not source.moving, outputs.form == "video"
    if outputs.view == "tasks":
        return TaskPictures(tasks, still=still, one_size=one_size).begin
    width = outputs.picture_width
    mosaic = Mosaic(tasks, facts_of(backend), still=still, one_size=one_size, picture_width=width)

    def begin(frame: Frame, outputs: dict[str, Planes]) -> Callable[[], Pages]:
        page = mosaic.begin(frame.image, outputs, frame.source, caption(frame, total))
        return lambda: {WHOLE: page()}

    return begin


class TaskPictures:
    """A task's picture alone, over the source at its own size (less one row or column where that is odd)."""

    def __init__(self, tasks: tuple[Task, ...], *, still: bool, one_size: bool) -> None:
        self._tasks, self._one_size = tasks, one_size
        self._scale = DepthScale(momentum=0.0 if still else 0.9)
        self._size: tuple[int, int] | None = None

    def begin(self, frame: Frame, outputs: dict[str, Planes]) -> Callable[[], Pages]:
        if self._size is None or not self._one_size:
            height, width = frame.image.shape[:2]
            self._size = max(2, height - height % 2), max(2, width - width % 2)
        size = self._size
        scale, predict = depth_first(self._scale, outputs, self._tasks, size)

        def draw() -> dict[str, Picture]:
            image = resize_image(frame.image, size)
            return {task.name: paint(image, predict(task), task, scale)[0] for task in self._tasks}

        return draw


def facts_of(backend: Backend) -> Facts:
    """What the page says of the model."""
    metadata = backend.metadata
    height, width = metadata.input_size
    return Facts(
        title="mtmamba",
        lines=(
            ("model", backend.model.name),
            ("backend", f"{backend.name}, {backend.device}"),
            ("input", f"{width} x {height}"),
            ("trained on", metadata.config.dataset),
        ),
    )


def caption(frame: Frame, total: int | None) -> str:
    """Such as "frame 60 of 250    0:02.40"; a picture of a folder is "picture 3 of 12"."""
    of = f" of {total}" if total else ""
    if frame.time_s is None:
        return f"picture {frame.index + 1}{of}" if total != 1 else ""
    minutes, seconds = divmod(frame.time_s, 60)
    return f"frame {frame.index + 1}{of}    {int(minutes)}:{seconds:05.2f}"
