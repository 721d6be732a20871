"""What an evaluation says: one dict for machines, a table for a terminal, a page for a browser."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtmamba.console import say
from mtmamba.metrics import BoundaryMeter, Figures, LabelMeter, Meter
from mtmamba.runtime.eval_charts import confusion_figure, curve_figure, exhibit_figures, iou_figure, legend
from mtmamba.runtime.evaluate import Evaluation, ranked_by
from mtmamba.runtime.page import Block, Note, Page, Swatches, Table
from mtmamba.runtime.page import Figures as Row

COLUMNS = 3  # of classes in the terminal's table


def class_iou(meters: Mapping[str, Meter]) -> Figures:
    """Task -> class -> IoU, of the tasks that have classes."""
    return {
        name: {label: float(iou) for label, iou in zip(meter.task.classes, meter.class_iou(), strict=True)}
        for name, meter in meters.items()
        if isinstance(meter, LabelMeter)
    }


FOUR_DECIMALS = ("RMSE", "abs_rel", "sq_rel", "log_rmse")


def shown(value: float | None, figure: str = "") -> str:
    """A figure for people: percent and degrees to two decimals, errors of depth to four; "-" where there is none."""
    if value is None or math.isnan(value):
        return "-"
    return f"{value:.4f}" if figure in FOUR_DECIMALS else f"{value:.2f}"


def figure_rows(evaluation: Evaluation, baseline: Figures | None) -> list[tuple[bool, list[str]]]:
    """(is a headline, [task, figure, model, best constant, baseline, which way]) for every figure."""
    rows = []
    for name, meter in evaluation.meters.items():
        figures = meter.result()
        for figure in sorted(figures, key=lambda f: f != meter.headline):
            headline = figure == meter.headline
            way = ("lower" if meter.lower_is_better else "higher") + " is better" if headline else ""
            others = (evaluation.constant[name].get(figure), (baseline or {}).get(name, {}).get(figure))
            if figure.startswith("threshold"):  # where the constant's F is reached says nothing
                others = (None, others[1])
            rows.append(
                (headline, [name, figure, *(shown(value, figure) for value in (figures[figure], *others)), way])
            )
    return rows


def tell(result: Mapping[str, Any], evaluation: Evaluation, baseline: Figures | None) -> None:
    """The terminal's tables: headline figures, then the IoU of every class, then where the rest is."""
    say(f"{result['model']} with {result['backend']} on {result['device']}: {result['pictures']} pictures of "
        f"{result['data']} {result['split']}")  # fmt: skip
    say(f"{'':<30}{'model':>10}{'best constant':>16}{'baseline' if baseline else '':>12}".rstrip())
    for headline, (task, figure, *values, way) in figure_rows(evaluation, baseline):
        if headline:
            model, constant, reference = values
            say(f"{task + ' ' + figure:<30}{model:>10}{constant:>16}{reference if baseline else '':>12}   {way}")
    if result["delta"] is not None:
        say(f"multi-task delta against {result['baseline']}: {result['delta']:+.2f} %")
    for task, classes in class_iou(evaluation.meters).items():
        say(f"{task}, IoU by class, percent (-: in no label and no prediction)")
        cells = [f"{name:<20}{shown(iou):>8}" for name, iou in classes.items()]
        for start in range(0, len(cells), COLUMNS):
            say("  " + "    ".join(cells[start : start + COLUMNS]))
    for name in ("report", "predictions"):
        if result[name] is not None:
            say(f"wrote {result[name]}")


def write_page(path: Path, result: Mapping[str, Any], evaluation: Evaluation, baseline: Figures | None) -> None:
    """The page of an evaluation. Raises MtmError where it cannot be written."""
    page = Page(title=f"{Path(result['model']).name} on {result['data']} {result['split']}", facts=_facts(result))
    rows = figure_rows(evaluation, baseline)
    headers = ("task", "figure", "model", "best constant", "baseline", "")
    drop = set() if baseline else {4}
    kept = [[cell for number, cell in enumerate(row) if number not in drop] for _, row in rows]
    page.add(
        "Figures",
        Table(
            headers=[header for number, header in enumerate(headers) if number not in drop],
            rows=kept,
            numeric=frozenset({2, 3, 4} - drop),
            strong=frozenset(index for index, (headline, _) in enumerate(rows) if headline),
        ),
        *_delta(result),
        Note(
            "Best constant: one and the same answer at every pixel, chosen to score best on these very labels; what a "
            "model reaches without looking. Shares, IoU and F are percent, angles degrees. docs/metrics.md has the "
            "definitions."
        ),
    )
    for meter in evaluation.meters.values():
        blocks = task_blocks(meter, evaluation)
        if blocks:
            page.add(meter.task.title.capitalize(), *blocks)
    page.add("Versions", Table(rows=sorted(result["versions"].items())))
    page.write(path)


def _facts(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    definitions = ", ".join(f"{name} {value}" for name, value in result["definitions"].items() if value is not None)
    sizes = "{0[0]} x {0[1]} pixels (height x width), scored at {1[0]} x {1[1]}".format(
        result["input_size"], result["label_size"]
    )
    speed = result["engine_ms_p50"]
    return [
        ("model", f"{result['model']}, {result['backend']} on {result['device']}"),
        ("pictures", f"{result['pictures']} of {result['data']} {result['split']}"),
        ("input", sizes),
        ("definitions", definitions),
        ("model alone", f"{speed} ms a picture (median)" if speed is not None else "-"),
    ]


def _delta(result: Mapping[str, Any]) -> list[Block]:
    if result["delta"] is None:
        return []
    return [Note(f"Multi-task delta against {result['baseline']}: {result['delta']:+.2f} percent.")]


def task_blocks(meter: Meter, evaluation: Evaluation) -> list[Block]:
    """A task's charts and its worst pictures."""
    blocks: list[Block] = []
    if isinstance(meter, LabelMeter) and meter.confusion.any():
        blocks += [Row([iou_figure(meter)]), Row([confusion_figure(meter)])]
    if isinstance(meter, BoundaryMeter) and meter.matching:
        blocks.append(Row([curve_figure(meter)]))
    exhibits = evaluation.worst[meter.task.name]
    if exhibits:
        blocks.append(Note("The worst pictures: input, prediction, label (grey: does not count)."))
        swatches: Swatches | None = legend(meter.task, exhibits)
        blocks += [swatches] if swatches else []
        blocks += [exhibit_figures(meter.task, exhibit, ranked_by(meter)) for exhibit in exhibits]
    return blocks
