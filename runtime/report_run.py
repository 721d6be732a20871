"""What a report measures itself: parity, predictions, metrics and speed of every file that can run here."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from mtmamba.errors import MtmError
from mtmamba.metadata import ModelMetadata
from mtmamba.metrics import Definitions
from mtmamba.runtime.backends import Backend
from mtmamba.runtime.bench import bench
from mtmamba.runtime.eval_cli import result_of as score_facts
from mtmamba.runtime.evaluate import Labelled, evaluate, model_input
from mtmamba.runtime.mosaic import Mosaic
from mtmamba.runtime.parity import compare, random_frames
from mtmamba.runtime.parity_cli import result_of as parity_facts
from mtmamba.runtime.parity_page import Gallery
from mtmamba.runtime.parity_precision import precision_of
from mtmamba.runtime.parity_tolerance import Override, tolerances
from mtmamba.runtime.preprocess import preprocess
from mtmamba.runtime.report import Models, Steps
from mtmamba.runtime.report_saved import Comparison, Sample, Score, Timing
from mtmamba.runtime.sheet import Sheets
from mtmamba.runtime.sources import Frame, open_source
from mtmamba.runtime.views import facts_of

TILE_WIDTH = 360  # pixels of a task's picture among the samples


@dataclass(frozen=True, kw_only=True)
class Images:
    """What models are compared on and shown with. make: the frames, from the first, as often as it is called. count: how
    many at most. what: both, in words. real: pictures, not noise."""

    make: Callable[[], Iterator[Frame]]
    count: int
    what: str
    real: bool


@dataclass(frozen=True, kw_only=True)
class Labels:
    """A labelled set, and how it is scored. data, split: its name."""

    labelled: Labelled
    definitions: Definitions
    data: str
    split: str
    workers: int


def choose_images(source: Path | None, labels: Labels | None, metadata: ModelMetadata, count: int) -> Images:
    """The source's frames, else the labelled set's pictures, else random ones, which say less. Raises MtmError where the
    source cannot be read."""
    if source is not None:
        total = open_source(source).count  # a wrong source is said before the work
        step = max(1, (total or 1) // count)  # spread: a video's first frames are all alike
        return Images(
            make=lambda: islice(open_source(source).frames(), 0, step * count, step),
            count=min(count, total or count),
            what=f"of {source}",
            real=True,
        )
    if labels is not None:
        return Images(
            make=lambda: _pictures(labels, metadata, count),
            count=min(count, len(labels.labelled)),
            what=f"of {labels.data} {labels.split}",
            real=True,
        )
    return Images(
        make=lambda: random_frames(metadata.input_size, count), count=count, what="random, seed 0", real=False
    )


def _pictures(labels: Labels, metadata: ModelMetadata, count: int) -> Iterator[Frame]:
    for index in range(min(count, len(labels.labelled))):
        _, picture = model_input(np.asarray(labels.labelled[index]["image"], np.float32), metadata)
        name = labels.labelled.name_of(index)
        yield Frame(index=index, name=name, image=picture, source=name)


def run_parity(
    models: Models, images: Images, overrides: tuple[Override, ...], steps: Steps
) -> tuple[list[Comparison], dict[Path, str]]:
    """Every running file against the reference, or against the ONNX file where there is none; and why a file could not
    be compared, by path."""
    running, reasons = models.running, dict(models.reasons)
    right = models.reference or models.model
    if right not in running:
        return [], dict.fromkeys(models.files, f"its reference {right.name} does not run here ({reasons[right]})")
    found = []
    for path in models.files:
        if path == right or path not in running:
            continue
        candidate, gallery = running[path], Gallery()
        row = precision_of(candidate)
        try:
            parity = compare(
                running[right],
                candidate,
                images.make(),
                tolerances=tolerances(row, candidate.metadata.tasks, overrides),
                on_image=steps(f"comparing {path.name}", images.count),
                on_worst=gallery.hang,
            )
        except MtmError as error:
            reasons[path] = str(error)
            continue
        facts = parity_facts(running[right], candidate, row, images.what, parity)
        found.append(Comparison(facts=facts, parity=parity, gallery=gallery))
    return found, reasons


def draw_samples(backend: Backend, images: Images, count: int, on_picture: Callable[[], None]) -> list[Sample]:
    """The first pictures with every task drawn."""
    metadata = backend.metadata
    sheets = Sheets(metadata.tasks, still=True)
    mosaic = Mosaic(metadata.tasks, facts_of(backend), picture_width=TILE_WIDTH)
    pages = []
    for frame in islice(images.make(), count):
        outputs = backend.infer(preprocess(frame.image, metadata)[None])
        raw: dict[str, Any] = {name: output[0] for name, output in outputs.items()}
        pages.append((frame.source, mosaic.draw(sheets.make(frame, raw))))
        on_picture()
    return pages


def run_metrics(models: Models, labels: Labels, steps: Steps) -> list[Score]:
    """Every running file on the labelled set."""
    scores = []
    for path, backend in models.running.items():
        evaluation = evaluate(
            backend,
            labels.labelled,
            labels.definitions,
            workers=labels.workers,
            on_picture=steps(f"scoring {path.name}", len(labels.labelled)),
        )
        facts = score_facts(backend, labels.definitions, evaluation, None)
        scores.append(
            Score(
                facts={**facts, "data": labels.data, "split": labels.split},
                figures=evaluation.figures,
                constant=evaluation.constant,
                definitions=labels.definitions,
                evaluation=evaluation,
            )
        )
    return scores


def run_speed(backends: Sequence[Backend], calls: int, max_seconds: float, steps: Steps) -> list[Timing]:
    """Every running file, one after the other."""
    found = []
    for backend in backends:
        name = backend.model.name
        speed = bench(backend, warmup=3, calls=calls, max_s=max_seconds, on_call=steps(f"timing {name}", calls))
        found.append(
            Timing(
                model=str(backend.model),
                backend=backend.name,
                device=backend.device,
                batch=backend.metadata.batch,
                speed=speed,
            )
        )
    return found
