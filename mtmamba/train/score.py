"""Scores while training: a model's figures on a held-out set beside those of the best constant predictions."""

from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import nn

from mtmamba.data.dataset import DenseDataset
from mtmamba.metrics import Figures, Scoreboard, constant_baseline, meter_for
from mtmamba.tasks import Task
from mtmamba.train.feed import Batch, loader

PERFECT_PERCENT = 100.0

CONSTANT_BATCHES = 16
"""The best constants are found, and scored, on so many batches: their labels have to be in memory together."""


def _truth(samples: Batch, tasks: Sequence[Task]) -> dict[str, Any]:
    return {task.name: samples[task.name].numpy() for task in tasks}


def evaluate(model: nn.Module, dataset: DenseDataset, *, batch: int = 8, workers: int = 0) -> Figures:
    """The model's figures on a dataset, in float32 on the model's device; the model is in eval mode after it."""
    device = next(model.parameters()).device
    board = Scoreboard(dataset.tasks)
    model.eval()
    for samples in loader(dataset, workers, batch=batch):
        with torch.inference_mode():
            predictions = model(samples["image"].to(device))
        board.update(
            {name: value.float().cpu().numpy() for name, value in predictions.items()}, _truth(samples, dataset.tasks)
        )
    return board.result()


def constant_figures(dataset: DenseDataset, *, batch: int = 8) -> Figures:
    """The figures of the best constant predictions on (the first `CONSTANT_BATCHES` batches of) a dataset."""
    batches = islice(loader(dataset, 0, batch=batch), CONSTANT_BATCHES)
    return constant_baseline(dataset.tasks, [_truth(samples, dataset.tasks) for samples in batches])


def skill(task: Task, ours: float, constant: float) -> float:
    """(M - Mc) / (Mp - Mc) of a task's headline figure M: 0 is the best constant prediction's Mc, 1 is perfection Mp
    (0 where lower is better, else 100 %)."""
    perfect = 0.0 if meter_for(task).lower_is_better else PERFECT_PERCENT
    return (ours - constant) / (perfect - constant) if constant != perfect else 0.0


def mean_skill(tasks: Sequence[Task], ours: Figures, constant: Figures) -> float:
    """The one number that decides which checkpoint is the best: the mean of the tasks' skill; tasks with no pixel to
    score on are left out."""
    headlines = [(task, meter_for(task).headline) for task in tasks]
    skills = [skill(task, ours[task.name][name], constant[task.name][name]) for task, name in headlines]
    finite = [value for value in skills if np.isfinite(value)]
    return float(np.mean(finite)) if finite else float("-inf")
