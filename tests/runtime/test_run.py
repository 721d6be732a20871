"""mtm-run, end to end with a toy model."""

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import commands
import cv2
import numpy as np
import onnx
import onnxruntime
import pytest

from mtmamba.metadata import ModelMetadata
from mtmamba.runtime import run_cli
from mtmamba.runtime.backends.onnx_backend import OnnxBackend
from mtmamba.runtime.mosaic import HEADER, plan_layout
from mtmamba.runtime.run_cli import main
from mtmamba.tasks import dataset

TASKS = {task.name: task for task in dataset("synthetic").tasks}
Reader = Callable[[Path], tuple[list[np.ndarray], float]]


pytestmark = pytest.mark.usefixtures("here")
run_it, run_json = partial(commands.run, main), partial(commands.answer, main)


def check_order(clip: Path, pages: list[np.ndarray], tiles: int, read_frames: Reader) -> None:
    """Page i shows frame i of the clip: their greys differ by 12 from one to the next, and codecs lose about 3."""
    layout = plan_layout((96, 64), tiles)
    x, y = layout.corner(0)
    top, (width, height) = y + HEADER, layout.picture
    shown = [float(page[top + 4 : top + height - 4, x + 4 : x + width - 4].mean()) for page in pages]
    wanted = [float(frame.mean()) for frame in read_frames(clip)[0]]
    assert len(wanted) == 9 and np.diff(wanted).min() > 10
    np.testing.assert_allclose(shown, wanted, atol=5)


def test_a_video_becomes_a_video_with_every_frame_in_order(
    clip: Path, toy_onnx: Path, read_frames: Reader, tmp_path: Path
) -> None:
    answer = run_json(clip)
    frames, fps = read_frames(tmp_path / "clip.mtm.mp4")
    assert len(frames) == 9 and fps == pytest.approx(12.5)
    assert frames[0].shape[1::-1] == plan_layout((96, 64), 7).size
    check_order(clip, frames, tiles=7, read_frames=read_frames)
    assert answer["output"] == "clip.mtm.mp4" and answer["frames"] == 9
    assert (answer["backend"], answer["tasks"]) == ("onnxruntime", list(TASKS))
    assert answer["engine_ms_p50"] > 0 and answer["fps"] > 0 and answer["source_fps"] == pytest.approx(12.5)
    assert {path.name for path in tmp_path.iterdir()} == {"clip.mp4", "clip.mtm.mp4", "toy.onnx"}


def test_what_a_person_reads(clip: Path, toy_onnx: Path) -> None:
    result = run_it(clip, "--tasks", "depth,semseg")
    assert result.exit_code == 0 and result.stderr == ""
    assert "model: toy.onnx (the only .onnx file here)" in result.stdout
    words = ("clip.mtm.mp4", "9 frames", "frames/s end to end", "ms a frame (p50)", "onnxruntime on", "depth, semseg")
    for text in words:
        assert text in result.stdout


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_no_frame_is_lost_whatever_the_batch(
    clip: Path, tmp_path: Path, make_toy: Callable[..., Path], read_frames: Reader, batch: int
) -> None:
    model = make_toy(tmp_path / "m.onnx", batch=batch)
    run_json(clip, "--model", model, "--save-raw", "raw", "-o", "out.mp4", "--tasks", "depth")
    check_order(clip, read_frames(tmp_path / "out.mp4")[0], tiles=2, read_frames=read_frames)
    names = [f"frame_{index:06d}.npz" for index in range(9)]
    assert sorted(path.name for path in (tmp_path / "raw").iterdir()) == names


def test_raw_predictions_are_the_models(toy_onnx: Path, tmp_path: Path, photo: np.ndarray) -> None:
    """A picture of the model's own size: no resizing, so every step is simple enough to write out here."""
    image = cv2.resize(photo, (64, 48))
    cv2.imwrite("photo.png", image)
    run_json("photo.png", "--save-raw", "raw")
    rgb = (image[:, :, ::-1] / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    session = onnxruntime.InferenceSession(str(toy_onnx), providers=["CPUExecutionProvider"])
    outputs = session.run(list(TASKS), {"image": rgb.transpose(2, 0, 1)[None].astype(np.float32)})
    raw = {name: output[0] for name, output in zip(TASKS, outputs, strict=True)}
    with np.load("raw/photo.npz") as found:
        assert set(found) == set(TASKS)
        for name in ("semseg", "human_parts"):
            assert found[name].dtype == np.uint8 and (found[name] == raw[name].argmax(0)).mean() > 0.999
        near = {"atol": 1e-4}
        np.testing.assert_allclose(found["depth"], np.maximum(raw["depth"][0], 0), **near)
        np.testing.assert_allclose(found["edge"], 1 / (1 + np.exp(-raw["edge"][0])), **near)
        np.testing.assert_allclose(found["sal"], np.exp(raw["sal"][1]) / np.exp(raw["sal"]).sum(0), **near)
        normals = raw["normals"] / np.linalg.norm(raw["normals"], axis=0)
        np.testing.assert_allclose(found["normals"], normals.transpose(1, 2, 0), atol=1e-3)


def test_raw_predictions_have_the_sources_size(toy_onnx: Path, photo: np.ndarray) -> None:
    cv2.imwrite("photo.png", photo)
    run_json("photo.png", "--save-raw", "raw", "--tasks", "depth,normals")
    with np.load("raw/photo.npz") as found:
        assert {name: found[name].shape for name in found} == {"depth": (60, 90), "normals": (60, 90, 3)}


def test_a_picture_becomes_a_picture(toy_onnx: Path, photo: np.ndarray) -> None:
    cv2.imwrite("photo.png", photo)
    answer = run_json("photo.png")
    page = cv2.imread("photo.mtm.png")
    assert answer["output"] == "photo.mtm.png" and page.shape[1::-1] == plan_layout((90, 60), 7).size


def test_a_folder_becomes_a_folder(toy_onnx: Path, tmp_path: Path, photo: np.ndarray) -> None:
    (tmp_path / "pictures").mkdir()
    for index in (1, 2, 10):
        cv2.imwrite(f"pictures/p{index}.jpg", photo[: 40 + index])
    cv2.imwrite("pictures/p2.png", photo[:30])
    answer = run_json("pictures", "--save-raw", "raw")
    assert answer["output"] == "pictures.mtm" and answer["frames"] == 4
    names = {"p1", "p2.jpg", "p2.png", "p10"}
    assert {path.name for path in (tmp_path / "pictures.mtm").iterdir()} == {f"{name}.png" for name in names}
    with np.load("raw/p2.png.npz") as found:
        assert found["semseg"].shape == (30, 90)


def test_max_frames(clip: Path, toy_onnx: Path, tmp_path: Path, read_frames: Reader) -> None:
    assert run_json(clip, "--max-frames", 4)["frames"] == 4
    assert len(read_frames(tmp_path / "clip.mtm.mp4")[0]) == 4


def test_an_output_folder_is_filled(clip: Path, toy_onnx: Path, tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    assert run_json(clip, "-o", "results", "--max-frames", 1)["output"] == "results/clip.mtm.mp4"


@pytest.mark.parametrize(
    ("source", "options"),
    [
        ("a.png", "-o a.png"),
        ("*.png", "-o ."),
        ("a.depth.png", "-o a.png --view tasks --tasks depth"),
        ("x/depth", "-o x --view tasks --tasks depth"),
        ("clip.depth.mp4", "-o clip.mp4 --view tasks --tasks depth"),
        ("file://{here}/clip.mp4", "-o clip.mp4"),
        ("file://{here}/clip.mp4", "-o link.mp4"),
    ],
)
def test_the_source_is_never_overwritten(
    clip: Path, toy_onnx: Path, tmp_path: Path, photo: np.ndarray, source: str, options: str
) -> None:
    (tmp_path / "x/depth").mkdir(parents=True)
    for name in ("a.png", "b.png", "a.depth.png", "x/depth/a.png"):
        cv2.imwrite(name, photo)
    Path("clip.depth.mp4").write_bytes(clip.read_bytes())
    os.link(clip, "link.mp4")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    before = [path.read_bytes() for path in files]
    result = run_it(source.format(here=tmp_path), *options.split())
    assert result.exit_code == 1 and result.stderr.count("\n") == 1
    assert "the output is the source itself; choose another output with --output" in result.stderr
    assert [path.read_bytes() for path in files] == before
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(files)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("--ray-workers 4", "are for --ray"),
        ("--ray-gpus 0.5", "are for --ray"),
        ("--ray --no-output --save-raw raw", "--ray writes videos"),
        ("--ray --format png", "--ray writes videos"),
    ],
)
def test_options_that_would_do_nothing(clip: Path, toy_onnx: Path, options: str, sentence: str) -> None:
    result = run_it(clip, *options.split())
    assert result.exit_code == 2 and sentence in result.stderr


def test_a_file_name_that_is_no_text_is_drawn(clip: Path, toy_onnx: Path, read_frames: Reader) -> None:
    name = os.fsdecode(b"caf\xe9.mp4")
    try:
        clip.rename(name)
    except OSError:
        pytest.skip("this file system wants text")
    assert run_json(name, "-o", "out.mp4")["frames"] == len(read_frames(Path("out.mp4"))[0]) == 9


def make_bad_onnx(path: Path) -> None:
    model = onnx.load(str(path))
    del model.metadata_props[:]
    onnx.save(model, str(path))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["missing.mp4"], "missing.mp4: expected a video, picture or folder"),
        (["garbage.mp4"], "garbage.mp4: expected a video FFmpeg can decode"),
        (["empty.mp4"], "empty.mp4: expected a video or picture, found an empty file"),
        (["clip.mp4", "--output", "clip.mp4/below/out.mp4"], "cannot write into clip.mp4/below"),
        (["clip.mp4", "--save-raw", "clip.mp4/raw"], "clip.mp4/raw: cannot make this folder"),
        (["clip.mp4", "--output", "clip.mp4"], "the output is the source itself"),
        (
            ["clip.mp4", "--output", "out.png", "--format", "png"],
            "expected a folder's name for the pictures of a video",
        ),
        (["clip.mp4", "--output", "out.gif"], "expected a name ending in .mp4 or .mov for a video"),
        (["clip.mp4", "--backend", "tensorrt"], "expected an NVIDIA GPU and its driver, found no NVIDIA GPU"),
        (["clip.mp4", "--backend", "tensorrt", "--model", "toy.onnx"], "use --backend onnxruntime"),
        (["clip.mp4", "--backend", "torch"], "no torch model (*.pth or *.pt or *.pth.tar)"),
        (["clip.mp4", "--model", "nothing.onnx"], "nothing.onnx: expected a model file, found nothing there"),
        (["clip.mp4", "--model", "foreign.onnx"], "foreign.onnx: expected mtmamba metadata, found none"),
        (["clip.mp4", "--model", "corrupt.onnx"], "corrupt.onnx: expected an ONNX model ONNX Runtime can load"),
    ],
)
def test_bad_input_is_one_sentence_and_status_1(
    clip: Path, toy_onnx: Path, tmp_path: Path, make_toy: Callable[..., Path], arguments: list[str], sentence: str
) -> None:
    Path("garbage.mp4").write_bytes(bytes(range(256)) * 20)
    Path("empty.mp4").touch()
    if "--model" in arguments:
        make_bad_onnx(make_toy(tmp_path / "foreign.onnx"))
        Path("corrupt.onnx").write_bytes(b"not protobuf" * 9)
    before = {path.name for path in tmp_path.iterdir()}
    result = run_it(*arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert sentence in result.stderr
    assert {path.name for path in tmp_path.iterdir()} == before, "something was left behind"
    answer = run_it(*arguments, "--json")
    assert answer.exit_code == 1 and sentence in json.loads(answer.stdout)["error"]


def test_tasks_the_model_has_not_are_a_bad_option(clip: Path, toy_onnx: Path) -> None:
    for names, found in (("depth,flow", "found flow"), (",", "found none")):
        result = run_it("clip.mp4", "--tasks", names)
        assert result.exit_code == 2
        assert "expected some of this model's tasks (semseg, human_parts, sal, depth" in result.stderr
        assert found in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [["clip.mp4", "--backend", "fast"], ["clip.mp4", "--max-frames", "0"], ["clip.mp4", "--colour"], []],
)
def test_a_bad_option_is_status_2(clip: Path, toy_onnx: Path, arguments: list[str]) -> None:
    assert run_it(*arguments).exit_code == 2


class Interrupted(OnnxBackend):
    """Ctrl-C comes while it infers the fifth frame."""

    calls = 0

    def _execute(self, images: Any) -> dict[str, Any]:
        type(self).calls += 1
        if self.calls == 5:
            raise KeyboardInterrupt
        return super()._execute(images)


def test_ctrl_c_keeps_what_is_done(
    clip: Path, toy_onnx: Path, tmp_path: Path, read_frames: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Interrupted, "calls", 0)
    monkeypatch.setattr(run_cli, "open_backend", lambda model, backend, device: Interrupted(model))
    result = run_it(clip)
    assert result.exit_code == 130
    assert "4 frames (interrupted; complete up to there)" in result.stdout
    assert len(read_frames(tmp_path / "clip.mtm.mp4")[0]) == 4
    assert {path.name for path in tmp_path.iterdir()} == {"clip.mp4", "clip.mtm.mp4", "toy.onnx"}


def test_ctrl_c_before_the_first_frame_leaves_nothing(
    clip: Path, toy_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Interrupted, "calls", 4)
    monkeypatch.setattr(run_cli, "open_backend", lambda model, backend, device: Interrupted(model))
    assert run_it(clip).exit_code == 130
    assert {path.name for path in tmp_path.iterdir()} == {"clip.mp4", "toy.onnx"}


def test_a_failing_writer_ends_the_run(
    clip: Path, toy_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "frame_000003.npz").mkdir()  # a folder where a file has to go
    result = run_it(clip, "--save-raw", "raw")
    assert result.exit_code == 1 and "frame_000003.npz: writing failed" in result.stderr
    assert not (tmp_path / "clip.mtm.mp4").exists()


def test_torch_runs_a_checkpoint(tmp_path: Path, photo: np.ndarray) -> None:
    torch = pytest.importorskip("torch", reason="the torch backend needs PyTorch")
    from dataclasses import replace

    from mtmamba.checkpoint import save_checkpoint
    from mtmamba.config import preset
    from mtmamba.model import MTMamba

    torch.manual_seed(0)
    config = replace(preset("synthetic", "nano", ("semseg", "depth")), input_size=(64, 96))
    model = MTMamba(config).eval()
    save_checkpoint(tmp_path / "best.pth", model)
    image = cv2.resize(photo, (96, 64))
    cv2.imwrite("photo.png", image)
    answer = run_json("photo.png", "--save-raw", "raw")
    assert answer["backend"] == "torch" and answer["tasks"] == ["semseg", "depth"]
    rgb = (image[:, :, ::-1] / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    with torch.inference_mode():
        expected = model(torch.from_numpy(rgb.transpose(2, 0, 1)[None].astype(np.float32)))
    with np.load("raw/photo.npz") as found:
        np.testing.assert_allclose(found["depth"], expected["depth"][0, 0].clamp(min=0).numpy(), atol=1e-4)
        assert (found["semseg"] == expected["semseg"][0].argmax(0).numpy()).mean() > 0.999


def test_metadata_without_sizes_is_refused(clip: Path, toy_onnx: Path, metadata: ModelMetadata) -> None:
    values = metadata.to_dict()
    del values["input_size"]
    model = onnx.load(str(toy_onnx))
    model.metadata_props[0].value = json.dumps(values)
    onnx.save(model, str(toy_onnx))
    result = run_it(clip)
    assert result.exit_code == 1 and "incomplete mtmamba metadata" in result.stderr


def test_an_empty_source_is_no_folder() -> None:
    result = run_it("")
    assert result.exit_code == 2 and "it is empty" in result.stderr


def test_the_working_folder_is_a_source(tmp_path: Path, toy_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    cv2.imwrite(str(tmp_path / "in" / "a.png"), np.full((20, 30, 3), 90, np.uint8))
    monkeypatch.chdir(tmp_path / "in")
    result = run_it(".", "--model", str(toy_onnx), "-o", str(tmp_path / "out"))
    assert result.exit_code == 0, result.output
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.png"]
