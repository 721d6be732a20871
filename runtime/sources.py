"""What a model is run on, as one stream of frames: a video, a picture, a folder, a pattern of pictures, a network
stream or a camera."""

import glob
import logging
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np

from mtmamba.errors import MtmError
from mtmamba.files import existing_file
from mtmamba.runtime.preprocess import Image
from mtmamba.runtime.streams import CameraInput, LiveInput, NetworkInput, Patience
from mtmamba.runtime.video_in import USUAL_FPS, VideoInfo, probe_video, read_video, shown

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_PATTERN = re.compile(r"[*?\[]|%0?\d*d")


@dataclass(frozen=True, kw_only=True)
class Frame:
    """index: from 0, in order. name: what its own files are called (no suffix). image: [H, W, 3] uint8 BGR.
    source: the file's name. time_s: since the video's start; None for a picture."""

    index: int
    name: str
    image: Image
    source: str
    time_s: float | None = None


class Source(ABC):
    """Attributes:

    label: what the user named, with no password in it. path: the file or folder, None where there is none. files: those
    that are read, to be left alone. stem: what outputs are named after. moving: frames follow each other in time (a video).
    live: frames come whether or not anybody reads. single: one picture, not a folder's only one.
    count: how many frames there are, None where nobody knows. fps: frames a second of what is moving, else 0.
    skipped: names of the frames that could not be read, so far. dropped: frames a live source gave too fast.
    """

    moving: ClassVar[bool]
    live: ClassVar[bool] = False
    single = False

    def __init__(self, label: str, path: Path | None, stem: str, count: int | None, fps: float) -> None:
        self.label, self.path, self.stem, self.count, self.fps = label, path, stem, count, fps
        self.files: tuple[Path, ...] = () if path is None else (path,)
        self.skipped: list[str] = []
        self.dropped = 0

    @abstractmethod
    def frames(self) -> Generator[Frame, None, None]:
        """All frames, in order."""

    def stop(self) -> None:
        """Ask `frames`, running in another thread, to end at the next frame."""
        self._stopped = True

    _stopped = False


class VideoFile(Source):
    """A video with an end: a file, or one on a server. Raises MtmError where it has no frame that decodes."""

    moving = True

    def __init__(self, path: Path | str) -> None:
        self._info: VideoInfo = probe_video(path)
        file, label = path if isinstance(path, Path) else _local(path), shown(path)
        self._name = Path(label).name
        super().__init__(label, file, Path(label).stem, self._info.frames, self._info.fps)

    def frames(self) -> Generator[Frame, None, None]:
        for index, (image, time_s) in enumerate(read_video(self._info)):
            if self._stopped:
                return
            yield Frame(index=index, name=f"frame_{index:06d}", image=image, source=self._name, time_s=time_s)


class Pictures(Source):
    """Pictures, in order: one, a folder's, or a pattern's. One that does not decode is passed over with a warning, and is
    an MtmError where it is all there is."""

    moving = False

    def __init__(self, label: str, path: Path, stem: str, files: tuple[Path, ...]) -> None:
        super().__init__(label, path, stem, len(files), 0.0)
        self.files, self.single = files, files == (path,)

    def frames(self) -> Generator[Frame, None, None]:
        index = 0
        for path, name in zip(self.files, output_names(self.files), strict=True):
            if self._stopped:
                return
            try:
                image = read_image(path)
            except MtmError as error:
                if self.single:
                    raise
                logger.warning("%s; passed over", error)
                self.skipped.append(path.name)
                continue
            yield Frame(index=index, name=name, image=image, source=path.name)
            index += 1


class LiveSource(Source):
    """A camera or a network stream: always the newest frame; what comes faster than it is read is dropped and counted."""

    moving = True
    live = True

    def __init__(self, label: str, stem: str, opened: LiveInput) -> None:
        super().__init__(label, None, stem, None, opened.fps)
        self._opened = opened

    def frames(self) -> Generator[Frame, None, None]:
        for index, (image, time_s) in enumerate(self._opened.newest()):
            if self._stopped:
                return
            self.dropped = self._opened.dropped
            yield Frame(index=index, name=f"frame_{index:06d}", image=image, source=self.label, time_s=time_s)

    def stop(self) -> None:
        super().stop()
        self._opened.stop()


def open_source(name: str | Path, patience: Patience | None = None) -> Source:
    """A URL (rtsp://, rtmp://, udp://, http:// ...), a camera's number, a folder, a pattern of pictures ('frames/*.png',
    frame_%04d.png), a picture by its suffix, or else a video. patience: how a live source's silence is met. Raises
    MtmError where there is nothing that can be read."""
    text = str(name)
    path = Path(text)
    patience = patience or Patience()
    if _URL.match(text):
        stream = NetworkInput(text, patience)
        return VideoFile(text) if stream.has_end else LiveSource(stream.label, "stream", stream)
    if text.isdecimal() and not path.exists():
        return LiveSource(f"camera {text}", f"camera{text}", CameraInput(int(text), patience))
    if path.is_dir():
        files = tuple(sorted((file for file in path.iterdir() if _is_image(file)), key=natural_key))
        if not files:
            raise MtmError(f"{path}: expected a folder with pictures ({' '.join(IMAGE_SUFFIXES)}), found none in it")
        return Pictures(text, path, path.resolve().name, files)
    if _PATTERN.search(text) and not path.exists():
        return Pictures(text, path, _stem_of_pattern(path), _matching(text))
    if not path.exists():
        raise MtmError(f"{path}: expected a video, picture or folder, found nothing there; check the path")
    existing_file(path, "video or picture")
    return Pictures(text, path, path.stem, (path,)) if path.suffix.lower() in IMAGE_SUFFIXES else VideoFile(path)


def read_image(path: Path) -> Image:
    """[H, W, 3] uint8 BGR, turned as its EXIF says. Raises MtmError where it does not decode."""
    existing_file(path, "picture")
    data = np.fromfile(path, np.uint8)
    image = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    if image is None:
        raise MtmError(f"{path}: expected a picture, found bytes that do not decode as one; check that it opens")
    if image.dtype == np.uint16:
        image = cv2.imdecode(data, cv2.IMREAD_COLOR)  # the upper eight bits
    elif image.dtype != np.uint8:
        raise MtmError(
            f"{path}: expected a picture of 8 or 16 bits a channel, found {image.dtype} values, whose range no file states; "
            "save it as an 8-bit PNG"
        )
    return np.asarray(image, np.uint8)


def natural_key(path: Path) -> list[tuple[int, int, str]]:
    """Sorts as people do: frame2 before frame10."""
    parts = re.split(r"(\d+)", path.name.lower())
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts if part]


def output_names(files: tuple[Path, ...]) -> list[str]:
    """A name for each picture's own outputs: its stem, or its whole name where two pictures share a stem, or a number
    before that where they share it too (in different folders)."""
    stems = Counter(file.stem.lower() for file in files)
    names = [file.stem if stems[file.stem.lower()] == 1 else file.name for file in files]
    shared = Counter(name.lower() for name in names)
    return [name if shared[name.lower()] == 1 else f"{index:06d}.{name}" for index, name in enumerate(names)]


def usual_fps(source: Source) -> float:
    """The rate of a video made of this source's frames: its own, or 25 where pictures have none."""
    return source.fps or USUAL_FPS


def _local(url: str) -> Path | None:
    """The file of a URL file://..., as FFmpeg reads it: with nothing quoted."""
    return Path(url[len("file:") :]) if url.lower().startswith("file:") else None


def _matching(pattern: str) -> tuple[Path, ...]:
    """The pictures a shell's or printf's pattern means; '**' reaches into folders. Raises MtmError where there is none."""
    spread = re.sub(r"%0?\d*d", "*", pattern)
    numbers = re.compile(re.sub(r"%0?\\?\d*d", r"\\d+", re.escape(pattern))) if spread != pattern else None
    found = (Path(name) for name in glob.glob(spread, recursive=True))  # noqa: PTH207  (an absolute pattern too)
    files = [path for path in found if _is_image(path) and (numbers is None or numbers.fullmatch(str(path)))]
    if not files:
        raise MtmError(
            f"{pattern}: expected pictures ({' '.join(IMAGE_SUFFIXES)}) that fit this pattern, found none; check the "
            "pattern, and put it in quotes"
        )
    return tuple(sorted(files, key=lambda path: (str(path.parent), natural_key(path))))


def _stem_of_pattern(path: Path) -> str:
    return re.sub(r"[^A-Za-z0-9]+", " ", _PATTERN.split(path.stem)[0]).strip().replace(" ", "-") or "pictures"


def _is_image(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
