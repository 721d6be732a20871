"""Whole runs: resume is exact, a kill while writing loses nothing, two processes equal one, what is written."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch
from torch import Tensor

from mtmamba.checkpoint import load_checkpoint, read_content
from mtmamba.config import preset
from mtmamba.data.synthetic import SyntheticScenes
from mtmamba.errors import MtmError
from mtmamba.metrics import meter_for
from mtmamba.model import MTMamba
from mtmamba.signals import TWICE_S
from mtmamba.tasks import dataset
from mtmamba.train.engine import Step
from mtmamba.train.plan import Plan
from mtmamba.train.recipe import Recipe
from mtmamba.train.run import stop_requests, train
from mtmamba.train.score import constant_figures, evaluate, mean_skill, skill
from mtmamba.train.state import read_state

ROOT = Path(__file__).parents[2]
TASKS = dataset("synthetic").tasks
RECIPE = {"sizes": ((16, 24),), "iterations": 6, "batch": 2, "scenes": 5, "lr": 2e-3, "ema": 0.9}


def plan_of(folder: Path, *, recipe: dict[str, Any] | None = None, drop_path: float = 0.2, **changes: Any) -> Plan:
    """Six iterations of a nano model with stochastic depth on five scenes."""
    config = replace(preset("synthetic", "nano"), input_size=(16, 24), drop_path_decoder=drop_path)
    values: dict[str, Any] = {"eval_items": 1, "save_every": 2, "eval_every": 4, "device": "cpu", **changes}
    folder_and_file = {"folder": folder, "checkpoint": folder / "best.pth"}
    return Plan(
        config=config, encoder="nano", recipe=Recipe(**{**RECIPE, **(recipe or {})}), **folder_and_file, **values
    )


class BrokenOffError(Exception):
    pass


def run(plan: Plan, stop_after: int = 100) -> list[Step]:
    """The steps of a run, broken off, without saving, by an error after some."""
    steps: list[Step] = []

    def on_step(step: Step) -> None:
        steps.append(step)
        if step.iteration == stop_after:
            raise BrokenOffError

    with suppress(BrokenOffError):
        train(plan, on_step)
    return steps


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Step], Path]:
    """A run from start to end, and its folder."""
    folder = tmp_path_factory.mktemp("straight")
    return run(plan_of(folder)), folder


def same_tensors(one: Any, two: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same_tensors(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(same_tensors(a, b) for a, b in zip(one, two, strict=True))
    return bool(one == two)


def assert_same_end(one: Path, two: Path) -> None:
    """The states of two runs are equal bit for bit, but for the clock."""
    first, second = (read_content(folder / "last.pth") for folder in (one, two))
    for content in (first, second):
        content["training"].pop("seconds")
        content["extra"]["best"].pop("seconds")
    assert same_tensors(first, second)


def test_resume_is_exact(straight: tuple[list[Step], Path], tmp_path: Path) -> None:
    """Broken off after the fifth step, it goes on from the fourth (the last saved) as if nothing had happened."""
    steps, folder = straight
    first = run(plan_of(tmp_path), stop_after=5)
    rest = run(plan_of(tmp_path, resume=True))
    assert [step.iteration for step in rest] == [5, 6]
    assert first + rest[1:] == steps and rest[0] == first[-1]
    assert_same_end(folder, tmp_path)
    assert steps[0].losses != steps[3].losses


def test_a_finished_run_has_nothing_to_go_on_with(straight: tuple[list[Step], Path]) -> None:
    _, folder = straight
    before = (folder / "last.pth").stat().st_mtime_ns
    result = train(plan_of(folder, resume=True))
    assert result.iteration == 6 and result.last is None and result.best["iterations"] in (4, 6)
    assert (folder / "last.pth").stat().st_mtime_ns == before


def test_a_run_is_not_overwritten(straight: tuple[list[Step], Path]) -> None:
    with pytest.raises(MtmError, match="there is a run already; go on with it with --resume .* --overwrite"):
        run(plan_of(straight[1]))


def test_another_recipe_is_refused(straight: tuple[list[Step], Path]) -> None:
    sentence = r"this run was started otherwise \(batch: 2, now 1; lr: 0.002, now 0.5\)"
    with pytest.raises(MtmError, match=sentence):
        run(plan_of(straight[1], resume=True, recipe={"batch": 1, "lr": 0.5}))


def test_what_is_written(straight: tuple[list[Step], Path]) -> None:
    steps, folder = straight
    about = json.loads((folder / "best.json").read_text())
    assert set(about["metrics"]) == set(about["constant"]) == {task.name for task in TASKS}
    assert about["recipe"]["iterations"] == 6 and about["iterations"] in (4, 6)
    assert torch.load(folder / "best.pth", weights_only=True)["extra"] == about
    state = read_state(folder)
    assert (
        state.weights is not None
        and state.counters.iteration == 6
        and state.counters.best == pytest.approx(about["mean_skill"], abs=1e-4)
    )
    # The state is a checkpoint too, of the averaged weights.
    average = load_checkpoint(folder / "last.pth").state_dict()
    assert same_tensors(dict(average), state.model) and not same_tensors(state.model, state.weights)
    pages = sorted(path.name for path in (folder / "samples").iterdir())
    assert pages == sorted(f"{i:06d}-{task.name}.png" for i in (4, 6) for task in TASKS)
    page = cv2.imread(str(folder / "samples" / "000006-normals.png"))
    assert page.shape == (16, 3 * 24 + 8, 3) and page.std() > 10
    assert not [path for path in folder.iterdir() if ".part" in path.name]


def test_curves(straight: tuple[list[Step], Path]) -> None:
    steps, folder = straight
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="needs tensorboard")
    curves = events.EventAccumulator(str(folder / "tensorboard"))
    curves.Reload()
    losses = curves.Scalars("train/loss/depth")
    assert [(e.step, e.value) for e in losses] == [(s.iteration, pytest.approx(s.losses["depth"])) for s in steps]
    names = set(curves.Tags()["scalars"])
    assert {"train/loss", "train/lr", "train/grad_norm", "train/images_per_second", "val/mean_skill"} <= names
    assert {"val/semseg/mIoU", "val/normals/mErr"} <= names
    assert curves.Tags()["images"] == [f"samples/{task.name}" for task in TASKS]


CHILD = """
import os, sys, torch
from pathlib import Path
sys.path.insert(0, {here!r})
from test_train_run import plan_of, run
real, saves = torch.save, []
def half(content, path):
    real(content, path)
    saves.append(path)
    if len(saves) == 2:  # the second state: leave a half of it, and stay there
        os.truncate(path, os.path.getsize(path) // 2)
        print("writing", flush=True)
        import time; time.sleep(600)
torch.save = half
run(plan_of(Path({folder!r}), eval_every=100))
"""


def test_killed_while_writing(straight: tuple[list[Step], Path], tmp_path: Path) -> None:
    """SIGKILL in the middle of the second state: the first one is whole, and the run ends as if it had not happened."""
    code = CHILD.format(here=str(Path(__file__).parent), folder=str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "writing\n"
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    leftovers = [path for path in tmp_path.iterdir() if ".part" in path.name]
    assert len(leftovers) == 1 and leftovers[0].stat().st_size > 10_000
    assert read_state(tmp_path).counters.iteration == 2
    rest = run(plan_of(tmp_path, resume=True))
    assert rest == straight[0][2:]
    assert_same_end(straight[1], tmp_path)
    assert not [path for path in tmp_path.iterdir() if ".part" in path.name]


@contextmanager
def full_disk() -> Iterator[None]:
    """No file can grow beyond 64 KiB, this process's output included where that is one."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 10, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_the_old_state(tmp_path: Path) -> None:
    run(plan_of(tmp_path, eval_every=100), stop_after=3)
    before = (tmp_path / "last.pth").read_bytes()
    with full_disk(), pytest.raises(MtmError, match="writing .*failed.* free space"):
        run(plan_of(tmp_path, resume=True, eval_every=100))
    assert (tmp_path / "last.pth").read_bytes() == before
    assert not [path for path in tmp_path.iterdir() if ".part" in path.name]


def test_a_signal_ends_the_run_after_the_step(straight: tuple[list[Step], Path], tmp_path: Path) -> None:
    def on_step(step: Step) -> None:
        if step.iteration == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    result = train(plan_of(tmp_path, save_every=100), on_step)
    assert result.interrupted and result.iteration == 3
    assert run(plan_of(tmp_path, resume=True)) == straight[0][3:]


def test_a_second_signal_is_raised() -> None:
    with stop_requests() as asked:
        assert not asked()
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # the same one, sent twice
        assert asked()
        time.sleep(TWICE_S + 0.1)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_damaged_states(tmp_path: Path, straight: tuple[list[Step], Path]) -> None:
    folder = straight[1]
    with pytest.raises(MtmError, match="expected the state of a training run, found a checkpoint without one"):
        read_state(folder / "best.pth")
    content = read_content(folder / "last.pth")
    torch.save({**content, "training": {**content["training"], "version": 1}}, tmp_path / "old.pth")
    with pytest.raises(MtmError, match="expected a training state of version 2, found version 1"):
        read_state(tmp_path / "old.pth")
    content["training"]["optimizer"]["param_groups"] = []
    torch.save(content, tmp_path / "last.pth")
    with pytest.raises(MtmError, match="the training state is damaged"):
        train(plan_of(tmp_path, resume=True))


def test_minutes_are_counted_by_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step every 6 s of a clock of the test's own: half a minute is five steps."""
    ticks = iter(range(0, 10_000, 6))
    monkeypatch.setattr("mtmamba.train.run.time.monotonic", lambda: next(ticks))
    result = train(plan_of(tmp_path, recipe={"iterations": None, "minutes": 0.5}, eval_every=None))
    assert result.iteration == 5 and result.seconds == 30


WORKER = """
import json, sys
from pathlib import Path
sys.path.insert(0, {here!r})
from test_train_run import plan_of, run
steps = run(plan_of(Path({folder!r}), recipe={recipe!r}, drop_path=0.0))
path = Path({folder!r}) / ("steps-" + __import__("os").environ["RANK"] + ".json")
path.write_text(json.dumps([[s.loss, s.grad_norm, *s.losses.values()] for s in steps]))
"""


def test_two_processes_equal_one_with_the_doubled_batch(tmp_path: Path) -> None:
    """gloo under torchrun, two images each, against four images in this process: losses, gradient norms and weights."""
    recipe = {"batch": 4, "iterations": 3, "sizes": ((32, 48),)}
    joint, split = tmp_path / "joint", tmp_path / "split"
    script = tmp_path / "worker.py"
    script.write_text(WORKER.format(here=str(Path(__file__).parent), folder=str(split), recipe=recipe))
    split.mkdir()
    one = run(plan_of(joint, recipe=recipe, drop_path=0.0))  # what is dropped is each process's own affair
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(torchrun, capture_output=True, text=True, check=False, env=one_thread, timeout=300)
    assert result.returncode == 0, result.stderr[-2000:]
    expected = [[s.loss, s.grad_norm, *s.losses.values()] for s in one]
    for rank in (0, 1):
        found = json.loads((split / f"steps-{rank}.json").read_text())
        assert len(found) == 3
        for step, ((loss, norm, *losses), theirs) in enumerate(zip(found, expected, strict=True)):
            assert [loss, *losses] == pytest.approx([theirs[0], *theirs[2:]], rel=2e-5, abs=1e-6)
            # AdamW makes whole steps of gradients that are only rounding: from the second step on the norm differs more.
            assert norm == pytest.approx(theirs[1], rel=2e-3 if step else 2e-5)
    weights = [read_content(folder / "last.pth")["model"] for folder in (joint, split)]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-3, atol=2e-4, msg=name)


def test_skill() -> None:
    depth, semseg = (next(task for task in TASKS if task.name == name) for name in ("depth", "semseg"))
    assert skill(depth, 0.25, 1.0) == 0.75 and skill(depth, 1.5, 1.0) == -0.5
    assert skill(semseg, 40.0, 20.0) == 0.25
    ours, constant = (
        {"depth": {"RMSE": 0.5}, "semseg": {"mIoU": 40.0}},
        {"depth": {"RMSE": 1.0}, "semseg": {"mIoU": 20.0}},
    )
    assert mean_skill((depth, semseg), ours, constant) == pytest.approx((0.5 + 0.25) / 2)
    ours["semseg"]["mIoU"] = float("nan")
    assert mean_skill((depth, semseg), ours, constant) == pytest.approx(0.5)


def test_evaluation_does_not_depend_on_the_batch() -> None:
    torch.manual_seed(0)
    model = MTMamba(preset("synthetic", "nano"))
    scenes = SyntheticScenes(3, (32, 40), seed=2**31)
    ours, again = (evaluate(model, scenes, batch=batch) for batch in (1, 2))
    constant, constant_again = (constant_figures(scenes, batch=batch) for batch in (1, 2))
    for task in TASKS:
        assert ours[task.name] == pytest.approx(again[task.name], rel=1e-4)
        assert constant[task.name] == pytest.approx(constant_again[task.name], rel=1e-9)


MODEL = ROOT / "models" / "nano-synthetic.pth"
MARGINS = {"semseg": 0.03, "human_parts": 0.03, "sal": 0.25, "depth": 0.1, "normals": 0.35, "edge": 0.25}
"""Least skill (0: the best constant, 1: perfect) on every task; what was measured is in the checkpoint's .json."""


@pytest.mark.skipif(not MODEL.exists(), reason="models/nano-synthetic.pth is not in this checkout")
@pytest.mark.parametrize("size", [(96, 128), (192, 256)])
def test_the_trained_model_beats_every_constant(size: tuple[int, int]) -> None:
    """The demo's checkpoint on 32 scenes it has not seen, at the size it was trained at and at twice that, where it need
    only beat the constants."""
    assert MODEL.stat().st_size < 8 << 20
    count = 32 if size == (96, 128) else 8
    scenes = SyntheticScenes(count, size, seed=2**31)
    ours, constant = evaluate(load_checkpoint(MODEL), scenes, batch=4), constant_figures(scenes)
    for task in TASKS:
        headline = meter_for(task).headline
        found = skill(task, ours[task.name][headline], constant[task.name][headline])
        least = MARGINS[task.name] if size == (96, 128) else 0.0
        assert found > least, f"{task.name}: skill {found:.3f}"
