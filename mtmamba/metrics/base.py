"""What every meter is. B batch, H W the label's size."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from mtmamba.errors import MtmError
from mtmamba.postprocess import Prediction, postprocess
from mtmamba.tasks import Task

Array = np.ndarray[Any, Any]
State = dict[str, Array]
NOT_A_NUMBER = float("nan")


class Meter(ABC):
    """Counts and sums of one task over a set, divided once at the end.

    headline: the figure that tables show. lower_is_better: which way it points. sums: all that the meter knows, arrays
    that add up over pictures: neither batches nor the split over processes change a figure beyond the last bits of
    float64 sums.
    """

    headline: str
    lower_is_better: ClassVar[bool]

    def __init__(self, task: Task) -> None:
        self.task = task
        self.sums: State = {}

    def update(self, raw: Array, label: Array) -> None:
        """Add a batch of the model's raw outputs [B, C, h, w], made predictions at the label's size by
        `mtmamba.postprocess`. label: as `mtmamba.data.labels` says, with a batch dimension. Raises MtmError where
        outputs are not finite."""
        size = (label.shape[-2], label.shape[-1])
        self.add(np.stack([predict(one, self.task, size) for one in raw]), label)

    @abstractmethod
    def add(self, prediction: Array, label: Array) -> None:
        """Add a batch of predictions [B, H, W] (normals: [B, H, W, 3]), in the form `mtmamba.postprocess` gives."""

    @abstractmethod
    def result(self) -> dict[str, float]:
        """All figures so far, by name; NaN for a figure over no pixel at all."""

    def state(self) -> State:
        """A copy of `sums`: adding up the states of several processes, array by array, gives the state of all."""
        return {name: array.copy() for name, array in self.sums.items()}

    def merge(self, state: Mapping[str, Array]) -> None:
        """Add another meter's state. Raises MtmError where it is of another kind of meter."""
        shapes, others = ({name: array.shape for name, array in s.items()} for s in (self.sums, state))
        if shapes != others:
            raise MtmError(
                f"{self.task.name}: expected a meter's state of {shapes}, found {others}; merge equal meters"
            )
        for name, array in self.sums.items():
            array += state[name]


def predict(raw: Array, task: Task, size: tuple[int, int]) -> Prediction:
    """`postprocess` of one picture's outputs [C, h, w]. Raises MtmError where they are not finite: an arg max or a sum
    would hide it, or drown in it."""
    if not np.isfinite(raw).all():
        raise MtmError(
            f"{task.name}: expected finite outputs, found NaN or infinity; if this is an FP16 engine, build it again "
            "without --fp16, else train the model again"
        )
    return postprocess(raw, task, size)


def ratio(numerator: Any, denominator: Any) -> float:
    """The quotient, NaN over nothing."""
    return float(numerator) / float(denominator) if denominator else NOT_A_NUMBER
