"""Live inputs: network streams and cameras. Frames come at their own pace, fall silent, and come back.

A thread reads all the time and keeps the newest frame; whoever asks gets that one. Silence longer than the patience
is a loss; after a loss the input is opened again a few times, and then the stream has ended, as a file ends.
"""

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any

import av
import cv2
import numpy as np

from mtmamba.errors import MtmError
from mtmamba.runtime.preprocess import Image
from mtmamba.runtime.video_in import USUAL_FPS, decoded, open_container, picture_of, reason, without_password

logger = logging.getLogger(__name__)

Timed = tuple[Image, float]  # a frame and its time in seconds since the first


@dataclass(frozen=True, kw_only=True)
class Patience:
    """stall_s: silence that counts as a loss. retries: openings after a loss, one after another, before giving up."""

    stall_s: float = 10.0
    retries: int = 3
    first_pause_s: float = 1.0  # before the first retry; doubles with each


class LiveInput(ABC):
    """fps: what the stream says of itself, or 25. dropped: frames nobody asked for in time, so far."""

    fps = USUAL_FPS

    def __init__(self, label: str, patience: Patience) -> None:
        self.label, self.patience = label, patience
        self.dropped = 0
        self._newest: Timed | None = None
        self._ended = False
        self._changed = threading.Condition()
        self._wanted = threading.Event()

    @abstractmethod
    def images(self) -> Iterator[Image]:
        """Open, and give frames until the end. Raises MtmError where it cannot be opened or falls silent."""

    def newest(self) -> Generator[Timed, None, None]:
        """Frames until the stream has ended for good or `stop` is called; always the newest."""
        self._wanted.set()
        thread = threading.Thread(target=self._read, name="mtm-live", daemon=True)
        thread.start()
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._newest is not None or self._ended)
                    if self._newest is None:
                        return
                    item, self._newest = self._newest, None
                yield item
        finally:
            self.stop()
            thread.join(timeout=1)  # a silent input may hold it longer; it ends by itself

    def stop(self) -> None:
        self._wanted.clear()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _read(self) -> None:
        start: float | None = None
        for image in self._images_with_retries():
            now = time.monotonic()
            start = now if start is None else start
            with self._changed:
                self.dropped += self._newest is not None
                self._newest = image, now - start
                self._changed.notify_all()
            if not self._wanted.is_set():
                break
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _images_with_retries(self) -> Iterator[Image]:
        failures = 0
        while self._wanted.is_set():
            try:
                for image in self.images():
                    failures = 0
                    yield image
                sentence = f"{self.label}: the stream ended"
            except MtmError as error:
                sentence = str(error)
            if failures >= self.patience.retries or not self._wanted.is_set():
                logger.warning("%s; giving up after %d %s", sentence, failures, "retry" if failures == 1 else "retries")
                return
            pause = self.patience.first_pause_s * 2**failures
            failures += 1
            logger.warning("%s; opening it again in %g s (%d of %d)", sentence, pause, failures, self.patience.retries)
            time.sleep(pause)


class NetworkInput(LiveInput):
    """rtsp, rtmp, udp, http... whatever this FFmpeg opens. has_end: it says how long it is, so it is a video and no live
    stream. Raises MtmError where nothing answers."""

    def __init__(self, url: str, patience: Patience) -> None:
        super().__init__(without_password(url), patience)
        self._url = url
        with self._container() as container:
            video = container.streams.video[0]
            self.fps = float(video.average_rate or video.guessed_rate or USUAL_FPS)
            self.has_end = bool(container.duration) and container.size > 0

    def images(self) -> Iterator[Image]:
        with self._container() as container:
            try:
                for frame in decoded(container):
                    yield picture_of(frame)
            except (av.error.FFmpegError, OSError) as error:
                raise MtmError(f"{self.label}: the stream broke off ({self._why(error)})") from error

    def _container(self) -> Any:
        options = {"rtsp_transport": "tcp"} if self._url.lower().startswith("rtsp") else {}
        try:
            container = open_container(
                self._url, options=options, timeout=self.patience.stall_s, metadata_errors="ignore"
            )
        except (av.error.FFmpegError, OSError) as error:
            raise MtmError(
                f"{self.label}: expected a stream FFmpeg can open, found none ({self._why(error)}); check the address, that "
                "the camera is on, and that this machine reaches it"
            ) from error
        if not container.streams.video:
            container.close()
            raise MtmError(f"{self.label}: expected a video stream, found one with no pictures in it")
        return container

    def _why(self, error: BaseException) -> str:
        silent = isinstance(error, av.error.ExitError)  # what PyAV makes of its time limit
        return f"silent for {self.patience.stall_s:g} s" if silent else reason(error)


class CameraInput(LiveInput):
    """The camera with this number, through OpenCV. Raises MtmError where there is none."""

    def __init__(self, number: int, patience: Patience) -> None:
        super().__init__(f"camera {number}", patience)
        self._number = number
        capture = self._capture()
        self.fps = capture.get(cv2.CAP_PROP_FPS) or USUAL_FPS
        capture.release()

    def images(self) -> Iterator[Image]:
        capture = self._capture()
        try:
            while True:
                there, image = capture.read()
                if not there:
                    raise MtmError(f"{self.label}: it stopped giving pictures")
                yield np.asarray(image, np.uint8)
        finally:
            capture.release()

    def _capture(self) -> cv2.VideoCapture:
        level = cv2.utils.logging.getLogLevel()
        # What OpenCV would say on stderr, the error below says.
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
        try:
            capture = cv2.VideoCapture(self._number)
        finally:
            cv2.utils.logging.setLogLevel(level)
        if not capture.isOpened():
            raise MtmError(
                f"{self.label}: expected a camera with this number, found none; check that it is plugged in and that you "
                "may read it (ls -l /dev/video*), or name a file"
            )
        return capture
