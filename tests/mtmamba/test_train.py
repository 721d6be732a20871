"""Training: it learns, it is repeatable, its schedule, clipping and clock do what they say; the command's errors."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn
from torch.utils.data import default_collate

from mtmamba.checkpoint import load_checkpoint
from mtmamba.config import preset
from mtmamba.data.synthetic import SyntheticScenes
from mtmamba.errors import MtmError
from mtmamba.losses import task_losses
from mtmamba.model import MTMamba
from mtmamba.tasks import dataset
from mtmamba.train import (
    HELD_OUT_SEED,
    Recipe,
    Step,
    Trainer,
    evaluate,
    held_out_scenes,
    learning_rate,
    run_steps,
    start_from_priors,
    train,
)
from mtmamba.train_cli import main

TASKS = dataset("synthetic").tasks
SIZE = (32, 40)


class SmallNet(nn.Module):
    """The model's interface in two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 16, 5, padding=2)
        self.heads = nn.ModuleDict({task.name: nn.Conv2d(16, task.channels, 1) for task in TASKS})

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        x = self.body(image).relu()
        return {name: head(x) for name, head in self.heads.items()}


def recipe(**changes: Any) -> Recipe:
    return Recipe(**{"size": SIZE, "batch": 2, "lr": 1e-2, "iterations": 4, **changes})


@pytest.fixture(scope="module")
def batch() -> dict[str, Tensor]:
    scenes = SyntheticScenes(2, SIZE, seed=3)
    return default_collate([scenes[0], scenes[1]])


def small_trainer(**changes: Any) -> Trainer:
    torch.manual_seed(0)
    return Trainer(SmallNet(), TASKS, recipe(**changes))


@pytest.mark.parametrize("combine", ["log", "sum"])
def test_steps_on_one_batch_lower_every_loss(batch: dict[str, Tensor], combine: str) -> None:
    trainer = small_trainer(combine=combine)
    steps = [trainer.step(batch, 0.0) for _ in range(60)]
    assert steps[-1].loss < steps[0].loss
    for name, first in steps[0].losses.items():
        assert steps[-1].losses[name] < first, name


def test_the_model_itself_learns_a_batch(batch: dict[str, Tensor]) -> None:
    torch.manual_seed(0)
    config = preset("synthetic", "nano")
    trainer = Trainer(MTMamba(config), config.task_list, recipe(lr=2e-3))
    steps = [trainer.step(batch, 0.0) for _ in range(8)]
    assert steps[-1].loss < steps[0].loss - 1
    assert steps[-1].iteration == 8


def test_heads_start_from_what_is_likely(batch: dict[str, Tensor]) -> None:
    torch.manual_seed(0)
    config = preset("synthetic", "nano")
    model = MTMamba(config)

    def bias_of(name: str) -> Tensor:
        return model.heads[name].get_parameter("project.bias")

    with torch.no_grad():
        before = task_losses(TASKS, model(batch["image"]), batch)
        start_from_priors(model, TASKS, batch)
        after = task_losses(TASKS, model(batch["image"]), batch)
    assert all(after[name] < before[name] for name in ("semseg", "human_parts", "depth", "normals", "edge"))
    frequency = batch["semseg"].long().flatten().bincount(minlength=40) / batch["semseg"].numel()
    torch.testing.assert_close(bias_of("semseg").exp(), frequency + 1e-3)
    assert bias_of("depth").item() == pytest.approx(batch["depth"].mean().item(), rel=1e-5)
    nothing = {name: torch.full_like(label, 255) for name, label in batch.items()} | {
        name: torch.zeros_like(batch[name]) for name in ("depth", "normals")
    }
    start_from_priors(model, TASKS, nothing)
    assert bias_of("depth").item() == pytest.approx(batch["depth"].mean().item(), rel=1e-5)


def test_same_recipe_same_weights() -> None:
    config = preset("synthetic", "nano")
    short = Recipe(size=(16, 24), batch=1, lr=1e-3, iterations=2)
    (one, last_one), (two, last_two) = train(config, short), train(config, short)
    assert last_one == last_two
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    other, _ = train(config, Recipe(size=(16, 24), batch=1, lr=1e-3, iterations=2, seed=1))
    assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_schedule() -> None:
    plain = recipe(lr=1.0)
    assert [learning_rate(plain, x) for x in (0, 0.5, 1)] == pytest.approx([1, 0.5**0.9, 0])
    risen = recipe(lr=1.0, warmup=0.1)
    assert 0 < learning_rate(risen, 0) < 0.02
    assert learning_rate(risen, 0.05) == pytest.approx(0.51 * 0.95**0.9)
    assert learning_rate(risen, 0.2) == pytest.approx(0.8**0.9)


def test_gradients_are_clipped(batch: dict[str, Tensor]) -> None:
    trainer = small_trainer(clip_norm=1e-3)
    assert trainer.step(batch, 0.0).grad_norm > 1e-3
    norm = torch.stack([p.grad.norm() for p in trainer.model.parameters() if p.grad is not None]).norm()
    assert norm.item() == pytest.approx(1e-3, rel=1e-3)


def test_divergence_is_said(batch: dict[str, Tensor]) -> None:
    trainer = small_trainer()
    with torch.no_grad():
        next(trainer.model.parameters()).fill_(float("nan"))
    with pytest.raises(MtmError, match="training diverged at iteration 0 .*choose a smaller --lr"):
        trainer.step(batch, 0.0)


def test_run_counts_iterations_and_progress(batch: dict[str, Tensor]) -> None:
    seen: list[Step] = []
    last = run_steps(small_trainer(iterations=3), iter([batch] * 3), seen.append)
    assert [step.iteration for step in seen] == [1, 2, 3] and seen[-1] == last
    assert [step.progress for step in seen] == pytest.approx([0, 1 / 3, 2 / 3])


def test_run_by_the_clock(batch: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """A step every 6 s of a clock of the test's own: half a minute is five steps."""
    ticks = iter(range(0, 1000, 6))
    monkeypatch.setattr("mtmamba.train.time.monotonic", lambda: next(ticks))

    def endless() -> Iterator[dict[str, Tensor]]:
        while True:
            yield batch

    assert run_steps(small_trainer(iterations=None, minutes=0.5), endless()).iteration == 5


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"minutes": 1.0}, "either a number of iterations or of minutes"),
        ({"iterations": None}, "either a number of iterations or of minutes"),
        ({"lr": 0.0}, "more than 0 of lr"),
        ({"batch": 0}, "more than 0 of batch"),
        ({"seed": HELD_OUT_SEED}, "held out"),
    ],
)
def test_recipes_that_make_no_run(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(MtmError, match=sentence):
        recipe(**changes)


def test_other_datasets_are_refused() -> None:
    with pytest.raises(MtmError, match="this version trains on no other"):
        train(preset("nyudv2", "nano"), recipe())


def test_evaluation_does_not_depend_on_the_batch() -> None:
    torch.manual_seed(0)
    model = SmallNet()
    scenes = held_out_scenes(3, SIZE)
    (ours, constant), (again, constant_again) = evaluate(model, TASKS, scenes, 1), evaluate(model, TASKS, scenes, 2)
    for task in TASKS:
        assert ours[task.name] == pytest.approx(again[task.name], rel=1e-4)
        assert constant[task.name] == pytest.approx(constant_again[task.name], rel=1e-9)


def run(*options: str) -> Any:
    return CliRunner().invoke(main, list(options))


def test_command_writes_a_checkpoint_with_its_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mtmamba.train.torch.set_num_threads", lambda threads: None)
    output = tmp_path / "new" / "best.pth"
    options = ["--iterations", "2", "--batch", "1", "--size", "16x24", "--eval-scenes", "2", "--workers", "0"]
    result = run(*options, "--output", str(output), "--json")
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    assert printed["iterations"] == 2 and set(printed["metrics"]) == {task.name for task in TASKS}
    assert set(printed["constant"]) == set(printed["metrics"])
    model = load_checkpoint(output)
    assert set(model(torch.zeros(1, 3, 32, 32))) == set(printed["metrics"])
    extra = torch.load(output, weights_only=True)["extra"]
    assert extra["metrics"] == printed["metrics"]
    assert not result.stderr, "quiet in a pipe"
    assert [path.name for path in output.parent.iterdir()] == ["best.pth"]


@pytest.mark.parametrize("size", ["96", "96x", "ax128", "4x128", "96x128x3", "-96x128"])
def test_bad_size(size: str, tmp_path: Path) -> None:
    result = run(f"--size={size}", "--output", str(tmp_path / "best.pth"))
    assert result.exit_code == 2
    assert "expected HEIGHTxWIDTH of at least 8 pixels" in result.stderr


def test_iterations_and_minutes() -> None:
    result = run("--iterations", "3", "--minutes", "1")
    assert result.exit_code == 2 and "not both" in result.stderr


@pytest.mark.parametrize(
    "option", ["--iterations=0", "--minutes=0", "--batch=0", "--lr=0", "--seed=-1", "--data=x", "--preset=x"]
)
def test_bad_options(option: str) -> None:
    result = run(option)
    assert result.exit_code == 2 and "Invalid value" in result.stderr


def test_unwritable_output(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    result = run("--output", str(tmp_path / "file" / "best.pth"))
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ") and "choose another output with --output" in result.stderr
    result = run("--output", str(tmp_path))
    assert result.exit_code == 1 and "found a folder" in result.stderr
    result = run("--output", str(tmp_path), "--json")
    assert result.exit_code == 1 and "found a folder" in json.loads(result.stdout)["error"]
