"""Losses against hand-computed cases and torch's own functions on the pixels that count."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mtmamba.errors import MtmError
from mtmamba.losses import task_loss, task_losses, total_loss
from mtmamba.tasks import Task, dataset

TASKS = {task.name: task for task in dataset("synthetic").tasks}


def random_case(task: Task, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """(prediction, label with ignored pixels, mask of those that count) at [3, C, 6, 7]."""
    batch, height, width = 3, 6, 7
    prediction = torch.randn(batch, task.channels, height, width, generator=generator)
    mask = torch.rand(batch, height, width, generator=generator) > 0.3
    if task.kind in ("labels", "saliency"):
        label = torch.randint(0, task.channels, mask.shape, generator=generator)
        return prediction, label.where(mask, 255).to(torch.uint8), mask
    if task.kind == "depth":
        return prediction, (torch.rand(mask[:, None].shape, generator=generator) + 0.1).where(mask[:, None], 0), mask
    if task.kind == "normals":
        normals = F.normalize(torch.randn(prediction.shape, generator=generator), dim=1)
        return prediction, normals.where(mask[:, None], 0), mask
    edges = (torch.rand(mask[:, None].shape, generator=generator) > 0.8).float()
    return prediction, edges.where(mask[:, None], 255), mask


def expected(task: Task, prediction: Tensor, label: Tensor, mask: Tensor) -> Tensor:
    """The definitions, on the pixels that count only."""
    p = prediction.movedim(1, -1)[mask]
    if task.kind == "labels":
        return F.cross_entropy(p, label[mask].long())
    if task.kind == "saliency":
        g = label[mask].long()
        share = g.float().mean()
        weights = torch.stack([share, 1 - share])
        return F.cross_entropy(p, g, weights, reduction="sum") / len(g)
    g = label.movedim(1, -1)[mask]
    if task.kind == "depth":
        return F.l1_loss(p, g)
    if task.kind == "normals":
        return (p / p.norm(dim=1, keepdim=True) - g).abs().sum() / len(g)
    return F.binary_cross_entropy_with_logits(p, g, torch.where(g == 1, 0.95, 0.05))


@pytest.mark.parametrize("name", TASKS)
def test_agrees_with_torch_on_the_pixels_that_count(name: str) -> None:
    prediction, label, mask = random_case(TASKS[name], torch.Generator().manual_seed(1))
    assert 0 < mask.sum() < mask.numel()
    torch.testing.assert_close(
        task_loss(TASKS[name], prediction, label), expected(TASKS[name], prediction, label, mask), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("name", TASKS)
def test_ignored_pixels_get_no_gradient(name: str) -> None:
    prediction, label, mask = random_case(TASKS[name], torch.Generator().manual_seed(2))
    prediction.requires_grad_()
    task_loss(TASKS[name], prediction, label).backward()
    gradient = prediction.grad.abs().sum(1)  # type: ignore[union-attr]
    assert (gradient[~mask] == 0).all() and (gradient[mask] > 0).all()


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("combine", ["log", "sum"])
def test_no_pixel_counts(name: str, combine: str) -> None:
    task = TASKS[name]
    prediction = torch.randn(2, task.channels, 4, 5, requires_grad=True)
    shape = (2, 4, 5) if task.kind in ("labels", "saliency") else (2, task.channels, 4, 5)
    ignored = {"depth": math.nan, "normals": 0.0}.get(task.kind, 255.0)
    label = torch.full(shape, ignored)
    loss = task_loss(task, prediction, label.to(torch.uint8) if len(shape) == 3 else label)
    assert loss.item() == 0
    total_loss({name: loss}, combine).backward()  # type: ignore[arg-type]
    assert prediction.grad is not None and not prediction.grad.any()


def test_by_hand() -> None:
    """Two pixels each, small numbers."""
    labels = Task(name="t", title="t", kind="labels", channels=2)
    logits = torch.tensor([[[[0.0, math.log(3)]], [[0.0, 0.0]]]])
    assert task_loss(labels, logits, torch.tensor([[[0, 1]]])).item() == pytest.approx((math.log(2) + math.log(4)) / 2)
    assert task_loss(labels, logits, torch.tensor([[[0, 255]]])).item() == pytest.approx(math.log(2))

    saliency = Task(name="t", title="t", kind="saliency", channels=2)
    flat = torch.zeros(1, 2, 1, 4)  # one positive of four: weighs 3/4, the three negatives 1/4 each
    truth = torch.tensor([[[1, 0, 0, 0]]])
    assert task_loss(saliency, flat, truth).item() == pytest.approx(math.log(2) * (0.75 + 3 * 0.25) / 4)

    depth = TASKS["depth"]
    truth = torch.tensor([[[[3.0, 0.0, 1.0]]]])
    assert task_loss(depth, torch.tensor([[[[1.0, 9.0, -1.0]]]]), truth).item() == pytest.approx(2.0)

    normals = TASKS["normals"]
    prediction = torch.tensor([0.0, 0.0, -5.0]).reshape(1, 3, 1, 1)
    assert task_loss(normals, prediction, torch.tensor([0.6, 0.0, -0.8]).reshape(1, 3, 1, 1)).item() == pytest.approx(
        0.8
    )

    edge = TASKS["edge"]
    truth = torch.tensor([[[[1.0, 0.0, 255.0]]]])
    assert task_loss(edge, torch.zeros(1, 1, 1, 3), truth).item() == pytest.approx(math.log(2) * (0.95 + 0.05) / 2)


def test_half_precision_predictions_are_compared_in_float32() -> None:
    prediction = torch.full((1, 1, 300, 300), 100.0, dtype=torch.float16)
    loss = task_loss(TASKS["depth"], prediction, torch.ones(1, 1, 300, 300))
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(99.0)


def test_totals() -> None:
    losses = {"depth": torch.tensor(2.0), "edge": torch.tensor(0.5)}
    assert total_loss(losses).item() == pytest.approx(math.log(2) + math.log(0.5), abs=1e-6)
    assert total_loss(losses, "sum", {"edge": 50.0}).item() == pytest.approx(2 + 25)
    assert total_loss(losses, "log", {"edge": 2.0}).item() == pytest.approx(math.log(2) + 2 * math.log(0.5), abs=1e-6)


def test_task_losses_takes_the_tasks_asked_for() -> None:
    generator = torch.Generator().manual_seed(3)
    cases = {name: random_case(task, generator) for name, task in TASKS.items()}
    predictions, labels = ({name: case[i] for name, case in cases.items()} for i in (0, 1))
    found = task_losses([TASKS["edge"], TASKS["depth"]], predictions, labels)
    assert list(found) == ["edge", "depth"]


def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(MtmError, match="depth: expected a prediction of 1 channels and a label of shape"):
        task_loss(TASKS["depth"], torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 5, 4))
    with pytest.raises(MtmError, match="semseg: expected a prediction of 40 channels"):
        task_loss(TASKS["semseg"], torch.zeros(1, 21, 4, 4), torch.zeros(1, 4, 4))
