"""Run a model over a source. Decoding, preprocessing, the model, drawing and writing overlap: each has its thread, with
bounded queues between. Frames keep their order and none is lost (a live source gives only those there is time for).
"""

from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from mtmamba.errors import MtmError
from mtmamba.postprocess import Planes, postprocess_all
from mtmamba.runtime.backends import Backend
from mtmamba.runtime.backends.base import Result
from mtmamba.runtime.drawing import drawn_in
from mtmamba.runtime.outputs import Outputs, Pages, Write, picture_output, raw_folder, window, write_raw
from mtmamba.runtime.preprocess import preprocess
from mtmamba.runtime.sheet import Sheets
from mtmamba.runtime.sources import Frame, Source
from mtmamba.runtime.threads import Meter, Prefetch, opencv_on_one_thread, several, shared_stage, stage
from mtmamba.runtime.views import View, page_names, view_of
from mtmamba.tasks import Task

QUEUE = 4  # frames (or batches) waiting between two stages: enough to smooth, small enough for any memory
PAGES = 2  # frames' pages waiting for the writer: of a 4K video they take 25 MB a task; twice as many in the encoder's colours
PREPARERS, DRAWERS, PNG_WRITERS = 2, 4, 4  # threads at most, where there are cores: a GPU is faster than one of them
MANY = 100  # frames, for which it pays to start processes that draw

Prepared = tuple[Frame, npt.NDArray[Any]]  # a frame and the model's input for it
Inferred = tuple[Frame, dict[str, Planes]]


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """frames: written. skipped: names of those that could not be read. dropped: those a live source gave too fast.
    engine_ms_p50: the model alone on its device, milliseconds a frame, median. stages_ms_p50: each stage's busy time a
    frame (of several threads: over their number), median, in the order of the stages; the slowest one sets the pace. fps:
    frames a second end to end, from the first byte read to the finished file. interrupted: Ctrl-C ended it early; what was
    written is complete."""

    frames: int
    skipped: tuple[str, ...]
    dropped: int
    engine_ms_p50: float
    stages_ms_p50: dict[str, float]
    fps: float
    interrupted: bool


def run(
    source: Source,
    backend: Backend,
    outputs: Outputs,
    *,
    tasks: tuple[Task, ...],
    max_frames: int | None = None,
    on_frame: Callable[[], None] = lambda: None,
) -> RunResult:
    """Draw `tasks` of every frame of `source`. `on_frame` is called after each finished frame.

    On Ctrl-C what has been read is still written and finished, and the result says `interrupted`; a second one gives up.
    Raises MtmError where the source breaks off at once, and where something cannot be written.
    """
    start = perf_counter()
    meter, engine_ms, done = Meter(), Meter(), 0
    pages = page_names(outputs.view, tasks)

    with opencv_on_one_thread(), ExitStack() as stack:
        writes: list[Write] = []
        if outputs.target is not None:
            writes.append(stack.enter_context(picture_output(source, outputs.target, outputs.form, pages)))
        if outputs.show:
            writes.append(stack.enter_context(window(f"mtm-run {source.label}", pages)))

        def write(item: tuple[Frame, Pages]) -> None:
            for one in writes:
                one(*item)

        def count() -> None:
            nonlocal done
            done += 1
            on_frame()

        frames = _frames(source, max_frames, meter)
        inferred = _infer(_prepare(frames, backend, meter), backend, meter, engine_ms)
        if outputs.raw is not None:
            inferred = _save_raw(inferred, raw_folder(outputs.raw), tasks, meter)
        drawn = draw_pages(inferred, source, outputs, view_of(outputs, backend, tasks), max_frames, meter)
        if outputs.form == "pictures" and not outputs.show:  # files that have nothing to do with each other
            writing = shared_stage(
                "write", lambda item: partial(write, item), drawn, meter, QUEUE, several(PNG_WRITERS)
            )
        else:
            writing = stage("write", write, drawn, meter, 2 * PAGES if _in_yuv(outputs) else PAGES)
        with closing(Prefetch(writing, QUEUE)) as finished:
            interrupted = _until_done(finished, source, count)
        if done == 0:
            if interrupted:
                raise KeyboardInterrupt
            raise MtmError(f"{source.label}: expected at least one frame, found none that decodes; check that it plays")
    return RunResult(
        frames=done,
        skipped=tuple(source.skipped),
        dropped=source.dropped,
        engine_ms_p50=float(np.median(engine_ms.ms["engine"])),
        stages_ms_p50={name: float(np.median(list(ms))) for name, ms in meter.ms.items()},
        fps=done / (perf_counter() - start),
        interrupted=interrupted,
    )


def _until_done(finished: Prefetch[None], source: Source, on_frame: Callable[[], None]) -> bool:
    """Wait for the last frame; True where Ctrl-C came. It stops the source, and what is on its way is still finished."""
    interrupted = False
    while not finished.done:
        try:
            for _ in finished:
                on_frame()
        except KeyboardInterrupt:
            if interrupted:
                raise
            interrupted = True
            source.stop()
    return interrupted


def _frames(source: Source, max_frames: int | None, meter: Meter) -> Generator[Frame, None, None]:
    with closing(source.frames()) as frames:
        for frame in meter.pull("decode", frames):
            yield frame
            if max_frames is not None and frame.index + 1 >= max_frames:
                return


def _prepare(frames: Generator[Frame, None, None], backend: Backend, meter: Meter) -> Generator[Prepared, None, None]:
    def begin(frame: Frame) -> Callable[[], Prepared]:
        return lambda: (frame, preprocess(frame.image, backend.metadata))

    return shared_stage("preprocess", begin, frames, meter, QUEUE, several(PREPARERS))


def _infer(
    prepared: Generator[Prepared, None, None], backend: Backend, meter: Meter, engine_ms: Meter
) -> Generator[Inferred, None, None]:
    """Every frame with the model's outputs for it, in order."""
    size = backend.metadata.batch
    ahead = Prefetch(prepared, QUEUE * size)
    waiting: deque[tuple[list[Prepared], Result, float]] = deque()  # on their way, with the time submitting took

    def finished() -> Iterator[Inferred]:
        batch, result, submitting_s = waiting.popleft()
        begin = perf_counter()
        outputs = result()
        busy_ms = (submitting_s + perf_counter() - begin) * 1e3 / len(batch)
        engine_busy_ms = backend.engine_ms / backend.metadata.run_size(len(batch))
        for index, (frame, _) in enumerate(batch):
            engine_ms.add("engine", engine_busy_ms)
            meter.add("infer", busy_ms)
            yield frame, {name: output[index] for name, output in outputs.items()}

    try:
        for batch in _batches(iter(ahead), size):
            begin = perf_counter()
            result = backend.submit(np.stack([image for _, image in batch]))
            waiting.append((batch, result, perf_counter() - begin))
            if len(waiting) >= backend.depth:
                yield from finished()
        while waiting:
            yield from finished()
    finally:
        ahead.close()
        while waiting:  # where something else failed: the backend may be used again
            with suppress(MtmError):
                waiting.popleft()[1]()


def _save_raw(
    inferred: Generator[Inferred, None, None], folder: Path, tasks: tuple[Task, ...], meter: Meter
) -> Generator[Inferred, None, None]:
    def save(item: Inferred) -> Inferred:
        frame, found = item
        size = (frame.image.shape[0], frame.image.shape[1])
        write_raw(folder / f"{frame.name}.npz", postprocess_all(found, tasks, size))
        return item

    return stage("save raw", save, inferred, meter, QUEUE)


def draw_pages(
    inferred: Generator[Inferred, None, None],
    source: Source,
    outputs: Outputs,
    view: View,
    max_frames: int | None,
    meter: Meter,
) -> Generator[tuple[Frame, Pages], None, None]:
    """Every frame with its pages, in order: drawn by one thread, or where there are cores by several, of which each has a
    process to draw in where there are many frames."""
    if outputs.target is None and not outputs.show:
        yield from ((frame, {}) for frame, _ in inferred)
        return
    total, workers = frames_to_do(source, max_frames), several(DRAWERS)
    view = replace(view, yuv=_in_yuv(outputs))
    sheets = Sheets(view.tasks, total=total, still=not source.moving, one_size=outputs.form == "video")
    many = total is None or total >= MANY
    with drawn_in(workers if workers > 1 and many else 0, view) as draw:

        def begin(item: Inferred) -> Callable[[], tuple[Frame, Pages]]:
            sheet = sheets.make(*item)
            return lambda: (item[0], draw(sheet))

        with closing(shared_stage("draw", begin, inferred, meter, QUEUE, workers)) as drawn:
            yield from drawn


def _in_yuv(outputs: Outputs) -> bool:
    """Whether those who draw make the encoder's colours too: where they are several, who writes has enough to do."""
    return several(DRAWERS) > 1 and outputs.form == "video" and not outputs.show


def _batches(items: Iterator[Prepared], size: int) -> Iterator[list[Prepared]]:
    """Lists of `size` items; the last may be shorter."""
    batch: list[Prepared] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def frames_to_do(source: Source, max_frames: int | None) -> int | None:
    """How many frames a run will make; None where nobody knows."""
    return min((count for count in (source.count, max_frames) if count is not None), default=None)
