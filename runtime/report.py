"""Everything known of one model on one page: the file, its engines, parity, pictures, metrics, speed.

The page is made of parts. Each has a verdict, one sentence for the summary, blocks for the page and values for `--json`.
"""

import importlib.metadata
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mtmamba.errors import MtmError
from mtmamba.metadata import ModelMetadata
from mtmamba.runtime.backends import Backend, open_backend
from mtmamba.runtime.bench import machine
from mtmamba.runtime.page import Block, Page, Table, Verdicts

Verdict = Literal["passed", "failed", "measured", "not run"]
TONE: dict[Verdict, str] = {"passed": "good", "failed": "bad", "measured": "info", "not run": "none"}

Steps = Callable[[str, int | None], Callable[[], None]]
"""Called with a step's name and how often it will advance (None: nobody knows); the result advances it by one."""

PACKAGES = (
    "mtmamba", "torch", "timm", "onnx", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx-cu13", "numpy",
    "opencv-python-headless",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Part:
    """A section of the page. verdict: None where there is nothing to judge. summary: a sentence without a full stop."""

    name: str
    verdict: Verdict | None
    summary: str
    blocks: Sequence[Block] = ()
    values: Any = None


@dataclass(kw_only=True)
class Models:
    """The files of one model. model: the ONNX file. reference: what it was made from, if anything. running: those that
    are open, the reference first, by path. reasons: why the others are not, by path."""

    model: Path
    reference: Path | None
    engines: tuple[Path, ...]
    running: dict[Path, Backend] = field(default_factory=dict)
    reasons: dict[Path, str] = field(default_factory=dict)

    @property
    def files(self) -> tuple[Path, ...]:
        return (*((self.reference,) if self.reference else ()), self.model, *self.engines)

    def open(self, metadata: ModelMetadata, on_open: Callable[[Backend], object]) -> None:
        """Open all that can run here; `on_open` is given each, to close it later."""
        for path in self.files:
            try:
                self.running[path] = open_backend(path, input_size=metadata.input_size)
                on_open(self.running[path])
            except MtmError as error:
                self.reasons[path] = str(error)


def machine_part(metadata: ModelMetadata) -> Part:
    """Where the figures were made and with which versions."""
    here = machine()
    rows = [
        ("processor", here["cpu"]),
        ("GPU", ", ".join(here["gpus"]) or "none"),
        ("driver", here["driver"] or "none"),
        ("system", f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"),
    ]
    versions = {name: found for name in PACKAGES if (found := _version(name))}
    exported = [[name, metadata.versions.get(name, "-"), versions.get(name, "-")] for name in
                sorted({*metadata.versions, *versions} - {"python"})]  # fmt: skip
    table = Table(headers=("package", "at the export", "here"), rows=exported)
    values = {"machine": here, "versions": versions}
    return Part(name="Machine and versions", verdict=None, summary="", blocks=(Table(rows=rows), table), values=values)


def make_page(model: Path, facts: Sequence[tuple[str, str]], parts: Sequence[Part]) -> Page:
    """The page: the facts and every verdict first, then the parts."""
    page = Page(title=f"Report of {model.name}", facts=facts)
    rows = [(part.name, part.verdict, TONE[part.verdict], part.summary) for part in parts if part.verdict]
    page.add("Summary", Verdicts(rows))
    for part in parts:
        if part.blocks:
            page.add(part.name, *part.blocks)
    return page


def failures(parts: Sequence[Part]) -> list[Part]:
    return [part for part in parts if part.verdict == "failed"]


def result_of(parts: Sequence[Part]) -> dict[str, Any]:
    """What `--json` prints."""
    return {
        part.name.lower().replace(" ", "_"): (
            {"verdict": part.verdict, "summary": part.summary, "values": part.values} if part.verdict else part.values
        )
        for part in parts
        if part.verdict or part.values is not None
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
