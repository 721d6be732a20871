"""Reading and writing videos."""

import logging
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import av
import cv2
import numpy as np
import pytest

from mtmamba.errors import MtmError
from mtmamba.runtime import video_in, video_out
from mtmamba.runtime.sources import open_source
from mtmamba.runtime.video_in import VideoInfo, probe_video, read_video
from mtmamba.runtime.video_out import encoder, part_of, video_output

Reader = Callable[[Path], tuple[list[np.ndarray], float]]
PICTURES = [np.full((66, 98, 3), (12 * index, 90, 160 - 12 * index), np.uint8) for index in range(11)]


def test_probe_says_what_is_there(tmp_path: Path, make_video: Callable[..., Path]) -> None:
    info = probe_video(make_video(tmp_path / "a.mp4", frames=9, fps=12.5))
    assert (info.frames, info.fps) == (9, pytest.approx(12.5))
    assert len(list(read_video(info))) == 9


@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
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
        assert np.abs(frame.astype(int) - picture).max() <= 4  # every pixel; one picture from the next: 12
    assert list(tmp_path.iterdir()) == [target]


def test_every_encoder_opens(tmp_path: Path, read_frames: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in video_out.CODECS:
        monkeypatch.setattr(video_out, "encoder", lambda name=name: name)
        with video_output(tmp_path / f"{name}.mp4", 29.97) as writer:
            for picture in PICTURES:
                writer.write(picture)
        frames, fps = read_frames(tmp_path / f"{name}.mp4")
        assert len(frames) == len(PICTURES) and fps == pytest.approx(29.97, abs=0.01)
        assert abs(float(frames[5].mean()) - float(PICTURES[5].mean())) < 2


def test_it_is_h264_with_its_index_first(tmp_path: Path) -> None:
    """What a browser plays, and starts to play before all of it is there."""
    if encoder() != "libx264":
        pytest.skip("this FFmpeg has no H.264 encoder")
    with video_output(tmp_path / "out.mp4", 25) as writer:
        for picture in PICTURES:
            writer.write(picture)
    with av.open(str(tmp_path / "out.mp4")) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
    data = (tmp_path / "out.mp4").read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat") and b"moof" not in data


@pytest.mark.parametrize(("here", "threads"), [(1, 1), (2, 1), (4, 2), (16, 10)])
def test_the_encoder_leaves_cores_to_the_other_stages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: int, threads: int
) -> None:
    monkeypatch.setattr(video_out, "cores", lambda: here)
    with video_output(tmp_path / "a.mp4", 25) as writer:
        writer.write(np.zeros((32, 32, 3), np.uint8))
        assert writer._stream.codec_context.thread_count == threads


def test_times_are_kept(tmp_path: Path) -> None:
    """A live source's frames come when they come."""
    times_s = [0.0, 0.1, 0.15, 0.5, 0.5, 2.0]  # two at once: the later is a tick later
    with video_output(tmp_path / "out.mp4", 25) as writer:
        for time_s, picture in zip(times_s, PICTURES, strict=False):
            writer.write(picture, time_s)
    with av.open(str(tmp_path / "out.mp4")) as container:
        found = [frame.time for frame in container.decode(video=0)]
    np.testing.assert_allclose(found, times_s, atol=1e-4)


def test_a_failure_keeps_the_old_file_and_what_was_written(
    tmp_path: Path, read_frames: Reader, caplog: pytest.LogCaptureFixture
) -> None:
    target = tmp_path / "out.mp4"
    target.write_bytes(b"old")
    with pytest.raises(RuntimeError, match="broken"), video_output(target, 25) as writer:
        writer.write(PICTURES[0])
        writer.write(PICTURES[1])
        raise RuntimeError("broken")
    assert target.read_bytes() == b"old"
    assert len(read_frames(part_of(target))[0]) == 2
    assert "the first 2 frames are in" in caplog.text
    with pytest.raises(RuntimeError, match="broken"), video_output(tmp_path / "none.mp4", 25):
        raise RuntimeError("broken")
    assert {path.name for path in tmp_path.iterdir()} == {"out.mp4", "out.part.mp4"}


def test_what_an_interrupted_run_left_is_kept(
    tmp_path: Path, read_frames: Reader, caplog: pytest.LogCaptureFixture
) -> None:
    """And two runs with one output do not write into each other's file."""
    target = tmp_path / "out.mp4"
    with suppress(RuntimeError), video_output(target, 25) as writer:
        writer.write(PICTURES[0])
        raise RuntimeError
    with video_output(target, 25) as first, video_output(target, 25) as second:
        first.write(PICTURES[0])
        for picture in PICTURES[:2]:
            second.write(picture)
        assert (first.path, second.path) == (part_of(target, 2), part_of(target, 3))
    assert f"{part_of(target)} is there from a run that was cut off" in caplog.text
    assert {path.name for path in tmp_path.iterdir()} == {"out.mp4", "out.part.mp4"}
    assert len(read_frames(part_of(target))[0]) == 1 and len(read_frames(target)[0]) == 1, "the last to end"


def test_where_no_file_can_be_made_it_is_said_before_the_first_frame(tmp_path: Path) -> None:
    with (
        pytest.raises(MtmError, match="/proc/out.mp4: cannot write into /proc"),
        video_output(Path("/proc/out.mp4"), 25),
    ):
        pytest.fail("begun")


def test_a_file_that_holds_nothing_is_not_promised(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    target = tmp_path / "out.mp4"
    with suppress(RuntimeError), video_output(target, 25) as writer:
        writer.write(PICTURES[0])
        writer.close()
        writer.path.write_bytes(b"")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == [] and caplog.text == ""


def test_frames_keep_their_times(tmp_path: Path) -> None:
    """Of a video whose frames come at no fixed rate."""
    times_s = [0, 0.04, 0.54, 0.55, 0.6, 1.5]
    with video_output(tmp_path / "a.mp4", 25) as writer:
        for picture, time_s in zip(PICTURES, times_s, strict=False):
            writer.write(picture, time_s)
    assert [frame.time_s for frame in open_source(tmp_path / "a.mp4").frames()] == pytest.approx(times_s, abs=1e-4)


def test_times_that_are_missing_or_go_back(
    tmp_path: Path, make_video: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = make_video(tmp_path / "a.mp4", frames=3, fps=10)
    info, stamps = probe_video(clip), [None, 7.0, 7.1, None, 7.1, 3.0, 9.0]
    monkeypatch.setattr(video_in, "decoded", lambda container: [SimpleNamespace(time=stamp) for stamp in stamps])
    monkeypatch.setattr(video_in, "picture_of", lambda frame: PICTURES[0])
    times_s = [time_s for _, time_s in read_video(replace(info, frames=None))]
    assert times_s == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5, 2.0])


def test_a_video_with_fewer_frames_than_were_written_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(MtmError, match="expected 12 frames in the finished video, found 11"),
        video_output(tmp_path / "out.mp4", 25) as writer,
    ):
        for picture in PICTURES:
            writer.write(picture)
        writer.frames += 1
    assert [path.name for path in tmp_path.iterdir()] == ["out.part.mp4"]


def test_a_full_disk_is_noticed(tmp_path: Path, read_frames: Reader) -> None:
    """A limit on the size of a file stands for the disk."""
    code = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from mtmamba.errors import MtmError
from mtmamba.runtime.video_out import video_output
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
noise = np.random.default_rng(0).integers(0, 256, (240, 320, 3), dtype=np.uint8)
try:
    with video_output(Path(sys.argv[1]), 5) as writer:
        for index in range(60):
            writer.write(np.roll(noise, index, axis=1))
except MtmError as error:
    print(error)
"""
    target = tmp_path / "out.mp4"
    done = subprocess.run([sys.executable, "-c", code, str(target)], capture_output=True, text=True, check=True)
    assert "out.part.mp4: writing failed after" in done.stdout and "--output" in done.stdout
    assert done.stdout.count("\n") == 1 and not target.exists()
    assert len(read_frames(part_of(target))[0]) >= 5


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGTERM])
def test_what_was_written_plays_after_a_kill(tmp_path: Path, read_frames: Reader, blow: signal.Signals) -> None:
    code = """
import sys
from pathlib import Path
import numpy as np
from mtmamba.runtime import video_out
from mtmamba.runtime.video_out import video_output
video_out.cores = lambda: 2  # the encoder has a thread
with video_output(Path(sys.argv[1]), 25) as writer:
    for index in range(10**9):
        writer.write(np.full((64, 96, 3), 12 * (index % 20), np.uint8))
        if index == 40:  # sooner than the second key frame
            print("ready", flush=True)
"""
    target = tmp_path / "out.mp4"
    with subprocess.Popen([sys.executable, "-c", code, str(target)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        process.send_signal(blow)
    assert not target.exists()
    frames = read_frames(part_of(target))[0]
    assert len(frames) >= 41 - 12 and abs(float(frames[7].mean()) - 84) < 3


def test_frames_of_one_size_only(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected frames of"), video_output(tmp_path / "out.mp4", 25) as writer:
        writer.write(PICTURES[0])
        writer.write(PICTURES[0][:40])


def test_ffmpeg_keeps_quiet(tmp_path: Path) -> None:
    (tmp_path / "garbage.mp4").write_bytes(bytes(range(256)) * 20)
    code = """
import sys
from pathlib import Path
from mtmamba.errors import MtmError
from mtmamba.runtime.video_in import probe_video
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
        ("garbage.mp4", lambda path: path.write_bytes(bytes(range(256)) * 20), "expected a video FFmpeg can decode"),
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


def noise_video(path: Path, frames: int = 30) -> Path:
    """Plain MPEG-4 with every frame a key frame, in AVI: a file that can be cut anywhere."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 25, (64, 64))
    for index in range(frames):
        writer.write(np.random.default_rng(index).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    writer.release()
    return path


def test_a_video_that_breaks_off_is_used_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = noise_video(tmp_path / "cut.avi")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    info = probe_video(path)
    with caplog.at_level(logging.WARNING):
        count = len(list(read_video(info)))
    assert 5 < count < 30
    if info.frames is not None and info.frames > count:
        assert f"promises {info.frames} frames, {count} could be decoded" in caplog.text


def test_broken_frames_in_the_middle_are_passed_over(tmp_path: Path, make_video: Callable[..., Path]) -> None:
    path = make_video(tmp_path / "a.mp4", frames=60)
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 600
    data[start : start + 200] = bytes(np.random.default_rng(0).integers(0, 256, 200, dtype=np.uint8))
    path.write_bytes(data)
    frames = list(read_video(probe_video(path)))
    assert 40 <= len(frames) <= 60
    assert abs(float(frames[-1][0].mean()) - (10 + 12 * (59 % 20))) < 4, "the end is there"


def test_a_phones_turned_video_is_turned(tmp_path: Path) -> None:
    """The rotation is a matrix in the track's header; 90 degrees is written into it by hand."""
    with video_output(tmp_path / "a.mp4", 25) as writer:
        for _ in range(3):
            picture = np.zeros((64, 96, 3), np.uint8)
            picture[:, :20] = 255  # white at the left
            writer.write(picture)
    data = (tmp_path / "a.mp4").read_bytes()
    matrix = data.index(b"tkhd") + 4 + 40
    one, minus = (65536).to_bytes(4, "big"), (-65536).to_bytes(4, "big", signed=True)
    zero, two = bytes(4), (1 << 30).to_bytes(4, "big")
    turned = zero + one + zero + minus + zero + zero + zero + zero + two  # clockwise
    (tmp_path / "a.mp4").write_bytes(data[:matrix] + turned + data[matrix + 36 :])
    frame, _ = next(read_video(probe_video(tmp_path / "a.mp4")))
    assert frame.shape == (96, 64, 3)
    assert frame[:15].mean() > 240 and frame[25:].mean() < 10, "what was left is now at the top"


def test_a_shorter_video_than_promised_is_warned_of(
    tmp_path: Path, make_video: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    info = probe_video(make_video(tmp_path / "a.mp4", frames=5))
    longer = VideoInfo(path=info.path, fps=info.fps, frames=8)
    assert len(list(read_video(longer))) == 5
    assert "its header promises 8 frames, 5 could be decoded" in caplog.text


def test_nobody_hears_ffmpegs_messages(tmp_path: Path, make_video: Callable[..., Path]) -> None:
    """Where another package sends them to Python's log, a decoder's thread may wait for Python for ever."""
    clip = make_video(tmp_path / "a.mp4", frames=4)
    av.logging.set_level(av.logging.ERROR)
    try:
        list(read_video(probe_video(clip)))
        assert av.logging.get_level() is None
        av.logging.set_level(av.logging.ERROR)
        with video_output(tmp_path / "b.mp4", 25) as writer:
            writer.write(PICTURES[0])
            assert av.logging.get_level() is None
    finally:
        av.logging.set_level(None)
