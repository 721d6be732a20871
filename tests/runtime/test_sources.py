"""What a model can be run on."""

import http.server
import io
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from mtmamba.errors import MtmError
from mtmamba.runtime import streams
from mtmamba.runtime.outputs import output_form, output_path, page_path
from mtmamba.runtime.sources import Pictures, natural_key, open_source, output_names, read_image
from mtmamba.runtime.streams import LiveInput, Patience
from mtmamba.runtime.video_in import probe_video, without_password

IMPATIENT = Patience(stall_s=2.0, retries=1, first_pause_s=0.05)


def test_folders_are_sorted_as_people_do(tmp_path: Path) -> None:
    for name in ("f10.png", "f2.png", "f1.JPG", "note.txt", ".hidden.png"):
        (tmp_path / name).write_bytes(b"x")
    source = open_source(tmp_path)
    assert isinstance(source, Pictures)
    assert [path.name for path in source.files] == ["f1.JPG", "f2.png", "f10.png"]
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


def test_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a/f_0010.png", "a/f_0002.png", "b/f_0001.png", "a/f_x.png", "a/f_0003.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / name), np.zeros((4, 6, 3), np.uint8)) if name.endswith("png") else None
    monkeypatch.chdir(tmp_path)

    def names(pattern: str) -> list[str]:
        source = open_source(pattern)
        assert isinstance(source, Pictures)
        return [path.as_posix() for path in source.files]

    assert names("a/f_*.png") == ["a/f_0002.png", "a/f_0010.png", "a/f_x.png"]
    assert names("a/f_%04d.png") == ["a/f_0002.png", "a/f_0010.png"]
    assert names("**/f_0*.png") == ["a/f_0002.png", "a/f_0010.png", "b/f_0001.png"]
    assert open_source("a/f_%04d.png").stem == "f" and open_source("a/*.png").stem == "pictures"
    with pytest.raises(MtmError, match="expected pictures .* that fit this pattern, found none"):
        open_source("a/*.jpg")


def test_names_never_clash() -> None:
    files = (Path("a/x.png"), Path("b/x.png"), Path("c/x.jpg"))
    assert output_names(files) == ["000000.x.png", "000001.x.png", "x.jpg"]


def test_a_broken_picture_of_many_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("1.png", "3.png"):
        cv2.imwrite(str(tmp_path / name), np.zeros((4, 6, 3), np.uint8))
    (tmp_path / "2.png").write_bytes(b"no picture")
    source = open_source(tmp_path)
    assert [(frame.index, frame.name) for frame in source.frames()] == [(0, "1"), (1, "3")]
    assert source.skipped == ["2.png"] and "2.png: expected a picture" in caplog.text
    with pytest.raises(MtmError, match="expected a picture"):
        list(open_source(tmp_path / "2.png").frames())


def test_what_is_written_and_where(tmp_path: Path, make_video: Callable[..., Path]) -> None:
    video = open_source(make_video(tmp_path / "clip.mp4"))
    cv2.imwrite(str(tmp_path / "p.png"), np.zeros((4, 6, 3), np.uint8))
    picture, folder = open_source(tmp_path / "p.png"), open_source(tmp_path)
    assert [output_form(source, None, None) for source in (video, picture, folder)] == ["video", "picture", "pictures"]
    assert output_form(folder, Path("x.mp4"), None) == "video" and output_form(video, None, "png") == "pictures"
    assert (
        output_path(video, None, "pictures") == Path("clip.mtm") and output_path(folder, None, "video").suffix == ".mp4"
    )
    assert page_path(Path("o/x.mp4"), "depth") == Path("o/x.depth.mp4")
    assert page_path(Path("x.mtm"), "") == Path("x.mtm")


class Flaky(LiveInput):
    """Openings that give so many frames each, and then fail or end; frames are numbered by their grey."""

    def __init__(self, openings: list[int], pause_s: float = 0.0) -> None:
        super().__init__("flaky", IMPATIENT)
        self.openings, self.pause_s, self.made = openings, pause_s, 0

    def images(self) -> Iterator[np.ndarray]:
        if not self.openings:
            raise MtmError("flaky: nobody answers")
        for _ in range(self.openings.pop(0)):
            time.sleep(self.pause_s)
            self.made += 1
            yield np.full((4, 6, 3), self.made, np.uint8)


def test_a_lost_stream_is_opened_again_and_then_ends(caplog: pytest.LogCaptureFixture) -> None:
    flaky = Flaky([3, 4, 2], pause_s=0.02)
    greys = [int(image[0, 0, 0]) for image, _ in flaky.newest()]
    assert greys == sorted(greys) and greys[-1] == 9, "all three openings were used, to the last frame"
    assert caplog.text.count("opening it again") == 3 and "nobody answers; giving up after 1 retry" in caplog.text


def test_only_the_newest_frame_is_kept() -> None:
    flaky, greys, times_s = Flaky([40], pause_s=0.005), [], []
    for image, time_s in flaky.newest():
        greys.append(int(image[0, 0, 0]))
        times_s.append(time_s)
        time.sleep(0.03)
    assert greys == sorted(set(greys)) and greys[-1] == 40 and len(greys) < 20
    assert flaky.dropped == 40 - len(greys)
    assert 0 <= times_s[0] < 0.1 and np.all(np.diff(times_s) > 0)


def test_a_live_source_stops_when_told() -> None:
    before = threading.active_count()
    flaky = Flaky([10**9], pause_s=0.001)
    for count, _ in enumerate(flaky.newest()):
        if count == 5:
            flaky.stop()
        assert count < 10
    assert threading.active_count() <= before + 1


def transport_stream(frames: int) -> bytes:
    """Grey frames as MPEG-TS."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mpegts") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(frames):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 8 * index, np.uint8), format="bgr24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


@pytest.fixture
def server() -> Iterator[tuple[str, list[int]]]:
    """A sender on a real socket: its URL, and the number of frames it gives to each who connects, in turn; then it hangs
    up at once, and a negative number is a silence after so many frames."""
    plan: list[int] = []
    listener = socket.create_server(("127.0.0.1", 0))
    over = threading.Event()

    def send() -> None:
        while not over.is_set():
            connection, _ = listener.accept()
            with connection, suppress(OSError):
                frames = plan.pop(0) if plan else 0
                if frames:
                    connection.sendall(transport_stream(abs(frames)))
                if frames < 0:
                    over.wait(10)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    yield f"tcp://127.0.0.1:{listener.getsockname()[1]}", plan
    over.set()
    socket.create_connection(listener.getsockname()).close()  # wakes accept
    thread.join(5)
    listener.close()


def test_a_network_stream(server: tuple[str, list[int]], caplog: pytest.LogCaptureFixture) -> None:
    """The first connection is the probe; the second breaks off after 20 frames, and so does the third."""
    url, plan = server
    plan += [30, 20, 25]
    source = open_source(url, IMPATIENT)
    frames = list(source.frames())
    assert frames and frames[0].image.shape == (48, 64, 3) and frames[-1].image.mean() == pytest.approx(8 * 24, abs=6)
    assert len(frames) + source.dropped == 45
    assert [frame.index for frame in frames] == list(range(len(frames)))
    assert "giving up after 1 retry" in caplog.text


def test_a_stream_that_falls_silent_is_lost(server: tuple[str, list[int]], caplog: pytest.LogCaptureFixture) -> None:
    url, plan = server
    plan += [30, -20]
    patience = Patience(stall_s=0.7, retries=0)
    start = time.monotonic()
    source = open_source(url, patience)
    frames = list(source.frames())
    assert 10 <= len(frames) + source.dropped <= 20 and time.monotonic() - start < 5
    assert "the stream broke off (silent for 0.7 s)" in caplog.text and "giving up after 0 retries" in caplog.text


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """The test's output is not a log."""


def test_a_video_on_a_server_is_a_video(tmp_path: Path, make_video: Callable[..., Path]) -> None:
    make_video(tmp_path / "a.mp4", frames=9)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(tmp_path))) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        source = open_source(f"http://127.0.0.1:{web.server_port}/a.mp4", IMPATIENT)
        assert (source.live, source.count, source.stem) == (False, 9, "a")
        assert len(list(source.frames())) == 9
        web.shutdown()


def test_nobody_answers(unused_port: int) -> None:
    with pytest.raises(
        MtmError, match=r"rtsp://me:\*\*\*@127.0.0.1.*expected a stream FFmpeg can open, found none"
    ) as caught:
        open_source(f"rtsp://me:secret@127.0.0.1:{unused_port}/x", IMPATIENT)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("rtsp://host:554/a@b", "rtsp://host:554/a@b"),
        ("rtsp://u@host/x?fps=5&passing", "rtsp://u@host/x?fps=5&passing"),
        ("rtsp://u:p@ss@host:1/x", "rtsp://u:***@host:1/x"),
        ("rtsp://me@home:p:w?@host", "rtsp://me@home:***@host"),
        ("rtsp://host/user=admin&password=hunter2", "rtsp://host/user=admin&password=***"),
        ("rtsp://host/user=a_Password=b_c&x=1", "rtsp://host/user=a_Password=***&x=1"),
        ("http://host/x?PWD=a/b&n=1&access_token=c", "http://host/x?PWD=***&n=1&access_token=***"),
        ("srt://host:1?passphrase=a&api_key=b", "srt://host:1?passphrase=***&api_key=***"),
    ],
)
def test_passwords_are_not_shown(url: str, shown: str) -> None:
    assert without_password(url) == shown
    with pytest.raises(MtmError) as caught:  # such as a video that is gone when it is read again
        probe_video(f"no{url}")
    assert str(caught.value).startswith(f"no{shown}: expected a video")


class FakeCamera:
    """Two pictures, then nothing: a camera that is unplugged after it was looked at and opened once."""

    opened = 0

    def __init__(self, number: int) -> None:
        self.there, self.left = number == 0 and FakeCamera.opened < 2, 2
        FakeCamera.opened += 1

    def isOpened(self) -> bool:
        return self.there

    def get(self, _: int) -> float:
        return 0.0

    def read(self) -> tuple[bool, Any]:
        self.left -= 1
        time.sleep(0.02)
        return (True, np.zeros((4, 6, 3), np.uint8)) if self.left >= 0 else (False, None)

    def release(self) -> None:
        self.there = False


def test_a_camera(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(streams.cv2, "VideoCapture", FakeCamera)
    monkeypatch.setattr(FakeCamera, "opened", 0)
    source = open_source("0", IMPATIENT)
    assert (source.label, source.fps, source.live) == ("camera 0", 25.0, True)
    with caplog.at_level(logging.WARNING):
        frames = list(source.frames())
    assert len(frames) + source.dropped >= 2 and "it stopped giving pictures" in caplog.text
    with pytest.raises(MtmError, match="camera 7: expected a camera with this number, found none"):
        open_source("7", IMPATIENT)
