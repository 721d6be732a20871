"""Where results go: annotated videos, pictures, a window, and raw predictions. A file appears whole or not at all; a
video that was not finished stays under its temporary name (`video_out.part_of`).

A page is one frame's picture; with the view `tasks` there is one a task.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from mtmamba.draw import Picture
from mtmamba.errors import MtmError
from mtmamba.files import atomic_path
from mtmamba.postprocess import Prediction
from mtmamba.runtime.sources import Frame, Pictures, Source, output_names, usual_fps
from mtmamba.runtime.video_out import SUFFIXES, VideoWriter, video_output

Pages = Mapping[str, Picture]  # "" -> the mosaic, or task name -> its picture; for a video maybe as `to_yuv` makes it
Write = Callable[[Frame, Pages], None]
Form = Literal["video", "picture", "pictures"]
"""One video, one picture, or a folder of pictures."""

_FILES = (*SUFFIXES, ".png")
WHOLE = ""  # the name of the page that holds every task


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """Where to write and what.

    target, form: see `output_path` and `Form`; target None: nothing but raw or the window. view: one of `views.VIEWS`.
    raw: a folder for predictions at the source's size, as NAME.npz. show: in a window too. picture_width: of a task's
    picture on the page, in pixels.
    """

    target: Path | None
    form: Form
    view: str = "mosaic"
    raw: Path | None = None
    show: bool = False
    picture_width: int = 624


def output_form(source: Source, given: Path | None, choice: str | None) -> Form:
    """What is written: as `choice` (`mp4` or `png`) says, else as the given name's suffix, else as the source is."""
    if choice is None and given is not None and given.suffix.lower() in SUFFIXES and not given.is_dir():
        choice = "mp4"
    if choice == "mp4" or (choice is None and source.moving):
        return "video"
    return "picture" if source.single else "pictures"


def output_path(source: Source, given: Path | None, form: Form) -> Path:
    """`given`, or NAME.mtm.mp4, NAME.mtm.png or NAME.mtm (a folder) in the working folder, or in `given` if it is a
    folder and the result a file. Raises MtmError for a name of another kind, and for one that is the source itself."""
    default = f"{source.stem}.mtm" + {"video": ".mp4", "picture": ".png", "pictures": ""}[form]
    target = Path(default) if given is None else given
    if form != "pictures" and target.is_dir():
        target = target / default
    kinds = {"video": SUFFIXES, "picture": (".png",)}.get(form)
    if kinds and target.suffix.lower() not in kinds:
        raise MtmError(
            f"{target}: expected a name ending in {' or '.join(kinds)} for a {form}, found {target.suffix!r}"
        )
    if not kinds and target.suffix.lower() in _FILES:
        raise MtmError(
            f"{target}: expected a folder's name for the pictures of a video or folder, found {target.suffix!r}"
        )
    if source.path is not None and target.resolve() == source.path.resolve():
        raise _itself(target)
    return target


def page_path(target: Path, page: str) -> Path:
    """`target`, or for a task's own page NAME.TASK.mp4, and a folder TASK in a folder."""
    if page == WHOLE:
        return target
    is_file = target.suffix.lower() in _FILES
    return target.with_name(f"{target.stem}.{page}{target.suffix}") if is_file else target / page


def _spare(source: Source, target: Path, form: Form, pages: tuple[str, ...]) -> None:
    """Raise MtmError where one of the files to be written is one of those that are read, whatever its name."""
    written = [page_path(target, page) for page in pages]
    if form == "pictures":
        names = output_names(source.files) if isinstance(source, Pictures) else []
        written = [folder / f"{name}.png" for folder in written for name in names]
    there = [path for path in written if path.is_file()]
    read = {_identity(path) for path in source.files} if there else set()
    for path in there:
        if _identity(path) in read:
            raise _itself(path)


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _itself(path: Path) -> MtmError:
    return MtmError(f"{path}: the output is the source itself; choose another output with --output")


@contextmanager
def picture_output(source: Source, target: Path, form: Form, pages: tuple[str, ...]) -> Iterator[Write]:
    """A function that writes one frame's pages. A video appears when the block succeeds; pictures at once. Raises MtmError
    where that would overwrite the source."""
    _spare(source, target, form, pages)
    with ExitStack() as stack:
        if form == "video":
            fps = usual_fps(source)
            writers = {page: stack.enter_context(video_output(page_path(target, page), fps)) for page in pages}
            yield lambda frame, made: _append(writers, frame, made)
        elif form == "picture":
            yield lambda frame, made: _each(made, lambda page: page_path(target, page))
        else:
            yield lambda frame, made: _each(made, lambda page: page_path(target, page) / f"{frame.name}.png")


def _append(writers: dict[str, VideoWriter], frame: Frame, pages: Pages) -> None:
    for page, writer in writers.items():
        writer.write(pages[page], frame.time_s)


def _each(pages: Pages, path_of: Callable[[str], Path]) -> None:
    for page, picture in pages.items():
        write_png(path_of(page), picture)


@contextmanager
def window(title: str, pages: tuple[str, ...]) -> Iterator[Write]:
    """A function that shows a frame's pages, a window each; KeyboardInterrupt where the user presses q or Esc or closes
    one. Raises MtmError where this OpenCV has no windows."""
    names = {page: f"{title} {page}".strip() for page in pages}
    try:
        for name in names.values():
            cv2.namedWindow(name, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO)
    except cv2.error as error:
        raise MtmError(
            "--show: expected an OpenCV that can open windows and a screen to open them on, found none; install "
            "opencv-python in place of opencv-python-headless, or leave --show out"
        ) from error

    def show(frame: Frame, made: Pages) -> None:
        for page, name in names.items():
            cv2.imshow(name, made[page])
        closed = any(cv2.getWindowProperty(name, cv2.WND_PROP_VISIBLE) < 1 for name in names.values())
        if cv2.waitKey(1) & 0xFF in (27, ord("q")) or closed:
            raise KeyboardInterrupt

    try:
        yield show
    finally:
        cv2.destroyAllWindows()


def write_png(target: Path, picture: Picture) -> None:
    """Raises MtmError where it cannot be written."""
    encoded, data = cv2.imencode(".png", picture)
    if not encoded:
        raise MtmError(f"{target}: this OpenCV cannot encode PNG; install opencv-python-headless from PyPI")
    with atomic_path(target) as temporary:
        temporary.write_bytes(data.tobytes())


def raw_folder(folder: Path, flag: str = "--save-raw") -> Path:
    """Make the folder for raw predictions; `flag` names it in errors. Raises MtmError where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MtmError(f"{folder}: cannot make this folder ({error.strerror}); choose another with {flag}") from error
    return folder


def write_raw(target: Path, predictions: dict[str, Prediction]) -> None:
    """One frame's predictions as a compressed npz, one array a task. Raises MtmError where it cannot be written."""
    with atomic_path(target) as temporary, temporary.open("wb") as file:
        # NumPy 1.26 takes allow_pickle for the name of an array.
        np.savez_compressed(file, **predictions)  # type: ignore[arg-type]
