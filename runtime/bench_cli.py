"""mtm-bench: how fast a model runs here, beside others in the same run."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from mtmamba.console import command, progress, say
from mtmamba.files import existing_file
from mtmamba.runtime.backends import BACKENDS, backend_of, default_model, open_backend
from mtmamba.runtime.bench import Speed, bench, machine


@command(epilog="Example: mtm-bench best.fp16.engine best.onnx --calls 200")
@click.argument("models", nargs=-1, type=click.Path(path_type=Path))
@click.option("--backend", type=click.Choice(list(BACKENDS)), help="What runs them.  [default: by each file]")
@click.option("--warmup", type=click.IntRange(min=0), default=10, help="Calls before the clock starts.")
@click.option("--calls", type=click.IntRange(min=1), default=50, help="Calls that are timed, a round.")
@click.option("--rounds", type=click.IntRange(min=1), default=3, help="Rounds; the models take turns in each.")
@click.option("--max-seconds", type=click.FloatRange(min=0.1), help="Time a model gets in a round, at most.")
def main(
    models: tuple[Path, ...], backend: str | None, warmup: int, calls: int, rounds: int, max_seconds: float | None
) -> dict[str, Any]:
    """Time MODELS (.engine, .onnx or .pth; default: the only one here): the model alone on its device, and the whole call
    with copies. The figures are those of the round with the median time."""
    if not models:
        models = (default_model(backend)[0],)
    for model in models:  # a wrong name is said before the first is timed
        existing_file(model, "model")
        backend_of(model)
    speeds: dict[Path, list[Speed]] = {model: [] for model in models}
    facts: dict[Path, dict[str, Any]] = {}
    with progress(unit="calls") as bar:
        task = bar.add_task("timing", total=rounds * len(speeds) * calls, note="")
        for _ in range(rounds):
            for model in speeds:
                bar.update(task, note=model.name)
                with open_backend(model, backend) as loaded:
                    speed = bench(
                        loaded, warmup=warmup, calls=calls, max_s=max_seconds, on_call=lambda: bar.advance(task)
                    )
                    facts[model] = {
                        "backend": loaded.name, "device": loaded.device, "batch": loaded.metadata.batch,
                        "input_size": list(loaded.metadata.input_size), "versions": loaded.metadata.versions,
                    }  # fmt: skip
                speeds[model].append(speed)
    rows = [{"model": str(model), **facts[model], **asdict(_middle(found))} for model, found in speeds.items()]
    for row in rows:
        say(
            f"{row['model']}: {row['images_per_s']:.1f} images/s at batch {row['batch']} with {row['backend']} on "
            f"{row['device']}; a call {row['call']['p50_ms']:.2f} ms (p50), {row['call']['p99_ms']:.2f} (p99); the model "
            f"alone {row['engine']['p50_ms']:.2f} ms"
        )
    return {"rounds": rounds, "machine": machine(), "models": rows}


def _middle(speeds: list[Speed]) -> Speed:
    return sorted(speeds, key=lambda speed: speed.call.p50_ms)[len(speeds) // 2]


if __name__ == "__main__":
    main()
