"""Run a model over a source: decode and preprocess ahead, infer, draw and encode behind.

Three threads with bounded queues between them: a reader (decode, preprocess), the caller's (the model), and a writer
(postprocess, draw, encode). Frames keep their order and none is lost.
"""

import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mtmamba.errors import MtmError
from mtmamba.runtime.backends import Backend
from mtmamba.runtime.mosaic import Facts, Mosaic
from mtmamba.runtime.outputs import Write, picture_output, raw_folder, write_raw
from mtmamba.runtime.postprocess import postprocess_all
from mtmamba.runtime.preprocess import preprocess
from mtmamba.runtime.sources import Frame, Source
from mtmamba.runtime.threads import Consumer, Prefetch
from mtmamba.tasks import Task

QUEUE = 4  # frames (or batches) waiting between two threads: enough to smooth, small enough for any memory

Prepared = tuple[Frame, npt.NDArray[np.float32]]  # a frame and its [3, H, W]
Raw = dict[str, npt.NDArray[np.float32]]  # task -> [C, h, w]


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """engine_ms_p50: the model alone, milliseconds a frame, median. fps: frames a second from the first byte read to
    the finished file. interrupted: Ctrl-C ended it early; what was written is complete."""

    frames: int
    engine_ms_p50: float
    fps: float
    interrupted: bool


def run(
    source: Source,
    backend: Backend,
    output: Path,
    *,
    tasks: tuple[Task, ...],
    raw: Path | None = None,
    max_frames: int | None = None,
    picture_width: int = 624,
    on_frame: Callable[[], None] = lambda: None,
) -> RunResult:
    """Draw `tasks` of every frame of `source` into `output` (see `output_path`), and write their predictions at the
    source's size into the folder `raw` as NAME.npz. `on_frame` is called from another thread after each finished frame.

    On Ctrl-C what has been inferred is still written and finished, and the result says `interrupted`.
    Raises MtmError where the source breaks off at once, and where something cannot be written: then no video is left.
    """
    start = time.perf_counter()
    engine_ms: list[float] = []
    done = 0
    interrupted = False
    if raw is not None:
        raw_folder(raw)
    with picture_output(source, output) as write:
        handle = _writer(source, backend, tasks, write, raw, picture_width, max_frames)

        def consume(item: tuple[Frame, Raw]) -> None:
            nonlocal done
            handle(item)
            done += 1
            on_frame()

        with Consumer(consume, QUEUE) as consumer:
            try:
                for frame, outputs in _infer(source, backend, max_frames, engine_ms):
                    consumer.put((frame, outputs))
            except KeyboardInterrupt:
                interrupted = True
        if done == 0:
            if interrupted:
                raise KeyboardInterrupt
            raise MtmError(f"{source.path}: expected at least one frame, found none that decodes; check that it plays")
    fps = done / (time.perf_counter() - start)
    return RunResult(frames=done, engine_ms_p50=float(np.median(engine_ms)), fps=fps, interrupted=interrupted)


def _infer(
    source: Source, backend: Backend, max_frames: int | None, engine_ms: list[float]
) -> Generator[tuple[Frame, Raw], None, None]:
    """Every frame with the model's outputs for it, in order. Appends milliseconds a frame to `engine_ms`."""
    size = backend.metadata.batch
    prefetch = Prefetch(_prepare(source, backend, max_frames), QUEUE * size)
    try:
        for batch in _batches(prefetch, size):
            outputs = backend.infer(np.stack([image for _, image in batch]))
            engine_ms.append(backend.engine_ms / size)
            for index, (frame, _) in enumerate(batch):
                yield frame, {name: output[index] for name, output in outputs.items()}
    finally:
        prefetch.close()


def _prepare(source: Source, backend: Backend, max_frames: int | None) -> Generator[Prepared, None, None]:
    with closing(source.frames()) as frames:
        for frame in frames:
            yield frame, preprocess(frame.image, backend.metadata)
            if max_frames is not None and frame.index + 1 >= max_frames:
                return


def _batches(items: Iterable[Prepared], size: int) -> Iterator[list[Prepared]]:
    """Lists of `size` items; the last may be shorter."""
    batch: list[Prepared] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _writer(
    source: Source,
    backend: Backend,
    tasks: tuple[Task, ...],
    write: Write,
    raw: Path | None,
    picture_width: int,
    max_frames: int | None,
) -> Callable[[tuple[Frame, Raw]], None]:
    """What happens to a frame after the model: raw predictions, drawing, encoding."""
    still = source.kind != "video"
    mosaic = Mosaic(tasks, facts_of(backend), still=still, picture_width=picture_width)
    total = frames_to_do(source, max_frames)

    def handle(item: tuple[Frame, Raw]) -> None:
        frame, outputs = item
        if raw is not None:
            size = (frame.image.shape[0], frame.image.shape[1])
            write_raw(raw / f"{frame.name}.npz", postprocess_all(outputs, tasks, size))
        write(frame, mosaic.draw(frame.image, outputs, frame.source, caption(frame, total)))

    return handle


def frames_to_do(source: Source, max_frames: int | None) -> int | None:
    """How many frames a run will make; None where the source does not say."""
    if source.count is None or max_frames is None:
        return source.count
    return min(source.count, max_frames)


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
