"""Preprocessing and postprocessing against their definitions, written out again in float64."""

import warnings
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from mtmamba.errors import MtmError
from mtmamba.metadata import ModelMetadata
from mtmamba.postprocess import postprocess, that_can_win
from mtmamba.runtime.preprocess import preprocess, resize_image
from mtmamba.runtime.sources import read_image
from mtmamba.tasks import IMAGENET_MEAN, IMAGENET_STD, Task, dataset

TASKS = {task.name: task for task in dataset("synthetic").tasks}


def interpolate(plane: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear with half-pixel centres, from its definition, in float64: [h, w] -> [H, W]."""

    def weights(old: int, new: int) -> np.ndarray:
        matrix = np.zeros((new, old))
        for index in range(new):
            at = min(max((index + 0.5) * old / new - 0.5, 0), old - 1)
            low = min(int(at), old - 2) if old > 1 else 0
            matrix[index, low] += 1 - (at - low)
            if old > 1:
                matrix[index, low + 1] += at - low
        return matrix

    return weights(plane.shape[0], size[0]) @ plane.astype(np.float64) @ weights(plane.shape[1], size[1]).T


def test_preprocess_at_the_models_size_is_the_definition(metadata: ModelMetadata) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*metadata.input_size, 3), dtype=np.uint8)
    result = preprocess(image, metadata)
    rgb = image[:, :, ::-1].astype(np.float64) / 255
    expected = ((rgb - IMAGENET_MEAN) / IMAGENET_STD).transpose(2, 0, 1)
    assert result.dtype == np.float32 and result.flags.c_contiguous
    np.testing.assert_allclose(result, expected, atol=2e-6)


def test_preprocess_uses_the_files_own_normalisation(metadata: ModelMetadata) -> None:
    plain = replace(metadata, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    image = np.full((*metadata.input_size, 3), (0, 51, 255), np.uint8)  # BGR
    np.testing.assert_allclose(preprocess(image, plain)[:, 0, 0], (1.0, 0.2, 0.0), atol=1e-6)


def test_shrinking_takes_area_means_and_growing_interpolates() -> None:
    stripes = np.zeros((8, 8, 3), np.uint8)
    stripes[:, ::2] = 200
    assert (resize_image(stripes, (4, 4)) == 100).all()
    ramp = np.zeros((1, 2, 3), np.uint8)
    ramp[:, 1] = 100
    assert resize_image(ramp, (1, 4))[0, :, 0].tolist() == [0, 25, 75, 100]


@pytest.mark.parametrize("size", [(12, 20), (30, 41), (7, 9)], ids=["same", "larger", "smaller"])
@pytest.mark.parametrize("name", TASKS)
def test_postprocess_is_its_definition(name: str, size: tuple[int, int]) -> None:
    task = TASKS[name]
    raw = np.random.default_rng(1).normal(0, 2, (task.channels, 12, 20)).astype(np.float32)
    planes = np.stack([interpolate(plane, size) for plane in raw])
    result = postprocess(raw, task, size)
    if task.kind == "labels":
        assert result.dtype == np.uint8
        top = np.sort(planes, axis=0)
        clear = top[-1] - top[-2] > 1e-4  # ties are decided by rounding
        assert clear.mean() > 0.99
        assert (result == planes.argmax(0))[clear].all()
        return
    expected = {
        "saliency": lambda: np.exp(planes[1]) / np.exp(planes).sum(0),
        "boundary": lambda: 1 / (1 + np.exp(-planes[0])),
        "depth": lambda: np.maximum(planes[0], 0),
        "normals": lambda: (planes / np.linalg.norm(planes, axis=0)).transpose(1, 2, 0),
    }[task.kind]()
    assert result.dtype == np.float32 and result.shape == expected.shape
    np.testing.assert_allclose(result, expected, atol=2e-4 if task.kind == "normals" else 2e-5)


def test_label_edges_fall_where_the_scores_are_equal() -> None:
    task = Task(name="two", title="two", kind="labels", channels=2, classes=("a", "b"), palette=((0, 0, 0), (1, 1, 1)))
    raw = np.zeros((2, 1, 4), np.float32)
    raw[1, 0] = (-1, -1, 3, 3)  # crosses 0 a quarter of the way from the second to the third pixel
    labels = postprocess(raw, task, (1, 64))[0]
    assert np.flatnonzero(labels)[0] == 28  # pixel 1 has its centre at 24, pixel 2 at 40; nearest would say 32
    assert labels[28:].all()


def test_labels_are_the_arg_max_of_the_resized_scores_and_ties_go_to_the_lower_class() -> None:
    task, size = TASKS["semseg"], (70, 111)
    rng = np.random.default_rng(4)
    raw = rng.integers(0, 2, (task.channels, 24, 32)).astype(np.float32)
    planes = np.stack([cv2.resize(plane, size[::-1], interpolation=cv2.INTER_LINEAR) for plane in raw])
    tied = (planes == planes.max(0)).sum(0) > 1
    assert 0.5 < tied.mean() < 0.9
    assert (postprocess(raw, task, size) == planes.argmax(0)).all()


def resized_arg_max(raw: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Every class resized, none left out."""
    planes = [cv2.resize(plane, size[::-1], interpolation=cv2.INTER_LINEAR) for plane in raw]
    return np.argmax(np.stack(planes), axis=0)


@pytest.mark.parametrize("size", [(90, 131), (47, 64), (11, 9), (1, 70)])
@pytest.mark.parametrize("smooth", [0.0, 3.0, 9.0])
def test_classes_that_are_left_out_win_nowhere(smooth: float, size: tuple[int, int]) -> None:
    rng, task = np.random.default_rng(5), TASKS["semseg"]
    raw = rng.normal(size=(task.channels, 24, 33)).astype(np.float32)
    for plane in raw if smooth else ():
        cv2.GaussianBlur(plane, (0, 0), smooth, dst=plane)
    raw[7] = raw[3]  # a tie everywhere
    raw[20:] -= np.float32(12)
    kept = that_can_win(raw)
    assert kept == sorted(kept) and len(kept) <= 20
    assert (postprocess(raw, task, size) == resized_arg_max(raw, size)).all()
    assert (postprocess(np.asfortranarray(raw), task, size) == resized_arg_max(raw, size)).all()


def test_no_class_is_left_out_where_scores_are_not_numbers_or_too_few() -> None:
    raw = np.zeros((5, 4, 4), np.float32)
    raw[2] = 9
    assert that_can_win(raw) == [2]
    assert that_can_win(raw[:, :1]) == [0, 1, 2, 3, 4]
    raw[2] = np.inf
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert that_can_win(raw) == [2]
    raw[2, 1, 1] = np.nan
    assert 2 in that_can_win(raw)


def test_extreme_scores_stay_finite() -> None:
    raw = np.array([[[-1e4, 1e4]]], np.float32)
    assert postprocess(raw, TASKS["edge"], (1, 2)).tolist() == [[0.0, 1.0]]
    zero = postprocess(np.zeros((3, 2, 2), np.float32), TASKS["normals"], (2, 2))
    assert np.isfinite(zero).all()


def test_a_wrong_number_of_channels_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 2 channels"):
        postprocess(np.zeros((3, 4, 4), np.float32), TASKS["sal"], (4, 4))


def test_opencv_bilinear_is_torchs() -> None:
    """The resize the runtime relies on, against the definition PyTorch's align_corners=False follows."""
    plane = np.random.default_rng(2).normal(size=(5, 7)).astype(np.float32)
    found = cv2.resize(plane, (17, 11), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(found, interpolate(plane, (11, 17)), atol=1e-5)


@pytest.mark.parametrize(("dtype", "factor"), [(np.uint8, 1), (np.uint16, 257)])
def test_pictures_of_8_and_16_bits(tmp_path: Path, photo: np.ndarray, dtype: type, factor: int) -> None:
    cv2.imwrite(str(tmp_path / "a.tiff"), photo.astype(dtype) * dtype(factor))
    np.testing.assert_array_equal(read_image(tmp_path / "a.tiff"), photo)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_picture_of_floats_says_so(tmp_path: Path, photo: np.ndarray, dtype: type) -> None:
    cv2.imwrite(str(tmp_path / "a.tiff"), photo.astype(dtype) / 255)
    with pytest.raises(
        MtmError, match=rf"found {np.dtype(dtype)} values, whose range no file states; save it as an 8-bit"
    ):
        read_image(tmp_path / "a.tiff")
