"""mtm-report: one model on one page. Exit status 1 where a check of it fails; the page is written all the same."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click

from mtmamba.console import CheckFailedError, ImageSize, command, progress, say
from mtmamba.errors import MtmError
from mtmamba.files import check_output, only_candidate
from mtmamba.metadata import ModelMetadata
from mtmamba.metrics import BOUNDARY_TOLERANCE, Definitions, Matching
from mtmamba.metrics.boundary_match import THRESHOLD_COUNT
from mtmamba.runtime.backends import default_reference
from mtmamba.runtime.eval_cli import cores, open_labelled
from mtmamba.runtime.evaluate import check_tasks
from mtmamba.runtime.onnx_model import load_onnx
from mtmamba.runtime.page import check_page_packages
from mtmamba.runtime.parity_cli import OverrideType
from mtmamba.runtime.parity_tolerance import Override
from mtmamba.runtime.report import Models, Part, Steps, failures, machine_part, make_page, result_of
from mtmamba.runtime.report_files import engines_made_from, engines_part, export_part, facts, model_cost, model_part
from mtmamba.runtime.report_results import metrics_part, parity_part, samples_part, speed_part
from mtmamba.runtime.report_run import Images, Labels, choose_images, draw_samples, run_metrics, run_parity, run_speed
from mtmamba.runtime.report_saved import read_saved
from mtmamba.tasks import DATASETS, dataset

_PATH = click.Path(path_type=Path)


@command(epilog="Example: mtm-report best.onnx --data synthetic --limit 20 --engine best.fp16.engine")
@click.argument("model", required=False, type=_PATH)
@click.option("--reference", type=_PATH, help="What MODEL was made from.  [default: the only checkpoint here, if any]")
@click.option(
    "--engine", "engines", multiple=True, type=_PATH,
    help="An engine made from MODEL. May be repeated.  [default: those beside it that were]",
)  # fmt: skip
@click.option("--source", type=_PATH, help="Pictures or a video to compare on and to draw.")
@click.option("--images", type=click.IntRange(min=1), default=4, help="How many pictures to compare on.")
@click.option("--samples", type=click.IntRange(min=0), default=2, help="How many pictures to draw.")
@click.option("--data", type=click.Choice(list(DATASETS)), help="Labelled set to score on.")
@click.option("--root", type=_PATH, help="The set's folder (synthetic has none).")
@click.option("--split", type=click.Choice(["train", "val"]), default="val", help="Which part of it.")
@click.option("--limit", type=click.IntRange(min=1), help="Score the first so many pictures only.")
@click.option("--size", type=ImageSize(), help="HEIGHTxWIDTH of pictures and labels.  [default: the set's]")
@click.option(
    "--edge-thresholds", type=click.IntRange(min=0), default=THRESHOLD_COUNT,
    help="Thresholds of odsF: fewer for a quick look, 0 leaves odsF out.",
)  # fmt: skip
@click.option("--workers", type=click.IntRange(min=0), help="Processes that match boundaries.  [default: one a core]")
@click.option("--calls", type=click.IntRange(min=1), default=50, help="Calls that are timed.")
@click.option("--max-seconds", type=click.FloatRange(min=0.1), default=20.0, help="Time the timing of a file may take.")
@click.option("--tolerance", "overrides", multiple=True, type=OverrideType(), help="As in mtm-parity. May be repeated.")
@click.option("--parity", multiple=True, type=_PATH, help="A result of mtm-parity --json, in place of comparing here.")
@click.option("--eval", "evaluations", multiple=True, type=_PATH, help="A result of mtm-eval --json, likewise.")
@click.option("--bench", "benches", multiple=True, type=_PATH, help="A result of mtm-bench --json, likewise.")
@click.option("--export", "exports", multiple=True, type=_PATH, help="The result of mtm-export --json, to show.")
@click.option("--build", "builds", multiple=True, type=_PATH, help="A result of mtm-build-engine --json, to show.")
@click.option("-o", "--output", type=_PATH, help="The page.  [default: NAME.report.html]")
def main(
    model: Path | None,
    reference: Path | None,
    engines: tuple[Path, ...],
    source: Path | None,
    images: int,
    samples: int,
    data: str | None,
    root: Path | None,
    split: str,
    limit: int | None,
    size: tuple[int, int] | None,
    edge_thresholds: int,
    workers: int | None,
    calls: int,
    max_seconds: float,
    overrides: tuple[Override, ...],
    parity: tuple[Path, ...],
    evaluations: tuple[Path, ...],
    benches: tuple[Path, ...],
    exports: tuple[Path, ...],
    builds: tuple[Path, ...],
    output: Path | None,
) -> dict[str, Any]:
    """Put all that can be known of MODEL, an exported .onnx file (default: the only one here), on one HTML page.

    The page holds the file, its engines, parity, predictions, metrics and speed. What cannot run here (an engine without
    a GPU) is said, or read from the other commands' results. Exits with 1 where a check fails; the page is written then
    too. --parity, --eval, --bench, --export and --build may be repeated.
    """
    check_page_packages()
    model = model or only_candidate(("*.onnx",), "ONNX model", "mtm-report NAME.onnx", "mtm-export").relative_to(
        Path.cwd()
    )
    output = output or Path(f"{model.stem}.report.html")
    check_output(output, suffix=".html", inputs=(model,))
    onnx = load_onnx(model)
    metadata = onnx.metadata
    saved = read_saved(metadata.tasks, parity=parity, evaluations=evaluations, benches=benches, exports=exports,
                       builds=builds)  # fmt: skip
    models = Models(model=model, reference=reference or _reference_here(), engines=engines or engines_made_from(model))
    labels = None if data is None else _labels(data, root, split, size, limit, edge_thresholds, workers, metadata)
    cost = model_cost(metadata)
    parts: list[Part] = []
    with ExitStack() as stack, _steps() as steps:
        models.open(metadata, stack.enter_context)
        parts += [
            model_part(cost),
            export_part(onnx, models.reference, saved),
            engines_part(onnx, models.engines, models.reasons, saved),
        ]
        chosen = choose_images(source, labels, metadata, max(images, samples))
        reasons = models.reasons
        if not saved.parity:
            saved.parity, reasons = run_parity(
                models, choose_images(source, labels, metadata, images), overrides, steps
            )
        parts += [parity_part(saved.parity, reasons), _samples(models, chosen, samples, steps)]
        if labels is not None and not saved.scores:
            saved.scores = run_metrics(models, labels, steps)
        if not saved.timings:
            saved.timings = run_speed(tuple(models.running.values()), calls, max_seconds, steps)
        parts += [metrics_part(saved.scores, metadata.tasks), speed_part(saved.timings), machine_part(metadata)]
    make_page(model, facts(onnx, cost), parts).write(output)
    return _told(output, parts)


def _reference_here() -> Path | None:
    """The only checkpoint of the working folder; None where there is none, or several."""
    try:
        found = default_reference().relative_to(Path.cwd())
    except MtmError:
        return None
    if found.suffix == ".onnx":
        return None
    say(f"reference: {found.name}")
    return found


def _labels(
    data: str,
    root: Path | None,
    split: str,
    size: tuple[int, int] | None,
    limit: int | None,
    edge_thresholds: int,
    workers: int | None,
    metadata: ModelMetadata,
) -> Labels:
    check_tasks(metadata.tasks, dataset(data).tasks, metadata.config.dataset, data)
    if size is None and data == "synthetic":
        size = metadata.input_size
    matching = None
    if edge_thresholds and data in BOUNDARY_TOLERANCE:
        matching = Matching(max_distance=BOUNDARY_TOLERANCE[data], thresholds=edge_thresholds)
    return Labels(
        labelled=open_labelled(data, root, split, size, tuple(task.name for task in metadata.tasks), limit),
        definitions=Definitions(matching=matching),
        data=data,
        split=split,
        workers=cores() if workers is None else workers,
    )


def _samples(models: Models, images: Images, count: int, steps: Steps) -> Part:
    """Drawn by the most deployable file that runs."""
    if not images.real or not count:
        return samples_part([], "", "No pictures: name some with --source or --data.")
    if not models.running:
        return samples_part([], "", "Nothing runs here that could predict.")
    backend = list(models.running.values())[-1]
    pages = draw_samples(backend, images, count, steps("drawing", min(count, images.count)))
    return samples_part(pages, backend.model.name, images.what)


@contextmanager
def _steps() -> Iterator[Steps]:
    with progress() as bar:

        def step(name: str, total: int | None) -> Callable[[], None]:
            task = bar.add_task(name, total=total, note="")
            return lambda: bar.advance(task)

        yield step


def _told(output: Path, parts: list[Part]) -> dict[str, Any]:
    result = {"report": str(output), **result_of(parts)}
    for part in parts:
        if part.verdict:
            say(f"{part.name:<10}{part.verdict:<10}{part.summary}")
    say(f"wrote {output}")
    if failed := failures(parts):
        sentence = "; ".join(f"{part.name.lower()}: {part.summary}" for part in failed)
        raise CheckFailedError(f"{sentence}; {output} has the figures", result)
    return result


if __name__ == "__main__":
    main()
