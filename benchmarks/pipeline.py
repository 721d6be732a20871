"""How much of its slowest stage's speed the pipeline of mtm-run keeps.

    python benchmarks/pipeline.py --json benchmarks/pipeline.json

A model that only waits, as the CPU does while a GPU works, takes a given time a frame; decoding, preprocessing, drawing
and encoding are real. Three settings: the model is the slowest stage by far, the others are, and none is. For each, the
pipeline's frames a second against those of its slowest stage alone: the same stage, run over the same frames with
nothing beside it, and of those that take about as long the one that then is the slowest. The two are run in turns, several
times: the share is the median of the pairs', as a machine that others use is faster at one time than at another.

The first frames count on neither side: letters are drawn once, the encoder looks ahead before it encodes, and processes
that draw have to start. What the pipeline takes to start and to finish is told apart, as is the processor time a frame: no
pipeline is faster than that over the number of cores. A pair of runs beside which others used a twentieth of the cores is
made again, up to three times as often as asked for.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Generator, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.console import Console
from rich.table import Table

from mtmamba.config import preset
from mtmamba.metadata import ModelMetadata
from mtmamba.runtime.backends.base import Array, Backend
from mtmamba.runtime.outputs import Outputs, Pages, output_path, picture_output
from mtmamba.runtime.preprocess import preprocess
from mtmamba.runtime.run import QUEUE, draw_pages, run
from mtmamba.runtime.sources import Frame, open_source
from mtmamba.runtime.threads import Meter, cores, opencv_on_one_thread
from mtmamba.runtime.video_out import video_output
from mtmamba.runtime.views import page_names, view_of

SOURCE_SIZE, INPUT_SIZE = (270, 480), (96, 160)  # height, width
FIRST = 60  # frames that do not count
SEEN = 8  # classes in a frame, about as many as a street has
SETTINGS = {"model slowest": 60.0, "model fastest": 2.0, "alike": None}


class Waiting(Backend):
    """Answers with fixed outputs after `model_ms`, without using a core."""

    name = "waiting"

    def __init__(self, model_ms: float) -> None:
        config = replace(preset("synthetic", "nano"), input_size=INPUT_SIZE)
        metadata = ModelMetadata(config=config, input_size=INPUT_SIZE, batch=1, versions={})
        super().__init__(Path("waiting"), metadata, "a clock")
        rng = np.random.default_rng(0)
        self.model_ms = model_ms
        self._outputs = {
            task.name: np.ascontiguousarray(
                cv2.GaussianBlur(rng.normal(size=(*INPUT_SIZE, task.channels)).astype(np.float32), (0, 0), 4)
                .reshape(*INPUT_SIZE, task.channels).transpose(2, 0, 1)[None]
            ) for task in metadata.tasks
        }  # fmt: skip
        for task in metadata.tasks:
            if task.kind == "labels":
                self._outputs[task.name][:, :SEEN] += 1  # far above the others

    def _execute(self, images: Array) -> dict[str, Array]:
        time.sleep(self.model_ms / 1e3)
        self.engine_ms = self.model_ms
        return self._outputs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the result there")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        clip = make_clip(Path(folder) / "clip.mp4", arguments.frames)
        drawing_ms = alone(clip, Waiting(0), "draw") * 1e3
        rows = [
            measure(clip, name, drawing_ms if model_ms is None else model_ms, arguments.repeats)
            for name, model_ms in SETTINGS.items()
        ]
    show(rows)
    if arguments.json:
        result = {"frames": arguments.frames, "repeats": arguments.repeats, "cores": cores(),
                  "cpu": platform.processor() or platform.machine(), "source": SOURCE_SIZE, "input": INPUT_SIZE,
                  "settings": rows}  # fmt: skip
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


def make_clip(path: Path, frames: int, size: tuple[int, int] = SOURCE_SIZE) -> Path:
    rng = np.random.default_rng(0)
    wide = cv2.GaussianBlur(rng.integers(0, 256, (*size, 3), dtype=np.uint8).repeat(2, 1), (0, 0), 5)
    with video_output(path, 25) as writer:
        for index in range(frames):
            writer.write(np.ascontiguousarray(wide[:, 2 * (index % 200) :][:, : size[1]]))
    return path


def measure(clip: Path, name: str, model_ms: float, repeats: int) -> dict[str, Any]:
    together, apart, once_s, cpu_s = [], [], [], []
    for _ in range(3 * repeats):
        others_start, all_start = used_by_others(), time.perf_counter()
        backend, ends = Waiting(model_ms), list[float]()
        start, cpu_start = time.perf_counter(), used_here()
        result = run(
            open_source(clip), backend, outputs_in(clip), tasks=backend.metadata.tasks,
            on_frame=lambda ends=ends: ends.append(time.perf_counter()),
        )  # fmt: skip
        took, used = time.perf_counter() - start, used_here() - cpu_start
        stages = result.stages_ms_p50
        near = [stage for stage, ms in stages.items() if ms > max(stages.values()) / 2]
        alone_s, slowest = max((alone(clip, backend, stage), stage) for stage in near)
        if used_by_others() - others_start > 0.05 * cores() * (time.perf_counter() - all_start):
            continue
        together.append((len(ends) - FIRST) / (ends[-1] - ends[FIRST - 1]))
        once_s.append(took - len(ends) / together[-1])
        cpu_s.append(used / len(ends))
        apart.append(1 / alone_s)
        if len(apart) == repeats:
            break
    else:
        raise SystemExit(
            f"{name}: expected {repeats} pairs of runs on a quiet machine, had {len(apart)}; stop what else runs"
        )
    shares = [one / other for one, other in zip(together, apart, strict=True)]
    return {
        "setting": name, "model_ms": round(model_ms, 1), "slowest_stage": slowest,
        "fps": round(statistics.median(together), 2),
        "fps_of_slowest_stage_alone": round(statistics.median(apart), 2), "share": round(statistics.median(shares), 4),
        "stages_ms_p50": {stage: round(ms, 2) for stage, ms in stages.items()},
        "share_of_each_pair": [round(share, 3) for share in sorted(shares)],
        "start_and_finish_ms": round(1e3 * statistics.median(once_s)),
        "processor_ms_a_frame": round(1e3 * statistics.median(cpu_s), 1),
    }  # fmt: skip


def used_by_others() -> float:
    """Seconds of processor time that other processes have used, of all cores; from Linux's /proc/stat."""
    user, nice, system, _, _, *interrupts = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:8])
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK") - used_here()


def used_here() -> float:
    """Seconds of processor time that this process has used, and those it started and that have ended."""
    return sum(os.times()[:4])


def outputs_in(clip: Path) -> Outputs:
    return Outputs(target=clip.with_name("out.mp4"), form="video")


def alone(clip: Path, backend: Backend, stage: str) -> float:
    """Seconds a frame of one stage with nothing beside it."""
    source = open_source(clip)
    frames: list[Frame] = list(source.frames())
    images = [preprocess(frame.image, backend.metadata)[None] for frame in frames[:8]]
    outputs = {name: output[0] for name, output in Waiting(0).infer(images[0]).items()}
    tasks = backend.metadata.tasks

    def drawn(some: list[Frame]) -> Generator[tuple[Frame, Pages], None, None]:
        view = view_of(outputs_in(clip), backend, tasks)
        return draw_pages(((frame, outputs) for frame in some), source, outputs_in(clip), view, None, Meter())

    pages = [page for _, page in drawn(frames[:FIRST])]
    pages += pages[-2:0:-1]  # there and back: no jump for the encoder
    waiting: deque[Any] = deque(maxlen=QUEUE)  # as in the pipeline: a page's memory is not free at once
    target = output_path(source, clip.with_name("alone.mp4"), "video")
    with picture_output(source, target, "video", page_names("mosaic", tasks)) as write:
        work = {
            "preprocess": lambda index: preprocess(frames[index].image, backend.metadata),
            "infer": lambda index: backend.infer(images[index % 8]),
            "write": lambda index: write(frames[index], pages[index % len(pages)]),
        }
        write(frames[0], pages[0])
        with opencv_on_one_thread():
            results: Iterable[Any]
            if stage in work:
                results = map(work[stage], range(len(frames)))
            else:
                results = drawn(frames) if stage == "draw" else open_source(clip).frames()
            for index, result in enumerate(results, start=1):
                if index == FIRST:
                    start = time.perf_counter()
                waiting.append(result)
        elapsed = time.perf_counter() - start
    return elapsed / (len(frames) - FIRST)


def show(rows: list[dict[str, Any]]) -> None:
    table = Table(title="mtm-run's pipeline against its slowest stage alone", title_justify="left")
    for column in ("setting", "model ms", "slowest", "frames/s", "stage alone", "share"):
        table.add_column(column)
    for row in rows:
        table.add_row(row["setting"], str(row["model_ms"]), row["slowest_stage"], str(row["fps"]),
                      str(row["fps_of_slowest_stage_alone"]), f"{100 * row['share']:.1f} %")  # fmt: skip
    Console().print(table)


if __name__ == "__main__":
    main()
