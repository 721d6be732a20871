"""The pipeline of mtm-run: views, forms, long runs, frames that change, and ends that come too early."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import commands
import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from mtmamba.runtime import outputs, video_out
from mtmamba.runtime import run as running
from mtmamba.runtime.backends import open_backend
from mtmamba.runtime.drawing import DrawingProcess
from mtmamba.runtime.outputs import Outputs, window
from mtmamba.runtime.run import run
from mtmamba.runtime.run_cli import main
from mtmamba.runtime.sheet import Sheet
from mtmamba.runtime.sources import VideoFile, open_source
from mtmamba.runtime.video_out import part_of, video_output

Reader = Callable[[Path], tuple[list[np.ndarray], float]]


pytestmark = pytest.mark.usefixtures("here")
run_json = partial(commands.answer, main)


def test_a_video_a_task(clip: Path, toy_onnx: Path, read_frames: Reader) -> None:
    answer = run_json(clip, "--view", "tasks", "--tasks", "depth,normals")
    assert answer["output"] == ["clip.mtm.depth.mp4", "clip.mtm.normals.mp4"]
    for name in answer["output"]:
        frames, _ = read_frames(Path(name))
        assert len(frames) == 9 and frames[0].shape == (64, 96, 3)


def test_a_video_as_pictures(clip: Path, toy_onnx: Path) -> None:
    answer = run_json(clip, "--format", "png", "--view", "tasks", "--tasks", "depth,edge", "-o", "out")
    assert answer["output"] == ["out/depth", "out/edge"]
    assert sorted(path.name for path in Path("out/edge").iterdir()) == [f"frame_{index:06d}.png" for index in range(9)]


def test_pictures_as_a_video(toy_onnx: Path, read_frames: Reader) -> None:
    """A sequence; its pictures need not be of one size, and one that is broken is passed over and said."""
    for index in range(5):
        cv2.imwrite(f"f_{index:03d}.png", np.full((40 + 2 * index, 60, 3), 40 * index, np.uint8))
    Path("f_002.png").write_bytes(b"broken")
    answer = run_json("f_%03d.png", "-o", "film.mp4")
    frames, fps = read_frames(Path("film.mp4"))
    assert (len(frames), fps, answer["frames"], answer["skipped"]) == (4, 25, 4, ["f_002.png"])


def test_predictions_alone(clip: Path, toy_onnx: Path, tmp_path: Path) -> None:
    answer = run_json(clip, "--no-output", "--save-raw", "raw", "--max-frames", 3)
    assert answer["output"] is None and len(list(Path("raw").iterdir())) == 3
    assert {path.name for path in tmp_path.iterdir()} == {"clip.mp4", "toy.onnx", "raw"}
    assert CliRunner().invoke(main, [str(clip), "--no-output"]).exit_code == 2


def test_stages_are_told_apart(clip: Path, toy_onnx: Path) -> None:
    answer = run_json(clip, "--save-raw", "raw")
    assert list(answer["stages_ms_p50"]) == ["decode", "preprocess", "infer", "save raw", "draw", "write"]
    assert all(ms > 0 for ms in answer["stages_ms_p50"].values())
    assert answer["engine_ms_p50"] <= answer["stages_ms_p50"]["infer"]


@pytest.mark.parametrize("form", ["png", "mp4"])
@pytest.mark.parametrize("view", ["mosaic", "tasks"])
def test_several_threads_and_processes_draw_what_one_does(
    clip: Path, toy_onnx: Path, view: str, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The depth's colours depend on the frames before, whoever draws them. A process is waited for, so that all frames come
    from it."""
    drew: list[bool] = []

    def when_ready(process: DrawingProcess, sheet: Sheet) -> Any:
        while not process.ready:
            time.sleep(0.01)
        drew.append(True)
        return draw(process, sheet)

    draw, frame_of = DrawingProcess.draw, video_out._frame
    monkeypatch.setattr(DrawingProcess, "draw", when_ready)
    encoded: list[bytes] = []  # files differ a little from run to run: x264's choices do, seldom
    monkeypatch.setattr(video_out, "_frame", lambda yuv, size: encoded.append(yuv.tobytes()) or frame_of(yuv, size))
    for name, threads, many in (("one", 1, 1), ("threads", 4, 100), ("processes", 2, 1)):
        monkeypatch.setattr(running, "several", lambda most, threads=threads: threads)
        monkeypatch.setattr(running, "MANY", many)
        assert not drew
        run_json(clip, "--format", form, "--view", view, "-o", name if form == "png" else f"{name}/all.mp4")
    assert len(drew) == 9
    if form == "mp4":
        third = len(encoded) // 3
        assert third >= 9 and encoded[:third] == encoded[third : 2 * third] == encoded[2 * third :]
        return
    ones = sorted(path.relative_to("one") for path in Path("one").rglob("*.*"))
    assert len(ones) >= 9
    for one in ones:
        assert ("one" / one).read_bytes() == ("threads" / one).read_bytes() == ("processes" / one).read_bytes()


@pytest.mark.parametrize("threads", [1, 4])
def test_a_picture_that_cannot_be_written(
    clip: Path, toy_onnx: Path, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "several", lambda most: threads)
    Path("out/frame_000003.png").mkdir(parents=True)
    result = CliRunner().invoke(main, [str(clip), "--format", "png", "-o", "out"])
    assert result.exit_code == 1 and "out/frame_000003.png: " in result.output
    written = {path.name for path in Path("out").iterdir() if path.is_file()}
    assert {f"frame_{index:06d}.png" for index in range(3)} <= written
    assert not any(name.startswith(".") for name in written), "a part of a picture was left"


class Changing(VideoFile):
    """A video whose frames change their size, as a stream's may."""

    def frames(self) -> Any:
        for frame in super().frames():
            side = 64 if frame.index < 4 else 100
            yield type(frame)(
                index=frame.index, name=frame.name, image=cv2.resize(frame.image, (side, 64)), source=frame.source,
                time_s=frame.time_s,
            )  # fmt: skip


@pytest.mark.parametrize("view", ["mosaic", "tasks"])
def test_a_frame_of_another_size(clip: Path, toy_onnx: Path, read_frames: Reader, view: str) -> None:
    """The video keeps its first frame's size; the predictions have each frame's own."""
    with open_backend(toy_onnx) as backend:
        where = Outputs(target=Path("out.mp4"), form="video", view=view, raw=Path("raw"))
        task = backend.metadata.tasks[0]
        result = run(Changing(clip), backend, where, tasks=(task,))
    assert result.frames == 9
    pages = read_frames(Path("out.mp4") if view == "mosaic" else Path(f"out.{task.name}.mp4"))[0]
    assert len(pages) == 9 and len({page.shape for page in pages}) == 1
    shapes = {np.load(f"raw/frame_{index:06d}.npz")[task.name].shape for index in range(9)}
    assert shapes == {(64, 64), (64, 100)}


def test_two_thousand_frames(toy_onnx: Path, tmp_path: Path) -> None:
    """Memory is flat after the start, every frame comes once and in order: each frame's number is written in its pixels
    and read from the output."""
    with video_output(tmp_path / "long.mp4", 25) as writer:
        for index in range(2000):
            bits = [255 * (index >> bit & 1) for bit in range(11)]
            writer.write(np.repeat(np.repeat(np.array(bits, np.uint8)[None, :, None], 32, 0), 8, 1).repeat(3, 2))
    memory_mib: list[float] = []

    def on_frame() -> None:
        if len(memory_mib) % 100 == 0 or len(memory_mib) < 3:
            status = Path("/proc/self/status").read_text()
            memory_mib.append(int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024)  # type: ignore[index]
        else:
            memory_mib.append(memory_mib[-1])

    with open_backend(toy_onnx) as backend:
        where = Outputs(target=Path("out.mp4"), form="video", view="tasks")
        edge = next(task for task in backend.metadata.tasks if task.kind == "boundary")
        result = run(open_source("long.mp4"), backend, where, tasks=(edge,), on_frame=on_frame)
    assert result.frames == len(memory_mib) == 2000
    assert memory_mib[-1] < memory_mib[500] + 20, memory_mib[::200]
    seen = [_number(frame.image) for frame in open_source("out.edge.mp4").frames()]
    wanted = [_number(frame.image) for frame in open_source("long.mp4").frames()]
    assert wanted == list(range(2000))
    assert np.mean(np.array(seen) == np.array(wanted)) > 0.9, (
        "the task's picture dims the source: a bit may be hard to read"
    )
    assert len(seen) == 2000


def _number(image: np.ndarray) -> int:
    columns = image[8:24].mean((0, 2)).reshape(11, -1)[:, 2:-2].mean(1)
    middle = (columns.max() + columns.min()) / 2 if np.ptp(columns) > 30 else 60
    return sum(int(value > middle) << bit for bit, value in enumerate(columns))


@pytest.mark.parametrize(
    ("blow", "threads"),
    [(signal.SIGINT, 1), (signal.SIGTERM, 1), (signal.SIGKILL, 1), (signal.SIGINT, 2), (signal.SIGKILL, 2)],
)
def test_what_was_written_plays_whatever_ends_it(
    tmp_path: Path,
    toy_onnx: Path,
    make_video: Callable[..., Path],
    read_frames: Reader,
    blow: signal.Signals,
    threads: int,
) -> None:
    """With one thread that draws, and with two and their processes: Ctrl-C reaches every process of a terminal."""
    make_video(tmp_path / "long.mp4", frames=3000, fps=5)
    code = (
        f"from mtmamba.runtime import run; run.several = lambda most: {threads}\n"
        "from mtmamba.runtime.run_cli import main; main()"
    )
    command = [sys.executable, "-c", code, "long.mp4", "--view", "tasks", "--tasks", "depth", "--json"]
    target = Path("long.mtm.depth.mp4")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        for _ in range(600):
            if part_of(target).exists() and part_of(target).stat().st_size > 5000:
                break
            time.sleep(0.05)
        if blow == signal.SIGINT:
            os.killpg(process.pid, blow)
        else:
            process.send_signal(blow)
        answer = process.communicate(timeout=30)[0]
    if blow == signal.SIGKILL:
        assert not target.exists() and len(read_frames(part_of(target))[0]) >= 10
        return
    assert process.returncode == 130
    said = json.loads(answer)
    assert said["interrupted"] and 10 <= said["frames"] < 3000
    assert len(read_frames(target)[0]) == said["frames"] and not part_of(target).exists()


class FakeWindows:
    """OpenCV's windows, and a person who presses q at the third picture."""

    def __init__(self) -> None:
        self.shown: list[str] = []

    def imshow(self, name: str, picture: np.ndarray) -> None:
        self.shown.append(name)

    def wait_key(self, _: int) -> int:
        return ord("q") if len(self.shown) == 3 else 255


def test_a_window_and_q(clip: Path, toy_onnx: Path, monkeypatch: pytest.MonkeyPatch, read_frames: Reader) -> None:
    fake = FakeWindows()
    monkeypatch.setattr(outputs.cv2, "namedWindow", lambda *_: None)
    monkeypatch.setattr(outputs.cv2, "imshow", fake.imshow)
    monkeypatch.setattr(outputs.cv2, "waitKey", fake.wait_key)
    monkeypatch.setattr(outputs.cv2, "getWindowProperty", lambda *_: 1.0)
    monkeypatch.setattr(outputs.cv2, "destroyAllWindows", lambda: None)
    answer = run_json(clip, "--show", status=130)
    assert answer["interrupted"] and fake.shown == ["mtm-run " + str(clip)] * 3
    assert len(read_frames(Path("clip.mtm.mp4"))[0]) == 3


def test_no_windows_here() -> None:
    if "GUI:                           NONE" not in cv2.getBuildInformation():
        pytest.skip("this OpenCV has windows")
    with pytest.raises(Exception, match="--show: expected an OpenCV that can open windows"), window("x", ("",)):
        raise AssertionError("never reached")
