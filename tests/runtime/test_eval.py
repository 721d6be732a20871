"""Evaluation: the same figures as scoring the outputs at once, whatever the batch, the workers and the sizes."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from mtmamba.checkpoint import load_checkpoint, save_checkpoint
from mtmamba.config import preset
from mtmamba.data import open_dataset
from mtmamba.errors import MtmError
from mtmamba.export.torch_to_onnx import export_model
from mtmamba.metrics import Definitions, Matching, Scoreboard, constant_baseline
from mtmamba.model import MTMamba
from mtmamba.postprocess import postprocess
from mtmamba.runtime.backends import Backend, open_backend
from mtmamba.runtime.eval_charts import painted_pair
from mtmamba.runtime.evaluate import Evaluation, check_tasks, evaluate, model_input
from mtmamba.runtime.preprocess import preprocess
from mtmamba.tasks import IMAGENET_MEAN, IMAGENET_STD, Task, dataset

SIZE = (48, 64)
TASKS = dataset("synthetic").tasks
ODS = Definitions(matching=Matching(max_distance=0.011, thresholds=3))


class Rooms:
    """Three rendered rooms as NumPy arrays: a labelled set without torch."""

    def __init__(self, samples: list[dict[str, Any]], tasks: tuple[Task, ...] = TASKS) -> None:
        self.samples, self.tasks = samples, tasks

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int, /) -> Mapping[str, Any]:
        return self.samples[index]

    def name_of(self, index: int) -> str:
        return f"hall/room {index}"


def render(size: tuple[int, int]) -> Rooms:
    rooms = open_dataset("synthetic", size=size, length=3)
    return Rooms([{name: np.asarray(value) for name, value in rooms[index].items()} for index in range(3)])


@pytest.fixture(scope="module")
def rooms() -> Rooms:
    return render(SIZE)


@pytest.fixture(scope="module")
def large_rooms() -> Rooms:
    return render((96, 128))


@pytest.fixture
def toy(toy_onnx: Path) -> Backend:
    return open_backend(toy_onnx)


def assert_same(one: Mapping[str, Mapping[str, float]], other: Mapping[str, Mapping[str, float]]) -> None:
    assert one.keys() == other.keys()
    for task in one:
        assert dict(one[task]) == pytest.approx(dict(other[task]), rel=1e-12, nan_ok=True), task


def test_figures_are_those_of_all_outputs_at_once(toy: Backend, rooms: Rooms) -> None:
    evaluation = evaluate(toy, rooms, ODS)
    board = Scoreboard(TASKS, ODS)
    labels = {task.name: np.stack([sample[task.name] for sample in rooms.samples]) for task in TASKS}
    outputs = [toy.infer(sample["image"][None]) for sample in rooms.samples]
    board.update({task.name: np.concatenate([o[task.name] for o in outputs]) for task in TASKS}, labels)
    assert_same(evaluation.figures, board.result())
    assert_same(evaluation.constant, constant_baseline(TASKS, [labels]))
    assert evaluation.pictures == 3 and evaluation.label_size == SIZE and evaluation.engine_ms_p50 > 0
    assert math.isfinite(evaluation.figures["edge"]["odsF"])


@pytest.mark.parametrize("batch", [2, 3])
def test_the_models_batch_changes_nothing(
    toy: Backend, rooms: Rooms, make_toy: Callable[..., Path], tmp_path: Path, batch: int
) -> None:
    one, many = evaluate(toy, rooms, ODS), evaluate(open_backend(make_toy(tmp_path / "b.onnx", batch)), rooms, ODS)
    for task, figures in one.figures.items():  # (ONNX Runtime's own sums differ in the last bits)
        assert many.figures[task] == pytest.approx(figures, rel=1e-4)


def test_processes_match_boundaries_all_the_same(toy: Backend, rooms: Rooms) -> None:
    assert_same(evaluate(toy, rooms, ODS, workers=1).figures, evaluate(toy, rooms, ODS).figures)


def test_an_interrupt_ends_the_processes(toy: Backend, rooms: Rooms) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(toy, rooms, ODS, workers=1, on_picture=stop)


def test_other_sizes_are_scored_at_the_labels(toy: Backend, large_rooms: Rooms, tmp_path: Path) -> None:
    """Pictures go in as mtm-run puts them in, and predictions come back at the label's size."""
    evaluation = evaluate(toy, large_rooms, Definitions(), save=tmp_path / "predictions")
    assert evaluation.label_size == (96, 128)
    sample = large_rooms.samples[1]
    picture = model_input(sample["image"], toy.metadata)[1]
    with np.load(tmp_path / "predictions" / "hall_room 1.npz") as saved:
        assert {name: array.shape for name, array in saved.items()} == {
            task.name: (96, 128, 3) if task.kind == "normals" else (96, 128) for task in TASKS
        }
        depth = saved["depth"]
    raw = toy.infer(preprocess(picture, toy.metadata)[None])["depth"][0]
    assert np.array_equal(depth, postprocess(raw, next(task for task in TASKS if task.name == "depth"), (96, 128)))


def test_the_image_goes_in_untouched_where_it_fits(toy: Backend, rooms: Rooms) -> None:
    image = rooms.samples[0]["image"]
    fed, picture = model_input(image, toy.metadata)
    assert fed is image and picture.dtype == np.uint8
    fed, _ = model_input(image, replace(toy.metadata, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)))
    mean, std = (np.array(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    assert fed * 0.5 + 0.5 == pytest.approx(image * std + mean, abs=1e-5), "the same colours, otherwise normalised"


def worst_of(evaluation: Evaluation) -> dict[str, list[float]]:
    return {task: [exhibit.score for exhibit in exhibits] for task, exhibits in evaluation.worst.items()}


def test_the_worst_pictures_come_first(toy: Backend, rooms: Rooms) -> None:
    evaluation = evaluate(toy, rooms, Definitions())
    scores = worst_of(evaluation)
    assert all(len(values) == 3 for values in scores.values())
    for task in TASKS:
        rising = not evaluation.meters[task.name].lower_is_better
        assert scores[task.name] == sorted(scores[task.name], reverse=not rising), task.name
    exhibit = evaluation.worst["depth"][0]
    wrong = np.sqrt(((exhibit.prediction - exhibit.label[0]) ** 2).mean())
    assert exhibit.score == pytest.approx(wrong, rel=1e-5) and exhibit.name.startswith("hall/room")


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_labels_are_drawn_as_predictions(rooms: Rooms, toy: Backend, task: Any) -> None:
    """A label and a prediction that is right are one picture, and what does not count is grey."""
    label = rooms.samples[0][task.name].copy()
    right = {"normals": lambda: label.transpose(1, 2, 0), "labels": lambda: label, "saliency": lambda: label}
    prediction = right.get(task.kind, lambda: label[0])().astype(np.uint8 if task.kind == "labels" else np.float32)
    picture = model_input(rooms.samples[0]["image"], toy.metadata)[1]
    drawn, truth = painted_pair(task, picture, prediction, label)
    assert np.array_equal(drawn, truth) and drawn.std() > 1
    label[..., :5] = {"depth": 0, "normals": 0}.get(task.kind, 255)
    assert (painted_pair(task, picture, prediction, label)[1][:, :5] == 128).all()


def test_outputs_that_are_not_finite_name_the_picture(toy_onnx: Path, rooms: Rooms) -> None:
    model = onnx.load(toy_onnx)
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "normals.b")
    bias.CopyFrom(numpy_helper.from_array(np.array([0, np.nan, 0], np.float32), "normals.b"))
    onnx.save(model, str(toy_onnx))
    with pytest.raises(MtmError, match="hall/room 0: normals: expected finite outputs, found NaN"):
        evaluate(open_backend(toy_onnx), rooms, Definitions())


def test_tasks_have_to_be_the_datasets() -> None:
    nyud, pascal, city = (dataset(name).tasks for name in ("nyudv2", "pascal-context", "cityscapes"))
    check_tasks(nyud, TASKS, "nyudv2", "synthetic")  # the same classes and units
    with pytest.raises(MtmError, match=r"semseg: the model was made for nyudv2 \(40 classes\), the labels of .* \(21"):
        check_tasks(nyud[:1], pascal, "nyudv2", "pascal-context")
    with pytest.raises(MtmError, match=r"depth in m\), the labels of cityscapes are another thing \(disparity in px"):
        check_tasks(nyud[1:2], city, "nyudv2", "cityscapes")
    with pytest.raises(MtmError, match="predicts human_parts, for which nyudv2 has no labels .* --tasks"):
        check_tasks(TASKS, nyud, "synthetic", "nyudv2")


def test_pytorch_and_its_export_score_the_same(rooms: Rooms, tmp_path: Path) -> None:
    """One code scores both: figures differ by no more than the outputs do. (Two tasks, no exchange between them: the
    smallest graph with a scan and a head of either kind.)"""
    torch.manual_seed(0)
    config = replace(preset("synthetic", "nano", ("semseg", "edge")), input_size=(32, 64), cross_task="none")
    save_checkpoint(tmp_path / "m.pth", MTMamba(config))
    onnx.save(export_model(load_checkpoint(tmp_path / "m.pth"), input_size=(32, 64)), str(tmp_path / "m.onnx"))
    two = Rooms(rooms.samples, config.task_list)
    ours, theirs = (evaluate(open_backend(tmp_path / name), two, ODS).figures for name in ("m.pth", "m.onnx"))
    assert ours["semseg"]["accuracy"] == pytest.approx(theirs["semseg"]["accuracy"], abs=0.05)
    assert ours["semseg"]["mIoU"] == pytest.approx(theirs["semseg"]["mIoU"], abs=0.05)
    assert ours["edge"]["odsF"] == pytest.approx(theirs["edge"]["odsF"], abs=0.5)
