"""The parts of a report that show measurements, made here or read from files: parity, samples, metrics, speed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mtmamba.errors import MtmError
from mtmamba.metrics import Scoreboard, multi_task_delta, plain
from mtmamba.runtime.eval_report import shown, task_blocks
from mtmamba.runtime.page import Block, Figure, Figures, Heading, Note, Table, new_plot, picture_uri, plot_uri
from mtmamba.runtime.parity_page import EXPLANATION, figures, verdicts
from mtmamba.runtime.parity_tolerance import TOLERANCES
from mtmamba.runtime.report import Part
from mtmamba.runtime.report_saved import Comparison, Sample, Score, Timing
from mtmamba.tasks import Task

SAMPLE_WIDTH = 1140  # pixels of the page
EXHIBITS = 1  # worst pictures shown of each task
BLUE, PALE = "#3b6fb6", "#a9c4e6"


def parity_part(found: Sequence[Comparison], reasons: Mapping[Path, str]) -> Part:
    """Is each file still the model?"""
    blocks: list[Block] = []
    words = []
    for item in found:
        facts, parity = item.facts, item.parity
        model, reference = (Path(facts[role]["model"]).name for role in ("candidate", "reference"))
        precision = facts["candidate"]["precision"]
        verdict = "agrees" if parity.passed else "does not agree"
        words.append(f"{model} {verdict} with {reference}" + ("" if parity.passed else f" in {parity.failures()}"))
        where = f"{facts['candidate']['backend']} on {facts['candidate']['device']}"
        blocks += [
            Heading(f"{model} {verdict} with {reference}"),
            Note(f"{where}, {parity.images} images {facts['source']}. {precision}: {TOLERANCES[precision].reason}."),
            verdicts(parity),
            figures(parity),
        ]
        for task in parity.tasks:
            if item.gallery and (worst := item.gallery.blocks(task, parity.images)):
                blocks += [Heading(f"{task.task.title.capitalize()}: {reference} and {model}"), *worst]
    blocks += [Note(EXPLANATION)] if found else []
    done = {Path(item.facts["candidate"]["model"]).name for item in found}
    absent = {path.name: reason for path, reason in reasons.items() if path.name not in done}
    missing = [f"{name} was not compared: {reason}" for name, reason in absent.items()]
    words += [f"not compared: {', '.join(absent)}"] if absent else []
    blocks += [Note(f"{text}.") for text in missing]
    if not found:
        nothing = (
            "; ".join(missing) or "there is nothing to compare the file with; name its checkpoint with --reference"
        )
        return Part(name="Parity", verdict="not run", summary=nothing, blocks=blocks)
    passed = all(item.parity.passed for item in found)
    values = [{**item.facts, **item.parity.to_dict()} for item in found]
    return Part(
        name="Parity",
        verdict="passed" if passed else "failed",
        summary="; ".join(words),
        blocks=blocks,
        values=values,
    )


def samples_part(pages: Sequence[Sample], model: str, what: str) -> Part:
    """Pictures with every task drawn."""
    if not pages:
        return Part(name="Predictions", verdict=None, summary="", blocks=(Note(what),))
    drawn = [
        Figures([Figure(uri=picture_uri(page), caption=name, width=min(SAMPLE_WIDTH, page.shape[1]))])
        for name, page in pages
    ]
    return Part(name="Predictions", verdict=None, summary="", blocks=(Note(f"By {model}, {what}."), *drawn))


def metrics_part(scores: Sequence[Score], tasks: Sequence[Task]) -> Part:
    """Headline figures of all files side by side; charts and the worst pictures of the last."""
    if not scores:
        summary = "name a labelled set with --data, or mtm-eval's result with --eval"
        return Part(name="Metrics", verdict="not run", summary=summary)
    first = scores[0]
    meters = Scoreboard([task for task in tasks if task.name in first.figures], first.definitions).meters
    names = [Path(score.facts["model"]).name for score in scores]
    rows = []
    for task, meter in meters.items():
        cells = [
            score.figures.get(task, {}).get(meter.headline)
            for score in (*scores, replace(first, figures=first.constant))
        ]
        way = "lower" if meter.lower_is_better else "higher"
        rows.append([f"{task} {meter.headline}", *(shown(cell, meter.headline) for cell in cells), f"{way} is better"])
    headers = ("figure", *names, "best constant", "")
    blocks: list[Block] = [
        Note(f"{first.facts['pictures']} pictures of {first.facts['data']} {first.facts['split']}."),
        Table(headers=headers, rows=rows, numeric=frozenset(range(1, len(names) + 2))),
    ]
    deltas = _deltas(scores, meters)
    blocks += [
        Note(f"Multi-task delta of {name} against {names[0]}: {_signed(value)} %.") for name, value in deltas.items()
    ]
    blocks.append(
        Note("Best constant: the same answer at every pixel, chosen to score best on these labels. Shares, IoU and F are "
             "percent, angles degrees.")
    )  # fmt: skip
    blocks += _charts(scores[-1], names[-1])
    headline = ", ".join(f"{row[0]} {row[len(names)]}" for row in rows)
    values = [{**score.facts, "figures": plain(score.figures), "constant": plain(score.constant)} for score in scores]
    return Part(name="Metrics", verdict="measured", summary=f"{names[-1]}: {headline}", blocks=blocks, values=values)


def _deltas(scores: Sequence[Score], meters: Mapping[str, Any]) -> dict[str, float]:
    """Of every further model against the first, percent; left out where it means nothing (a figure of 0, other tasks)."""
    found = {}
    for score in scores[1:]:
        try:
            delta = multi_task_delta(meters, score.figures, scores[0].figures)
        except (MtmError, KeyError):
            continue
        if math.isfinite(delta):
            found[Path(score.facts["model"]).name] = delta
    return found


def _charts(score: Score, name: str) -> list[Block]:
    if score.evaluation is None:
        return []
    blocks: list[Block] = []
    worst = {task: exhibits[:EXHIBITS] for task, exhibits in score.evaluation.worst.items()}
    evaluation = replace(score.evaluation, worst=worst)
    for meter in evaluation.meters.values():
        if found := task_blocks(meter, evaluation):
            blocks += [Heading(f"{meter.task.title.capitalize()}, {name}"), *found]
    return blocks


def speed_part(timings: Sequence[Timing]) -> Part:
    """Milliseconds of the model alone and of a whole call, as a table and a plot."""
    if not timings:
        return Part(name="Speed", verdict="not run", summary="nothing ran here; name mtm-bench's result with --bench")
    headers = (
        "model",
        "runs in",
        "model alone p50, ms",
        "call p50, ms",
        "call p90, ms",
        "call p99, ms",
        "images/s",
        "calls",
    )
    rows = []
    for item in timings:
        speed = item.speed
        numbers = (speed.engine.p50_ms, speed.call.p50_ms, speed.call.p90_ms, speed.call.p99_ms, speed.images_per_s)
        where = f"{item.backend} on {item.device}, batch {item.batch}"
        rows.append([item.model, where, *(f"{number:.2f}" for number in numbers), str(speed.call.calls)])
    words = (f"{Path(item.model).name} {item.speed.images_per_s:.1f} images/s ({item.device})" for item in timings)
    summary = ", ".join(words)
    blocks = (
        Table(headers=headers, rows=rows, numeric=frozenset(range(2, 8))),
        Figures([Figure(uri=plot_uri(speed_plot(timings)), caption="", width=760)]),
        Note("The model alone: by the device's own clock. A call: with copies to the device and back, without reading, "
             "resizing or drawing pictures. Measured after a warm-up, on noise."),
    )  # fmt: skip
    values = [asdict(item) for item in timings]
    return Part(name="Speed", verdict="measured", summary=summary, blocks=blocks, values=values)


def speed_plot(timings: Sequence[Timing]) -> Any:
    """A matplotlib figure: a bar for the call's median with its 99th percentile, one for the model alone."""
    plot = new_plot(7.6, 0.9 + 0.62 * len(timings))
    axes = plot.add_subplot()
    for row, item in enumerate(timings):
        call, engine = item.speed.call, item.speed.engine
        late = max(0.0, call.p99_ms - call.p50_ms)
        axes.barh(row - 0.19, call.p50_ms, 0.36, color=PALE, label=None if row else "a call, p50 (whisker: p99)",
                  xerr=[[0.0], [late]], error_kw={"lw": 1, "capsize": 3})  # fmt: skip
        axes.barh(row + 0.19, engine.p50_ms, 0.36, color=BLUE, label=None if row else "the model alone, p50")
        axes.text(call.p50_ms + late, row - 0.19, f"  {call.p50_ms:.2f} ms", va="center", fontsize=8)
        axes.text(engine.p50_ms, row + 0.19, f"  {engine.p50_ms:.2f} ms", va="center", fontsize=8)
    axes.set_yticks(range(len(timings)), [f"{Path(item.model).name}\n{item.backend}" for item in timings], fontsize=8)
    axes.set(xlabel="milliseconds, a batch", ylim=(len(timings) - 0.5, -0.5))
    axes.margins(x=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
    return plot


def _signed(value: float) -> str:
    """To three decimals; what rounds to nothing has no sign."""
    return f"{value:+.3f}" if abs(value) >= 0.0005 else "0.000"
