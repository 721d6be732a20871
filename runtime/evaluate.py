"""A model against a labelled set: whichever backend runs it, the same code makes predictions and scores them.

A picture goes through the model as in `mtm-run`; its raw outputs are resized to the label's size, made predictions
(`mtmamba.postprocess`), and scored there. Matching boundaries for odsF takes seconds a picture and is spread over
processes. Datasets are anything that looks like `Labelled`: nothing here imports torch.
"""

import math
import os
import signal
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from mtmamba.data.labels import valid_pixels
from mtmamba.draw import Picture
from mtmamba.errors import MtmError
from mtmamba.metadata import ModelMetadata
from mtmamba.metrics import BoundaryMeter, ConstantBaseline, Definitions, Figures, Meter, Scoreboard, meter_for, predict
from mtmamba.metrics.boundary_match import match_counts
from mtmamba.postprocess import Prediction
from mtmamba.runtime.backends import Backend
from mtmamba.runtime.outputs import raw_folder, write_raw
from mtmamba.runtime.preprocess import preprocess, resize_image
from mtmamba.runtime.threads import Prefetch
from mtmamba.tasks import IMAGENET_MEAN, IMAGENET_STD, Task

AHEAD = 4  # batches decoded ahead of the model
WORST = 4  # pictures of each task kept for the report

Label = npt.NDArray[Any]
OnPicture = Callable[[], None]


class Labelled(Protocol):
    """A labelled set: item i is a mapping of arrays, or of tensors that NumPy reads, laid out as
    `mtmamba.data.labels` says."""

    tasks: tuple[Task, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Mapping[str, Any]: ...

    def name_of(self, index: int) -> str: ...


@dataclass(frozen=True, kw_only=True)
class Exhibit:
    """A picture's prediction beside its label. score: the figure of this picture alone that
    `ranked_by` names."""

    name: str
    score: float
    picture: Picture
    prediction: Prediction
    label: Label


@dataclass(kw_only=True)
class Evaluation:
    """label_size: (height, width) of the first picture's labels. meters: of the model, by task. constant: figures of
    the best constant predictions. worst: by task, the worst picture first. engine_ms_p50: the model alone, milliseconds
    a picture, median."""

    pictures: int
    label_size: tuple[int, int]
    meters: dict[str, Meter]
    constant: Figures
    worst: dict[str, list[Exhibit]]
    engine_ms_p50: float

    @property
    def figures(self) -> Figures:
        return {name: meter.result() for name, meter in self.meters.items()}


@dataclass(frozen=True, kw_only=True)
class _Item:
    name: str
    image: npt.NDArray[np.float32]  # the model's input
    picture: Picture
    labels: dict[str, Label]


@dataclass(frozen=True, kw_only=True)
class _Scored:
    """A picture whose boundaries may still be being matched."""

    item: _Item
    predictions: dict[str, Prediction]
    matches: "dict[str, Future[Any]]" = field(default_factory=dict)


def check_tasks(tasks: Sequence[Task], labelled: Sequence[Task], model_of: str, data: str) -> None:
    """Raise MtmError where `tasks` of a model made for the dataset `model_of` are not among those `labelled` in `data`:
    other names, classes or units."""
    known = {task.name: task for task in labelled}
    for task in tasks:
        if task.name not in known:
            raise MtmError(
                f"the model predicts {task.name}, for which {data} has no labels (it has {', '.join(known)}); choose "
                "tasks with --tasks, or another --data"
            )
        if replace(task, palette=()) != replace(known[task.name], palette=()):
            raise MtmError(
                f"{task.name}: the model was made for {model_of} ({_form(task)}), the labels of {data} are another thing "
                f"({_form(known[task.name])}); choose --data {model_of}, or other tasks with --tasks"
            )


def _form(task: Task) -> str:
    return f"{task.channels} classes" if task.classes else task.title + (f" in {task.unit}" if task.unit else "")


def model_input(image: npt.NDArray[np.float32], metadata: ModelMetadata) -> tuple[npt.NDArray[Any], Picture]:
    """A sample's `image` as the model's input, and as a picture.

    It goes in as it is where size, normalisation and form are the model's, else it is brought to them as `mtm-run` does.
    """
    mean, std = (np.array(v, np.float32)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    rgb = np.rint(np.clip((image * std + mean) * 255, 0, 255)).astype(np.uint8)
    picture = np.ascontiguousarray(rgb[::-1].transpose(1, 2, 0))
    form = (metadata.io, metadata.mean, metadata.std)
    same = image.shape[1:] == metadata.input_size and form == ("raw", IMAGENET_MEAN, IMAGENET_STD)
    return (image if same else preprocess(picture, metadata)), picture


def evaluate(
    backend: Backend,
    dataset: Labelled,
    definitions: Definitions,
    *,
    workers: int = 0,
    save: Path | None = None,
    on_picture: OnPicture = lambda: None,
    on_constant: OnPicture = lambda: None,
) -> Evaluation:
    """Score `backend` on every task of `dataset`.

    workers: processes that match boundaries; 0 matches them here. save: a folder for the predictions at the labels'
    size, NAME.npz each. on_picture, on_constant: called after each picture is scored, and after each is gone through
    again for the best constant. Raises MtmError where a file does not decode or outputs are not finite.
    """
    if save is not None:
        raw_folder(save, "--save-predictions")
    run = _Run(dataset.tasks, definitions, save, on_picture)
    constant = ConstantBaseline(dataset.tasks)
    matching = definitions.matching is not None and any(task.kind == "boundary" for task in dataset.tasks)
    with _pool(workers) if matching and workers else nullcontext() as pool:
        try:
            for item, outputs in _outputs(backend, dataset, run.engine_ms):
                constant.learn(_batched(item.labels))
                run.take(item, outputs, pool)
                run.finish(at_most_waiting=2 * workers)
            run.finish(at_most_waiting=0)
        except BaseException:
            if pool is not None:
                pool.shutdown(wait=False, cancel_futures=True)
            raise
    for index in range(len(dataset)):
        constant.score(_batched(_labels(dataset[index], dataset.tasks)))
        on_constant()
    engine_ms = float(np.median(run.engine_ms)) if run.engine_ms else math.nan
    return Evaluation(
        pictures=len(dataset),
        label_size=run.label_size,
        meters=run.board.meters,
        constant=constant.result(),
        worst=run.worst,
        engine_ms_p50=engine_ms,
    )


class _Run:
    """The figures so far, and the pictures whose boundaries are still being matched."""

    def __init__(
        self, tasks: tuple[Task, ...], definitions: Definitions, save: Path | None, on_picture: OnPicture
    ) -> None:
        self.tasks, self.definitions, self.save, self.on_picture = tasks, definitions, save, on_picture
        self.board = Scoreboard(tasks, definitions)
        self.worst: dict[str, list[Exhibit]] = {task.name: [] for task in tasks}
        self.engine_ms: list[float] = []
        self.label_size = (0, 0)
        self._waiting: deque[_Scored] = deque()

    def take(self, item: _Item, outputs: Mapping[str, Label], pool: ProcessPoolExecutor | None) -> None:
        """Make predictions of a picture's outputs, save them, and start matching its boundaries."""
        if self.label_size == (0, 0):
            self.label_size = (item.picture.shape[0], item.picture.shape[1])
        predictions: dict[str, Prediction] = {}
        matches: dict[str, Future[Any]] = {}
        for task in self.tasks:
            label = item.labels[task.name]
            try:
                predictions[task.name] = predict(outputs[task.name], task, (label.shape[-2], label.shape[-1]))
            except MtmError as error:
                raise MtmError(f"{item.name}: {error}") from error
            if task.kind == "boundary" and self.definitions.matching is not None and pool is not None:
                valid = valid_pixels("boundary", label[None])[0]
                arguments = (predictions[task.name], label[0] > 0.5, valid, self.definitions.matching)
                matches[task.name] = pool.submit(match_counts, *arguments)
        if self.save is not None:
            write_raw(self.save / f"{item.name.replace(os.sep, '_')}.npz", predictions)
        self._waiting.append(_Scored(item=item, predictions=predictions, matches=matches))

    def finish(self, at_most_waiting: int) -> None:
        """Score pictures in order until so few wait for their boundaries."""
        while len(self._waiting) > at_most_waiting:
            scored = self._waiting.popleft()
            for task in self.tasks:
                self._score(task, scored)
            self.on_picture()

    def _score(self, task: Task, scored: _Scored) -> None:
        """Add a picture to the set's figures, through a meter of its own that also ranks it."""
        prediction, label = scored.predictions[task.name], scored.item.labels[task.name]
        meter = meter_for(task, self.definitions)
        if isinstance(meter, BoundaryMeter) and task.name in scored.matches:
            meter.add_pixels(prediction[None], label[None])
            meter.add_counts(_counts(scored.matches[task.name]))
        else:
            meter.add(prediction[None], label[None])
        self.board.meters[task.name].merge(meter.state())
        score = meter.result()[ranked_by(meter)]
        if not math.isnan(score):
            item = scored.item
            self._rank(
                meter,
                self.worst[task.name],
                Exhibit(name=item.name, score=score, picture=item.picture, prediction=prediction, label=label),
            )

    @staticmethod
    def _rank(meter: Meter, worst: list[Exhibit], exhibit: Exhibit) -> None:
        worst.append(exhibit)
        worst.sort(key=lambda e: -e.score if meter.lower_is_better else e.score)
        del worst[WORST:]


def ranked_by(meter: Meter) -> str:
    """The figure that ranks a single picture: the headline, but for labels and saliency the IoU over the classes
    present (a picture lacks most classes, and one without anything salient has no F)."""
    return {"labels": "mIoU_present", "saliency": "mIoU"}.get(meter.task.kind, meter.headline)


def _pool(workers: int) -> ProcessPoolExecutor:
    # Fresh processes: a fork would copy the locks of whatever threads the model's runtime has.
    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_leave_interrupts_to_the_parent)


def _counts(match: "Future[Any]") -> Any:
    try:
        return match.result()
    except BrokenProcessPool as error:
        raise MtmError(
            "a process that matches boundaries was killed, most likely for want of memory; choose fewer --workers"
        ) from error


def _leave_interrupts_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _outputs(
    backend: Backend, dataset: Labelled, engine_ms: list[float]
) -> Generator[tuple[_Item, dict[str, Label]], None, None]:
    """Every picture with the model's raw outputs, in order. Appends milliseconds a picture to `engine_ms`."""
    size = backend.metadata.batch
    prefetch = Prefetch(_items(dataset, backend.metadata), AHEAD * size)
    try:
        batch: list[_Item] = []
        for index, item in enumerate(prefetch, start=1):
            batch.append(item)
            if len(batch) == size or index == len(dataset):
                outputs = backend.infer(np.stack([one.image for one in batch]))
                engine_ms.append(backend.engine_ms / backend.metadata.run_size(len(batch)))
                for number, one in enumerate(batch):
                    yield one, {name: output[number] for name, output in outputs.items()}
                batch = []
    finally:
        prefetch.close()


def _items(dataset: Labelled, metadata: ModelMetadata) -> Generator[_Item, None, None]:
    for index in range(len(dataset)):
        sample = dataset[index]
        labels = _labels(sample, dataset.tasks)
        image, picture = model_input(np.asarray(sample["image"], np.float32), metadata)
        size = next(iter(labels.values())).shape[-2:]
        yield _Item(
            name=dataset.name_of(index), image=image, picture=resize_image(picture, (size[0], size[1])), labels=labels
        )


def _labels(sample: Mapping[str, Any], tasks: tuple[Task, ...]) -> dict[str, Label]:
    return {task.name: np.asarray(sample[task.name]) for task in tasks}


def _batched(labels: Mapping[str, Label]) -> dict[str, Label]:
    """One picture's labels as a batch of one."""
    return {name: label[None] for name, label in labels.items()}
