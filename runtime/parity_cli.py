"""mtm-parity: is this engine (or ONNX file) still the model? Exit status 0 where it is, 1 where it is not."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import click

from mtmamba.calib.calibration import DEFAULT_NAME
from mtmamba.console import CheckFailedError, command, progress, say
from mtmamba.errors import MtmError
from mtmamba.files import check_output
from mtmamba.runtime.backends import BACKENDS, Backend, default_model, default_reference, open_backend
from mtmamba.runtime.page import check_page_packages
from mtmamba.runtime.parity import Parity, TaskParity, compare, random_frames
from mtmamba.runtime.parity_bisect import find_nodes
from mtmamba.runtime.parity_page import Gallery
from mtmamba.runtime.parity_precision import precision_of
from mtmamba.runtime.parity_tolerance import FIGURES, TOLERANCES, UNITS, Override, tolerances
from mtmamba.runtime.run import frames_to_do
from mtmamba.runtime.run_cli import choose_tasks
from mtmamba.runtime.sources import Frame, open_source

_PATH = click.Path(path_type=Path)
BISECT_IMAGES = 8  # of a source: every trial runs them all


class OverrideType(click.ParamType[Override]):
    """`--tolerance`: see `Override.parse`."""

    name = "[TASK.]FIGURE=VALUE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Override:
        try:
            return value if isinstance(value, Override) else Override.parse(value)
        except MtmError as error:
            self.fail(str(error), param, ctx)


@command(epilog="Example: mtm-parity --html parity.html")
@click.argument("source", required=False, type=_PATH)
@click.option("--reference", type=_PATH, help="What is right.  [default: the only checkpoint here, else .onnx file]")
@click.option("--model", type=_PATH, help="What is compared with it.  [default: what mtm-run would run here]")
@click.option("--backend", type=click.Choice(list(BACKENDS)), help="What runs --model.  [default: by the file]")
@click.option("--tasks", help="Tasks to compare, such as semseg,depth.  [default: all of the model's]")
@click.option("--images", type=click.IntRange(min=1), default=4, help="How many random images, without SOURCE.")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, help="Decides the random images.")
@click.option("--max-frames", type=click.IntRange(min=1), help="Stop after this many of SOURCE's frames.")
@click.option(
    "--precision", type=click.Choice(list(TOLERANCES)), help="Row of the tolerances.  [default: the model's own]"
)
@click.option(
    "--tolerance", "overrides", multiple=True, type=OverrideType(),
    help=f"In place of the row's; FIGURE is {', '.join(FIGURES)}. May be repeated.",
)  # fmt: skip
@click.option("--html", type=_PATH, help="Write a page with pictures and difference maps of the worst images.")
@click.option(
    "--bisect",
    is_flag=True,
    help="Find the nodes of the ONNX --model that must not go to --precision (fp16, if not given).",
)
@click.option("--calibration", type=_PATH, help=f"With --bisect: file to write them into.  [default: {DEFAULT_NAME}]")
def main(
    source: Path | None,
    reference: Path | None,
    model: Path | None,
    backend: str | None,
    tasks: str | None,
    images: int,
    seed: int,
    max_frames: int | None,
    precision: str | None,
    overrides: tuple[Override, ...],
    html: Path | None,
    bisect: bool,
    calibration: Path | None,
) -> dict[str, Any]:
    """Run the same images through a reference and another model, and say per task how far apart they are.

    SOURCE is a video, a picture or a folder of pictures; without it, random images. Exits with 1 where a task differs
    by more than its tolerance; the table says which tolerance would have been needed.

    With --bisect, find the smallest set of nodes that must stay in a higher precision for an ONNX model to be within the
    tolerances, emulated on the CPU against the model itself in FP32. mtm-build-engine --calibration takes the file.
    """
    if bisect:
        _check_options("is not for --bisect", {"--reference": reference, "--backend": backend, "--html": html})
        return find_nodes(
            model,
            precision or "fp16",
            calibration or Path(DEFAULT_NAME),
            source=source,
            images=_count(source, max_frames, images) or BISECT_IMAGES,
            seed=seed,
            tasks=tasks,
            overrides=overrides,
        )
    _check_options("needs --bisect", {"--calibration": calibration})
    model, reference = _models(model, reference, backend)
    if html is not None:
        check_output(html, suffix=".html", inputs=(model, reference))
        check_page_packages()
    with (
        open_backend(model, backend) as candidate,
        open_backend(reference, input_size=candidate.metadata.input_size) as right,
    ):
        chosen = choose_tasks(candidate.metadata, tasks)
        row = precision or precision_of(candidate)
        limits = tolerances(row, chosen, overrides)
        frames, count, what = _images(source, max_frames, candidate.metadata.input_size, images, seed)
        gallery = Gallery()
        with _bar(count) as advance:
            parity = compare(
                right,
                candidate,
                frames,
                tolerances=limits,
                on_image=advance,
                on_worst=gallery.hang if html is not None else lambda task, frame, reference, candidate: None,
            )
        result = result_of(right, candidate, row, what, parity)
    if html is not None:
        gallery.write(html, result, parity)
        result["html"] = str(html)
    _tell(result, parity)
    if not parity.passed:
        raise CheckFailedError(_sentence(result, parity), result)
    return result


def _models(model: Path | None, reference: Path | None, backend: str | None) -> tuple[Path, Path]:
    """What is compared, and with what; what was not named is looked for here and said."""
    if reference is None:
        reference = default_reference().relative_to(Path.cwd())
        say(f"reference: {reference.name}")
    if model is None:
        model, note = default_model(backend)
        if note:
            say(note)
        if model.exists() and model.samefile(reference):
            raise MtmError(
                f"expected a second model to compare with {reference.name}, found no other that can run here; make one "
                "with mtm-export or mtm-build-engine, or name one with --model"
            )
        model = model.relative_to(Path.cwd())
        say(f"model: {model.name}")
    return model, reference


def _images(
    source: Path | None, max_frames: int | None, size: tuple[int, int], count: int, seed: int
) -> tuple[Iterator[Frame], int | None, str]:
    """What to compare on: the frames, how many (None: not known), and both in words."""
    _count(source, max_frames, count)
    if source is None:
        height, width = size
        return random_frames(size, count, seed), count, f"random {height}x{width}, seed {seed}"
    opened = open_source(source)
    return islice(opened.frames(), max_frames), frames_to_do(opened, max_frames), f"of {source}"


def _count(source: Path | None, max_frames: int | None, images: int) -> int | None:
    """How many images are asked for: of random ones `images`, of a source `max_frames` (None: all)."""
    if source is None and max_frames is not None:
        raise click.UsageError("--max-frames is for a SOURCE; --images says how many random images")
    return images if source is None else max_frames


def _check_options(complaint: str, options: dict[str, Any]) -> None:
    for name, value in options.items():
        if value is not None:
            raise click.UsageError(f"{name} {complaint}")


@contextmanager
def _bar(total: int | None) -> Iterator[Callable[[], None]]:
    with progress(unit="images") as bar:
        task = bar.add_task("comparing", total=total, note="")
        yield lambda: bar.update(task, advance=1)


def result_of(reference: Backend, candidate: Backend, row: str, what: str, parity: Parity) -> dict[str, Any]:
    """What `--json` prints. row: of the tolerances. what: the images, in words."""

    def facts(backend: Backend) -> dict[str, str]:
        return {"model": str(backend.model), "backend": backend.name, "device": backend.device}

    return {
        "reference": facts(reference),
        "candidate": {**facts(candidate), "precision": row},
        "source": what,
        **parity.to_dict(),
    }


def _tell(result: dict[str, Any], parity: Parity) -> None:
    for role in ("reference", "candidate"):
        facts = result[role]
        precision = f", {facts['precision']}" if "precision" in facts else ""
        say(f"{role:<10} {facts['model']} with {facts['backend']} on {facts['device']}{precision}")
    say(f"images     {result['images']}, {result['source']}\n")
    say(
        f"{'task':<12}{'max diff':>9}{'RMS':>9}{'cosine':>10}  {'judged by':<11}{'tolerance':>10}{'needed':>14}  verdict"
    )
    for task in parity.tasks:
        for line in _lines(task):
            say(line)
    say()
    if parity.passed:
        say(f"passed: {len(parity.tasks)} tasks within the tolerances of {result['candidate']['precision']}")
    if "html" in result:
        say(f"wrote {result['html']}")


def _lines(task: TaskParity) -> Iterator[str]:
    """A line for each figure the task is judged by."""
    start = f"{task.task.name:<12}{task.max_abs:>9.1e}{task.rms:>9.1e}{task.cosine:>10.7f}"
    if task.not_finite:
        yield f"{start}  {task.not_finite} values are NaN or infinite: FAIL"
        return
    for check in task.checks:
        verdict = "pass" if check.passed else "FAIL"
        allowed, needed = (f"{value:.5g}{UNITS[check.figure]}" for value in (check.allowed, check.needed))
        yield f"{start:<40}  {check.figure:<11}{allowed:>10}{needed:>14}  {verdict}"
        start = ""


def _sentence(result: dict[str, Any], parity: Parity) -> str:
    candidate, reference = result["candidate"], result["reference"]
    failed = next(
        (f"{t.task.name}.{c.figure}={c.needed:.5g}" for t in parity.tasks for c in t.checks if not c.passed), ""
    )
    advice = f"allow it with --tolerance {failed}" if failed else "mtm-export and mtm-build-engine make it again"
    return (
        f"{candidate['model']} does not agree with {reference['model']} as {candidate['precision']} should in "
        f"{parity.failures()}; {advice}"
    )


if __name__ == "__main__":
    main()
