"""Many videos on one machine or a cluster: a Ray Data job, one video a task, each worker with the model loaded once.

On a cluster (`address`) every machine must see the videos, the model and the output folder under the same paths, and have
mtmamba installed.
"""

import socket
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mtmamba.errors import MtmError
from mtmamba.runtime.backends import Backend, open_backend
from mtmamba.runtime.outputs import Outputs, output_path
from mtmamba.runtime.run import run
from mtmamba.runtime.sources import IMAGE_SUFFIXES, natural_key, open_source

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".avi", ".webm", ".m4v", ".mpg", ".mpeg", ".ts", ".wmv", ".flv")
ANSWER_S = 5.0
"""How long a cluster may take to answer; Ray itself asks again for minutes."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What every video goes through. tasks: names, None for all. folder: where NAME.mtm.mp4 go. raw: a folder for
    NAME/*.npz. workers: videos at a time. gpus: GPUs a worker takes (a share is fine). address: of a running Ray cluster,
    None for one on this machine."""

    model: Path
    backend: str | None
    folder: Path
    tasks: tuple[str, ...] | None = None
    view: str = "mosaic"
    raw: Path | None = None
    picture_width: int = 624
    max_frames: int | None = None
    workers: int = 1
    gpus: float = 0.0
    address: str | None = None


def videos_in(folder: Path) -> tuple[Path, ...]:
    """The videos of a folder and of those below it, in order. Raises MtmError where there is none."""
    if not folder.is_dir():
        raise MtmError(f"{folder}: expected a folder of videos for --ray, found none; leave --ray out for one video")
    found = (path for path in folder.rglob("*") if path.is_file() and path.suffix.lower() in VIDEO_SUFFIXES)
    videos = tuple(sorted(found, key=lambda path: (str(path.parent), natural_key(path))))
    if not videos:
        kinds = " ".join(VIDEO_SUFFIXES)
        pictures = any(path.suffix.lower() in IMAGE_SUFFIXES for path in folder.iterdir())
        hint = "; for pictures leave --ray out" if pictures else ""
        raise MtmError(f"{folder}: expected videos ({kinds}), found none in it{hint}")
    return videos


def run_videos(folder: Path, job: Job) -> list[dict[str, Any]]:
    """Run every video of `folder`; a row each: source, output, frames, fps, and error ("" where it went well). One video
    that fails does not stop the others. Raises MtmError where Ray is missing or its cluster does not answer."""
    videos = videos_in(folder)
    rows = [{"source": str(path.resolve()), "name": _name(path, folder)} for path in videos]
    ray = _start(job)
    try:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.execution_options.preserve_order = True
        done = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
            VideoWorker,
            fn_constructor_args=(job,),
            compute=ray.data.ActorPoolStrategy(size=min(job.workers, len(rows))),
            num_gpus=job.gpus or None,
        )
        return [dict(row) for row in done.take_all()]
    finally:
        ray.shutdown()


class VideoWorker:
    """A worker: the model, loaded once, and a call a video."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._backend: Backend = open_backend(job.model, job.backend)
        known = {task.name: task for task in self._backend.metadata.tasks}
        self._tasks = tuple(known[name] for name in job.tasks) if job.tasks else self._backend.metadata.tasks

    def __call__(self, row: dict[str, str]) -> dict[str, Any]:
        job, name = self._job, row["name"]
        target = job.folder / f"{name}.mtm.mp4"
        answer = {"source": row["source"], "output": str(target), "frames": 0, "fps": 0.0, "error": ""}
        try:
            source = open_source(Path(row["source"]))
            raw = None if job.raw is None else job.raw / name
            where = Outputs(
                target=output_path(source, target, "video"), form="video", view=job.view, raw=raw,
                picture_width=job.picture_width,
            )  # fmt: skip
            result = run(source, self._backend, where, tasks=self._tasks, max_frames=job.max_frames)
        except MtmError as error:
            return {**answer, "error": str(error)}
        return {**answer, "frames": result.frames, "fps": round(result.fps, 2)}


def failures(rows: Iterable[dict[str, Any]]) -> list[str]:
    return [row["error"] for row in rows if row["error"]]


def _name(path: Path, folder: Path) -> str:
    """The video's place below `folder` without its suffix, so that no two outputs share a name."""
    return path.relative_to(folder).with_suffix("").as_posix()


def _start(job: Job) -> Any:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MtmError(
            f"--ray: expected the package ray, found none that loads ({error}); install it with pip install "
            "'mtmamba[ray]'"
        ) from error
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if job.address:
            _check_answers(job.address)
            ray.init(address=job.address, **quiet)
        else:
            ray.init(include_dashboard=False, **quiet)
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise MtmError(f"--ray: no Ray cluster could be used ({reason}); start one with ray start --head") from error
    return ray


def _check_answers(address: str) -> None:
    """Raise OSError or ValueError where nobody answers at HOST:PORT or ray://HOST:PORT. Other forms are left to Ray."""
    place = urlsplit(address if "://" in address else f"//{address}")
    if place.hostname and place.port:
        try:
            socket.create_connection((place.hostname, place.port), timeout=ANSWER_S).close()
        except OSError as error:
            raise ConnectionError(f"nobody answers at {address}: {error.strerror or error}") from error
