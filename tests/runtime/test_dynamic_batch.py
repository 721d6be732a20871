"""Models whose batch is free: every number of images of the range runs as it is, and none is padded to the largest."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from mtmamba.errors import MtmError
from mtmamba.export.picture_io import with_picture_io
from mtmamba.runtime import calibrate_cli, gpu, load
from mtmamba.runtime.backends import open_backend
from mtmamba.runtime.backends.onnx_backend import OnnxBackend
from mtmamba.runtime.eval_cli import main as eval_main
from mtmamba.runtime.onnx_model import load_onnx
from mtmamba.runtime.outputs import Outputs
from mtmamba.runtime.run import run
from mtmamba.runtime.run_cli import main
from mtmamba.runtime.sources import open_source

MakeToy = Callable[..., Path]


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The batches that ONNX Runtime has run."""
    found: list[int] = []
    original = OnnxBackend._execute

    def execute(self: OnnxBackend, images: Any) -> dict[str, Any]:
        found.append(len(images))
        return original(self, images)

    monkeypatch.setattr(OnnxBackend, "_execute", execute)
    return found


def test_a_batch_inside_the_range_runs_as_it_is(tmp_path: Path, make_toy: MakeToy, batches: list[int]) -> None:
    one, free = open_backend(make_toy(tmp_path / "1.onnx")), open_backend(make_toy(tmp_path / "f.onnx", 4, min_batch=2))
    images = np.random.default_rng(0).normal(size=(4, 3, *one.metadata.input_size)).astype(np.float32)
    wanted = [one.infer(images[index : index + 1]) for index in range(4)]
    batches.clear()
    for count in (3, 1, 4, 2):
        found = free.infer(images[:count])
        for task in one.metadata.tasks:
            assert found[task.name].shape == (count, task.channels, *one.metadata.output_size)
            for index in range(count):
                np.testing.assert_allclose(found[task.name][index], wanted[index][task.name][0], atol=1e-5)
    assert batches == [3, 2, 4, 2], "one image is filled up to the smallest batch, no other to any"
    with pytest.raises(ValueError, match=r"expected float32 images \[1..4, 3, 48, 64\]"):
        free.infer(np.concatenate([images, images]))


def test_the_python_interface(tmp_path: Path, make_toy: MakeToy, batches: list[int]) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (7, 20, 30, 3), dtype=np.uint8)
    path = make_toy(tmp_path / "free.onnx", 3, min_batch=1)
    with load(path) as model, load(make_toy(tmp_path / "one.onnx")) as one:
        found = model(pictures)
        assert batches == [3, 3, 1]
        assert (found.semseg == one(pictures).semseg).all()
        assert model.infer(np.zeros((2, 3, 48, 64), np.float32))["depth"].shape[0] == 2


def test_mtm_run(
    tmp_path: Path,
    make_toy: MakeToy,
    make_video: MakeToy,
    batches: list[int],
    read_frames: Callable[[Path], tuple[list[np.ndarray], float]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gpu, "find_gpus", list)
    model, clip = make_toy(tmp_path / "m.onnx", 4, min_batch=1), make_video(tmp_path / "clip.mp4", frames=9)
    result = CliRunner().invoke(main, [str(clip), "--model", str(model), "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert batches == [4, 4, 1] and json.loads(result.stdout)["frames"] == 9
    assert len(read_frames(tmp_path / "clip.mtm.mp4")[0]) == 9


def test_pictures_at_the_ends(tmp_path: Path, make_toy: MakeToy, batches: list[int]) -> None:
    path = make_toy(tmp_path / "free.onnx", 3, min_batch=1)
    onnx.save(with_picture_io(onnx.load(str(path))), str(path))
    with open_backend(path) as backend:
        found = backend.infer(np.zeros((2, 48, 64, 3), np.uint8))
    assert found["semseg"].shape == (2, 48, 64) and batches == [2]


def test_the_images_of_a_calibration(tmp_path: Path, make_toy: MakeToy, make_video: MakeToy) -> None:
    source = open_source(make_video(tmp_path / "clip.mp4", frames=9))
    for batch, least, wanted in ((4, 1, [4, 4, 1]), (4, 2, [4, 4, 2]), (4, None, [4, 4, 4])):
        model = load_onnx(make_toy(tmp_path / "m.onnx", batch, min_batch=least))
        assert [len(images) for images in calibrate_cli.batches(model, [source], 9)] == wanted


def test_a_batch_to_score_in(tmp_path: Path, make_toy: MakeToy, batches: list[int]) -> None:
    path = make_toy(tmp_path / "free.onnx", 4, min_batch=2)
    options = [str(path), "--data", "synthetic", "--limit", "5", "--json"]
    result = CliRunner().invoke(eval_main, [*options, "--batch", "3"])
    assert result.exit_code == 0 and batches == [3, 2], result.output
    result = CliRunner().invoke(eval_main, [*options, "--batch", "5"])
    assert result.exit_code == 1
    assert "made for batches of 2-4, found --batch 5" in " ".join(result.output.split())


def change_batch(path: Path, dim: int | str) -> Path:
    model = onnx.load(str(path))
    for value in (*model.graph.input, *model.graph.output):
        first = value.type.tensor_type.shape.dim[0]
        first.Clear()
        if isinstance(dim, int):
            first.dim_value = dim
        else:
            first.dim_param = dim
    onnx.save(model, str(path))
    return path


def test_a_file_that_is_not_what_it_says(tmp_path: Path, make_toy: MakeToy) -> None:
    fixed = change_batch(make_toy(tmp_path / "fixed.onnx", 4, min_batch=1), 4)
    with pytest.raises(
        MtmError, match=r"expected one input image float32 \['batch', 3, 48, 64\], found image .*\[4, 3"
    ):
        open_backend(fixed)
    with pytest.raises(MtmError, match="fixed size but for a batch of 1-4, found image with none free; export"):
        load_onnx(fixed)
    free = change_batch(make_toy(tmp_path / "free.onnx", 4), "n")
    with pytest.raises(MtmError, match="expected inputs of fixed size, found image with n; export"):
        load_onnx(free)


def test_the_engines_time_is_a_frames(here: Path, make_toy: MakeToy, make_video: Callable[..., Path]) -> None:
    """Of seven frames six come in full batches, and their time is the median, whatever the last, small batch takes."""
    model, clip = make_toy(here / "toy.onnx", batch=3, min_batch=1), make_video(here / "clip.mp4", frames=7)

    class Slow(OnnxBackend):
        def _execute(self, images: Any) -> dict[str, Any]:
            outputs = super()._execute(images)
            self.engine_ms = 300.0 if len(images) == 3 else 900.0
            return outputs

    with Slow(model) as backend:
        outputs = Outputs(target=None, form="video", raw=here / "raw")
        result = run(open_source(clip), backend, outputs, tasks=backend.metadata.tasks)
    assert result.engine_ms_p50 == 100.0
