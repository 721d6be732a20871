"""Reading and writing videos, and the threads around them."""

import logging
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path

import cv2
import numpy as np
import pytest

from mtmamba.errors import MtmError
from mtmamba.runtime import video
from mtmamba.runtime.sources import natural_key, open_source, output_names, read_image
from mtmamba.runtime.threads import Consumer, Prefetch
from mtmamba.runtime.video import codec_works, pick_codec, probe_video, read_video, video_output

Reader = Callable[[Path], tuple[list[np.ndarray], float]]
PICTURES = [np.full((66, 98, 3), 12 * index, np.uint8) for index in range(11)]


def test_probe_says_what_is_there(tmp_path: Path, make_video: Callable[..., Path]) -> None:
    info = probe_video(make_video(tmp_path / "a.mp4", frames=9, fps=12.5))
    assert (info.frames, info.fps) == (9, pytest.approx(12.5))
    assert len(list(read_video(info))) == 9


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".avi"])
def test_every_frame_comes_back_in_order(tmp_path: Path, read_frames: Reader, suffix: str) -> None:
    target = tmp_path / f"out{suffix}"
    with video_output(target, 29.97) as writer:
        for picture in PICTURES:
            writer.write(picture)
        assert not target.exists()
    frames, fps = read_frames(target)
    assert len(frames) == len(PICTURES) and frames[0].shape == PICTURES[0].shape
    assert fps == pytest.approx(29.97, abs=0.01)
    for frame, picture in zip(frames, PICTURES, strict=True):
        assert abs(float(frame.mean()) - float(picture.mean())) < 5  # one from the next: 12
    assert list(tmp_path.iterdir()) == [target]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "out.mp4"
    target.write_bytes(b"old")
    with pytest.raises(RuntimeError, match="broken"), video_output(target, 25) as writer:
        writer.write(PICTURES[0])
        raise RuntimeError("broken")
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_video_with_fewer_frames_than_were_written_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(MtmError, match="expected 12 frames in the finished video, found 11"),
        video_output(tmp_path / "out.mp4", 25) as writer,
    ):
        for picture in PICTURES:
            writer.write(picture)
        writer.frames += 1
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_noticed(tmp_path: Path) -> None:
    """A limit on the size of a file stands for the disk; OpenCV itself says nothing."""
    code = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from mtmamba.errors import MtmError
from mtmamba.runtime.video import pick_codec, video_output
pick_codec(".mp4", (320, 240))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
noise = np.random.default_rng(0).integers(0, 256, (240, 320, 3), dtype=np.uint8)
try:
    with video_output(Path(sys.argv[1]), 25) as writer:
        for index in range(60):
            writer.write(np.roll(noise, index, axis=1))
except MtmError as error:
    print(error)
"""
    target = tmp_path / "out.mp4"
    done = subprocess.run([sys.executable, "-c", code, str(target)], capture_output=True, text=True, check=True)
    assert f"{target}: " in done.stdout and "--output" in done.stdout and done.stdout.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_frames_of_one_size_only(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected frames of"), video_output(tmp_path / "out.mp4", 25) as writer:
        writer.write(PICTURES[0])
        writer.write(PICTURES[0][:40])


def test_the_first_codec_that_works_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def works(codec: str, suffix: str, size: tuple[int, int]) -> bool:
        tried.append(codec)
        return codec == "mp4v"

    monkeypatch.setattr(video, "codec_works", works)
    assert pick_codec(".mp4", (64, 64)) == "mp4v" and tried == ["avc1", "mp4v"]
    with pytest.raises(MtmError, match=r"writes none of MJPG in \.avi at 64 x 64"):
        pick_codec(".avi", (64, 64))


def test_codecs_are_really_tried() -> None:
    assert codec_works("mp4v", ".mp4") and not codec_works("zzzz", ".avi")


def test_opencv_and_ffmpeg_keep_quiet(tmp_path: Path) -> None:
    """In a process of its own: FFmpeg reads its level once."""
    (tmp_path / "garbage.mp4").write_bytes(bytes(range(256)) * 20)
    code = """
import sys
from pathlib import Path
from mtmamba.errors import MtmError
from mtmamba.runtime.video import codec_works, probe_video
codec_works("avc1", ".mp4")
try:
    probe_video(Path(sys.argv[1]))
except MtmError:
    print("refused")
"""
    command = [sys.executable, "-c", code, str(tmp_path / "garbage.mp4")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("refused\n", "")


def write_no_frames(path: Path) -> None:
    cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 25, (64, 64)).release()


@pytest.mark.parametrize(
    ("name", "make", "sentence"),
    [
        ("garbage.mp4", lambda path: path.write_bytes(bytes(range(256)) * 20), "expected a video OpenCV can decode"),
        ("empty.mp4", lambda path: path.touch(), "found an empty file"),
        ("none.avi", write_no_frames, "expected a video"),
        ("missing.mp4", lambda path: None, "found nothing there"),
    ],
)
def test_no_video_is_one_sentence(tmp_path: Path, name: str, make: Callable[[Path], None], sentence: str) -> None:
    make(tmp_path / name)
    with pytest.raises(MtmError) as caught:
        open_source(tmp_path / name)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_a_video_that_breaks_off_is_used_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "cut.avi"
    with video_output(path, 25) as writer:
        for index in range(30):
            writer.write(np.random.default_rng(index).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    info = probe_video(path)
    with caplog.at_level(logging.WARNING):
        count = len(list(read_video(info)))
    assert 5 < count < 30
    if info.frames is not None and info.frames > count:
        assert f"promises {info.frames} frames, {count} could be decoded" in caplog.text


def test_a_shorter_video_than_promised_is_warned_of(
    tmp_path: Path, make_video: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    info = probe_video(make_video(tmp_path / "a.mp4", frames=5))
    longer = video.VideoInfo(path=info.path, fps=info.fps, frames=8)
    assert len(list(read_video(longer))) == 5
    assert "its header promises 8 frames, 5 could be decoded" in caplog.text


def test_folders_are_sorted_as_people_do(tmp_path: Path) -> None:
    for name in ("f10.png", "f2.png", "f1.JPG", "note.txt", ".hidden.png"):
        (tmp_path / name).write_bytes(b"x")
    assert [path.name for path in open_source(tmp_path).files] == ["f1.JPG", "f2.png", "f10.png"]
    names = [Path(name) for name in ("9", "10", "a9", "a10", "b")]
    shuffled = [names[index] for index in (3, 0, 4, 2, 1)]
    assert sorted(shuffled, key=natural_key) == names
    assert output_names((Path("a.png"), Path("a.jpg"), Path("b.png"))) == ["a.png", "a.jpg", "b"]


def test_a_folder_without_pictures(tmp_path: Path) -> None:
    with pytest.raises(MtmError, match="expected a folder with pictures"):
        open_source(tmp_path)


def test_pictures_that_do_not_decode(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(MtmError, match=r"a\.png: expected a picture, found bytes that do not decode"):
        read_image(tmp_path / "a.png")


def count_to(number: int, closed: list[bool] | None = None, fail_at: int = -1) -> Generator[int, None, None]:
    try:
        for index in range(number):
            if index == fail_at:
                raise MtmError("no more")
            yield index
    finally:
        if closed is not None:
            closed.append(True)


def test_prefetch_keeps_order_and_raises_in_its_place() -> None:
    assert list(Prefetch(count_to(100), 3)) == list(range(100))
    seen = []
    with pytest.raises(MtmError, match="no more"):
        for item in Prefetch(count_to(100, fail_at=7), 3):
            seen.append(item)
    assert seen == list(range(7))


def test_prefetch_stops_early_and_closes_its_source() -> None:
    closed: list[bool] = []
    prefetch = Prefetch(count_to(10**9, closed), 2)
    assert next(iter(prefetch)) == 0
    prefetch.close()
    assert closed == [True]


def test_consumer_keeps_order_and_finishes_what_is_queued() -> None:
    done: list[int] = []

    def slowly(item: int) -> None:
        time.sleep(0.001)
        done.append(item)

    with Consumer(slowly, 2) as consumer:
        for item in range(50):
            consumer.put(item)
    assert done == list(range(50))


def test_a_consumers_failure_reaches_the_caller_and_blocks_nobody() -> None:
    def fail(item: int) -> None:
        raise MtmError(f"item {item}")

    with pytest.raises(MtmError, match="item 0"), Consumer(fail, 1) as consumer:
        for item in range(1000):
            consumer.put(item)
    with pytest.raises(MtmError, match="item 3"), Consumer(fail, 1) as consumer:
        consumer.put(3)


def test_a_callers_failure_ends_the_consumer() -> None:
    done: list[int] = []
    with pytest.raises(RuntimeError, match="caller"), Consumer(done.append, 100) as consumer:
        consumer.put(1)
        raise RuntimeError("caller")
    assert not consumer._thread.is_alive()
