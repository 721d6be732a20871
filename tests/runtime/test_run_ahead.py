"""mtm-run with a backend that has two batches on their way."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from mtmamba.errors import MtmError
from mtmamba.runtime import gpu, run_cli
from mtmamba.runtime.backends.base import Result
from mtmamba.runtime.backends.onnx_backend import OnnxBackend


class TwoAtOnce(OnnxBackend):
    """Computes when a result is asked for, as a GPU has it ready by then. fails_at: the result that cannot be had."""

    depth = 2
    fails_at = -1

    def __init__(self, model: Path) -> None:
        super().__init__(model)
        self.waiting: list[int] = []
        self.most = self.submitted = 0

    def submit(self, images: Any) -> Result:
        number = self.submitted
        self.submitted += 1
        self.waiting.append(number)
        self.most = max(self.most, len(self.waiting))
        kept = np.array(images)

        def wait() -> dict[str, Any]:
            assert self.waiting.pop(0) == number, "results in another order than they were submitted"
            if number == self.fails_at:
                raise MtmError("the GPU fell off")
            return self.infer(kept)

        return wait


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[TwoAtOnce]:
    """What mtm-run opened."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gpu, "find_gpus", list)
    found: list[TwoAtOnce] = []

    def open_it(model: Path, backend: str | None, device: int) -> TwoAtOnce:
        found.append(TwoAtOnce(model))
        return found[-1]

    monkeypatch.setattr(run_cli, "open_backend", open_it)
    return found


@pytest.mark.parametrize(("batch", "frames"), [(1, 7), (2, 7), (1, 1)])
def test_every_frame_gets_its_own_predictions(
    opened: list[TwoAtOnce],
    make_toy: Callable[..., Path],
    make_video: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    batch: int,
    frames: int,
) -> None:
    model, clip = make_toy(Path("toy.onnx"), batch=batch), make_video(Path("clip.mp4"), frames=frames)
    arguments = [str(clip), "--model", str(model), "--no-output", "--save-raw"]
    assert CliRunner().invoke(run_cli.main, [*arguments, "ahead"], catch_exceptions=False).exit_code == 0
    assert opened[0].most == min(2, -(-frames // batch)) and not opened[0].waiting
    monkeypatch.setattr(run_cli, "open_backend", lambda model, backend, device: OnnxBackend(model))
    assert CliRunner().invoke(run_cli.main, [*arguments, "alone"], catch_exceptions=False).exit_code == 0
    names = sorted(path.name for path in Path("alone").iterdir())
    assert len(names) == frames and names == sorted(path.name for path in Path("ahead").iterdir())
    for name in names:
        with np.load(Path("ahead", name)) as one, np.load(Path("alone", name)) as other:
            assert all((one[task] == other[task]).all() for task in other)


def test_a_failure_leaves_nothing_on_its_way(
    opened: list[TwoAtOnce],
    toy_onnx: Path,
    make_video: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(TwoAtOnce, "fails_at", 2)
    result = CliRunner().invoke(run_cli.main, [str(make_video(Path("clip.mp4"))), "--model", str(toy_onnx)])
    assert result.exit_code == 1 and "the GPU fell off" in result.stderr
    assert not opened[0].waiting, "a backend that is used again would find them"
