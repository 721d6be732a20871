"""Results that other commands saved with `--json`, read as data: what is not of the expected form is one sentence."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mtmamba.draw import Picture
from mtmamba.errors import MtmError
from mtmamba.files import existing_file
from mtmamba.metrics import Definitions, Figures, Matching
from mtmamba.runtime.bench import Speed, Times
from mtmamba.runtime.evaluate import Evaluation
from mtmamba.runtime.parity import Check, Parity, TaskParity
from mtmamba.runtime.parity_page import Gallery
from mtmamba.runtime.parity_tolerance import FIGURE_OF, TOLERANCES
from mtmamba.tasks import Task

Sample = tuple[str, Picture]
"""A picture's name, and the page with every task drawn, [H, W, 3] uint8 BGR."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """mtm-parity's result. facts: reference, candidate and source, as `--json` prints them. gallery: None where it was
    read from a file."""

    facts: dict[str, Any]
    parity: Parity
    gallery: Gallery | None = None


@dataclass(frozen=True, kw_only=True)
class Score:
    """mtm-eval's result of one model. facts: what `--json` prints beside the figures. evaluation: None where it was read
    from a file."""

    facts: dict[str, Any]
    figures: Figures
    constant: Figures
    definitions: Definitions
    evaluation: Evaluation | None = None


@dataclass(frozen=True, kw_only=True)
class Timing:
    """mtm-bench's line of one model."""

    model: str
    backend: str
    device: str
    batch: int
    speed: Speed


@dataclass(kw_only=True)
class Saved:
    """What was read. exports, builds: the results of mtm-export and mtm-build-engine; exports carry their `file`."""

    parity: list[Comparison] = field(default_factory=list)
    scores: list[Score] = field(default_factory=list)
    timings: list[Timing] = field(default_factory=list)
    exports: list[dict[str, Any]] = field(default_factory=list)
    builds: list[dict[str, Any]] = field(default_factory=list)


def read_saved(
    tasks: Sequence[Task],
    *,
    parity: Sequence[Path] = (),
    evaluations: Sequence[Path] = (),
    benches: Sequence[Path] = (),
    exports: Sequence[Path] = (),
    builds: Sequence[Path] = (),
) -> Saved:
    """Read the results of mtm-parity, mtm-eval, mtm-bench, mtm-export and mtm-build-engine. tasks: the model's.

    Raises MtmError, naming file and command, for a file that is none or speaks of other tasks.
    """
    known = {task.name: task for task in tasks}
    saved = Saved()
    saved.parity = [_read(path, "mtm-parity", lambda values: _comparison(values, known)) for path in parity]
    saved.scores = [_read(path, "mtm-eval", lambda values: _score(values, known)) for path in evaluations]
    for path in benches:
        saved.timings += _read(path, "mtm-bench", lambda values: [_timing(row) for row in _filled(values["models"])])
    saved.exports = [_read(path, "mtm-export", _export) for path in exports]
    for path, export in zip(exports, saved.exports, strict=True):
        export["file"] = path.name
    saved.builds = [_read(path, "mtm-build-engine", _build) for path in builds]
    return saved


def _read(path: Path, command: str, understand: Callable[[Any], Any]) -> Any:
    existing_file(path, f"{command} result")
    again = f"write it again with {command} ... --json > {path.name}"
    try:
        return understand(json.loads(path.read_text(encoding="utf-8")))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise MtmError(f"{path}: expected what {command} --json prints, found no JSON ({error}); {again}") from error
    except KeyError as error:
        raise MtmError(f"{path}: expected what {command} --json prints, found none of its {error}; {again}") from error
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        reason = " ".join(str(error).split())[:120]
        raise MtmError(
            f"{path}: expected what {command} --json prints, found something else ({reason}); {again}"
        ) from error


def _comparison(values: Any, known: Mapping[str, Task]) -> Comparison:
    facts = {role: {key: _text(values[role][key]) for key in ("model", "backend", "device")}
             for role in ("reference", "candidate")}  # fmt: skip
    precision = _text(values["candidate"]["precision"])
    if precision not in TOLERANCES:
        raise ValueError(f"precision {precision!r}")
    facts["candidate"]["precision"] = precision
    found = tuple(_task_parity(_known(name, known), task) for name, task in _filled(values["tasks"]).items())
    parity = Parity(images=_count(values["images"]), tasks=found)
    return Comparison(facts={**facts, "source": _text(values["source"]), "images": parity.images}, parity=parity)


def _task_parity(task: Task, values: Any) -> TaskParity:
    allowed = ("difference", FIGURE_OF[task.kind])
    checks = tuple(
        Check(figure=check["figure"], needed=_number(check["needed"]), allowed=_number(check["allowed"]))
        for check in values["checks"]
        if check["figure"] in allowed
    )
    if len(checks) != len(allowed):
        raise ValueError(f"{len(checks)} checks of {task.name}")
    return TaskParity(
        task=task,
        **{name: _number(values[name]) for name in ("max_abs", "rms", "rms_percent", "cosine", "scale")},
        not_finite=_count(values["not_finite"]),
        figures={_text(name): _number(value) for name, value in values["figures"].items()},
        checks=checks,
        worst=_text(values["worst_image"]),
    )


def _score(values: Any, known: Mapping[str, Task]) -> Score:
    told = values["definitions"]
    matching = None
    if told["edge_thresholds"] is not None:
        matching = Matching(max_distance=_number(told["edge_tolerance"]), thresholds=_count(told["edge_thresholds"]))
    absent = told["absent_classes"]
    if absent not in ("zero", "left-out"):
        raise ValueError(f"absent_classes {absent!r}")
    definitions = Definitions(absent_classes=absent, published_maxf=told["maxF"] == "published", matching=matching)
    figures, constant = _figures(values["figures"], known), _figures(values["constant"], known)
    if set(constant) != set(figures):
        raise ValueError("figures and constant of other tasks")
    facts = {key: _text(values[key]) for key in ("model", "backend", "device", "data", "split")}
    return Score(
        facts={**facts, "pictures": _count(values["pictures"])},
        figures=figures,
        constant=constant,
        definitions=definitions,
    )


def _figures(values: Any, known: Mapping[str, Task]) -> Figures:
    return {
        _known(task, known).name: {_text(name): _number(value) for name, value in figures.items()}
        for task, figures in _filled(values).items()
    }


def _timing(row: Any) -> Timing:
    engine, call = (
        Times(**{name: _number(row[which][name]) for name in ("p50_ms", "p90_ms", "p99_ms", "mean_ms")},
              calls=_count(row[which]["calls"]))
        for which in ("engine", "call")
    )  # fmt: skip
    speed = Speed(engine=engine, call=call, images_per_s=_number(row["images_per_s"]))
    names = {key: _text(row[key]) for key in ("model", "backend", "device")}
    return Timing(**names, batch=_count(row["batch"]), speed=speed)


def _export(values: Any) -> dict[str, Any]:
    tasks = [
        {"task": _text(task["task"]), "passed": bool(task["passed"]),
         **{key: _number(task[key]) for key in ("max_abs", "rms", "tolerance")}}
        for task in _filled(values["differences"])
    ]  # fmt: skip
    return {"differences": tasks}


def _build(values: Any) -> dict[str, Any]:
    counts = {key: _count(values[key]) for key in ("layers", "plugin_layers")}
    return {"engine": _text(values["engine"]), **counts, "seconds": _number(values["seconds"])}


def _known(name: Any, known: Mapping[str, Task]) -> Task:
    if name not in known:
        raise ValueError(f"task {name!r}, which the model has not")
    return known[name]


def _filled(values: Any) -> Any:
    if not isinstance(values, dict | list) or not values:
        raise ValueError(f"{values!r} where there should be entries")
    return values


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} where a text should be")
    return value


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise TypeError(f"{value!r} where a count should be")
    return value


def _number(value: Any) -> float:
    """JSON's null is how NaN is written."""
    if value is None:
        return math.nan
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{value!r} where a number should be")
    return float(value)
