"""A training run from its plan to its end: start or resume, step, evaluate, save, stop when asked to."""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn
from torch.utils.data import default_collate

from mtmamba.checkpoint import save_checkpoint
from mtmamba.data.dataset import DenseDataset
from mtmamba.data.sampler import EndlessSampler
from mtmamba.errors import MtmError
from mtmamba.files import atomic_path
from mtmamba.metrics import Figures, plain
from mtmamba.model import MTMamba
from mtmamba.pretrained import IMAGENET, load_pretrained_encoder
from mtmamba.signals import interrupt, on_blow
from mtmamba.train.engine import PRIOR_ITEMS, Step, Trainer, launch, start_from_priors
from mtmamba.train.feed import Batches, SizedViews, held_out, loader, training_views
from mtmamba.train.plan import STATE_NAME, Plan
from mtmamba.train.record import CURVES, PAGES, Record, sample_pages
from mtmamba.train.score import constant_figures, evaluate, mean_skill
from mtmamba.train.state import Counters, check_same_run, read_state, restore, save_state

OnStep = Callable[[Step], None]
SHARE_OF_EVALUATIONS = 10  # evaluations in a run of so many iterations, unless said otherwise


@dataclass(frozen=True, kw_only=True)
class Result:
    """How a run ended. best: what is written beside the checkpoint. interrupted: stopped by a signal after a step; the
    state is saved. main: whether this is the process that writes and speaks."""

    iteration: int
    seconds: float
    last: Step | None
    best: dict[str, Any] = field(default_factory=dict)
    interrupted: bool = False
    main: bool = True


def share_cores(threads: int) -> None:
    """Give PyTorch so many threads, at least one. More threads than free cores is far worse than too few: they wait for
    each other after every operator."""
    torch.set_num_threads(max(1, threads))


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Inside, what asks the program to end (`on_blow`) is remembered instead of raised; the yielded function tells whether it
    came. A second time it is raised at once."""
    came = False

    def remember() -> None:
        nonlocal came
        if came:
            interrupt()
        came = True

    with on_blow(remember):
        yield lambda: came


def build_model(plan: Plan, views: SizedViews) -> MTMamba:
    """A fresh model, the same in every process: seeded, its encoder pretrained if asked for, its heads at the priors of
    the first training items."""
    torch.manual_seed(plan.recipe.seed)
    model = MTMamba(plan.config)
    if plan.pretrained:
        load_pretrained_encoder(model, IMAGENET if plan.pretrained == "timm" else plan.pretrained)
    first = islice(EndlessSampler(len(views), plan.recipe.seed), PRIOR_ITEMS)
    labels = default_collate([views[0, epoch, index] for epoch, index in first])
    start_from_priors(model.heads, plan.config.task_list, labels)
    return model


class Run:
    """One run of a plan. `go` does all of it."""

    def __init__(self, plan: Plan, fabric: Fabric) -> None:
        self.plan, self.fabric = plan, fabric
        self.counters = Counters()
        self.best: dict[str, Any] = {}
        recipe, config = plan.recipe, plan.config
        state = read_state(plan.folder) if plan.resume else None
        if state:
            check_same_run(state, config, recipe)
        self.views = training_views(config, recipe, plan.root)
        self.validation: DenseDataset = held_out(config, recipe, plan.root, plan.eval_items)
        model = MTMamba(config) if state else build_model(plan, self.views)
        self.trainer = Trainer(fabric, model, config.task_list, recipe)
        if state:
            restore(self.trainer, state)
            self.counters, self.best = state.counters, state.best
        self._remove_leftovers()
        self.record = Record(plan.folder, self.counters.iteration) if fabric.is_global_zero else None
        self._constant: Figures | None = None

    def go(self, on_step: OnStep | None = None) -> Result:
        """Step until the recipe's iterations or minutes are over, or a signal asks to stop; evaluates and saves on the
        way and at the end."""
        counters, recipe = self.counters, self.plan.recipe
        batches = iter(self._loader())
        last, interrupted, mark = None, False, None
        with stop_requests() as asked:
            progress, stop = self._agree(asked())
            while progress < 1 and not stop:
                parts = [next(batches) for _ in range(recipe.accumulate)]
                mark = time.monotonic() if mark is None else mark  # starting the loader is not counted
                last = self.trainer.step(parts, progress)
                now = time.monotonic()
                spent, mark = now - mark, now
                counters.iteration, counters.seconds = last.iteration, counters.seconds + spent
                if self.record:
                    self.record.step(last, recipe.batch / max(spent, 1e-9))
                if on_step:
                    on_step(last)
                progress, stop = self._agree(asked())
                if self._pause(last, progress, stop):
                    mark = time.monotonic()
            interrupted = stop and progress < 1
        if self.record:
            self.record.close()
        return Result(
            iteration=counters.iteration,
            seconds=counters.seconds,
            last=last,
            best=self.best,
            interrupted=interrupted,
            main=self.fabric.is_global_zero,
        )

    def _loader(self) -> Any:
        fabric, done = self.fabric, self.counters.iteration
        keys = Batches(len(self.views), self.plan.recipe, done, fabric.global_rank, fabric.world_size)
        return loader(self.views, self.plan.workers, keys)

    def _agree(self, asked: bool) -> tuple[float, bool]:
        """(progress, whether to stop): the same in every process, by the slowest clock."""
        recipe, seconds = self.plan.recipe, self.counters.seconds
        if self.fabric.world_size > 1:
            mine = torch.tensor([seconds, float(asked)], dtype=torch.float64, device=self.fabric.device)
            shared = self.fabric.all_reduce(mine, reduce_op="max")
            seconds, asked = float(shared[0]), bool(shared[1])
        if recipe.iterations is not None:
            return self.counters.iteration / recipe.iterations, asked
        return seconds / (60 * (recipe.minutes or 1.0)), asked

    def _pause(self, step: Step, progress: float, stop: bool) -> bool:
        """Evaluate and save if it is time to; whether anything was done."""
        plan, ended = self.plan, progress >= 1
        every = plan.eval_every or -(-(plan.recipe.iterations or 0) // SHARE_OF_EVALUATIONS)
        to_score = ended or bool(every and step.iteration % every == 0 and not stop)
        to_save = to_score or stop or step.iteration % plan.save_every == 0
        if self.fabric.is_global_zero:
            if to_score:
                self._evaluate(step)
            if to_save:
                save_state(plan.folder / STATE_NAME, self.trainer, self.counters, plan.encoder, self.best)
        if to_save:
            self.fabric.barrier()
        return to_save

    def _evaluate(self, step: Step) -> None:
        """Score the weights, draw samples, and keep them as the checkpoint if they are the best so far."""
        plan, tasks, model = self.plan, self.plan.config.task_list, self.trainer.weights
        self._constant = self._constant or constant_figures(self.validation)
        figures = evaluate(model, self.validation, workers=plan.workers if plan.root else 0)
        score = mean_skill(tasks, figures, self._constant)
        if self.record:
            self.record.evaluation(step.iteration, figures, score, sample_pages(model, self.validation))
        if self.best and score <= self.counters.best:
            return
        self.counters.best = score
        self.best = {
            "command": plan.command,
            "iterations": step.iteration,
            "seconds": round(self.counters.seconds, 1),
            "loss": round(step.loss, 4),
            "mean_skill": round(score, 4),
            "metrics": plain(figures),
            "constant": plain(self._constant),
            "recipe": plan.recipe.to_dict(),
        }
        write_checkpoint(plan.checkpoint, model, self.best)

    def _remove_leftovers(self) -> None:
        """What a run that was killed while it wrote left behind."""
        if self.fabric.is_global_zero and self.plan.folder.is_dir():
            for path in self.plan.folder.glob(f".{Path(STATE_NAME).stem}.*.part{Path(STATE_NAME).suffix}"):
                path.unlink(missing_ok=True)


def write_checkpoint(path: Path, model: nn.Module, about: dict[str, Any]) -> None:
    """The checkpoint that is exported, and what it can do in a .json beside it."""
    assert isinstance(model, MTMamba)
    save_checkpoint(path, model, about)
    with atomic_path(path.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(about, indent=2) + "\n")


def train(plan: Plan, on_step: OnStep | None = None) -> Result:
    """Run a plan on the devices it names, with the other processes of a torchrun if there are any. Raises MtmError."""
    fabric = launch(plan.recipe, plan.device)
    if not plan.resume and (plan.folder / STATE_NAME).exists():
        if not plan.overwrite:
            raise MtmError(
                f"{plan.folder}: there is a run already; go on with it with --resume {plan.folder}, write over it with "
                "--overwrite, or choose another --output"
            )
        if fabric.is_global_zero:
            _clear(plan.folder)
        fabric.barrier()
    return Run(plan, fabric).go(on_step)


def _clear(folder: Path) -> None:
    """Remove a run's own files."""
    (folder / STATE_NAME).unlink(missing_ok=True)
    for name in (CURVES, PAGES):
        shutil.rmtree(folder / name, ignore_errors=True)
