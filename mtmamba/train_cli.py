"""`mtm-train`: train a model and write its best checkpoint, with its held-out metrics beside it."""

import os
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.progress import Progress

from mtmamba.config import CROSS_TASK, ENCODERS, VARIANTS, ModelConfig, preset
from mtmamba.console import ImageSize, Interrupted, command, progress, say
from mtmamba.errors import MtmError
from mtmamba.files import check_output
from mtmamba.metrics import meter_for
from mtmamba.tasks import DATASETS, Task
from mtmamba.train.plan import STATE_NAME, Plan, places
from mtmamba.train.recipe import MAX_SEED, Recipe, recipe_for

if TYPE_CHECKING:
    from mtmamba.train.run import Result

MIN_SIDE = 8
SYNTHETIC_ITEMS = 32  # held-out scenes, unless told otherwise
PLAN_OPTIONS = ("root", "pretrained", "eval_every", "save_every", "device")
POSITIVE = click.FloatRange(min=0, min_open=True)
COUNT = click.IntRange(min=1)


class LossWeight(click.ParamType[tuple[str, float]]):
    name = "TASK=W"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, float]:
        task, _, weight = str(value).partition("=")
        try:
            return task, float(weight)
        except ValueError:
            self.fail(f"expected TASK=WEIGHT, such as edge=50, found {value!r}", param, ctx)


@command(
    epilog="Example: mtm-train --data nyudv2 --root data/NYUDv2 --preset swin-large --pretrained imagenet --output run"
)
@click.option("--data", type=click.Choice(list(DATASETS)), help="Dataset.  [default: synthetic, rendered rooms]")
@click.option("--root", type=click.Path(path_type=Path), help="The dataset's folder (docs/datasets.md).")
@click.option(
    "--preset", "--encoder", "encoder", type=click.Choice(list(ENCODERS)), help="Model size.  [default: nano]"
)
@click.option("--variant", type=click.Choice(VARIANTS), help="Which paper's decoder.  [default: mtmamba]")
@click.option("--cross-task", type=click.Choice(CROSS_TASK), help="The cross-task block.  [default: learned]")
@click.option("--tasks", help="Comma-separated names of the tasks to train.  [default: all of the dataset's]")
@click.option(
    "--pretrained", help="Encoder weights: a file, `imagenet` (or `timm`: the hub's), or timm's name of a Swin."
)
@click.option("--iterations", type=COUNT, help="Train for this many steps.  [default: the dataset's recipe]")
@click.option("--minutes", type=POSITIVE, help="Train for this long instead.  [default: 1 for nano on synthetic]")
@click.option("--batch", type=COUNT, help="Images a step, over all processes.  [default: 8; nano 4]")
@click.option("--accumulate", type=COUNT, help="Parts each process's batch is cut into.  [default: 1]")
@click.option(
    "--size", "sizes", multiple=True, type=ImageSize(at_least=MIN_SIDE),
    help="HEIGHTxWIDTH of the images, pixels; several: in turn, the first is evaluated.  [default: the dataset's]",
)  # fmt: skip
@click.option("--lr", type=POSITIVE, help="Learning rate.  [default: 1e-4; nano 4e-3]")
@click.option("--weight-decay", type=click.FloatRange(min=0), help="[default: 1e-5; cityscapes 1e-6]")
@click.option("--warmup", type=click.FloatRange(0, 1, max_open=True), help="Share of the run in which the rate rises.")
@click.option("--clip-norm", type=POSITIVE, help="Gradients are scaled down to this norm.  [default: 10]")
@click.option("--loss", type=click.Choice(["log", "sum"]), help="Total: sum of logs, or weighted sum.  [default: log]")
@click.option(
    "--loss-weight", "loss_weights", multiple=True, type=LossWeight(), help="A task's weight; may be repeated."
)
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), help="bf16: automatic mixed.  [default: fp32]")
@click.option("--ema", type=click.FloatRange(0, 1, max_open=True), help="Decay of the weights' average; 0: none.")
@click.option("--recompute/--no-recompute", default=None, help="Activation checkpointing: less memory, more time.")
@click.option("--scenes", type=COUNT, help="Render only so many synthetic scenes, and see them again in other views.")
@click.option(
    "--augment/--no-augment", default=None, help="Random views and colours.  [default: yes; endless scenes no]"
)
@click.option("--scales", nargs=2, type=POSITIVE, help="Smallest and largest view.  [default: 0.5 2; scenes 0.8 1.25]")
@click.option("--seed", type=click.IntRange(0, MAX_SEED), help="Decides weights, order and views.  [default: 0]")
@click.option("--workers", type=click.IntRange(min=0), default=1, help="Loader processes for every training process.")
@click.option("--threads", type=COUNT, help="PyTorch's threads.  [default: the cores that the workers leave]")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="Where to train.")
@click.option("--eval-every", type=COUNT, help="Steps between evaluations.  [default: a tenth of the iterations]")
@click.option("--eval-items", type=COUNT, help="Held-out images to score.  [default: all; 32 of synthetic]")
@click.option("--save-every", type=COUNT, default=1000, help="Steps between saved states.")
@click.option("--resume", metavar="DIR|auto", help="Go on with the run in DIR, or with --output's if there is one.")
@click.option("--overwrite", is_flag=True, help="Start anew where there is a run already.")
@click.option(
    "--output", type=click.Path(path_type=Path), default=Path("best.pth"),
    help="Checkpoint (.pth; the run's folder is beside it), or a folder for all.",
)  # fmt: skip
def main(
    workers: int, threads: int | None, output: Path, resume: str | None, overwrite: bool, **given: Any
) -> dict[str, Any]:
    """Train a model, score it beside the best constant predictions, and keep the best checkpoint.

    What is not given comes from the dataset's published recipe, or, with --resume, from the run. Several processes:
    torchrun --nproc-per-node 8 -m mtmamba.train_cli ...
    """
    chosen = {name: value for name, value in given.items() if value is not None and value != ()}
    if {"iterations", "minutes"} <= chosen.keys():
        raise click.UsageError("give --iterations or --minutes, not both")
    folder, checkpoint = places(Path(resume) if resume and resume != "auto" else output)
    going_on = bool(resume) and (resume != "auto" or (folder / STATE_NAME).exists())
    check_output(checkpoint, suffix=".pth")
    config, encoder, recipe = _of_saved(folder, chosen) if going_on else _fresh(chosen)
    plan = Plan(
        config=config,
        recipe=recipe,
        encoder=encoder,
        folder=folder,
        checkpoint=checkpoint,
        eval_items=chosen.get("eval_items", SYNTHETIC_ITEMS if config.dataset == "synthetic" else None),
        workers=workers,
        resume=going_on,
        overwrite=overwrite,
        command=shlex.join(["mtm-train", *sys.argv[1:]]),
        **{name: chosen[name] for name in PLAN_OPTIONS if name in chosen},
    )
    _check_installed(config)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin take the loader's core; read once, by torch
    from mtmamba.train import run  # torch is slow to import: bad options are answered before it

    run.share_cores(threads or run.cores() - (0 if recipe.scenes else workers))  # remembered scenes keep no worker busy
    with progress(unit="steps" if recipe.iterations else "%") as bar:
        result = run.train(plan, _shown_on(bar, recipe))
    if not result.main:
        raise SystemExit(0)
    return _report(plan, result)


def _check_installed(config: ModelConfig) -> None:
    """One sentence instead of a traceback where a package is missing."""
    wanted = ["torch", "torchvision", "timm", "lightning_fabric", "tensorboard"]
    wanted += ["trimesh", "embreex"] if config.dataset == "synthetic" else []
    missing = [name for name in wanted if find_spec(name) is None]
    if missing:
        raise MtmError(
            f"mtm-train needs {', '.join(missing)}, which are not installed; run: pip install 'mtmamba[model,train]'"
        )


def _fresh(chosen: dict[str, Any]) -> tuple[ModelConfig, str, Recipe]:
    """The model, its preset and the recipe of the options given."""
    encoder = chosen.get("encoder", "nano")
    tasks = tuple(name.strip() for name in chosen["tasks"].split(",")) if "tasks" in chosen else None
    config = preset(
        chosen.get("data", "synthetic"),
        encoder,
        tasks,
        chosen.get("variant", "mtmamba"),
        chosen.get("cross_task", "learned"),
    )
    recipe = recipe_for(config, encoder, _changes(chosen))
    return replace(config, input_size=recipe.sizes[0]), encoder, recipe


def _of_saved(folder: Path, chosen: dict[str, Any]) -> tuple[ModelConfig, str, Recipe]:
    """Those of a saved run, with the options given in place of its own: the run then says which of them differ."""
    from mtmamba.train.state import read_state

    state = read_state(folder)
    saved = state.config
    own = {
        "data": saved.dataset,
        "encoder": state.encoder,
        "tasks": ",".join(saved.tasks),
        "variant": saved.variant,
        "cross_task": saved.cross_task,
    }
    config, encoder, _ = _fresh(own | {name: chosen[name] for name in own if name in chosen})
    recipe = Recipe.from_dict(state.recipe.to_dict() | _changes(chosen))
    return replace(config, input_size=recipe.sizes[0]), encoder, recipe


def _changes(chosen: dict[str, Any]) -> dict[str, Any]:
    """The options given that are part of a recipe."""
    changes = {item.name: chosen[item.name] for item in fields(Recipe) if item.name in chosen}
    return changes | ({"loss_weights": dict(chosen["loss_weights"])} if "loss_weights" in chosen else {})


def _shown_on(bar: Progress, recipe: Recipe) -> Callable[[Any], None]:
    """What to do after each step: move the bar."""
    line = bar.add_task("training", total=recipe.iterations or 100, note="")
    seen: list[float] = []  # the clock and the iteration at the first step

    def on_step(step: Any) -> None:
        seen[:] = seen or [time.monotonic(), step.iteration]
        rate = (step.iteration - seen[1]) / max(time.monotonic() - seen[0], 1e-9)
        losses = " ".join(f"{name} {value:.2f}" for name, value in step.losses.items())
        done = step.iteration if recipe.iterations else round(100 * step.progress)
        bar.update(line, completed=done, note=f"{rate:.2g} steps/s, loss {step.loss:.2f} ({losses})")

    return on_step


def _report(plan: Plan, result: "Result") -> dict[str, Any]:
    """Say how it went; the command's answer. Raises Interrupted where the run was stopped."""
    answer: dict[str, Any] = {
        "checkpoint": str(plan.checkpoint) if result.best else None,
        "run": str(plan.folder),
        "iterations": result.iteration,
        "seconds": round(result.seconds, 1),
        **{name: result.best.get(name) for name in ("loss", "mean_skill", "metrics", "constant")},
        "best_iteration": result.best.get("iterations"),
    }
    if result.best:
        _show(plan.config.task_list, answer["metrics"], answer["constant"])
    if result.interrupted:
        say(f"stopped after {result.iteration} steps; go on with: mtm-train --resume {plan.folder}")
        raise Interrupted(answer)
    say(f"{result.iteration} steps in {result.seconds:.0f} s; the best weights are in {plan.checkpoint}")
    return answer


def _show(tasks: tuple[Task, ...], ours: dict[str, Any], constant: dict[str, Any]) -> None:
    say(f"{'held-out images':<28}{'model':>10}{'best constant':>16}")
    for task in tasks:
        meter = meter_for(task)
        name, arrow = meter.headline, "lower is better" if meter.lower_is_better else "higher is better"
        values = [figures[task.name][name] for figures in (ours, constant)]
        shown = ["-" if value is None else f"{value:.3f}" for value in values]
        say(f"{task.name + ' ' + name:<28}{shown[0]:>10}{shown[1]:>16}   {arrow}")


if __name__ == "__main__":
    main()
