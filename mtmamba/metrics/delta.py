"""The multi-task delta: how much better than a baseline, over all tasks, in percent; and the baselines."""

import json
from collections.abc import Mapping
from pathlib import Path

from mtmamba.errors import MtmError
from mtmamba.files import existing_file
from mtmamba.metrics.base import Meter
from mtmamba.metrics.board import Figures


def _nyudv2(miou: float, rmse: float, merr: float, odsf: float) -> Figures:
    return {"semseg": {"mIoU": miou}, "depth": {"RMSE": rmse}, "normals": {"mErr": merr}, "edge": {"odsF": odsf}}


BASELINES: dict[str, Figures] = {
    "nyudv2-single-task-swin-l": _nyudv2(54.32, 0.5166, 19.21, 77.30),
    "nyudv2-mtmamba-swin-t": _nyudv2(49.25, 0.5299, 19.74, 76.90),
    "nyudv2-mtmamba-swin-s": _nyudv2(51.93, 0.5246, 19.45, 77.80),
    "nyudv2-mtmamba-swin-b": _nyudv2(53.62, 0.5126, 19.28, 77.70),
    "nyudv2-mtmamba-swin-l": _nyudv2(55.82, 0.5066, 18.63, 78.70),
    "pascal-context-mtmamba-swin-l": {
        "semseg": {"mIoU": 81.11},
        "human_parts": {"mIoU": 72.62},
        "sal": {"maxF_published": 84.14},
        "normals": {"mErr": 14.14},
        "edge": {"odsF": 78.80},
    },
}
"""The paper's figures, by dataset, model and encoder (single-task: Table 3)."""


def load_baseline(name_or_file: str) -> Figures:
    """One of `BASELINES`, or a JSON file: {task: {figure: value}}, or what `mtm-eval --json` prints.

    Raises MtmError listing the names where it is neither, and for a file of another form."""
    if name_or_file in BASELINES:
        return BASELINES[name_or_file]
    path = Path(name_or_file)
    if not path.exists():
        raise MtmError(
            f"--baseline: expected a file or one of {', '.join(BASELINES)}, found no file {name_or_file!r}; check the name"
        )
    try:
        values = json.loads(existing_file(path, "baseline").read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise MtmError(f"{path}: expected a baseline in JSON, found none ({error}); write one with --json") from error
    figures = values.get("figures", values) if isinstance(values, dict) else None
    if not isinstance(figures, dict) or not figures or not all(_is_figures(item) for item in figures.values()):
        raise MtmError(f'{path}: expected {{"semseg": {{"mIoU": 54.32}}, ...}} or the output of mtm-eval --json')
    return figures


def _is_figures(values: object) -> bool:
    return isinstance(values, dict) and all(
        value is None or isinstance(value, int | float) for value in values.values()
    )


def multi_task_delta(meters: Mapping[str, Meter], figures: Figures, baseline: Figures) -> float:
    """100 / T * sum over tasks of (-1)^l (M - M_b) / M_b of the headline figures, l = 1 where lower is better; percent.

    Raises MtmError where the baseline has other tasks, or lacks the headline figure of one: figures by different
    definitions are not compared.
    """
    if set(meters) != set(baseline):
        raise MtmError(
            f"expected a baseline of the tasks {', '.join(meters)}, found {', '.join(baseline)}; choose another --baseline"
        )
    total = 0.0
    for task, meter in meters.items():
        reference = baseline[task].get(meter.headline)
        if not reference:
            raise MtmError(
                f"expected a baseline with {meter.headline} of {task}, found {', '.join(baseline[task])}; choose another "
                "--baseline, or the definition it uses (--absent-classes, --published-maxf, --edge-thresholds)"
            )
        gain = (figures[task][meter.headline] - reference) / reference
        total += -gain if meter.lower_is_better else gain
    return 100 * total / len(meters)
