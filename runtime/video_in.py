"""Reading videos and network streams with PyAV (FFmpeg). Frames are [H, W, 3] uint8 BGR, turned as the file says."""

import logging
import math
import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np

from mtmamba.errors import MtmError
from mtmamba.files import existing_file
from mtmamba.runtime.preprocess import Image

logger = logging.getLogger(__name__)

USUAL_FPS = 25.0
_BROKEN_IN_A_ROW = 500  # packets; after so many without a frame the rest of a file is taken for lost
_BROKEN = (av.error.InvalidDataError, av.error.PatchWelcomeError, av.error.BugError, av.error.UnknownError)


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """path: or a URL. fps: frames a second. frames: what the header promises, None where it does not say."""

    path: Path | str
    fps: float
    frames: int | None


def probe_video(path: Path | str) -> VideoInfo:
    """Open the file or URL, decode its first frame, say what it is. Raises MtmError where it is missing, empty, no video,
    or has no frame that decodes."""
    if isinstance(path, Path):
        existing_file(path, "video")
    with _opened(path) as container:
        fps, frames = _rate(container, shown(path)), int(container.streams.video[0].frames)
        if next(decoded(container), None) is None:
            raise MtmError(f"{shown(path)}: expected a video with frames, found none that decodes; check that it plays")
    return VideoInfo(path=path, fps=fps, frames=frames if frames > 0 else None)


def read_video(info: VideoInfo) -> Generator[tuple[Image, float], None, None]:
    """The frames, in order, each with its time in seconds since the first. What does not decode is left out; a warning says
    where fewer come than the header promises."""
    count, start, time_s = 0, None, -1 / info.fps
    with _opened(info.path) as container:
        for frame in decoded(container):
            start = frame.time if start is None else start
            since = math.nan if frame.time is None else frame.time - start
            time_s = since if since > time_s else time_s + 1 / info.fps  # where it is missing or goes back
            count += 1
            yield picture_of(frame), time_s
    if info.frames is not None and count < info.frames:
        logger.warning("%s: its header promises %d frames, %d could be decoded", shown(info.path), info.frames, count)


def decoded(container: Any) -> Iterator[Any]:
    """The frames of the first video stream that decode: broken packets are passed over, and an end that is cut off is
    an end."""
    video = container.streams.video[0]
    video.thread_type = "AUTO"
    broken = 0
    packets = container.demux(video)
    while True:
        try:
            packet = next(packets)
        except (StopIteration, EOFError):
            return
        except _BROKEN:
            return
        try:
            frames = packet.decode()
        except EOFError:  # flushed twice
            return
        except _BROKEN:
            broken += 1
            if broken >= _BROKEN_IN_A_ROW:
                return
            continue
        broken = 0 if frames else broken
        yield from frames


def picture_of(frame: Any) -> Image:
    """A decoded frame as [H, W, 3] uint8 BGR, turned as a phone's video asks for."""
    picture = frame.to_ndarray(format="bgr24")
    turns = round(getattr(frame, "rotation", 0) / 90) % 4
    return np.ascontiguousarray(np.rot90(picture, turns)) if turns else picture


def open_container(name: str, mode: Literal["r", "w"] = "r", **options: Any) -> Any:
    """`av.open`, with FFmpeg's messages for nobody. torchvision before 0.26 sends them to Python's log: a decoder's thread with
    something to say then waits for Python, which may be waiting for that thread to end."""
    av.logging.set_level(None)
    return av.open(name, mode, **options)


@contextmanager
def _opened(path: Path | str) -> Iterator[Any]:
    """The container, with a video stream in it. Raises MtmError where there is none."""
    try:
        container = open_container(str(path), metadata_errors="ignore")
    except (av.error.FFmpegError, OSError) as error:
        raise MtmError(
            f"{shown(path)}: expected a video FFmpeg can decode, found something else or an unknown codec "
            f"({reason(error)}); check that it plays, or convert it with ffmpeg -i INPUT -c:v libx264 OUTPUT.mp4"
        ) from error
    with container:
        if not container.streams.video:
            raise MtmError(f"{shown(path)}: expected a video, found a file with no pictures in it; check that it plays")
        yield container


def _rate(container: Any, name: str) -> float:
    video = container.streams.video[0]
    fps = float(video.average_rate or video.guessed_rate or 0)
    if math.isfinite(fps) and 0.1 <= fps <= 1000:
        return fps
    logger.warning("%s: its header gives no usable frame rate (%g); %g a second are assumed", name, fps, USUAL_FPS)
    return USUAL_FPS


def reason(error: BaseException) -> str:
    """FFmpeg's word for what went wrong, in a few words."""
    return str(getattr(error, "strerror", None) or error).split("\n")[0]


def without_password(url: str) -> str:
    """rtsp://user:secret@host/x?token=secret -> rtsp://user:***@host/x?token=***; rather too much hidden than too little."""
    url = re.sub(r"(://[^/:]*):[^/]*@", r"\1:***@", url)
    return re.sub(r"((?:pass\w*|pwd|token|secret|key)=)[^&]*", r"\1***", url, flags=re.IGNORECASE)


def shown(path: Path | str) -> str:
    """What people are told of a file or URL."""
    return str(path) if isinstance(path, Path) else without_password(path)
