"""What is shown of a frame: one page with everything on it, or a picture a task."""

from collections.abc import Callable
from dataclasses import dataclass

from mtmamba.draw import Picture, paint
from mtmamba.postprocess import postprocess
from mtmamba.runtime.backends import Backend
from mtmamba.runtime.mosaic import Facts, Mosaic
from mtmamba.runtime.outputs import WHOLE, Outputs, Pages
from mtmamba.runtime.preprocess import resize_image
from mtmamba.runtime.sheet import Sheet
from mtmamba.runtime.video_out import to_yuv
from mtmamba.tasks import Task

Draw = Callable[[Sheet], Pages]
VIEWS = ("mosaic", "tasks")


@dataclass(frozen=True, kw_only=True)
class View:
    """How pages look. name: one of VIEWS. facts, picture_width: of the mosaic. yuv: as `to_yuv` makes them, for a video."""

    name: str
    tasks: tuple[Task, ...]
    facts: Facts
    picture_width: int
    yuv: bool = False

    def opened(self) -> Draw:
        """What draws a sheet's pages, on any thread."""
        mosaic = Mosaic(self.tasks, self.facts, picture_width=self.picture_width)

        def draw(sheet: Sheet) -> Pages:
            pages = {WHOLE: mosaic.draw(sheet)} if self.name == "mosaic" else draw_tasks(sheet, self.tasks)
            return {name: to_yuv(page) for name, page in pages.items()} if self.yuv else pages

        return draw


def page_names(view: str, tasks: tuple[Task, ...]) -> tuple[str, ...]:
    """The pages a view has."""
    return (WHOLE,) if view == "mosaic" else tuple(task.name for task in tasks)


def view_of(outputs: Outputs, backend: Backend, tasks: tuple[Task, ...]) -> View:
    return View(name=outputs.view, tasks=tasks, facts=facts_of(backend), picture_width=outputs.picture_width)


def draw_tasks(sheet: Sheet, tasks: tuple[Task, ...]) -> dict[str, Picture]:
    """A task's picture alone, over the source at its own size (less one row or column where that is odd)."""
    width, height = (max(2, side - side % 2) for side in sheet.size)
    size = height, width
    image = resize_image(sheet.image, size)
    return {
        task.name: paint(image, postprocess(sheet.planes[task.name], task, size), task, sheet.scale)[0]
        for task in tasks
    }


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
