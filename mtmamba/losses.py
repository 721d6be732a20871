"""Training losses, one a kind of task, and their sum.

Every loss is a sum over the pixels that count (`mtmamba.data.labels.valid_pixels`) divided by their number; where no
pixel counts it is 0 and so are its gradients. B batch, C channels, H W pixels.

A batch may be spread over processes. `over_all` (`OverAll`) then adds a scalar up over them, so that every loss is that of
the joint batch: means of per-process means would weigh pixels differently where processes have unlike shares of ignored
ones, and the logarithm of a mean is no mean of logarithms.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mtmamba.data.labels import valid_pixels
from mtmamba.errors import MtmError
from mtmamba.tasks import Kind, Task

EDGE_POSITIVE_WEIGHT = 0.95
Combine = Literal["log", "sum"]
OverAll = Callable[[Tensor], Tensor]
"""A scalar of this process -> its sum over all of them. The gradient of the sum is taken for this process's share alone."""


def one_process(scalar: Tensor) -> Tensor:
    return scalar


def _labels_loss(prediction: Tensor, label: Tensor, valid: Tensor) -> Tensor:
    """Cross-entropy [B, H, W]. prediction: logits [B, C, H, W]; label: [B, H, W]."""
    return F.cross_entropy(prediction, label.long().where(valid, 0), reduction="none")


def _saliency_loss(prediction: Tensor, label: Tensor, valid: Tensor, over_all: OverAll) -> Tensor:
    """Two-class cross-entropy [B, H, W]; each class is weighted by the other's share of the batch's pixels that
    count."""
    positive = (label == 1) & valid
    share = over_all(positive.sum()) / over_all(valid.sum()).clamp(min=1)
    weight = torch.where(positive, 1 - share, share)
    return _labels_loss(prediction, label, valid) * weight


def _depth_loss(prediction: Tensor, label: Tensor, valid: Tensor) -> Tensor:
    """Absolute difference [B, H, W] of [B, 1, H, W]."""
    return (prediction - label.where(valid.unsqueeze(1), 0))[:, 0].abs()


def _normals_loss(prediction: Tensor, label: Tensor, valid: Tensor) -> Tensor:
    """Absolute difference [B, H, W], summed over the three coordinates, of the prediction at unit length."""
    return (F.normalize(prediction, dim=1) - label).abs().sum(1)


def _boundary_loss(prediction: Tensor, label: Tensor, valid: Tensor) -> Tensor:
    """Binary cross-entropy [B, H, W] of logits [B, 1, H, W], positives weighted 0.95, negatives 0.05."""
    target = label.where(valid.unsqueeze(1), 0)
    weight = target * EDGE_POSITIVE_WEIGHT + (1 - target) * (1 - EDGE_POSITIVE_WEIGHT)
    return F.binary_cross_entropy_with_logits(prediction, target, weight, reduction="none")[:, 0]


_PER_PIXEL: dict[Kind, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "labels": _labels_loss,
    "depth": _depth_loss,
    "normals": _normals_loss,
    "boundary": _boundary_loss,
}


def task_loss(task: Task, prediction: Tensor, label: Tensor, over_all: OverAll = one_process) -> Tensor:
    """The loss of one task, a scalar, computed in float32.

    prediction: raw, [B, C, H, W]; label: as `mtmamba.data.labels` lays it out, on the same device; over_all: adds up
    over processes. Raises MtmError where their shapes do not fit the task or each other.
    """
    batch, channels, height, width = prediction.shape
    wanted = (batch, height, width) if task.kind in ("labels", "saliency") else (batch, task.channels, height, width)
    if channels != task.channels or tuple(label.shape) != wanted:
        raise MtmError(
            f"{task.name}: expected a prediction of {task.channels} channels and a label of shape {wanted}, found "
            f"{tuple(prediction.shape)} and {tuple(label.shape)}; the model and the data do not belong together"
        )
    valid = valid_pixels(task.kind, label)
    if task.kind == "saliency":
        per_pixel = _saliency_loss(prediction.float(), label, valid, over_all)
    else:
        per_pixel = _PER_PIXEL[task.kind](prediction.float(), label, valid)
    return over_all(per_pixel.where(valid, 0).sum()) / over_all(valid.sum()).clamp(min=1)


def task_losses(
    tasks: Sequence[Task],
    predictions: Mapping[str, Tensor],
    labels: Mapping[str, Tensor],
    over_all: OverAll = one_process,
) -> dict[str, Tensor]:
    """`task_loss` of every task, by name. Both mappings hold every task's tensor; other entries are not looked at."""
    return {task.name: task_loss(task, predictions[task.name], labels[task.name], over_all) for task in tasks}


def total_loss(
    losses: Mapping[str, Tensor], combine: Combine = "log", weights: Mapping[str, float] | None = None
) -> Tensor:
    """One scalar of the tasks' losses: the sum of weight * log(loss + 1e-8) (`log`, the published MTMamba
    configurations, with weights of 1) or of weight * loss (`sum`). Tasks without a weight have 1."""
    weights = weights or {}
    terms = [
        weights.get(name, 1.0) * (torch.log(loss + 1e-8) if combine == "log" else loss) for name, loss in losses.items()
    ]
    return torch.stack(terms).sum()
