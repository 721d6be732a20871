"""mtm-run: a model over a video, pictures or a live stream, every task drawn."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from mtmamba.calib.plan import PRECISIONS, QUANTISED
from mtmamba.console import Interrupted, command, progress, say
from mtmamba.errors import MtmError
from mtmamba.metadata import ModelMetadata
from mtmamba.runtime.backends import BACKENDS, Backend, open_backend
from mtmamba.runtime.model_cache import Recipe
from mtmamba.runtime.model_choice import Choice, choose, made
from mtmamba.runtime.outputs import Outputs, output_form, output_path, page_path
from mtmamba.runtime.ray_job import Job, failures, run_videos
from mtmamba.runtime.run import RunResult, frames_to_do, run
from mtmamba.runtime.sources import Source, open_source
from mtmamba.runtime.streams import Patience
from mtmamba.runtime.views import VIEWS, page_names
from mtmamba.tasks import Task

_PATH = click.Path(path_type=Path)
_PRECISIONS = [name for name in PRECISIONS if name not in QUANTISED]  # the others need a calibration: mtm-build-engine


class SourceName(click.ParamType[str]):
    """A path, a pattern, a URL or a camera's number; an empty text (an unset shell variable) is refused, where pathlib
    would take it for the working folder."""

    name = "source"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not str(value):
            self.fail("it is empty; name a video, a picture or a folder", param, ctx)
        return str(value)


@command(
    epilog="Examples: mtm-run video.mp4    mtm-run 'frames/*.png' -o clip.mp4    mtm-run rtsp://camera/stream --show"
)
@click.argument("source", type=SourceName())
@click.option(
    "--model", type=_PATH, help="An .engine, .onnx or .pth file.  [default: the only one here, in that order]"
)
@click.option(
    "--backend",
    type=click.Choice(list(BACKENDS)),
    help="What runs it.  [default: tensorrt where there is a GPU with it, else by the file]",
)
@click.option("--precision", type=click.Choice(_PRECISIONS), default="fp32", help="Of an engine that is built now.")
@click.option(
    "--picture-io", is_flag=True, help="Build or export it with pictures in and predictions out: less to copy."
)
@click.option("--rebuild", is_flag=True, help="Export and build again what the cache has.")
@click.option("--device", metavar="N", type=click.IntRange(0), default=0, help="Which GPU.")
@click.option("--tasks", help="Tasks to draw, such as semseg,depth.  [default: all of the model's]")
@click.option(
    "-o", "--output", type=_PATH, help="What to write.  [default: NAME.mtm.mp4, NAME.mtm.png or NAME.mtm/ here]"
)
@click.option(
    "--format", "choice", type=click.Choice(["mp4", "png"]),
    help="A video, or PNG files.  [default: by the output's name, else as the source is]",
)  # fmt: skip
@click.option("--view", type=click.Choice(VIEWS), default="mosaic", help="All on one page, or a file a task.")
@click.option("--show", is_flag=True, help="Show it in a window too; q ends.")
@click.option("--no-output", is_flag=True, help="Write no pictures: for --save-raw or --show alone.")
@click.option("--save-raw", type=_PATH, help="Folder for the predictions too: one .npz a frame, at the source's size.")
@click.option("--max-frames", type=click.IntRange(min=1), help="Stop after this many frames.")
@click.option("--tile-width", type=click.IntRange(200, 4096), default=624, help="Width of a task's picture in pixels.")
@click.option("--ray", "on_ray", is_flag=True, help="SOURCE is a folder of videos: many at a time, with Ray.")
@click.option("--ray-address", metavar="HOST:PORT", help="With --ray: a running cluster.  [default: this machine]")
@click.option("--ray-workers", type=click.IntRange(min=1), default=1, help="With --ray: videos at a time.")
@click.option(
    "--ray-gpus", type=click.FloatRange(min=0), default=0.0, help="With --ray: GPUs a worker takes, such as 0.5."
)
@click.option(
    "--stall", type=click.FloatRange(min=0.1), default=10.0, help="Seconds of silence that count as a lost stream."
)
@click.option("--retries", type=click.IntRange(min=0), default=3, help="Times a lost stream is opened again.")
def main(
    source: str,
    model: Path | None,
    backend: str | None,
    precision: str,
    picture_io: bool,
    rebuild: bool,
    device: int,
    tasks: str | None,
    output: Path | None,
    choice: str | None,
    view: str,
    show: bool,
    no_output: bool,
    save_raw: Path | None,
    max_frames: int | None,
    tile_width: int,
    on_ray: bool,
    ray_address: str | None,
    ray_workers: int,
    ray_gpus: float,
    stall: float,
    retries: int,
) -> dict[str, Any]:
    """Run a model over SOURCE and draw every task.

    SOURCE is a video, a picture, a folder of pictures, a pattern in quotes ('frames/*.png', frame_%04d.png), a stream
    (rtsp://, rtmp://, udp://, http://) or a camera's number (0). A stream ends with Ctrl-C, --max-frames, or when it is
    lost and --retries are used up; what was written is finished and plays.

    A checkpoint or an ONNX file is exported and built into an engine first where there is a GPU with TensorRT (or where
    --backend says so), once: ~/.cache/mtmamba keeps what was made.
    """
    if no_output and not (show or save_raw):
        raise click.UsageError("--no-output leaves nothing to do; add --save-raw or --show")
    recipe = Recipe(precision=precision, picture_io=picture_io, rebuild=rebuild, device=device)
    if on_ray and (no_output or show or choice == "png"):
        raise click.UsageError("--ray writes videos; leave --no-output, --show and --format png out")
    if not on_ray and (ray_address or ray_workers > 1 or ray_gpus):
        raise click.UsageError("--ray-address, --ray-workers and --ray-gpus are for --ray; add it, or leave them out")
    if on_ray:
        return _run_on_ray(
            Path(source),
            Job(
                model=_model(model, backend, recipe).model.resolve(), backend=None,
                folder=(output or Path(f"{source}.mtm")).resolve(),
                tasks=tuple(name.strip() for name in tasks.split(",")) if tasks else None, view=view,
                raw=None if save_raw is None else save_raw.resolve(), picture_width=tile_width, max_frames=max_frames,
                workers=ray_workers, gpus=ray_gpus, address=ray_address,
            ),
        )  # fmt: skip
    opened = open_source(source, Patience(stall_s=stall, retries=retries))
    form = output_form(opened, output, choice)
    target = None if no_output else output_path(opened, output, form)
    where = Outputs(target=target, form=form, view=view, raw=save_raw, show=show, picture_width=tile_width)
    ready = _model(model, backend, recipe)
    with open_backend(ready.model, ready.backend, device=device) as loaded:
        chosen = choose_tasks(loaded.metadata, tasks)
        with _frame_bar(frames_to_do(opened, max_frames)) as advance:
            result = run(opened, loaded, where, tasks=chosen, max_frames=max_frames, on_frame=advance)
        summary = {**_summary(opened, loaded, where, chosen, result), "made_from": _made_from(ready)}
    _tell(summary)
    if result.interrupted:
        raise Interrupted(summary)
    return summary


def _run_on_ray(folder: Path, job: Job) -> dict[str, Any]:
    with open_backend(job.model, job.backend) as loaded:  # a wrong model or task is said before a cluster is started
        choose_tasks(loaded.metadata, ",".join(job.tasks) if job.tasks else None)
    rows = run_videos(folder, job)
    for row in rows:
        say(f"{row['source']}: {row['error'] or str(row['frames']) + ' frames to ' + row['output']}")
    if failed := failures(rows):
        raise MtmError(f"{len(failed)} of {len(rows)} videos failed, the others are done; the first: {failed[0]}")
    return {"videos": rows, "frames": sum(row["frames"] for row in rows), "model": str(job.model)}


def choose_tasks(metadata: ModelMetadata, names: str | None) -> tuple[Task, ...]:
    """The model's tasks, or those named in a comma-separated list, in the list's order. Others are a bad option (exit
    status 2)."""
    known = {task.name: task for task in metadata.tasks}
    if names is None:
        return metadata.tasks
    chosen = list(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    unknown = [name for name in chosen if name not in known]
    if unknown or not chosen:
        raise click.BadParameter(
            f"expected some of this model's tasks ({', '.join(known)}), found {', '.join(unknown) or 'none'}",
            param_hint="--tasks",
        )
    return tuple(known[name] for name in chosen)


def _model(given: Path | None, backend: str | None, recipe: Recipe) -> Choice:
    """The file to run, exported and built where that is needed."""
    choice = choose(given, backend)
    if choice.note:
        say(choice.note)
    if choice.is_ready:
        return made(choice, recipe, lambda what, share: None)
    with progress(unit="%") as bar:
        task = bar.add_task("looking into the cache", total=100, note="")
        ready = made(
            choice, recipe, lambda what, share: bar.update(task, completed=round(100 * share), description=what)
        )
        bar.update(task, completed=100)
    if _made_from(ready):
        say(f"made from {ready.source}: {ready.model}")
    return ready


def _made_from(choice: Choice) -> str | None:
    return None if choice.model == choice.source else str(choice.source)


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
    source: Source, backend: Backend, outputs: Outputs, tasks: tuple[Task, ...], result: RunResult
) -> dict[str, Any]:
    target, raw = outputs.target, outputs.raw
    pages = [] if target is None else [str(page_path(target, page)) for page in page_names(outputs.view, tasks)]
    return {
        "source": source.label,
        "output": pages[0] if len(pages) == 1 else pages or None,
        "raw": None if raw is None else str(raw),
        "model": str(backend.model),
        "backend": backend.name,
        "device": backend.device,
        "tasks": [task.name for task in tasks],
        "frames": result.frames,
        "skipped": list(result.skipped),
        "dropped": result.dropped,
        "engine_ms_p50": None if math.isnan(result.engine_ms_p50) else round(result.engine_ms_p50, 3),
        "stages_ms_p50": {name: round(ms, 3) for name, ms in result.stages_ms_p50.items()},
        "fps": round(result.fps, 2),
        "source_fps": source.fps or None,
        "interrupted": result.interrupted,
    }


def _tell(summary: dict[str, Any]) -> None:
    count, output, stages = summary["frames"], summary["output"], summary["stages_ms_p50"]
    frames = f"{count} frame{'s' if count != 1 else ''}"
    if summary["interrupted"]:
        frames += " (interrupted; complete up to there)"
    if summary["skipped"]:
        frames += f"; {len(summary['skipped'])} could not be read"
    if summary["dropped"]:
        frames += f"; {summary['dropped']} came faster than they could be used"
    slowest = max(stages, key=stages.__getitem__)
    lines = {
        "wrote": ", ".join(output) if isinstance(output, list) else output,
        "raw": summary["raw"],
        "frames": frames,
        "speed": f"{summary['fps']:.1f} frames/s end to end; model alone {summary['engine_ms_p50']} ms a frame (p50)",
        "stages": ", ".join(f"{name} {ms:.1f}" for name, ms in stages.items())
        + f" ms a frame; {slowest} sets the pace",
        "model": f"{summary['model']} with {summary['backend']} on {summary['device']}",
        "tasks": ", ".join(summary["tasks"]),
    }
    for name, value in lines.items():
        if value is not None:
            say(f"{name:<8}{value}")


if __name__ == "__main__":
    main()
