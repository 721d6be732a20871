"""mtm-eval: a model's figures on a labelled set, whichever backend runs it."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from importlib import metadata as packages
from pathlib import Path
from typing import Any, Literal, cast

import click

from mtmamba.console import ImageSize, command, progress, say
from mtmamba.errors import MtmError
from mtmamba.files import check_output
from mtmamba.metrics import (
    BASELINES,
    BOUNDARY_TOLERANCE,
    Definitions,
    Figures,
    Matching,
    Scoreboard,
    load_baseline,
    multi_task_delta,
    plain,
)
from mtmamba.metrics.boundary_match import THRESHOLD_COUNT
from mtmamba.metrics.meters import AbsentClasses
from mtmamba.runtime.backends import BACKENDS, Backend, default_model, open_backend
from mtmamba.runtime.eval_report import class_iou, tell, write_page
from mtmamba.runtime.evaluate import Evaluation, Labelled, check_tasks, evaluate
from mtmamba.runtime.page import check_page_packages
from mtmamba.runtime.run_cli import choose_tasks
from mtmamba.runtime.threads import cores
from mtmamba.tasks import DATASETS, Task, dataset

_PATH = click.Path(path_type=Path)


@command(epilog="Example: mtm-eval best.onnx --data nyudv2 --root NYUDv2 --html report.html")
@click.argument("model", required=False, type=_PATH)
@click.option("--data", required=True, type=click.Choice(list(DATASETS)), help="Dataset.")
@click.option("--root", type=_PATH, help="The dataset's folder (synthetic has none).")
@click.option("--split", type=click.Choice(["train", "val"]), default="val", help="Which part.")
@click.option("--backend", type=click.Choice(list(BACKENDS)), help="What runs it.  [default: by the model file]")
@click.option("--tasks", help="Tasks to score, such as semseg,depth.  [default: all of the model's]")
@click.option("--limit", type=click.IntRange(min=1), help="Score the first so many pictures only.")
@click.option("--size", type=ImageSize(), help="HEIGHTxWIDTH of pictures and labels.  [default: the dataset's]")
@click.option("--batch", type=click.IntRange(min=1), help="Pictures a run of the model.  [default: the file's]")
@click.option(
    "--absent-classes", type=click.Choice(["zero", "left-out"]), default="zero",
    help="How mIoU counts a class in neither labels nor predictions; zero is what papers do.",
)  # fmt: skip
@click.option("--published-maxf", is_flag=True, help="maxF with the published meter's thresholds.")
@click.option(
    "--edge-thresholds", type=click.IntRange(min=0), default=THRESHOLD_COUNT,
    help="Thresholds of odsF: fewer for a quick look, 0 leaves odsF out.",
)  # fmt: skip
@click.option("--workers", type=click.IntRange(min=0), help="Processes that match boundaries.  [default: one a core]")
@click.option("--baseline", help="Baseline to compare with: a JSON file, or one of " + ", ".join(BASELINES) + ".")
@click.option("--html", type=_PATH, help="Write a page with charts and the worst pictures.")
@click.option("--save-predictions", type=_PATH, help="Folder for the predictions: one .npz a picture.")
def main(
    model: Path | None,
    data: str,
    root: Path | None,
    split: str,
    backend: str | None,
    tasks: str | None,
    limit: int | None,
    size: tuple[int, int] | None,
    batch: int | None,
    absent_classes: str,
    published_maxf: bool,
    edge_thresholds: int,
    workers: int | None,
    baseline: str | None,
    html: Path | None,
    save_predictions: Path | None,
) -> dict[str, Any]:
    """Score MODEL (.engine, .onnx or .pth; default: what mtm-run would run here) on a labelled set: every figure of the
    paper, beside the best constant."""
    reference = load_baseline(baseline) if baseline is not None else None
    if model is None:
        model, note = default_model(backend)
        say(f"{note}\nmodel: {model.name}".lstrip())
    if html is not None:
        check_page_packages()
        check_output(html, suffix=".html", inputs=(model,))
    matching = Matching(max_distance=BOUNDARY_TOLERANCE.get(data, math.nan), thresholds=edge_thresholds)
    definitions = Definitions(
        absent_classes=cast(AbsentClasses, absent_classes),
        published_maxf=published_maxf,
        matching=matching if edge_thresholds and data in BOUNDARY_TOLERANCE else None,
    )
    with open_backend(model, backend) as loaded:
        _set_batch(loaded, batch)
        chosen = choose_tasks(loaded.metadata, tasks)
        check_tasks(chosen, dataset(data).tasks, loaded.metadata.config.dataset, data)
        _check_baseline(chosen, definitions, reference)
        if size is None and data == "synthetic":
            size = loaded.metadata.input_size  # rooms are rendered at any size
        labelled = open_labelled(data, root, split, size, tuple(task.name for task in chosen), limit)
        started = time.perf_counter()
        with _bar(len(labelled)) as (on_picture, on_constant):
            evaluation = evaluate(
                loaded,
                labelled,
                definitions,
                workers=cores() if workers is None else workers,
                save=save_predictions,
                on_picture=on_picture,
                on_constant=on_constant,
            )
        result = result_of(loaded, definitions, evaluation, reference)
    result |= {
        "data": data,
        "split": split,
        "seconds": round(time.perf_counter() - started, 1),
        "baseline": baseline,
        "report": None if html is None else str(html),
        "predictions": None if save_predictions is None else str(save_predictions),
    }
    if html is not None:
        write_page(html, result, evaluation, reference)
    tell(result, evaluation, reference)
    return result


def open_labelled(
    data: str, root: Path | None, split: str, size: tuple[int, int] | None, tasks: tuple[str, ...], limit: int | None
) -> Labelled:
    """The dataset. It is read with torch, the model need not be run with it: so torch is imported here, if at all."""
    if data == "synthetic" and split == "train" and limit is None:
        raise MtmError("--split train of synthetic has no end; choose how many rooms to score with --limit")
    if data != "synthetic" and root is None:
        raise MtmError(f"--data {data}: expected the dataset's folder, found none; name it with --root")
    part = cast(Literal["train", "val"], split)
    try:
        from mtmamba.data import open_dataset

        return open_dataset(data, root, part, size=size, tasks=tasks, length=limit)
    except ImportError as error:
        raise MtmError(
            f"--data {data}: expected the packages that read it (PyTorch among them), found one missing ({error}); install "
            "them with pip install 'mtmamba[model,train]'"
        ) from error


def _set_batch(backend: Backend, batch: int | None) -> None:
    """Run a checkpoint in batches of another size, or what was made for a range in batches of one inside it."""
    metadata = backend.metadata
    if batch is None or batch == metadata.batch:
        return
    if backend.name != "torch" and not metadata.smallest_batch <= batch <= metadata.batch:
        raise MtmError(
            f"{backend.model}: made for batches of {metadata.batch_text}, found --batch {batch}; leave it away, or "
            f"export again with mtm-export --batch {batch}"
        )
    backend.metadata = replace(metadata, batch=batch)


def _check_baseline(tasks: tuple[Task, ...], definitions: Definitions, baseline: Figures | None) -> None:
    """Raise MtmError before the work where the baseline does not fit."""
    if baseline is not None:
        multi_task_delta(Scoreboard(tasks, definitions).meters, baseline, baseline)


def result_of(
    backend: Backend, definitions: Definitions, evaluation: Evaluation, baseline: Figures | None
) -> dict[str, Any]:
    """What `--json` prints of the model, its figures and how they are defined."""
    delta = None if baseline is None else multi_task_delta(evaluation.meters, evaluation.figures, baseline)
    milliseconds = evaluation.engine_ms_p50
    return {
        "model": str(backend.model),
        "backend": backend.name,
        "device": backend.device,
        "pictures": evaluation.pictures,
        "input_size": list(backend.metadata.input_size),
        "label_size": list(evaluation.label_size),
        "engine_ms_p50": None if math.isnan(milliseconds) else round(milliseconds, 3),
        "definitions": _told(definitions),
        "figures": plain(evaluation.figures),
        "constant": plain(evaluation.constant),
        "delta": None if delta is None or math.isnan(delta) else round(delta, 4),
        "class_iou": plain(class_iou(evaluation.meters)),
        "versions": _versions(backend),
    }


def _told(definitions: Definitions) -> dict[str, Any]:
    matching = asdict(definitions.matching) if definitions.matching else {}
    return {
        "absent_classes": definitions.absent_classes,
        "maxF": "published" if definitions.published_maxf else "plain",
        "edge_tolerance": matching.get("max_distance"),
        "edge_thresholds": matching.get("thresholds"),
    }


def _versions(backend: Backend) -> dict[str, str]:
    """Of what made the model, and of what scored it."""
    here = {}
    for name in ("mtmamba", "numpy", "opencv-python-headless", "scipy", "scikit-image", "ortools", "onnxruntime"):
        try:
            here[name] = packages.version(name)
        except packages.PackageNotFoundError:
            continue
    return {**{f"{name} (model)": version for name, version in backend.metadata.versions.items()}, **here}


@contextmanager
def _bar(total: int) -> Iterator[tuple[Callable[[], None], Callable[[], None]]]:
    """Two progress bars with rates; yields the functions that count one picture of each."""
    with progress(unit="pictures") as bar:

        def line(name: str) -> Callable[[], None]:
            task = bar.add_task(name, total=total, note="", start=False)
            start, count = 0.0, 0

            def advance() -> None:
                nonlocal start, count
                if not count:
                    start = time.perf_counter()
                    bar.start_task(task)
                count += 1
                seconds = time.perf_counter() - start
                bar.update(task, advance=1, note=f"{(count - 1) / seconds:.2g} pictures/s" if count > 1 else "")

            return advance

        yield line("scoring"), line("best constant")


if __name__ == "__main__":
    main()
