"""What a model is run on: a video, a picture, or a folder of pictures, as one stream of frames."""

import re
from collections import Counter
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from mtmamba.errors import MtmError
from mtmamba.files import existing_file
from mtmamba.runtime.preprocess import Image
from mtmamba.runtime.video import VideoInfo, probe_video, read_video

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")


@dataclass(frozen=True, kw_only=True)
class Frame:
    """index: from 0, in order. name: what its own files are called (no suffix). image: [H, W, 3] uint8 BGR.
    source: the file's name. time_s: since the video's start; None for a picture."""

    index: int
    name: str
    image: Image
    source: str
    time_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Source:
    """kind: what it is. count: how many frames, None where a video's header does not say. fps: videos only. files: the
    pictures, in order; one video else."""

    kind: Literal["video", "image", "folder"]
    path: Path
    files: tuple[Path, ...]
    count: int | None
    fps: float = 0.0

    def frames(self) -> Generator[Frame, None, None]:
        """All frames, in order. Raises MtmError for a picture that does not decode."""
        if self.kind == "video":
            info = VideoInfo(path=self.path, fps=self.fps, frames=self.count)
            for index, image in enumerate(read_video(info)):
                name, time_s = f"frame_{index:06d}", index / self.fps
                yield Frame(index=index, name=name, image=image, source=self.path.name, time_s=time_s)
            return
        for index, (path, name) in enumerate(zip(self.files, output_names(self.files), strict=True)):
            yield Frame(index=index, name=name, image=read_image(path), source=path.name)


def open_source(path: Path) -> Source:
    """A folder, a picture by its suffix, or else a video. Raises MtmError where there is nothing that can be read."""
    path = Path(path)
    if path.is_dir():
        files = tuple(sorted((file for file in path.iterdir() if _is_image(file)), key=natural_key))
        if not files:
            raise MtmError(f"{path}: expected a folder with pictures ({' '.join(IMAGE_SUFFIXES)}), found none in it")
        return Source(kind="folder", path=path, files=files, count=len(files))
    existing_file(path, "video, picture or folder" if not path.exists() else "video or picture")
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return Source(kind="image", path=path, files=(path,), count=1)
    info = probe_video(path)
    return Source(kind="video", path=path, files=(path,), count=info.frames, fps=info.fps)


def read_image(path: Path) -> Image:
    """[H, W, 3] uint8 BGR, turned as its EXIF says. Raises MtmError where it does not decode."""
    existing_file(path, "picture")
    image = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise MtmError(f"{path}: expected a picture, found bytes that do not decode as one; check that it opens")
    return np.asarray(image, np.uint8)


def natural_key(path: Path) -> list[tuple[int, int, str]]:
    """Sorts as people do: frame2 before frame10."""
    parts = re.split(r"(\d+)", path.name.lower())
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts if part]


def output_names(files: tuple[Path, ...]) -> list[str]:
    """A name for each picture's own outputs: its stem, or its whole name where two pictures share a stem."""
    stems = Counter(file.stem.lower() for file in files)
    return [file.stem if stems[file.stem.lower()] == 1 else file.name for file in files]


def _is_image(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
