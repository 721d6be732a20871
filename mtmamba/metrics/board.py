"""Which task is measured how, and all tasks of a model together."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mtmamba.errors import MtmError
from mtmamba.metrics.base import Array, Meter, State
from mtmamba.metrics.boundary import BoundaryMeter
from mtmamba.metrics.boundary_match import Matching
from mtmamba.metrics.meters import AbsentClasses, DepthMeter, LabelMeter, NormalMeter, SaliencyMeter
from mtmamba.tasks import Task

Figures = dict[str, dict[str, float]]
"""Task -> figure -> value."""


def or_null(value: float) -> float | None:
    """JSON knows neither NaN nor infinity: such a value becomes null."""
    return value if math.isfinite(value) else None


def plain(figures: Figures) -> dict[str, dict[str, float | None]]:
    """Figures for JSON: six decimals, and null for a figure over no pixel."""
    return {
        task: {name: or_null(round(value, 6)) for name, value in values.items()} for task, values in figures.items()
    }


BOUNDARY_TOLERANCE = {"nyudv2": 0.011, "pascal-context": 0.0075, "synthetic": 0.011}
"""Share of the picture's diagonal within which a predicted boundary pixel counts as a true one; rooms as NYUDv2."""


@dataclass(frozen=True, kw_only=True)
class Definitions:
    """Where definitions differ, which one is the headline. absent_classes: how mIoU counts a class in neither
    prediction nor label. published_maxf: the published saliency meter's thresholds. matching: odsF instead of the
    cheap `boundary_f_pixel`."""

    absent_classes: AbsentClasses = "zero"
    published_maxf: bool = False
    matching: Matching | None = None


def meter_for(task: Task, definitions: Definitions | None = None) -> Meter:
    """A fresh meter of a task: the one place that says which kind is measured how."""
    wanted = definitions or Definitions()
    if task.kind == "labels":
        return LabelMeter(task, wanted.absent_classes)
    if task.kind == "depth":
        return DepthMeter(task)
    if task.kind == "normals":
        return NormalMeter(task)
    if task.kind == "saliency":
        return SaliencyMeter(task, wanted.published_maxf)
    return BoundaryMeter(task, wanted.matching)


class Scoreboard:
    """A meter for every task."""

    def __init__(self, tasks: Sequence[Task], definitions: Definitions | None = None) -> None:
        self.meters = {task.name: meter_for(task, definitions) for task in tasks}

    def update(self, outputs: Mapping[str, Array], labels: Mapping[str, Array]) -> None:
        """Add a batch of raw outputs, see `Meter.update`. Raises MtmError naming a task that is missing."""
        for name, meter in self.meters.items():
            if name not in outputs or name not in labels:
                raise MtmError(
                    f"expected a prediction and a label of {name}; found {sorted(outputs)} and {sorted(labels)}"
                )
            meter.update(outputs[name], labels[name])

    def result(self) -> Figures:
        return {name: meter.result() for name, meter in self.meters.items()}

    def state(self) -> dict[str, State]:
        """Task -> arrays that add up over processes (`Meter.state`)."""
        return {name: meter.state() for name, meter in self.meters.items()}

    def merge(self, state: Mapping[str, State]) -> None:
        """Add another board's state. Raises MtmError where it is of other tasks or meters."""
        if set(state) != set(self.meters):
            raise MtmError(f"expected the state of {sorted(self.meters)}, found {sorted(state)}; merge equal boards")
        for name, meter in self.meters.items():
            meter.merge(state[name])
