"""Video files through OpenCV: reading frames, and writing a file that is known to play."""

import logging
import math
import os
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from mtmamba.errors import MtmError
from mtmamba.files import atomic_path, existing_file
from mtmamba.runtime.preprocess import Image

logger = logging.getLogger(__name__)

CODECS: dict[str, tuple[str, ...]] = {
    ".mp4": ("avc1", "mp4v"),
    ".mov": ("avc1", "mp4v"),
    ".avi": ("MJPG",),
}
"""Container -> codecs to try, the most widely played first."""

USUAL_FPS = 25.0


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """fps: frames a second. frames: what the header promises, None where it does not say."""

    path: Path
    fps: float
    frames: int | None


@contextmanager
def quiet_opencv() -> Iterator[None]:
    """Keep OpenCV's and FFmpeg's own messages off stderr; ours say it in one sentence. (FFmpeg's level is read once a
    process, from an environment variable that a user may set.)"""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    logs = cv2.utils.logging
    level = logs.getLogLevel()
    logs.setLogLevel(logs.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        logs.setLogLevel(level)


def probe_video(path: Path) -> VideoInfo:
    """Open the file, decode its first frame, say what it is. Raises MtmError where it is missing, empty, no video, or
    has no frame that decodes."""
    existing_file(path, "video")
    with quiet_opencv():
        capture = cv2.VideoCapture(str(path))
        try:
            if not capture.isOpened():
                raise MtmError(
                    f"{path}: expected a video OpenCV can decode, found something else or an unknown codec; check that "
                    "it plays, or convert it with ffmpeg -i INPUT -c:v libx264 OUTPUT.mp4"
                )
            if not capture.read()[0]:
                raise MtmError(f"{path}: expected a video with frames, found none that decodes; check that it plays")
            frames = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
            return VideoInfo(path=path, fps=_fps(capture, path), frames=frames if frames > 0 else None)
        finally:
            capture.release()


def read_video(info: VideoInfo) -> Generator[Image, None, None]:
    """The frames, [H, W, 3] uint8 BGR, in order. Logs a warning where fewer decode than the header promises."""
    with quiet_opencv():
        capture = cv2.VideoCapture(str(info.path))
    count = 0
    try:
        while True:
            decoded, frame = capture.read()
            if not decoded:
                break
            count += 1
            yield np.asarray(frame, np.uint8)
    finally:
        capture.release()
    if info.frames is not None and count < info.frames:
        logger.warning("%s: its header promises %d frames, %d could be decoded", info.path, info.frames, count)


class VideoWriter:
    """Writes frames [H, W, 3] uint8 BGR of one even size to `path`. The codec is the first of its container's that
    works for that size here. `codec` is "" before the first frame."""

    def __init__(self, path: Path, fps: float) -> None:
        self._path, self._fps = path, fps
        self._writer: cv2.VideoWriter | None = None
        self._size = (0, 0)
        self.codec = ""
        self.frames = 0

    def write(self, picture: Image) -> None:
        """Append one frame. Raises MtmError where no codec works, ValueError where the size changes."""
        size = (picture.shape[1], picture.shape[0])
        if self._writer is None:
            self.codec = pick_codec(self._path.suffix, size)
            with quiet_opencv():
                self._writer = cv2.VideoWriter(str(self._path), cv2.VideoWriter.fourcc(*self.codec), self._fps, size)
            self._size = size
        if size != self._size:
            raise ValueError(f"expected frames of {self._size}, found {size}")
        self._writer.write(picture)
        self.frames += 1

    def close(self) -> None:
        """Finish the file: without this it does not play."""
        if self._writer is not None:
            with quiet_opencv():
                self._writer.release()
            self._writer = None

    def verify(self, target: Path) -> None:
        """Open the finished file and count: OpenCV does not report a full disk. Raises MtmError naming `target`."""
        with quiet_opencv():
            capture = cv2.VideoCapture(str(self._path))
            found = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if capture.isOpened() else 0
            capture.release()
        if found != self.frames:
            raise MtmError(
                f"{target}: expected {self.frames} frames in the finished video, found {found}; the disk is probably "
                "full: free space or choose another output with --output"
            )


@contextmanager
def video_output(target: Path, fps: float) -> Iterator[VideoWriter]:
    """A writer whose file appears under `target` only when the block succeeds and every frame is in it."""
    if target.suffix.lower() not in CODECS:
        raise MtmError(f"{target}: expected a video name ending in {' '.join(CODECS)}, found {target.suffix!r}")
    with atomic_path(target) as temporary:
        writer = VideoWriter(temporary, fps)
        try:
            yield writer
        finally:
            writer.close()
        writer.verify(target)


def pick_codec(suffix: str, size: tuple[int, int]) -> str:
    """The first of the container's codecs with which this OpenCV writes frames of `size` (width, height) that it can
    read again. Raises MtmError where none does."""
    for codec in CODECS[suffix.lower()]:
        if codec_works(codec, suffix.lower(), size):
            return codec
    raise MtmError(
        f"this OpenCV writes none of {', '.join(CODECS[suffix.lower()])} in {suffix} at {size[0]} x {size[1]}; install "
        "opencv-python-headless from PyPI, or name an .avi file with --output"
    )


@lru_cache(maxsize=64)
def codec_works(codec: str, suffix: str, size: tuple[int, int] = (320, 240)) -> bool:
    """Tried on a temporary file: an opened writer alone proves nothing."""
    with tempfile.TemporaryDirectory() as folder, quiet_opencv():
        path = Path(folder) / f"try{suffix}"
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), USUAL_FPS, size)
        if writer.isOpened():
            for level in (40, 120, 200):
                writer.write(np.full((size[1], size[0], 3), level, np.uint8))
        writer.release()
        capture = cv2.VideoCapture(str(path)) if path.exists() else None
        count = 0
        while capture is not None and capture.read()[0]:
            count += 1
        if capture is not None:
            capture.release()
        return count == 3


def _fps(capture: cv2.VideoCapture, path: Path) -> float:
    fps = float(capture.get(cv2.CAP_PROP_FPS))
    if math.isfinite(fps) and 0.1 <= fps <= 1000:
        return fps
    logger.warning("%s: its header gives no usable frame rate (%g); %g a second are assumed", path, fps, USUAL_FPS)
    return USUAL_FPS
