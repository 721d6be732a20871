"""Parity: the figures against plain float64 arithmetic and Polygraphy's, the verdicts, and that memory stays bounded."""

import math
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from mtmamba.errors import MtmError
from mtmamba.runtime.backends import open_backend
from mtmamba.runtime.parity import Parity, Statistics, compare, compare_predictions, random_frames
from mtmamba.runtime.parity_tolerance import AT_LEAST, FIGURE_OF, TOLERANCES, Override, Tolerance, tolerances
from mtmamba.runtime.sources import Frame
from mtmamba.tasks import Task, dataset

TASKS = {task.name: task for task in dataset("synthetic").tasks}
ANYTHING = Tolerance(difference=9e9, agreement=0, depth=9e9, angle=180)


def figures_of(task: Task, pairs: list[tuple[np.ndarray, np.ndarray]]) -> Any:
    statistics = Statistics(task)
    for index, (reference, candidate) in enumerate(pairs):
        statistics.add(f"image {index}", reference.astype(np.float32), candidate.astype(np.float32))
    return statistics.result(ANYTHING)


def images(task: Task, noise: float, count: int = 3) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(5)
    pairs = []
    for _ in range(count):
        reference = rng.normal(0, 2, (task.channels, 12, 17)).astype(np.float32)
        pairs.append((reference, reference + rng.normal(0, noise, reference.shape).astype(np.float32)))
    return pairs


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_sums_over_images_are_those_of_all_at_once(task: Task) -> None:
    pairs = images(task, 0.1)
    found = figures_of(task, pairs)
    r, c = (np.stack([pair[i] for pair in pairs]).astype(np.float64) for i in (0, 1))
    assert found.max_abs == pytest.approx(np.abs(c - r).max(), rel=1e-12)
    assert found.rms == pytest.approx(np.sqrt(((c - r) ** 2).mean()), rel=1e-12)
    assert found.rms_percent == pytest.approx(100 * np.linalg.norm(c - r) / np.linalg.norm(r), rel=1e-12)
    assert found.cosine == pytest.approx((c * r).sum() / np.linalg.norm(c) / np.linalg.norm(r), rel=1e-12)
    assert found.scale == np.abs(r).max()
    assert found.worst == f"image {np.abs(c - r).max(axis=(1, 2, 3)).argmax()}"
    assert found.checks[0].needed == pytest.approx(found.max_abs / found.scale, rel=1e-2)


def test_a_small_scale_is_not_divided_by() -> None:
    pairs = [(np.full((1, 4, 4), 0.01), np.full((1, 4, 4), 0.02))]
    assert figures_of(TASKS["edge"], pairs).checks[0].needed == pytest.approx(0.01, rel=1e-5)


def test_polygraphy_finds_the_same_differences() -> None:
    pytest.importorskip("polygraphy", "0.53", reason="no Polygraphy of 0.53 or newer (pip install polygraphy)")
    from polygraphy.comparator import CosineSimilarityCompareFunc, IterationResult, SimpleCompareFunc

    task = TASKS["semseg"]
    ((reference, candidate),) = images(task, 0.1, count=1)
    one, other = (IterationResult({"semseg": array}, runner_name="r") for array in (candidate, reference))
    simple = SimpleCompareFunc(check_error_stat="max")(one, other)["semseg"]
    cosine = CosineSimilarityCompareFunc()(one, other)["semseg"]
    found = figures_of(task, [(reference, candidate)])
    assert found.max_abs == pytest.approx(float(simple.max_absdiff), rel=1e-6)
    assert found.cosine == pytest.approx(cosine.cosine_similarity, rel=1e-6)


class TestFiguresByKind:
    def test_labels(self) -> None:
        reference = np.zeros((40, 10, 10))
        reference[3] = 1
        candidate = reference.copy()
        candidate[7, :2] = 2  # a fifth of the pixels changes from class 3 to class 7
        found = figures_of(TASKS["semseg"], [(reference, candidate)])
        assert found.figures == {"agreement": 80.0, "miou": 40.0}  # 80 % of class 3, none of class 7

    @pytest.mark.parametrize("name", ["sal", "edge"])
    def test_two_sides(self, name: str) -> None:
        task = TASKS[name]
        reference = np.full((task.channels, 10, 10), -1.0)
        reference[-1, :5] = 1.0  # on in the upper half
        if name == "sal":
            reference[0] = 0.0
        candidate = reference.copy()
        candidate[-1, :1] = -1.0  # and off again in a tenth
        found = figures_of(task, [(reference, candidate)])
        assert found.figures == {"agreement": 90.0, "iou": 80.0}

    def test_nothing_on_either_side(self) -> None:
        off = np.full((1, 4, 4), -3.0)
        figures = figures_of(TASKS["edge"], [(off, off)]).figures
        assert figures["agreement"] == 100 and math.isnan(figures["iou"])

    def test_depth(self) -> None:
        reference = np.full((1, 10, 10), 2.0)
        reference[0, 0] = 1e-6  # too near to count
        candidate = reference * 1.03
        candidate[0, 5, 5] = 3.0
        figures = figures_of(TASKS["depth"], [(reference, candidate)]).figures
        assert figures["depth"] == pytest.approx((89 * 3 + 50) / 90, rel=1e-5)
        assert figures["depth_max"] == pytest.approx(50, rel=1e-6)

    @pytest.mark.parametrize("degrees", [1e-4, 0.5, 60.0, 179.0])
    def test_normals(self, degrees: float) -> None:
        angle = math.radians(degrees)
        reference, candidate = np.zeros((3, 4, 4), np.float64), np.zeros((3, 4, 4), np.float64)
        reference[0], candidate[0], candidate[1] = 5.0, 0.3 * math.cos(angle), 0.3 * math.sin(angle)
        candidate[:, 0, 0] = 0  # no direction: does not count
        figures = figures_of(TASKS["normals"], [(reference, candidate)]).figures
        assert figures["angle"] == pytest.approx(degrees, rel=1e-4)
        assert figures["angle_max"] == pytest.approx(degrees, rel=1e-4)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_candidate_that_is_not_finite_fails_and_says_so(value: float) -> None:
    task = TASKS["depth"]
    good, bad = images(task, 0.0, count=2)
    bad[1][0, 3, 4] = value
    found = figures_of(task, [good, bad])
    assert not found.passed and found.not_finite == 1 and found.worst == "image 1"
    assert found.max_abs == 0  # of the image that counts
    assert Parity(images=2, tasks=(found,)).failures() == "depth (1 values are NaN or infinite)"
    only = figures_of(task, [bad])
    assert math.isnan(only.max_abs) and not only.passed and only.to_dict()["max_abs"] is None


@pytest.mark.parametrize("name", ["semseg", "depth"])
def test_batches_of_predictions(name: str) -> None:
    """Other tasks than those with a tolerance do not count; what was not finite once fails for good."""
    task = TASKS[name]
    good = np.stack([reference for reference, _ in images(task, 0.0, count=2)])
    lost = np.full_like(good, np.nan)  # the arg max of NaN is class 0, too
    rows = tolerances("fp16", (task,))
    whole = compare_predictions(
        TASKS.values(), [{name: good, "flow": lost}] * 2, [{name: good, "flow": lost}] * 2, rows
    )
    assert whole.passed and whole.images == 4 and [each.task for each in whole.tasks] == [task]
    assert whole.tasks[0].cost == {FIGURE_OF[task.kind]: 100.0 if name == "semseg" else 0.0, "rms": 0.0}
    broken = compare_predictions([task], [{name: good}] * 2, [{name: lost}, {name: good}], rows)
    assert not broken.passed and all(math.isnan(value) for value in broken.tasks[0].cost.values())


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_the_tolerance_that_would_have_been_needed(task: Task) -> None:
    pairs = images(task, 0.2)
    needed = {check.figure: check.needed for check in figures_of(task, pairs).checks}
    statistics = Statistics(task)
    for reference, candidate in pairs:
        statistics.add("image", reference, candidate)
    exact = tolerances("fp32", (task,), tuple(Override(figure=f, value=v) for f, v in needed.items()))[task.name]
    assert statistics.result(exact).passed
    for figure in needed:
        tighter = 100 - (100 - needed[figure]) * 0.98 if figure in AT_LEAST else needed[figure] * 0.98
        values = {**needed, figure: tighter}
        row = tolerances("fp32", (task,), tuple(Override(figure=f, value=v) for f, v in values.items()))[task.name]
        failed = [check.figure for check in statistics.result(row).checks if not check.passed]
        assert failed == [figure]


class TestTolerances:
    def test_rows_grow_with_the_roundoff(self) -> None:
        rows = [TOLERANCES[name] for name in ("fp32", "tf32", "fp16", "bf16", "int8")]
        for tight, loose in zip(rows, rows[1:], strict=False):
            assert tight.difference < loose.difference and tight.angle <= loose.angle
            assert tight.agreement >= loose.agreement and tight.depth <= loose.depth
        assert all(row.reason for row in rows)

    def test_an_export_is_held_to_what_it_was_exported_with(self) -> None:
        verify = pytest.importorskip("mtmamba.export.verify", reason="PyTorch is not installed (mtmamba[model])")
        assert TOLERANCES["fp32"].difference == verify.TOLERANCE

    def test_the_documentation_has_the_same_numbers(self) -> None:
        text = (Path(__file__).parents[2] / "docs" / "parity.md").read_text(encoding="utf-8")
        for name, row in TOLERANCES.items():
            numbers = f"{row.difference:g} | {row.agreement:g} % | {row.depth:g} % | {row.angle:g}°"
            assert f"| {name} | {numbers} |" in text

    def test_a_task_comes_before_all_tasks(self) -> None:
        given = tuple(Override.parse(text) for text in ("depth.difference=0.5", "difference=0.25", "angle=7"))
        found = tolerances("fp16", tuple(TASKS.values()), given)
        assert (found["depth"].difference, found["edge"].difference, found["normals"].angle) == (0.5, 0.25, 7)
        assert found["depth"].depth == TOLERANCES["fp16"].depth

    @pytest.mark.parametrize(
        "text", ["foo=1", "difference", "difference=-1", "difference=nan", ".angle=1", "angle=inf"]
    )
    def test_what_is_no_tolerance(self, text: str) -> None:
        with pytest.raises(MtmError, match="expected \\[TASK.\\]FIGURE=VALUE"):
            Override.parse(text)

    @pytest.mark.parametrize(
        ("text", "sentence"),
        [
            ("flow.difference=1", "tolerance of task 'flow'"),
            ("depth.angle=1", "depth is judged by difference and depth"),
        ],
    )
    def test_what_fits_no_task(self, text: str, sentence: str) -> None:
        with pytest.raises(MtmError, match=sentence):
            tolerances("fp32", tuple(TASKS.values()), (Override.parse(text),))

    def test_every_kind_is_judged(self) -> None:
        assert {task.kind for data in ("synthetic", "cityscapes") for task in dataset(data).tasks} == set(FIGURE_OF)


def break_task(path: Path, name: str, factor: float) -> Path:
    """A copy of a toy model whose weights of one task are multiplied."""
    model = onnx.load(str(path))
    for tensor in model.graph.initializer:
        if tensor.name == f"{name}.w":
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(factor), tensor.name))
    target = path.with_name(f"broken_{name}.onnx")
    onnx.save(model, str(target))
    return target


def run(one: Path, other: Path, frames: Iterator[Frame], **options: Any) -> Parity:
    with open_backend(one) as reference, open_backend(other) as candidate:
        limits = tolerances("fp32", options.pop("tasks", candidate.metadata.tasks))
        return compare(reference, candidate, frames, tolerances=limits, **options)


def test_a_model_is_itself(toy_onnx: Path) -> None:
    parity = run(toy_onnx, toy_onnx, random_frames((30, 50), 3))
    assert parity.passed and parity.images == 3 and not parity.failures()
    assert [task.task.name for task in parity.tasks] == list(TASKS)
    assert all(task.max_abs == 0 and task.cosine == pytest.approx(1) for task in parity.tasks)


@pytest.mark.parametrize("name", TASKS)
def test_the_task_that_is_broken_fails_and_no_other(toy_onnx: Path, name: str) -> None:
    parity = run(toy_onnx, break_task(toy_onnx, name, 1.01), random_frames((48, 64), 2))
    assert [task.task.name for task in parity.tasks if not task.passed] == [name]
    assert parity.failures().startswith(f"{name} (difference ")


def test_batches_of_different_sizes(tmp_path: Path, make_toy: Callable[..., Path]) -> None:
    one, three = make_toy(tmp_path / "one.onnx"), make_toy(tmp_path / "three.onnx", batch=3)
    for left, right in ((one, three), (three, one)):
        parity = run(left, right, random_frames((48, 64), 4))
        assert parity.images == 4 and parity.passed


def test_models_of_different_sizes(tmp_path: Path, make_toy: Callable[..., Path]) -> None:
    one, other = make_toy(tmp_path / "one.onnx"), make_toy(tmp_path / "other.onnx", size=(32, 32))
    with pytest.raises(MtmError, match="expected two models of one size, found .*one.onnx of 48x64 .* of 32x32"):
        run(one, other, random_frames((48, 64), 1))


def test_a_task_the_reference_lacks(toy_onnx: Path) -> None:
    with open_backend(toy_onnx) as reference, open_backend(toy_onnx) as candidate:
        limits = {**tolerances("fp32", candidate.metadata.tasks), "flow": ANYTHING}
        with pytest.raises(MtmError, match="has no task flow"):
            compare(reference, candidate, random_frames((48, 64), 1), tolerances=limits)


def test_a_reference_that_is_not_finite(toy_onnx: Path) -> None:
    with pytest.raises(MtmError, match=r"the reference's depth of random_000 holds NaN or infinite values"):
        run(break_task(toy_onnx, "depth", math.inf), toy_onnx, random_frames((48, 64), 1))


def test_no_image_is_no_pass(toy_onnx: Path) -> None:
    with pytest.raises(MtmError, match="expected at least one image"):
        run(toy_onnx, toy_onnx, iter(()))


def test_memory_does_not_grow_with_the_images(toy_onnx: Path) -> None:
    alive: list[weakref.ref[Frame]] = []
    most = 0

    def frames() -> Iterator[Frame]:
        nonlocal most
        for index in range(12):
            most = max(most, sum(reference() is not None for reference in alive))
            frame = next(random_frames((48, 64), 1, seed=index))
            alive.append(weakref.ref(frame))
            yield frame
            del frame

    assert run(toy_onnx, toy_onnx, frames()).images == 12
    assert most <= 2


def test_random_images_are_the_seeds() -> None:
    first, again, other = (next(random_frames((20, 33), 1, seed=seed)).image for seed in (1, 1, 2))
    assert first.shape == (20, 33, 3) and first.dtype == np.uint8
    assert (first == again).all() and (first != other).any()
    assert 40 < first.std() < 100  # neither flat nor clipped


def test_worst_images_are_announced_as_they_come(toy_onnx: Path) -> None:
    seen: dict[str, list[str]] = {}
    on_worst = lambda task, frame, r, c: seen.setdefault(task.name, []).append(frame.name)  # noqa: E731
    parity = run(toy_onnx, break_task(toy_onnx, "sal", 1.5), random_frames((48, 64), 5), on_worst=on_worst)
    worst = {task.task.name: task.worst for task in parity.tasks}
    assert {name: names[-1] for name, names in seen.items()} == worst
