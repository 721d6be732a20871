"""mtm-run: a model over a video, a picture or a folder of pictures, every task drawn."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from mtmamba.console import Interrupted, command, progress, say
from mtmamba.errors import MtmError
from mtmamba.metadata import ModelMetadata
from mtmamba.runtime.backends import BACKENDS, Backend, default_model, open_backend
from mtmamba.runtime.outputs import output_path
from mtmamba.runtime.run import RunResult, frames_to_do, run
from mtmamba.runtime.sources import Source, open_source
from mtmamba.tasks import Task

_PATH = click.Path(path_type=Path)


class SourcePath(click.Path):
    """A path; an empty text (an unset shell variable) is refused, where pathlib would take it for the working folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("it is empty; name a video, a picture or a folder", param, ctx)
        return super().convert(value, param, ctx)


@command(epilog="Example: mtm-run video.mp4")
@click.argument("source", type=SourcePath(path_type=Path))
@click.option(
    "--model", type=_PATH, help="An .engine, .onnx or .pth file.  [default: the only one here, in that order]"
)
@click.option("--backend", type=click.Choice(list(BACKENDS)), help="What runs it.  [default: by the model file]")
@click.option("--tasks", help="Tasks to draw, such as semseg,depth.  [default: all of the model's]")
@click.option("-o", "--output", type=_PATH, help="[default: NAME.mtm.mp4, NAME.mtm.png or NAME.mtm/ here]")
@click.option("--save-raw", type=_PATH, help="Folder for the predictions too: one .npz a frame, at the source's size.")
@click.option("--max-frames", type=click.IntRange(min=1), help="Stop after this many frames.")
@click.option("--tile-width", type=click.IntRange(200, 4096), default=624, help="Width of a task's picture in pixels.")
def main(
    source: Path,
    model: Path | None,
    backend: str | None,
    tasks: str | None,
    output: Path | None,
    save_raw: Path | None,
    max_frames: int | None,
    tile_width: int,
) -> dict[str, Any]:
    """Run a model over SOURCE (a video, a picture, or a folder of pictures) and draw every task."""
    opened = open_source(source)
    target = output_path(opened, output)
    with open_backend(_model(model, backend), backend) as loaded:
        chosen = choose_tasks(loaded.metadata, tasks)
        with _frame_bar(frames_to_do(opened, max_frames)) as advance:
            result = run(
                opened, loaded, target, tasks=chosen, raw=save_raw, max_frames=max_frames,
                picture_width=tile_width, on_frame=advance,
            )  # fmt: skip
        summary = _summary(opened, loaded, target, save_raw, chosen, result)
    _tell(summary)
    if result.interrupted:
        raise Interrupted(summary)
    return summary


def choose_tasks(metadata: ModelMetadata, names: str | None) -> tuple[Task, ...]:
    """The model's tasks, or those named in a comma-separated list, in the list's order. Raises MtmError for others."""
    known = {task.name: task for task in metadata.tasks}
    if names is None:
        return metadata.tasks
    chosen = list(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    unknown = [name for name in chosen if name not in known]
    if unknown or not chosen:
        raise MtmError(
            f"--tasks: expected some of this model's tasks ({', '.join(known)}), found {', '.join(unknown) or 'none'}"
        )
    return tuple(known[name] for name in chosen)


def _model(given: Path | None, backend: str | None) -> Path:
    if given is not None:
        return given
    model, note = default_model(backend)
    if note:
        say(note)
    say(f"model: {model.name} (the only {model.suffix} file here)")
    return model


@contextmanager
def _frame_bar(total: int | None) -> Iterator[Callable[[], None]]:
    """A progress bar; yields the function that counts one frame."""
    with progress(unit="frames") as bar:
        task = bar.add_task("running", total=total, note="")
        start, count = time.perf_counter(), 0

        def advance() -> None:
            nonlocal count
            count += 1
            bar.update(task, advance=1, note=f"{count / (time.perf_counter() - start):.1f} FPS")

        yield advance


def _summary(
    source: Source, backend: Backend, target: Path, raw: Path | None, tasks: tuple[Task, ...], result: RunResult
) -> dict[str, Any]:
    return {
        "source": str(source.path),
        "output": str(target),
        "raw": None if raw is None else str(raw),
        "model": str(backend.model),
        "backend": backend.name,
        "device": backend.device,
        "tasks": [task.name for task in tasks],
        "frames": result.frames,
        "engine_ms_p50": None if math.isnan(result.engine_ms_p50) else round(result.engine_ms_p50, 3),
        "fps": round(result.fps, 2),
        "source_fps": source.fps or None,
        "interrupted": result.interrupted,
    }


def _tell(summary: dict[str, Any]) -> None:
    count = summary["frames"]
    frames = f"{count} frame{'s' if count != 1 else ''}"
    if summary["interrupted"]:
        frames += " (interrupted; complete up to there)"
    lines = {
        "wrote": summary["output"],
        "raw": summary["raw"],
        "frames": frames,
        "speed": f"{summary['fps']:.1f} frames/s end to end; model alone {summary['engine_ms_p50']} ms a frame (p50)",
        "model": f"{summary['model']} with {summary['backend']} on {summary['device']}",
        "tasks": ", ".join(summary["tasks"]),
    }
    for name, value in lines.items():
        if value is not None:
            say(f"{name:<8}{value}")
