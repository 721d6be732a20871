"""Where results go: an annotated video, pictures, and raw predictions. Every file appears whole or not at all."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np

from mtmamba.errors import MtmError
from mtmamba.files import atomic_path
from mtmamba.runtime.draw import Picture
from mtmamba.runtime.postprocess import Prediction
from mtmamba.runtime.sources import Frame, Source
from mtmamba.runtime.video import CODECS, video_output

Write = Callable[[Frame, Picture], None]
SUFFIXES = {"video": ".mtm.mp4", "image": ".mtm.png", "folder": ".mtm"}


def output_path(source: Source, given: Path | None) -> Path:
    """`given`, or NAME.mtm.mp4, NAME.mtm.png or NAME.mtm (a folder) in the working folder, or in `given` if it is a
    folder and the result a file. Raises MtmError for a name of another kind, and for one that is the source itself."""
    path = source.path.resolve()
    name = (path.name if source.kind == "folder" else path.stem) + SUFFIXES[source.kind]
    target = Path(name) if given is None else given
    if source.kind != "folder" and target.is_dir():
        target = target / name
    kinds = {"video": tuple(CODECS), "image": (".png",)}.get(source.kind)
    if kinds and target.suffix.lower() not in kinds:
        raise MtmError(
            f"{target}: expected a name ending in {' or '.join(kinds)} for a {source.kind}, found {target.suffix!r}"
        )
    if target.resolve() == path:
        raise MtmError(f"{target}: the output is the source itself; choose another output with --output")
    return target


@contextmanager
def picture_output(source: Source, target: Path) -> Iterator[Write]:
    """A function that writes one frame's page. A video appears under `target` when the block succeeds; pictures at
    once."""
    if source.kind == "video":
        with video_output(target, source.fps) as writer:
            yield lambda frame, page: writer.write(page)
    elif source.kind == "image":
        yield lambda frame, page: write_png(target, page)
    else:
        yield lambda frame, page: write_png(target / f"{frame.name}.png", page)


def write_png(target: Path, picture: Picture) -> None:
    """Raises MtmError where it cannot be written."""
    encoded, data = cv2.imencode(".png", picture)
    if not encoded:
        raise MtmError(f"{target}: this OpenCV cannot encode PNG; install opencv-python-headless from PyPI")
    with atomic_path(target) as temporary:
        temporary.write_bytes(data.tobytes())


def raw_folder(folder: Path) -> Path:
    """Make the folder for raw predictions. Raises MtmError where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MtmError(
            f"{folder}: cannot make this folder ({error.strerror}); choose another with --save-raw"
        ) from error
    return folder


def write_raw(target: Path, predictions: dict[str, Prediction]) -> None:
    """One frame's predictions as a compressed npz, one array a task. Raises MtmError where it cannot be written."""
    with atomic_path(target) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **predictions)
