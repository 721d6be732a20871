"""How far a backend's predictions may lie from the reference's, by precision, and why. One table, overridden by figure
and task."""

from dataclasses import dataclass, replace
from typing import Any

from mtmamba.errors import MtmError
from mtmamba.tasks import Kind, Task

FIGURES = ("difference", "agreement", "depth", "angle")
"""difference: the largest of |candidate - reference| over all raw predictions, absolute for a task whose predictions
are within -1..1 and relative to its largest beyond. agreement: percent of pixels with the same label, or on the same
side of probability 0.5. depth: mean relative depth error, percent. angle: mean angle between normals, degrees."""

UNITS = {
    "difference": "",
    **dict.fromkeys(("agreement", "miou", "iou", "depth", "depth_max"), " %"),
    **dict.fromkeys(("angle", "angle_max"), "°"),
}
"""Of every figure, as written behind it."""

FIGURE_OF: dict[Kind, str] = {
    "labels": "agreement",
    "saliency": "agreement",
    "boundary": "agreement",
    "depth": "depth",
    "normals": "angle",
}
"""What a task is judged by beside the difference."""

AT_LEAST = frozenset({"agreement"})
"""Figures that must reach their tolerance; the others must not pass it."""


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """One row of the table; the figures are those of `FIGURES`. reason: where the row comes from."""

    difference: float
    agreement: float
    depth: float
    angle: float
    reason: str = ""


# u: unit roundoff of the format, the largest relative error of one rounding. docs/parity.md and docs/precision.md have
# what was measured: trained models are within every row, random weights within those up to FP16. Bisection and the
# precision tests hold a model to the same rows.
TOLERANCES: dict[str, Tolerance] = {
    "fp32": Tolerance(
        difference=1e-4, agreement=99.9, depth=0.05, angle=0.02,
        reason="u = 6e-8, another order of summation: what mtm-export allows its file",
    ),
    "tf32": Tolerance(
        difference=2e-2, agreement=99.5, depth=0.5, angle=0.5,
        reason="u = 5e-4 in convolutions and matrix products: what GPUs make of FP32 models unless told not to",
    ),
    "fp16": Tolerance(
        difference=3e-2, agreement=99.5, depth=0.5, angle=0.5,
        reason="u = 5e-4 in all but the scan's state and the FP32 islands",
    ),
    "bf16": Tolerance(
        difference=1e-1, agreement=98.0, depth=2.0, angle=2.0,
        reason="u = 4e-3, eight times FP16's",
    ),
    "fp8": Tolerance(
        difference=8e-1, agreement=98.0, depth=2.0, angle=2.0,  # 0.64 measured, normals of a trained nano, emulated
        reason="u = 6e-2 in the quantised products, scaled by calibration",
    ),
    "int8": Tolerance(
        difference=3e-1, agreement=98.0, depth=2.0, angle=2.0,
        reason="steps of 1/127 of each tensor's range in the quantised products",
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Override:
    """One tolerance given by hand. task: a task's name, None for every task."""

    figure: str
    value: float
    task: str | None = None

    @classmethod
    def parse(cls, text: str) -> "Override":
        """Read "[TASK.]FIGURE=VALUE", such as "difference=1e-3" or "semseg.agreement=99.5". Raises MtmError."""
        name, _, value = text.partition("=")
        task, dot, figure = name.strip().rpartition(".")
        try:
            number = float(value)
        except ValueError:
            number = -1.0
        if figure not in FIGURES or not 0 <= number < float("inf") or (dot and not task):
            raise MtmError(
                f"expected [TASK.]FIGURE=VALUE with FIGURE one of {', '.join(FIGURES)} and VALUE a number of at least "
                f"0, such as difference=1e-3 or semseg.agreement=99.5, found {text!r}"
            )
        return cls(figure=figure, value=number, task=task or None)


def tolerances(precision: str, tasks: tuple[Task, ...], overrides: tuple[Override, ...] = ()) -> dict[str, Tolerance]:
    """The tolerance of every task: the precision's row, then the overrides for all tasks, then those for one.

    Raises MtmError for an unknown precision, a task that is not among `tasks`, and a figure the task is not judged by.
    """
    if precision not in TOLERANCES:
        raise MtmError(f"unknown precision {precision!r}; known: {', '.join(TOLERANCES)}; choose one with --precision")
    known = {task.name: task for task in tasks}
    for override in overrides:
        if override.task is not None:
            _check(override, known)
    result = {}
    for name in known:
        values: dict[str, Any] = {o.figure: o.value for o in overrides if o.task is None}
        values |= {o.figure: o.value for o in overrides if o.task == name}
        result[name] = replace(TOLERANCES[precision], **values)
    return result


def _check(override: Override, known: dict[str, Task]) -> None:
    if override.task not in known:
        raise MtmError(f"tolerance of task {override.task!r}: the models compared have {', '.join(known)}")
    figures = ("difference", FIGURE_OF[known[override.task].kind])
    if override.figure not in figures:
        raise MtmError(
            f"task {override.task} is judged by {' and '.join(figures)}, found a tolerance of {override.figure}"
        )
