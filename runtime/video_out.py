"""Writing videos with PyAV (FFmpeg): H.264 where it has an encoder, else MPEG-4.

While a video is written it is NAME.part.mp4, in fragments of a frame each: whatever ends the program, SIGKILL included, what
stands there plays, and that is all but the frames the encoder still holds (about ten, and one for each of its threads). When it
is finished it is put in order (the index first, as players over the network like it) and gets its name.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from mtmamba.errors import MtmError
from mtmamba.files import atomic_path, cannot_write
from mtmamba.runtime.preprocess import Image
from mtmamba.runtime.threads import cores
from mtmamba.runtime.video_in import open_container, reason

logger = logging.getLogger(__name__)

SUFFIXES = (".mp4", ".mov")
CODECS: dict[str, dict[str, str]] = {
    "libx264": {"preset": "veryfast", "crf": "20", "bf": "0", "x264-params": "subme=1"},
    "mpeg4": {"qscale": "3"},
}
"""Encoders to try, the one that plays in most places first, with their options: a fixed, high quality, and no frames that
refer to later ones (they would delay every time stamp of a fragmented file). subme=1: three quarters of veryfast's time for 6 %
larger files at 46 dB (one less), on pages of a street."""

TIME_BASE = Fraction(1, 60_000)  # MPEG-4 knows none finer than 1 / 65,535
_KEY_FRAME_S = 2  # from one to the next: how far a player has to go back
_FRAGMENTED = {"movflags": "frag_every_frame+empty_moov+default_base_moof", "flush_packets": "1"}
_IN_ORDER = {"movflags": "faststart"}
_BT601, _LIMITED = 6, 1  # FFmpeg's AVCOL_SPC_SMPTE170M and AVCOL_RANGE_MPEG: what OpenCV's conversion makes


@lru_cache(maxsize=1)
def encoder() -> str:
    """The first of CODECS this FFmpeg has. Raises MtmError where it has none."""
    for name in CODECS:
        with suppress(av.codec.codec.UnknownCodecError):
            return str(av.codec.Codec(name, "w").name)
    raise MtmError(
        f"this FFmpeg has none of the encoders {', '.join(CODECS)}; install PyAV from PyPI (pip install av), or write "
        "pictures with --format png"
    )


def part_of(target: Path, number: int = 1) -> Path:
    """What `target` is called while it is written; `number` is larger where files of that name are there already."""
    return target.with_name(f"{target.stem}.part{number if number > 1 else ''}{target.suffix}")


def to_yuv(picture: Image) -> Image:
    """A picture [H, W, 3] uint8 BGR, H and W even, as encoders take it: I420, [3 H / 2, W] uint8."""
    # OpenCV's conversion: FFmpeg's own shifts greys by three levels at its default settings.
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2YUV_I420), np.uint8)


class VideoWriter:
    """Writes frames [H, W, 3] uint8 BGR, H and W even, or what `to_yuv` makes of them, all of one size, to `path`. `frames`:
    how many so far."""

    def __init__(self, path: Path, fps: float) -> None:
        self.path, self.frames = path, 0
        self._fps, self._last, self._size = fps, -1, (0, 0)
        self._container: Any = None
        self._stream: Any = None

    def write(self, picture: Image, time_s: float | None = None) -> None:
        """Append a frame, shown at `time_s` (default: the frames' number over the rate; times only grow). Raises MtmError
        where it cannot be written, ValueError where its size is another."""
        yuv = picture if picture.ndim == 2 else to_yuv(picture)
        size = (yuv.shape[1], yuv.shape[0] * 2 // 3)
        with self._failures():
            if self._container is None:
                self._open(size)
            if size != self._size:
                raise ValueError(f"expected frames of {self._size}, found {size}")
            frame = _frame(yuv, size)
            wanted = self.frames / self._fps if time_s is None else time_s
            self._last = max(self._last + 1, round(wanted / TIME_BASE))
            frame.pts, frame.time_base = self._last, TIME_BASE
            self._container.mux(self._stream.encode(frame))
        self.frames += 1

    def close(self) -> None:
        """Write what the encoder still holds. Raises MtmError where that fails."""
        if self._container is None:
            return
        container, self._container = self._container, None
        with self._failures():
            try:
                container.mux(self._stream.encode(None))
            finally:
                container.close()

    def _open(self, size: tuple[int, int]) -> None:
        codec = encoder()
        self._container = open_container(str(self.path), "w", options=_FRAGMENTED)
        rate = Fraction(self._fps).limit_denominator(1001)
        self._stream = self._container.add_stream(codec, rate=rate, options=CODECS[codec])
        self._stream.width, self._stream.height = self._size = size
        self._stream.pix_fmt = "yuv420p"
        codec_context = self._stream.codec_context
        codec_context.thread_count = max(1, 2 * cores() // 3)  # the others are for what makes the frames
        codec_context.time_base, codec_context.colorspace, codec_context.color_range = TIME_BASE, _BT601, _LIMITED
        self._stream.gop_size = max(1, round(_KEY_FRAME_S * self._fps))

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except (av.error.FFmpegError, OSError) as error:
            raise MtmError(
                f"{self.path}: writing failed after {self.frames} frames ({reason(error)}); free space or choose another "
                "output with --output"
            ) from error


def _frame(yuv: Image, size: tuple[int, int]) -> Any:
    """PyAV's own conversion takes four times as long; that without a copy has the wrong first rows where W / 2 is odd."""
    frame: Any = av.VideoFrame(*size, "yuv420p")
    rest = yuv.reshape(-1)
    for plane in frame.planes:
        area = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width]
        area[:] = rest[: area.size].reshape(area.shape)
        rest = rest[area.size :]
    return frame


@contextmanager
def video_output(target: Path, fps: float) -> Iterator[VideoWriter]:
    """A writer whose file appears under `target` when the block succeeds. Where it fails, what was written stays as
    `part_of(target)`, and plays; nothing stays where there was no frame."""
    if target.suffix.lower() not in SUFFIXES:
        raise MtmError(f"{target}: expected a video name ending in {' '.join(SUFFIXES)}, found {target.suffix!r}")
    part = _new_part(target)
    writer = VideoWriter(part, fps)
    try:
        try:
            yield writer
        finally:
            writer.close()
        if writer.frames:
            _put_in_order(part, target, writer.frames)
        part.unlink()
    except BaseException:
        if frames := _frames_in(part):
            logger.warning("%s: the first %d frames are in %s", target, frames, part)
        else:
            part.unlink(missing_ok=True)
        raise


def _new_part(target: Path) -> Path:
    """An empty file to write `target` in. One that an interrupted run left, or that another run is writing, is left alone."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for number in count(1):
            part = part_of(target, number)
            with suppress(FileExistsError):
                part.open("xb").close()
                break
    except OSError as error:
        raise cannot_write(target, error) from error
    if part != part_of(target):
        logger.warning(
            "%s: %s is there from a run that was cut off or still goes on, and is kept", target, part_of(target)
        )
    return part


def _frames_in(part: Path) -> int:
    """How many frames a player finds."""
    with suppress(av.error.FFmpegError, OSError, IndexError), open_container(str(part)) as container:
        return sum(packet.size > 0 for packet in container.demux(container.streams.video[0]))
    return 0


def _put_in_order(part: Path, target: Path, frames: int) -> None:
    """Copy the packets of a fragmented file, undecoded, into a plain one. Raises MtmError where it holds fewer than
    `frames`."""
    count = 0
    with atomic_path(target) as temporary:
        try:
            with (
                open_container(str(part)) as source,
                open_container(str(temporary), "w", options=_IN_ORDER) as result,
            ):
                stream = result.add_stream_from_template(source.streams.video[0])
                for packet in source.demux(source.streams.video[0]):
                    if packet.size:  # the last one is empty
                        packet.stream = stream
                        result.mux(packet)
                        count += 1
        except av.error.FFmpegError as error:
            raise MtmError(
                f"{target}: putting {part.name} in order failed ({reason(error)}); free space, or use that file as it is"
            ) from error
        if count != frames:
            raise MtmError(
                f"{target}: expected {frames} frames in the finished video, found {count}; the disk is probably full: "
                "free space or choose another output with --output"
            )
