"""Pages drawn in other processes: the same pages, whatever happens to a process, and none left behind."""

import logging
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from mtmamba.runtime import drawing
from mtmamba.runtime.drawing import Channel, Drawing, Memory, drawn_in
from mtmamba.runtime.mosaic import Facts
from mtmamba.runtime.sheet import Sheet, Sheets
from mtmamba.runtime.sources import Frame
from mtmamba.runtime.views import View
from mtmamba.tasks import dataset

TASKS = dataset("synthetic").tasks
VIEW = View(name="mosaic", tasks=TASKS, facts=Facts(title="mtmamba", lines=()), picture_width=240)


def sheets_of(sizes: list[tuple[int, int]]) -> list[Sheet]:
    """Of frames of these sizes (width, height), and of outputs half as large."""
    rng, sheets = np.random.default_rng(0), Sheets(TASKS)
    made = []
    for index, (width, height) in enumerate(sizes):
        image = cv2.GaussianBlur(rng.integers(0, 256, (height, width, 3), dtype=np.uint8), (0, 0), 2)
        planes = {
            task.name: rng.normal(size=(task.channels, height // 2, width // 2)).astype(np.float32) for task in TASKS
        }
        made.append(sheets.make(Frame(index=index, name="a", image=image, source="a.mp4", time_s=index / 25), planes))
    return made


def _never(sheet: Sheet) -> Any:
    raise AssertionError("drawn in this process")


def wait_for(what: Any, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, f"{what} did not come true in {seconds} s"
        time.sleep(0.02)


def when_ready(draw: Drawing) -> Drawing:
    """`draw`, once all its processes do."""
    for process in draw.processes:
        wait_for(lambda process=process: process.ready)
    return draw


def same(one: Any, other: Any) -> bool:
    return list(one) == list(other) and all(np.array_equal(one[name], other[name]) for name in one)


@pytest.fixture
def nothing_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every process that was started has ended, and no file is open more than before."""
    started: list[subprocess.Popen[bytes]] = []

    class Noted(subprocess.Popen[bytes]):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Noted)
    before = len(list(Path("/proc/self/fd").iterdir()))
    yield
    assert len(list(Path("/proc/self/fd").iterdir())) <= before
    assert all(process.returncode is not None for process in started)


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize(
    "view", [VIEW, replace(VIEW, yuv=True), replace(VIEW, name="tasks")], ids=["page", "yuv", "tasks"]
)
def test_the_pages_are_those_drawn_here(view: View) -> None:
    """Larger frames and smaller ones follow each other."""
    sheets = sheets_of([(96, 64), (640, 480), (64, 96), (1280, 720), (96, 64), (97, 65)] * 2)
    here = view.opened()
    with drawn_in(2, view) as draw, ThreadPoolExecutor(2) as threads:
        when_ready(draw)._here = _never
        drawn = list(threads.map(draw, sheets))
    assert all(same(pages, here(sheet)) for pages, sheet in zip(drawn, sheets, strict=True))


@pytest.mark.usefixtures("nothing_left")
def test_frames_that_come_before_the_processes_are_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "_CODE", "import time; time.sleep(60)  # {path} {files}")
    sheet = sheets_of([(96, 64)])[0]
    begin = time.monotonic()
    with drawn_in(2, VIEW) as draw:
        assert same(draw(sheet), VIEW.opened()(sheet))
    assert time.monotonic() - begin < 10


@pytest.mark.usefixtures("nothing_left")
def test_a_process_that_is_killed_loses_nothing(caplog: pytest.LogCaptureFixture) -> None:
    sheets = sheets_of([(96, 64)] * 6)
    here = VIEW.opened()
    with drawn_in(2, VIEW) as draw:
        when_ready(draw)
        assert same(draw(sheets[0]), here(sheets[0]))
        for process in draw.processes:
            process.child.kill()
        drawn = [draw(sheet) for sheet in sheets]
    assert all(same(pages, here(sheet)) for pages, sheet in zip(drawn, sheets, strict=True))
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert said == ["a process that draws ended early (status -9); its frames are drawn in this one"] * 2


@pytest.mark.usefixtures("nothing_left")
def test_a_process_that_stalls_is_given_up(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(drawing, "_STALLED_S", 0.5)
    sheet = sheets_of([(96, 64)])[0]
    with drawn_in(1, VIEW) as draw:
        when_ready(draw).processes[0].child.send_signal(signal.SIGSTOP)
        assert same(draw(sheet), VIEW.opened()(sheet))
    assert "a process that draws ended early (no answer for 0.5 s)" in caplog.text


@pytest.mark.usefixtures("nothing_left")
def test_a_thread_for_which_no_process_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """It draws itself, while the one process draws for another."""
    monkeypatch.setattr(drawing, "_STALLED_S", 2.0)
    sheets = sheets_of([(96, 64)] * 2)
    with drawn_in(1, VIEW) as draw, ThreadPoolExecutor(1) as thread:
        child = when_ready(draw).processes[0].child
        child.send_signal(signal.SIGSTOP)
        waiting = thread.submit(draw, sheets[0])
        wait_for(draw._idle.empty)
        assert same(draw(sheets[1]), VIEW.opened()(sheets[1])) and not waiting.done()
        child.send_signal(signal.SIGCONT)
        assert same(waiting.result(), VIEW.opened()(sheets[0]))


@pytest.mark.usefixtures("nothing_left")
def test_what_fails_there_fails_here() -> None:
    """The error comes from this process, where somebody can see it."""
    broken = replace(sheets_of([(96, 64)])[0], planes={})
    with drawn_in(1, VIEW) as draw, pytest.raises(KeyError):
        when_ready(draw)(broken)


@pytest.mark.usefixtures("nothing_left")
def test_a_system_that_starts_no_process(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    sheet = sheets_of([(96, 64)])[0]
    with drawn_in(3, VIEW) as draw:
        assert same(draw(sheet), VIEW.opened()(sheet))
    assert "a process that draws could not be started" in caplog.text


def test_an_application_that_is_its_own_interpreter_is_not_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with drawn_in(2, VIEW) as draw:
        assert not draw.processes
    monkeypatch.delattr(sys, "frozen")
    monkeypatch.setattr(sys, "executable", None)
    with drawn_in(2, VIEW) as draw:
        assert not draw.processes


def test_paths_of_any_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, "/tmp/é€'\\", Path("/tmp")])
    sheet = sheets_of([(96, 64)])[0]
    with drawn_in(1, VIEW) as draw:
        assert same(when_ready(draw)(sheet), VIEW.opened()(sheet))


def test_only_what_is_drawn_is_sent() -> None:
    depth = next(task for task in TASKS if task.kind == "depth")
    frame = Frame(index=0, name="a", image=np.zeros((8, 8, 3), np.uint8), source="a.png")
    planes = {task.name: np.zeros((task.channels, 8, 8), np.float32) for task in TASKS}
    assert list(Sheets((depth,)).make(frame, planes).planes) == [depth.name]


def test_they_end_with_the_process_they_draw_for() -> None:
    code = (
        f"import sys, time; sys.path[:] = {[str(Path(__file__).parent), *sys.path]!r}\n"
        "from test_drawing import VIEW, drawn_in, when_ready\n"
        "with drawn_in(2, VIEW) as draw:\n"
        "    print(*(process.child.pid for process in when_ready(draw).processes), flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        children = [Path("/proc", pid) for pid in process.stdout.readline().split()]
        assert len(children) == 2 and all(child.exists() for child in children)
        process.send_signal(signal.SIGKILL)
        wait_for(lambda: not any(child.exists() and "Z" not in _state(child) for child in children))


def _state(process: Path) -> str:
    try:
        return (process / "stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "Z"


def test_arrays_cross_whole() -> None:
    """Of every kind: read-only, empty, turned, with gaps, of one byte."""
    rng = np.random.default_rng(1)
    plain = rng.normal(size=(40, 30)).astype(np.float32)
    locked = plain.copy()
    locked.flags.writeable = False
    value = {
        "plain": plain, "locked": locked, "turned": plain.T, "gaps": plain[::2, ::3], "empty": np.empty((0, 3)),
        "byte": np.array(7, np.uint8), "half": plain.astype(np.float16), "number": 3, "text": "ä",
    }  # fmt: skip
    ours, theirs = drawing.multiprocessing.Pipe()
    with ours, theirs, Memory() as there, Memory() as back:
        near, far = Channel(ours, there, back), Channel(theirs, Memory(back.file), Memory(there.file))
        for _ in range(2):
            near.send(value)
            far.send(far.receive())
            got = near.receive()
            assert list(got) == list(value)
            for name, one in value.items():
                assert np.array_equal(got[name], one) and type(got[name]) is type(one)
                assert not isinstance(one, np.ndarray) or got[name].dtype == one.dtype
