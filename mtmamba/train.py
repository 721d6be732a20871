"""Training and held-out evaluation of a model on synthetic scenes, on one device.

A run is a `Recipe`: how long (iterations or minutes), how large, how fast it learns. With iterations everything is
decided by the recipe, seed included: the same recipe gives the same weights on the same machine and thread count.
"""

import logging
import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from mtmamba.config import ModelConfig
from mtmamba.data.labels import valid_pixels
from mtmamba.data.synthetic import SyntheticScenes
from mtmamba.errors import MtmError
from mtmamba.losses import EDGE_POSITIVE_WEIGHT, Combine, task_losses, total_loss
from mtmamba.metrics import Scoreboard, constant_baseline
from mtmamba.model import MTMamba
from mtmamba.tasks import Task

log = logging.getLogger(__name__)

HELD_OUT_SEED = 2**31
"""Evaluation scenes have this seed; training seeds are smaller, so that no scene is in both."""

PAPER_LR = 1e-4  # for encoders that come pretrained
NANO_LR = 4e-3  # from scratch
PRIOR_SCENES = 32  # whose labels the heads start from

Batch = dict[str, Tensor]
Figures = dict[str, dict[str, float]]  # task -> figure -> value
OnStep = Callable[["Step"], None]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train. Exactly one of `iterations` and `minutes` is given.

    size: (height, width) in pixels of the training scenes. lr: AdamW's at the start; it falls as (1 -
    progress)^power, where progress is the share of the iterations or minutes spent, after a linear rise over the
    first `warmup` of it. clip_norm: gradients are scaled down to this norm. combine: `log` or `sum` of the tasks'
    losses. workers: processes that render scenes beside the training one; 0 renders in it. Raises MtmError for values
    that make no run.
    """

    size: tuple[int, int]
    batch: int
    lr: float
    iterations: int | None = None
    minutes: float | None = None
    seed: int = 0
    weight_decay: float = 1e-5
    power: float = 0.9
    warmup: float = 0.0
    clip_norm: float = 10.0
    combine: Combine = "log"
    workers: int = 0

    def __post_init__(self) -> None:
        if (self.iterations is None) == (self.minutes is None):
            raise MtmError(
                "expected either a number of iterations or of minutes; give --iterations or --minutes, not both"
            )
        wrong = [
            name
            for name, value in asdict(self).items()
            if name in ("iterations", "minutes", "batch", "lr", "clip_norm") and value is not None and not value > 0
        ]
        if wrong or self.workers < 0:
            raise MtmError(f"expected more than 0 of {', '.join(wrong) or 'workers'}; choose another value")
        if not 0 <= self.seed < HELD_OUT_SEED:
            raise MtmError(f"expected a seed of 0 to {HELD_OUT_SEED - 1}, found {self.seed}; larger ones are held out")


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one training step reports. progress: share of the run done, 0..1; grad_norm: before clipping."""

    iteration: int
    progress: float
    loss: float
    losses: dict[str, float]
    grad_norm: float
    lr: float


def learning_rate(recipe: Recipe, progress: float) -> float:
    """The rate at this share of the run."""
    rise = min(1.0, (progress + 1e-3) / recipe.warmup) if recipe.warmup else 1.0
    return recipe.lr * rise * (1 - min(progress, 1.0)) ** recipe.power


class Trainer:
    """Model and optimiser; one `step` a batch."""

    def __init__(self, model: nn.Module, tasks: Sequence[Task], recipe: Recipe) -> None:
        self.model, self.tasks, self.recipe = model, tuple(tasks), recipe
        # Biases, norms and the scan's own parameters decay too, as in the published recipe.
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
        self.iteration = 0

    def step(self, batch: Batch, progress: float) -> Step:
        """Train on one batch at this share of the run. Raises MtmError where loss or gradients are no longer finite."""
        self.model.train()
        lr = learning_rate(self.recipe, progress)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        losses = task_losses(self.tasks, self.model(batch["image"]), batch)
        total = total_loss(losses, self.recipe.combine)
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_norm).item()
        values = {name: loss.item() for name, loss in losses.items()}
        if not np.isfinite(norm + sum(values.values())):
            shown = ", ".join(f"{name} {value:.3g}" for name, value in values.items())
            raise MtmError(
                f"training diverged at iteration {self.iteration} (gradient norm {norm:.3g}; losses: {shown}); "
                "choose a smaller --lr"
            )
        self.optimizer.step()
        self.iteration += 1
        return Step(
            iteration=self.iteration, progress=progress, loss=total.item(), losses=values, grad_norm=norm, lr=lr
        )


def training_batches(recipe: Recipe) -> DataLoader[Batch]:
    """Endless batches (as good as: 2^31 scenes) of scenes that were not shown before, in an order fixed by the seed."""
    return _loader(SyntheticScenes(2**31, recipe.size, recipe.seed), recipe.batch, recipe.workers)


def _leave_interrupts_to_the_parent(_worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _loader(dataset: Dataset[Batch], batch: int, workers: int) -> DataLoader[Batch]:
    more: dict[str, Any] = {"prefetch_factor": 4, "worker_init_fn": _leave_interrupts_to_the_parent} if workers else {}
    return DataLoader(dataset, batch_size=batch, num_workers=workers, **more)


def _prior(task: Task, label: Tensor) -> Tensor | None:
    """The raw prediction [C] that is right most often; None where there is nothing to gain."""
    valid = valid_pixels(task.kind, label)
    seen = label[valid] if label.ndim == 3 else label.movedim(1, -1)[valid]  # [n] or [n, C]
    if task.kind == "saliency" or not len(seen):  # its loss balances the classes
        return None
    if task.kind == "labels":
        return torch.log(torch.bincount(seen.long(), minlength=task.channels) / len(seen) + 1e-3)
    if task.kind == "boundary":
        odds = EDGE_POSITIVE_WEIGHT / (1 - EDGE_POSITIVE_WEIGHT)
        return torch.logit(seen.mean(0).clamp(1e-3, 1 - 1e-3)) + math.log(odds)
    return seen.mean(0)


def start_from_priors(model: MTMamba, tasks: Sequence[Task], labels: Batch) -> None:
    """Set the heads' biases so that an untrained model answers with what is most likely before anything is seen,
    going by these labels: class frequencies, the mean depth and normal, the share of boundaries as their loss weighs
    them. Without it the first hundred steps of a short run go into finding them."""
    for task in tasks:
        if (prior := _prior(task, labels[task.name])) is not None:
            with torch.no_grad():
                model.heads[task.name].get_parameter("project.bias").copy_(prior)


def run_steps(trainer: Trainer, batches: Iterator[Batch], on_step: OnStep | None = None) -> Step:
    """Step until the recipe's iterations or minutes are over; returns the last step. The clock starts with the first
    batch in hand, so that starting workers is not counted."""
    recipe = trainer.recipe
    batch, start = next(batches), time.monotonic()
    progress = 0.0
    while True:
        step = trainer.step(batch, progress)
        if recipe.iterations is not None:
            progress = step.iteration / recipe.iterations
        else:
            progress = (time.monotonic() - start) / (60 * (recipe.minutes or 1.0))
        if on_step:
            on_step(step)
        if progress >= 1:
            return step
        batch = next(batches)


def evaluate(
    model: nn.Module, tasks: Sequence[Task], dataset: Dataset[Batch], batch: int = 8
) -> tuple[Figures, Figures]:
    """(the model's figures, the figures of the best constant predictions) on a dataset, on the model's device."""
    device = next(model.parameters()).device
    board, labels = Scoreboard(tasks), []
    model.eval()
    for samples in _loader(dataset, batch, 0):
        with torch.inference_mode():
            predictions = model(samples["image"].to(device))
        truth = {task.name: samples[task.name].numpy() for task in tasks}
        board.update({task.name: predictions[task.name].float().cpu().numpy() for task in tasks}, truth)
        labels.append(truth)
    return board.result(), constant_baseline(tasks, labels)


def held_out_scenes(length: int, size: tuple[int, int]) -> SyntheticScenes:
    """The evaluation set: the same scenes whatever the training seed."""
    return SyntheticScenes(length, size, HELD_OUT_SEED)


def share_cores(workers: int) -> int:
    """Give PyTorch the cores that the rendering workers leave, at least one; returns how many.

    More threads than cores is far worse than too few: PyTorch's threads wait for each other in a spin after every
    operator.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = max(1, cores - workers)
    torch.set_num_threads(threads)
    return threads


def train(config: ModelConfig, recipe: Recipe, on_step: OnStep | None = None) -> tuple[MTMamba, Step]:
    """Train a fresh model of this configuration; returns it with the last step's report. `config.dataset` is
    `synthetic`."""
    if config.dataset != "synthetic":
        raise MtmError(
            f"expected a model of the dataset synthetic, found {config.dataset}; this version trains on no other"
        )
    torch.manual_seed(recipe.seed)
    model = MTMamba(config)
    log.info("%s parameters, %s", sum(p.numel() for p in model.parameters()), recipe)
    batches = iter(training_batches(recipe))
    first = list(islice(batches, max(1, PRIOR_SCENES // recipe.batch)))
    start_from_priors(model, config.task_list, {name: torch.cat([b[name] for b in first]) for name in first[0]})
    step = run_steps(Trainer(model, config.task_list, recipe), chain(first, batches), on_step)
    return model, step
