"""The page of a comparison: the verdict, every figure, and for each task the image that differs most."""

from pathlib import Path
from typing import Any

from mtmamba.runtime.backends.base import Array
from mtmamba.runtime.page import Block, Figure, Figures, Note, Page, Table, picture_uri
from mtmamba.runtime.parity import Parity, TaskParity
from mtmamba.runtime.parity_pictures import Exhibit, exhibit
from mtmamba.runtime.parity_tolerance import TOLERANCES, UNITS
from mtmamba.runtime.sources import Frame
from mtmamba.tasks import Task

WIDTH = 270  # pixels of the page, so that four pictures stand side by side

EXPLANATION = (
    "difference: the largest of |model - reference| over all raw predictions, divided by the largest prediction of the "
    "reference where that is more than 1. agreement: pixels with the same label, or on the same side of probability 0.5. "
    "needed: the tolerance that would have passed."
)


class Gallery:
    """The worst image of each task so far; a later one takes the place of the one before it."""

    def __init__(self) -> None:
        self._exhibits: dict[str, Exhibit] = {}

    def hang(self, task: Task, frame: Frame, reference: Array, candidate: Array) -> None:
        """Draw a frame; raw predictions [C, h, w] of both models."""
        self._exhibits[task.name] = exhibit(task, frame, reference, candidate)

    def write(self, path: Path, result: dict[str, Any], parity: Parity) -> None:
        """Write the page of `mtm-parity`'s result. Raises MtmError where it cannot be written."""
        precision = result["candidate"]["precision"]
        page = Page(title=_title(result, parity), facts=_facts(result))
        page.add("Verdict", verdicts(parity), Note(EXPLANATION), Note(f"{precision}: {TOLERANCES[precision].reason}."))
        page.add("Figures", figures(parity))
        for task in parity.tasks:
            if blocks := self.blocks(task, parity.images):
                page.add(task.task.title, *blocks)
        page.write(path)

    def blocks(self, task: TaskParity, images: int) -> tuple[Block, ...]:
        """The task's worst image of so many; empty where none was hung."""
        shown = self._exhibits.get(task.task.name)
        return _pictures(shown, task, images) if shown else ()


def _title(result: dict[str, Any], parity: Parity) -> str:
    names = [Path(result[role]["model"]).name for role in ("candidate", "reference")]
    return f"{names[0]} {'agrees' if parity.passed else 'does not agree'} with {names[1]}"


def _facts(result: dict[str, Any]) -> list[tuple[str, str]]:
    from mtmamba import __version__

    def words(facts: dict[str, str]) -> str:
        precision = f", {facts['precision']}" if "precision" in facts else ""
        return f"{facts['model']} with {facts['backend']} on {facts['device']}{precision}"

    return [
        ("reference", words(result["reference"])),
        ("model", words(result["candidate"])),
        ("images", f"{result['images']}, {result['source']}"),
        ("mtmamba", __version__),
    ]


def verdicts(parity: Parity) -> Table:
    """A line for each figure a task is judged by; those that failed are bold."""
    rows: list[list[str]] = []
    failed: set[int] = set()
    for task in parity.tasks:
        if task.not_finite:
            failed.add(len(rows))
            rows.append([task.task.name, "finite values", "all", f"{task.not_finite} are not", "FAIL"])
        for check in task.checks:
            if not check.passed:
                failed.add(len(rows))
            unit = UNITS[check.figure]
            values = [f"{value:.5g}{unit}" for value in (check.allowed, check.needed)]
            rows.append([task.task.name, check.figure, *values, "pass" if check.passed else "FAIL"])
    headers = ("task", "judged by", "tolerance", "needed", "verdict")
    return Table(rows=rows, headers=headers, numeric=frozenset({2, 3}), strong=frozenset(failed))


def figures(parity: Parity) -> Table:
    """All figures, a line a task."""
    rows = [
        [
            task.task.name,
            f"{task.max_abs:.2e}",
            f"{task.rms:.2e}",
            f"{task.scale:.3g}",
            f"{task.cosine:.8f}",
            ", ".join(f"{name} {value:.5g}{UNITS.get(name, '')}" for name, value in task.figures.items()),
            task.worst,
        ]
        for task in parity.tasks
    ]
    headers = (
        "task",
        "largest difference",
        "RMS",
        "largest prediction",
        "cosine",
        "in the task's terms",
        "worst image",
    )
    return Table(rows=rows, headers=headers, numeric=frozenset({1, 2, 3, 4}))


def _pictures(shown: Exhibit, task: TaskParity, images: int) -> tuple[Note, Figures]:
    pictures = (
        (shown.image, shown.name),
        (shown.reference, "reference"),
        (shown.candidate, "model"),
        (shown.difference, f"difference, {shown.note}"),
    )
    figures = [Figure(uri=picture_uri(picture), caption=caption, width=WIDTH) for picture, caption in pictures]
    verdict = "Passed" if task.passed else "Failed"
    return Note(f"{verdict}. Of {images} image{'s' if images > 1 else ''}, {shown.name} differs most."), Figures(
        figures
    )
