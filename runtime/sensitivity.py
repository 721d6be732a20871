"""What each precision costs where: every block of the model alone in low precision, all others in FP32."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import onnx

from mtmamba.calib.calibration import Calibration
from mtmamba.calib.plan import PrecisionPlan
from mtmamba.errors import MtmError
from mtmamba.export.graph import block_of, blocks_of
from mtmamba.export.precision import to_precision
from mtmamba.files import atomic_path
from mtmamba.runtime.bisect import Outputs, candidates_of, keeping, run_all
from mtmamba.runtime.emulation import Array, Emulation
from mtmamba.runtime.parity import compare_predictions
from mtmamba.runtime.parity_tolerance import FIGURE_OF, tolerances
from mtmamba.tasks import Task

WHOLE = "whole model"
_FLOOR = 1e-3  # percent; the lower end of the picture's colours


def sensitivity(
    model: onnx.ModelProto,
    tasks: Sequence[Task],
    images: Sequence[Array],
    precisions: Sequence[str],
    *,
    calibration: Calibration | None = None,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """{precision: {block: {task: figures}}}, with `WHOLE` for all blocks at once, from the FP32 `model` and `images`,
    batches [B, 3, H, W]. Figures are those of `mtmamba.runtime.parity.TaskParity.cost`, against FP32.

    calibration: int8 and fp8 need one. on_progress: (done, total, what).
    """
    reference = run_all(Emulation(model), images)
    plans = {precision: calibration.plan(precision) if calibration else PrecisionPlan() for precision in precisions}
    jobs = [
        (precision, block)
        for precision in precisions
        for block in (WHOLE, *blocks_of(candidates_of(model, precision, plans[precision])))
    ]
    found: dict[str, dict[str, dict[str, dict[str, float]]]] = {precision: {} for precision in precisions}
    for index, (precision, block) in enumerate(jobs):
        if on_progress:
            on_progress(index, len(jobs), f"{block} in {precision}")
        plan = plans[precision]
        if block != WHOLE:
            others = [node.name for node in model.graph.node if block_of(node.name) != block]
            plan = keeping(plan, "fp16", others, "in another block")
        low, _ = to_precision(model, precision, calibration, plan=plan)
        outputs: list[Outputs] = run_all(Emulation(low), images)
        parity = compare_predictions(tasks, reference, outputs, tolerances(precision, tuple(tasks)))
        found[precision][block] = {task.task.name: task.cost for task in parity.tasks}
    return found


def worst(costs: dict[str, dict[str, dict[str, float]]]) -> tuple[str, float]:
    """Of {block: {task: figures}}: the block that costs some task most, and its RMS there; infinity for NaN."""
    largest = {
        block: max(_rms(costs, task, block, math.inf) for task in costs[block]) for block in costs if block != WHOLE
    }
    return max(largest.items(), key=lambda item: item[1])


def draw(found: dict[str, dict[str, dict[str, dict[str, float]]]], tasks: Sequence[Task], target: Path) -> None:
    """A heat map a precision: blocks down, tasks across; the colour is the RMS difference, the number what it does to the
    task's own figure. Raises MtmError where matplotlib is missing."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.colors import LogNorm
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MtmError(f"the picture needs matplotlib, found none ({error}); run pip install matplotlib") from error
    blocks = list(dict.fromkeys(block for costs in found.values() for block in costs))
    largest = max(_rms(costs, task.name, block) for costs in found.values() for task in tasks for block in costs)
    norm = LogNorm(_FLOOR, max(largest, 10 * _FLOOR))
    figure = Figure(
        figsize=(3.2 + len(found) * (0.75 * len(tasks) + 0.5), 2.2 + 0.26 * len(blocks)), layout="constrained"
    )
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(found), sharey=True, squeeze=False)[0]
    for panel, (precision, costs) in zip(panels, found.items(), strict=True):
        values = [[max(_rms(costs, task.name, block), _FLOOR) for task in tasks] for block in blocks]
        image = panel.imshow(values, cmap="viridis", norm=norm, aspect="auto")
        panel.set_title(precision)
        panel.set_xticks(
            range(len(tasks)), [f"{task.name}\n{_UNITS[FIGURE_OF[task.kind]]}" for task in tasks], fontsize=7
        )
        panel.set_yticks(range(len(blocks)), blocks, fontsize=7)
        for y, block in enumerate(blocks):
            for x, task in enumerate(tasks):
                dark = norm(values[y][x]) < 0.6
                text = _loss(costs, task, block)
                panel.text(x, y, text, ha="center", va="center", fontsize=6, color="white" if dark else "black")
    figure.colorbar(image, ax=panels, label="RMS difference of the raw prediction from FP32, percent", shrink=0.6)
    figure.suptitle("Each block alone in low precision. Numbers: loss in the task's own figure", fontsize=10)
    with atomic_path(target) as temporary:
        figure.savefig(temporary, dpi=130)


_UNITS = {"agreement": "% labels\nchanged", "depth": "% of\ndepth", "angle": "degrees"}


def _rms(costs: dict[str, dict[str, dict[str, float]]], task: str, block: str, not_finite: float = 1e3) -> float:
    value = costs[block][task]["rms"] if block in costs else 0.0
    return value if math.isfinite(value) else not_finite


def _loss(costs: dict[str, dict[str, dict[str, float]]], task: Task, block: str) -> str:
    if block not in costs:
        return "-"
    value = costs[block][task.name][FIGURE_OF[task.kind]]
    if FIGURE_OF[task.kind] == "agreement":
        value = 100 - value
    return f"{value:.2g}" if math.isfinite(value) and value >= 0.005 else "0" if math.isfinite(value) else "not\nfinite"
