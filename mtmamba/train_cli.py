"""`mtm-train`: train a model on synthetic scenes and write a checkpoint with its held-out metrics."""

import math
import shlex
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from mtmamba.config import ENCODERS, preset
from mtmamba.console import ImageSize, command, progress, say
from mtmamba.data.synthetic import MIN_SIDE
from mtmamba.files import check_output
from mtmamba.metrics import meter_for
from mtmamba.tasks import Task

DEFAULT_MINUTES = 1.0


def _plain(figures: dict[str, dict[str, float]]) -> dict[str, dict[str, float | None]]:
    """JSON knows no NaN: a figure over no pixel becomes null."""
    return {
        task: {name: None if math.isnan(value) else round(value, 4) for name, value in values.items()}
        for task, values in figures.items()
    }


def _show(tasks: tuple[Task, ...], ours: dict[str, dict[str, float]], constant: dict[str, dict[str, float]]) -> None:
    say(f"{'held-out scenes':<24}{'model':>10}{'best constant':>16}")
    for task in tasks:
        meter = meter_for(task)
        name, arrow = meter.headline, "lower is better" if meter.lower_is_better else "higher is better"
        say(f"{task.name + ' ' + name:<24}{ours[task.name][name]:>10.3f}{constant[task.name][name]:>16.3f}   {arrow}")


@command(epilog="Example: mtm-train --data synthetic --preset nano --minutes 1")
@click.option(
    "--data", type=click.Choice(["synthetic"]), default="synthetic", help="Dataset: rendered rooms with exact labels."
)
@click.option("--preset", "encoder", type=click.Choice(list(ENCODERS)), default="nano", help="Size of the model.")
@click.option("--iterations", type=click.IntRange(min=1), help="Train for this many steps.")
@click.option(
    "--minutes", type=click.FloatRange(min=0, min_open=True), help="Train for this long instead.  [default: 1]"
)
@click.option("--batch", type=click.IntRange(min=1), default=4, help="Scenes a step.")
@click.option(
    "--size",
    default="48x64",
    type=ImageSize(at_least=MIN_SIDE),
    help="HEIGHTxWIDTH of the scenes, pixels; larger ones want more minutes.",
)
@click.option(
    "--lr", type=click.FloatRange(min=0, min_open=True), help="Learning rate.  [default: 4e-3 for nano, else 1e-4]"
)
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, help="Decides weights and scenes.")
@click.option(
    "--workers", type=click.IntRange(min=0), default=1, help="Rendering processes; PyTorch takes the other cores."
)
@click.option("--eval-scenes", type=click.IntRange(min=1), default=32, help="Held-out scenes to score at the end.")
@click.option("--output", type=click.Path(path_type=Path), default=Path("best.pth"), help="Checkpoint to write.")
def main(
    data: str,
    encoder: str,
    iterations: int | None,
    minutes: float | None,
    batch: int,
    size: tuple[int, int],
    lr: float | None,
    seed: int,
    workers: int,
    eval_scenes: int,
    output: Path,
) -> dict[str, Any]:
    """Train a model, score it on held-out scenes beside the best constant prediction, and write a checkpoint.

    Training time does not include the scoring. The same --iterations, --seed and other options give the same weights.
    """
    if iterations is not None and minutes is not None:
        raise click.UsageError("give --iterations or --minutes, not both")
    if lr is not None and not math.isfinite(lr):
        raise click.BadParameter(f"expected a finite number, found {lr}", param_hint="--lr")
    check_output(output, suffix=".pth")

    from mtmamba import train as t  # torch is slow to import: bad options are answered before it
    from mtmamba.checkpoint import save_checkpoint

    config = replace(preset(data, encoder), input_size=size)
    recipe = t.Recipe(
        size=size,
        batch=batch,
        lr=lr or (t.NANO_LR if encoder == "nano" else t.PAPER_LR),
        iterations=iterations,
        minutes=None if iterations else minutes or DEFAULT_MINUTES,
        seed=seed,
        warmup=0.05 if encoder == "nano" else 0.0,
        workers=workers,
    )
    t.share_cores(workers)
    started = time.monotonic()
    with progress(unit="steps" if iterations else "%") as bar:
        total = iterations or 100
        line = bar.add_task("training", total=total, note="")

        def on_step(step: t.Step) -> None:
            done = step.iteration if iterations else round(100 * step.progress)
            rate = step.iteration / (time.monotonic() - started)
            bar.update(line, completed=done, note=f"loss {step.loss:.2f}, {rate:.2g} steps/s")

        model, last = t.train(config, recipe, on_step)
        bar.update(line, completed=total)
    seconds = time.monotonic() - started
    ours, constant = t.evaluate(model, config.task_list, t.held_out_scenes(eval_scenes, size))
    result: dict[str, Any] = {
        "checkpoint": str(output),
        "command": shlex.join(["mtm-train", *sys.argv[1:]]),
        "iterations": last.iteration,
        "seconds": round(seconds, 1),
        "loss": round(last.loss, 4),
        "metrics": _plain(ours),
        "constant": _plain(constant),
    }
    save_checkpoint(output, model, {key: value for key, value in result.items() if key != "checkpoint"})
    _show(config.task_list, ours, constant)
    say(f"{last.iteration} steps in {seconds:.0f} s; wrote {output}")
    return result
