"""One training step, the same on one device and on many: Lightning Fabric places, wraps, casts and sums.

The numbers of a step are decided by the weights, the joint batch and (seed, iteration, rank): random draws of the model
(stochastic depth) are seeded at every step, so a resumed run draws what the uninterrupted one would have drawn.
"""

import logging
import math
import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from mtmamba.data.labels import valid_pixels
from mtmamba.errors import MtmError
from mtmamba.losses import EDGE_POSITIVE_WEIGHT, one_process, task_losses, total_loss
from mtmamba.tasks import Task
from mtmamba.train.feed import Batch
from mtmamba.train.recipe import Recipe, learning_rate

PRIOR_ITEMS = 32  # training items whose labels the heads start from
WAIT = timedelta(hours=6)  # processes wait for the first one's evaluation
PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed"}


def processes() -> tuple[int, int]:
    """(this process's rank, how many there are), as torchrun says; (0, 1) without it."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def launch(recipe: Recipe, device: str = "auto") -> Fabric:
    """Join the other processes of a torchrun, if any. device: `auto`, `cpu` or `cuda`. Raises MtmError where there is no
    such device or the batch does not divide."""
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    _, world = processes()
    recipe.share(world)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise MtmError("expected an NVIDIA GPU, found none that torch can use; choose --device cpu")
    on_this_machine = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    fabric = Fabric(
        accelerator=device,
        devices=on_this_machine,
        num_nodes=world // on_this_machine,
        strategy=DDPStrategy(timeout=WAIT, gradient_as_bucket_view=True) if world > 1 else "auto",
        precision=PRECISIONS[recipe.precision],  # type: ignore[arg-type]  # Fabric names its choices in a Literal
    )
    fabric.launch()
    return fabric


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one training step reports. progress: share of the run done before it, 0..1; loss, losses: of the joint batch;
    grad_norm: before clipping."""

    iteration: int
    progress: float
    loss: float
    losses: dict[str, float]
    grad_norm: float
    lr: float


class Trainer:
    """Model, optimiser and the weights' moving average; one `step` a batch.

    model: maps images to {task: prediction}. iteration: steps taken.
    """

    def __init__(self, fabric: Fabric, model: nn.Module, tasks: Sequence[Task], recipe: Recipe) -> None:
        self.fabric, self.tasks, self.recipe = fabric, tuple(tasks), recipe
        if recipe.recompute:
            model.activation_checkpointing()  # type: ignore[operator]  # MTMamba's
        # Biases, norms and the scan's own parameters decay too, as in the published recipe.
        optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
        self.module = model
        self.model, self.optimizer = fabric.setup(model, optimizer)
        self.ema = ModelEmaV3(model, decay=recipe.ema, use_warmup=True) if recipe.ema else None
        self.iteration = 0

    @property
    def weights(self) -> nn.Module:
        """The model to evaluate and to keep: the average of the weights where there is one."""
        return self.ema.module if self.ema else self.module

    def step(self, parts: Sequence[Batch], progress: float) -> Step:
        """Train on one batch, cut into parts, at this share of the run. Raises MtmError where loss or gradients are no
        longer finite; the weights are then as before."""
        self.model.train()
        self._seed()
        lr = learning_rate(self.recipe, progress)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        reports = []
        for index, part in enumerate(parts):
            last = index == len(parts) - 1
            with nullcontext() if last else self.fabric.no_backward_sync(self.model):
                reports.append(self._backward(self.fabric.to_device(part), len(parts)))
        norm = self._clip()
        total, *values = torch.stack(reports).mean(0).tolist()
        losses = {task.name: value for task, value in zip(self.tasks, values, strict=True)}
        if not math.isfinite(norm + total):
            shown = ", ".join(f"{name} {value:.3g}" for name, value in losses.items())
            raise MtmError(
                f"training diverged at iteration {self.iteration} (gradient norm {norm:.3g}; losses: {shown}); "
                "choose a smaller --lr"
            )
        self.optimizer.step()
        self.iteration += 1
        if self.ema:
            self.ema.update(self.module, self.iteration)
        return Step(iteration=self.iteration, progress=progress, loss=total, losses=losses, grad_norm=norm, lr=lr)

    def _backward(self, part: Batch, parts: int) -> Tensor:
        """Add this part's gradients; returns the total and the tasks' losses [1 + T]."""
        losses = task_losses(self.tasks, self.model(part["image"]), part, self._over_all())
        total = total_loss(losses, self.recipe.loss, self.recipe.loss_weights)
        # Every process has the gradient of its own share; DDP takes their mean, wanted is their sum.
        self.fabric.backward(total * (self.fabric.world_size / parts))
        return torch.stack([total, *losses.values()]).detach()

    def _over_all(self) -> Any:
        if self.fabric.world_size == 1:
            return one_process

        def over_all(scalar: Tensor) -> Tensor:
            everywhere = self.fabric.all_reduce(scalar.detach().clone(), reduce_op="sum")
            assert isinstance(everywhere, Tensor)
            return scalar - scalar.detach() + everywhere

        return over_all

    def _clip(self) -> float:
        """Scale the gradients down to the recipe's norm; returns the norm they had."""
        norm = self.fabric.clip_gradients(
            self.model, self.optimizer, max_norm=self.recipe.clip_norm, error_if_nonfinite=False
        )
        assert norm is not None
        return float(norm)

    def _seed(self) -> None:
        words = (self.recipe.seed, self.iteration, self.fabric.global_rank)
        torch.manual_seed(int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0]))


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


def start_from_priors(heads: nn.ModuleDict, tasks: Sequence[Task], labels: Batch) -> None:
    """Set the last biases of the heads so that an untrained model answers with what is most likely before anything is
    seen, going by these labels: class frequencies, the mean depth and normal, the share of boundaries as their loss
    weighs them. Without it the first hundred steps of a short run go into finding them."""
    for task in tasks:
        if (prior := _prior(task, labels[task.name])) is not None:
            with torch.no_grad():
                heads[task.name].get_parameter("project.bias").copy_(prior)
