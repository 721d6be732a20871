"""A training step: it learns, clips, averages, accumulates, and runs in bfloat16; the priors that heads start from."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from mtmamba.config import preset
from mtmamba.data.synthetic import SyntheticScenes
from mtmamba.errors import MtmError
from mtmamba.losses import task_losses, total_loss
from mtmamba.model import MTMamba
from mtmamba.tasks import dataset
from mtmamba.train.engine import Trainer, launch, start_from_priors
from mtmamba.train.recipe import Recipe

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
    return Recipe(**{"sizes": (SIZE,), "batch": 2, "lr": 1e-2, "iterations": 4, **changes})


def trainer_of(model: nn.Module, **changes: Any) -> Trainer:
    plan = recipe(**changes)
    return Trainer(launch(plan, "cpu"), model, TASKS, plan)


def small_trainer(**changes: Any) -> Trainer:
    torch.manual_seed(0)
    return trainer_of(SmallNet(), **changes)


@pytest.fixture(scope="module")
def batch() -> dict[str, Tensor]:
    scenes = SyntheticScenes(2, SIZE, seed=3)
    return default_collate([scenes[0], scenes[1]])


def gradients(model: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("loss", ["log", "sum"])
def test_steps_on_one_batch_lower_every_loss(batch: dict[str, Tensor], loss: str) -> None:
    trainer = small_trainer(loss=loss)
    steps = [trainer.step([batch], 0.0) for _ in range(60)]
    assert steps[-1].loss < steps[0].loss
    for name, first in steps[0].losses.items():
        assert steps[-1].losses[name] < first, name


def test_the_total_is_what_the_recipe_says(batch: dict[str, Tensor]) -> None:
    weights = {"edge": 50.0, "normals": 10.0}
    trainer = small_trainer(loss="sum", loss_weights=weights)
    step = trainer.step([batch], 0.0)
    by_hand = sum(weights.get(name, 1.0) * value for name, value in step.losses.items())
    assert step.loss == pytest.approx(by_hand, rel=1e-6)


@pytest.mark.parametrize("variant", ["mtmamba", "mtmamba++"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_models_learn_a_batch(batch: dict[str, Tensor], variant: str, precision: str) -> None:
    torch.manual_seed(0)
    config = preset("synthetic", "nano", variant=variant)
    trainer = trainer_of(MTMamba(config), lr=4e-3, precision=precision, recompute=precision == "bf16")
    steps = [trainer.step([batch], 0.0) for _ in range(5)]
    assert steps[-1].loss < steps[0].loss - 0.5
    assert all(p.dtype == torch.float32 for p in trainer.module.parameters())


def test_bf16_rounds_and_stays_near(batch: dict[str, Tensor]) -> None:
    """The first step's losses differ from float32's, by no more than bfloat16's three digits."""
    config = preset("synthetic", "nano")
    losses = []
    for precision in ("fp32", "bf16"):
        torch.manual_seed(0)
        losses.append(trainer_of(MTMamba(config), precision=precision).step([batch], 0.0).losses)
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.03)


def test_random_draws_are_of_the_seed_and_the_iteration(batch: dict[str, Tensor]) -> None:
    """With weights that stand still, steps drop other paths each, and another trainer the same ones again."""
    config = replace(preset("synthetic", "nano", tasks=("depth",)), drop_path_decoder=0.5)
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(0)
        plan = recipe(lr=1e-30, seed=seed)
        trainer = Trainer(launch(plan, "cpu"), MTMamba(config), config.task_list, plan)
        found.append([trainer.step([batch], 0.0).loss for _ in range(3)])
    assert found[0] == found[1] and len({*found[0], *found[2]}) == 6


def test_recomputing_changes_no_number(batch: dict[str, Tensor]) -> None:
    config = preset("synthetic", "nano", tasks=("semseg", "depth"))
    found = []
    for recompute in (False, True):
        torch.manual_seed(0)
        plan = recipe(recompute=recompute)
        trainer = Trainer(launch(plan, "cpu"), MTMamba(config), config.task_list, plan)
        found.append((trainer.step([batch], 0.0), gradients(trainer.module)))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(a, b) for a, b in zip(found[0][1], found[1][1], strict=True))


def test_gradients_are_clipped_before_the_step(batch: dict[str, Tensor]) -> None:
    loose, tight = small_trainer(clip_norm=1e9), small_trainer(clip_norm=1e-3)
    free, clipped = loose.step([batch], 0.0), tight.step([batch], 0.0)
    assert clipped.grad_norm == free.grad_norm > 1e-2, "the norm is reported as it was before clipping"
    norm = torch.stack([g.norm() for g in gradients(loose.module)]).norm().item()
    assert norm == pytest.approx(free.grad_norm, rel=1e-5)
    for ours, theirs in zip(gradients(tight.module), gradients(loose.module), strict=True):
        torch.testing.assert_close(ours, theirs * (1e-3 / free.grad_norm), rtol=1e-3, atol=1e-9)
    # AdamW's first moment saw the clipped ones.
    moments = [state["exp_avg"] for state in tight.optimizer.state_dict()["state"].values()]
    assert torch.stack([m.norm() for m in moments]).norm().item() == pytest.approx(1e-4, rel=1e-2)


def test_the_average_follows_its_formula(batch: dict[str, Tensor]) -> None:
    trainer = small_trainer(ema=0.3)  # below the warm-up's decay from the third step on
    name, expected = "body.bias", None
    for k in range(5):
        trainer.step([batch], 0.0)
        now = trainer.module.state_dict()[name].clone()
        decay = 0.0 if k == 0 else min(0.3, 1 - (1 + k) ** (-2 / 3))
        expected = now if expected is None else decay * expected + (1 - decay) * now
        torch.testing.assert_close(trainer.weights.state_dict()[name], expected)
    assert trainer.weights is not trainer.module
    assert small_trainer(ema=0.0).weights is not None
    plain = small_trainer()
    assert plain.weights is plain.module


def test_parts_of_a_batch_give_the_mean_of_their_gradients(batch: dict[str, Tensor]) -> None:
    parts = [{name: value[i : i + 1] for name, value in batch.items()} for i in range(2)]
    trainer = small_trainer(accumulate=2, clip_norm=1e9)
    step = trainer.step(parts, 0.0)
    reference = small_trainer().module
    totals = [total_loss(task_losses(TASKS, reference(part["image"]), part)) for part in parts]
    torch.stack(totals).mean().backward()
    assert step.loss == pytest.approx(sum(t.item() for t in totals) / 2, rel=1e-6)
    for ours, theirs in zip(gradients(trainer.module), gradients(reference), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_heads_start_from_what_is_likely(batch: dict[str, Tensor]) -> None:
    torch.manual_seed(0)
    model = MTMamba(preset("synthetic", "nano"))

    def bias_of(name: str) -> Tensor:
        return model.heads[name].get_parameter("project.bias")

    with torch.no_grad():
        before = task_losses(TASKS, model(batch["image"]), batch)
        start_from_priors(model.heads, TASKS, batch)
        after = task_losses(TASKS, model(batch["image"]), batch)
    assert all(after[name] < before[name] for name in ("semseg", "human_parts", "depth", "normals", "edge"))
    frequency = batch["semseg"].long().flatten().bincount(minlength=40) / batch["semseg"].numel()
    torch.testing.assert_close(bias_of("semseg").exp(), frequency + 1e-3)
    assert bias_of("depth").item() == pytest.approx(batch["depth"].mean().item(), rel=1e-5)
    nothing = {name: torch.full_like(label, 255) for name, label in batch.items()} | {
        name: torch.zeros_like(batch[name]) for name in ("depth", "normals")
    }
    start_from_priors(model.heads, TASKS, nothing)
    assert bias_of("depth").item() == pytest.approx(batch["depth"].mean().item(), rel=1e-5)


def test_divergence_is_said_and_changes_nothing(batch: dict[str, Tensor]) -> None:
    trainer = small_trainer()
    broken = {**batch, "image": batch["image"] * float("nan")}
    before = [p.clone() for p in trainer.module.parameters()]
    with pytest.raises(MtmError, match="training diverged at iteration 0 .*choose a smaller --lr"):
        trainer.step([broken], 0.0)
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.module.parameters(), strict=True))


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(MtmError, match="choose --device cpu"):
        launch(recipe(), "cuda")
