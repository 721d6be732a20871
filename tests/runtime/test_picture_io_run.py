"""The same model with raw ends and with pictures at both ends, through everything that runs a model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from commands import answer

from mtmamba.errors import MtmError
from mtmamba.export.picture_io import with_picture_io
from mtmamba.metadata import INPUT_NAME
from mtmamba.postprocess import postprocess
from mtmamba.runtime import bench_cli, parity_cli, run_cli
from mtmamba.runtime.api import load
from mtmamba.runtime.backends import open_backend
from mtmamba.runtime.evaluate import model_input
from mtmamba.runtime.preprocess import preprocess
from mtmamba.tasks import dataset

TASKS = {task.name: task for task in dataset("synthetic").tasks}
Reader = Callable[[Path], tuple[list[np.ndarray], float]]
pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture
def both(toy_onnx: Path) -> tuple[Path, Path]:
    """toy.onnx and the same with picture I/O."""
    picture = toy_onnx.with_name("toy.picture.onnx")
    onnx.save(with_picture_io(onnx.load(str(toy_onnx))), str(picture))
    return toy_onnx, picture


def angle_deg(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.rad2deg(np.arccos(np.clip((a * b).sum(-1), -1, 1)))


def assert_near(raw: dict[str, Any], picture: dict[str, Any], *, same_size: bool) -> None:
    """What rounding to bytes takes away; at another size labels also differ along the classes' edges."""
    for name, task in TASKS.items():
        ours, theirs = np.asarray(raw[name]), np.asarray(picture[name])
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype, name
        if task.kind == "labels":
            assert (ours == theirs).mean() > (0.9999 if same_size else 0.6), name
        elif task.kind == "normals":
            np.testing.assert_allclose(np.linalg.norm(theirs, axis=-1), 1, atol=1e-5)
            assert np.quantile(angle_deg(ours, theirs), 0.999 if same_size else 0.3) < 0.7, name
        elif task.kind == "depth":
            share = 1 if same_size else 0.9  # what is below 0 is cut off before, not after the resize
            assert np.quantile(abs(theirs - ours), share) < 5e-3, name
        else:
            assert np.quantile(abs(theirs - ours), 1 if same_size else 0.5) < (2.1e-3 if same_size else 0.05), name


@pytest.mark.parametrize("same_size", [True, False])
def test_the_same_predictions(both: tuple[Path, Path], photo: np.ndarray, same_size: bool) -> None:
    cv2.imwrite("photo.png", cv2.resize(photo, (64, 48)) if same_size else photo)
    for path in both:
        answer(run_cli.main, "photo.png", "--model", path, "--save-raw", path.stem, "--no-output")
    found = []
    for path in both:
        with np.load(next(Path(path.stem).glob("*.npz"))) as saved:
            found.append(dict(saved))
    assert_near(found[0], found[1], same_size=same_size)


@pytest.mark.parametrize("view", ["mosaic", "tasks"])
def test_nearly_the_same_video(
    both: tuple[Path, Path], make_video: Callable[..., Path], read_frames: Reader, view: str
) -> None:
    clip = make_video(Path("clip.mp4"), frames=3, size=(64, 48))
    pages = []
    for path in both:
        made = answer(run_cli.main, clip, "--model", path, "--view", view, "-o", f"{path.stem}.mp4")
        outputs = made["output"] if isinstance(made["output"], list) else [made["output"]]
        pages.append([frame for output in outputs for frame in read_frames(Path(output))[0]])
    assert len(pages[0]) == len(pages[1]) >= 3
    for one, other in zip(*pages, strict=True):
        if view == "mosaic":  # the page names the model: there the two may differ
            one, other = one[200:], other[200:]
        assert one.shape == other.shape
        assert abs(one.astype(np.int16) - other).mean() < 2  # a codec makes more of it than rounding did


def test_what_the_backend_takes(both: tuple[Path, Path], photo: np.ndarray) -> None:
    with open_backend(both[1]) as backend:
        image = preprocess(photo, backend.metadata)
        assert image.dtype == np.uint8 and image.shape == (48, 64, 3) and image.flags.c_contiguous
        assert (image == cv2.resize(photo, (64, 48), interpolation=cv2.INTER_AREA)[:, :, ::-1]).all(), "RGB"
        found = backend.submit(image[None])()
        assert found["depth"].dtype == np.float16 and found["normals"].shape == (1, 48, 64, 3)
        with pytest.raises(ValueError, match=r"expected uint8 images \[1..1, 48, 64, 3\], found float32"):
            backend.infer(np.zeros((1, 3, 48, 64), np.float32))


def test_a_file_whose_types_are_not_what_its_metadata_says(both: tuple[Path, Path]) -> None:
    model = onnx.load(str(both[1]))
    raw = onnx.load(str(both[0]))
    del raw.metadata_props[:]
    raw.metadata_props.extend(model.metadata_props)
    onnx.save(raw, "odd.onnx")
    with pytest.raises(MtmError, match=r"expected one input image uint8 \[1, 48, 64, 3\], found image tensor\(float\)"):
        open_backend(Path("odd.onnx"))


def test_the_python_interface(both: tuple[Path, Path], photo: np.ndarray) -> None:
    rgb = np.ascontiguousarray(photo[:, :, ::-1])
    same = np.ascontiguousarray(cv2.resize(rgb, (64, 48)))
    with load(both[0]) as raw, load(both[1]) as picture:
        assert_near(dict(raw(same)), dict(picture(same)), same_size=True)
        assert picture(np.stack([rgb, rgb])).normals.shape == (2, 60, 90, 3)
        out = {"semseg": np.empty((1, 48, 64), np.uint8)}
        assert picture.infer(same[None], out)["semseg"] is out["semseg"]
        assert (out["semseg"][0] == picture(same).semseg).all()
        with pytest.raises(MtmError, match=r"expected uint8 images \[n, 48, 64, 3\] of RGB, found float32"):
            picture.infer(same[None].astype(np.float32))
        with pytest.raises(MtmError, match=r"expected a NumPy array float16 \[1, 48, 64\], found float32"):
            picture.infer(same[None], {"depth": np.empty((1, 48, 64), np.float32)})


def test_bench_and_eval_take_it(both: tuple[Path, Path], photo: np.ndarray) -> None:
    rows = answer(bench_cli.main, *both, "--calls", 2, "--warmup", 0, "--rounds", 1)["models"]
    assert [Path(row["model"]).name for row in rows] == ["toy.onnx", "toy.picture.onnx"]
    with open_backend(both[1]) as backend:
        sample = np.zeros((3, 48, 64), np.float32)  # of the model's own size: not to go in as it is all the same
        image, picture = model_input(sample, backend.metadata)
        assert image.dtype == np.uint8 and (image[:, :, ::-1] == picture).all()


def test_parity_asks_for_raw_outputs(both: tuple[Path, Path]) -> None:
    result = CliRunner().invoke(parity_cli.main, ["--reference", str(both[0]), "--model", str(both[1])])
    assert result.exit_code == 1
    assert "toy.picture.onnx: expected a model with raw outputs, found one with picture I/O" in result.stderr
    assert "without --picture-io" in result.stderr


def test_labels_keep_their_pixels_and_bytes_their_meaning() -> None:
    labels = np.array([[1, 2], [3, 4]], np.uint8)
    assert postprocess(labels, TASKS["semseg"], (4, 4)).tolist() == [[1, 1, 2, 2]] * 2 + [[3, 3, 4, 4]] * 2
    share = postprocess(np.array([[0, 255]], np.uint8), TASKS["edge"], (1, 4))
    np.testing.assert_allclose(share, [[0, 0.25, 0.75, 1]], atol=1e-6)
    depth = postprocess(np.array([[1, 3]], np.float16), TASKS["depth"], (1, 4))
    assert depth.dtype == np.float32 and depth.tolist() == [[1, 1.5, 2.5, 3]]
    normals = postprocess(np.array([[[255, 128, 128], [128, 255, 128]]], np.uint8), TASKS["normals"], (1, 4))
    np.testing.assert_allclose(np.linalg.norm(normals, axis=-1), 1, atol=1e-6)
    np.testing.assert_allclose(normals[0, 0], (1, 0, 0), atol=0.01)
    with pytest.raises(ValueError, match="normals: expected normals as a prediction"):
        postprocess(np.zeros((4, 4), np.uint8), TASKS["normals"], (4, 4))


def test_the_exported_file_holds_both_ends(small_onnx: Path) -> None:
    """A whole model, its scans among the nodes: pictures go in and out, and nothing else has changed."""
    raw = onnx.load(str(small_onnx))
    onnx.save(with_picture_io(raw), "small.picture.onnx")
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    with open_backend(small_onnx) as one, open_backend(Path("small.picture.onnx")) as other:
        found = other.infer(preprocess(picture, other.metadata)[None])
        wanted = one.infer(preprocess(picture, one.metadata)[None])
        for task in one.metadata.tasks:
            size = one.metadata.output_size
            a, b = (postprocess(x[task.name][0], task, size) for x in (wanted, found))
            if task.kind == "labels":
                assert (a == b).mean() > 0.99
            else:
                np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-3)
    assert [value.name for value in onnx.load("small.picture.onnx").graph.input] == [INPUT_NAME]
