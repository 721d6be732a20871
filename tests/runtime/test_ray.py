"""A folder of videos through a local Ray."""

import json
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from mtmamba.errors import MtmError
from mtmamba.runtime import ray_job
from mtmamba.runtime.ray_job import videos_in
from mtmamba.runtime.run_cli import main

Reader = Callable[[Path], tuple[list[np.ndarray], float]]
pytestmark = pytest.mark.usefixtures("here")


@pytest.mark.filterwarnings("ignore")  # Ray's own, of its threads and sockets
def test_every_video_of_a_folder(
    tmp_path: Path, toy_onnx: Path, make_video: Callable[..., Path], read_frames: Reader
) -> None:
    """Two good videos, one of them in a folder below, and a broken one that stops neither."""
    pytest.importorskip("ray", reason="needs Ray: pip install 'mtmamba[ray]'")
    (tmp_path / "in" / "b").mkdir(parents=True)
    make_video(tmp_path / "in" / "a.mp4", frames=5)
    make_video(tmp_path / "in" / "b" / "a.mp4", frames=7)
    (tmp_path / "in" / "c.mp4").write_bytes(b"no video")
    result = CliRunner().invoke(main, ["in", "--ray", "--ray-workers", "2", "--tasks", "depth", "--save-raw", "raw"])
    assert result.exit_code == 1
    assert "1 of 3 videos failed, the others are done; the first: " in result.stderr and "c.mp4" in result.stderr
    for name, count in (("a", 5), ("b/a", 7)):
        assert len(read_frames(tmp_path / "in.mtm" / f"{name}.mtm.mp4")[0]) == count
        assert len(list((tmp_path / "raw" / name).glob("*.npz"))) == count


def test_without_videos(tmp_path: Path, toy_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def error(*arguments: object) -> str:
        result = CliRunner().invoke(main, [*map(str, arguments), "--ray", "--json"])
        assert result.exit_code == 1, result.output
        answer: dict[str, Any] = json.loads(result.stdout)
        return str(answer["error"])

    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "a.png").touch()
    assert "expected videos (.mp4" in error("p") and "for pictures leave --ray out" in error("p")
    assert "expected a folder of videos" in error("toy.onnx")
    unknown = CliRunner().invoke(main, ["p", "--ray", "--tasks", "flow"])
    assert unknown.exit_code == 2 and "expected some of this model's tasks" in unknown.stderr
    with pytest.raises(MtmError, match="expected a folder of videos"):
        videos_in(tmp_path / "nothing")
    (tmp_path / "p" / "a.mp4").touch()
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    assert "install it with pip install 'mtmamba[ray]'" in error("p")


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}"])
def test_nobody_answers_at_the_address(
    tmp_path: Path, toy_onnx: Path, unused_port: int, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**options: Any) -> None:
        pytest.fail("Ray asks for minutes")

    ray = ModuleType("ray")
    vars(ray).update(init=init, data=ModuleType("ray.data"))
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setitem(sys.modules, "ray.data", ray.data)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.mp4").touch()
    address = form.format(unused_port)
    result = CliRunner().invoke(main, ["in", "--ray", "--ray-address", address])
    assert result.exit_code == 1, result.output
    assert f"--ray: no Ray cluster could be used (nobody answers at {address}: " in result.stderr


def test_addresses_that_ray_is_asked_about() -> None:
    for address in ("auto", "local", "ray://head", "head"):
        ray_job._check_answers(address)
    with socket.create_server(("127.0.0.1", 0)) as server:
        ray_job._check_answers(f"127.0.0.1:{server.getsockname()[1]}")
