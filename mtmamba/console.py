"""What every command shares: errors as one sentence, `--json`, and progress on a terminal only."""

import errno
import io
import json
import logging
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from typing import Any, NoReturn

import click
from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from mtmamba.errors import MtmError
from mtmamba.signals import interrupt, on_blow

HELP = {"help_option_names": ["-h", "--help"], "show_default": True, "max_content_width": 110}

json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object on stdout.")


TRACEBACK_SWITCH = "MTMAMBA_TRACEBACK"
"""Environment variable: "1" lets unexpected errors through with their traceback."""

log = logging.getLogger(__name__)


class ImageSize(click.ParamType[tuple[int, int]]):
    """HEIGHTxWIDTH in pixels -> (height, width), each side from `at_least` up to `at_most`."""

    name = "HxW"

    def __init__(self, at_least: int = 1, at_most: int | None = None) -> None:
        self.at_least, self.at_most = at_least, at_most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        height, _, width = str(value).lower().partition("x")
        sides = [int(side) for side in (height, width) if side.isdecimal()]
        if len(sides) != 2 or min(sides) < self.at_least or (self.at_most is not None and max(sides) > self.at_most):
            most = f" and at most {self.at_most}" if self.at_most is not None else ""
            self.fail(
                f"expected HEIGHTxWIDTH of at least {self.at_least}{most} pixels, such as 448x576, found {value!r}",
                param,
                ctx,
            )
        return sides[0], sides[1]


class Interrupted(KeyboardInterrupt):
    """Stopped by the user after part of the work was finished and kept; `result` tells what."""

    def __init__(self, result: dict[str, Any]) -> None:
        super().__init__()
        self.result = result


class CheckFailedError(MtmError):
    """A check that ran to its end and did not pass. Under `--json` the whole `result` is printed, with the sentence as
    its `error`; the exit status is 1."""

    def __init__(self, sentence: str, result: dict[str, Any]) -> None:
        super().__init__(sentence)
        self.result = result


class _StdoutLostError(MtmError):
    """Standard output takes no more, so not even an error can be told there."""


def _write(text: str) -> None:
    """A line on stdout. A reader that has gone (`| head`) ends the command without a word."""
    try:
        click.echo(text)
    except OSError as error:
        with suppress(OSError, ValueError):  # what is still buffered would fail again as Python exits
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if error.errno == errno.EPIPE:
            raise SystemExit(1) from None
        raise _StdoutLostError(
            f"standard output: writing the result failed ({error.strerror}); free space, or send it elsewhere"
        ) from error


def _fail(error: MtmError, as_json: bool) -> NoReturn:
    if as_json and not isinstance(error, _StdoutLostError):
        result = error.result if isinstance(error, CheckFailedError) else {}
        try:
            _write(json.dumps({**result, "error": str(error)}, indent=2 if result else None))
        except _StdoutLostError as lost:
            _fail(lost, as_json)
    else:
        click.echo(f"error: {error}", err=True)
    raise SystemExit(1)


def command(epilog: str) -> Callable[[Callable[..., dict[str, Any]]], click.Command]:
    """Make a click command of a function that returns its result as a dict.

    The command gains `-h` and `--json`. With `--json` the dict is printed on stdout (and on failure
    ``{"error": sentence}``); otherwise the function has said what there is to say through `say`. MtmError
    becomes one sentence on stderr and exit status 1; click itself answers a bad option with status 2.
    """

    def wrap(function: Callable[..., dict[str, Any]]) -> click.Command:
        @wraps(function)
        @on_blow(interrupt)
        def run(as_json: bool, **options: Any) -> None:
            logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", stream=sys.stderr)
            global _quiet
            _quiet = as_json
            try:
                result = function(**options)
                if as_json:
                    _write(json.dumps(result, indent=2))
            except MtmError as error:
                _fail(error, as_json)
            except Interrupted as error:
                if as_json:
                    click.echo(json.dumps(error.result, indent=2))
                raise SystemExit(130) from None
            except KeyboardInterrupt:
                click.echo("interrupted: no half-written file was left under an output's name", err=True)
                if as_json:
                    click.echo(json.dumps({"error": "interrupted"}))
                raise SystemExit(130) from None
            except (click.ClickException, click.exceptions.Exit, click.Abort):
                raise
            except Exception as error:  # ours to mend: the user still gets one sentence, and the traceback on request
                log.debug("unexpected error", exc_info=error)
                if os.environ.get(TRACEBACK_SWITCH) == "1":
                    raise
                reason = " ".join(str(error).split())[:300]
                sentence = (
                    f"unexpected {type(error).__name__}: {reason}; this is a defect in mtmamba, please report it with the "
                    f"traceback that {TRACEBACK_SWITCH}=1 shows"
                )
                _fail(MtmError(sentence), as_json)

        return click.command(context_settings=HELP, epilog=epilog)(json_option(run))

    return wrap


_quiet = False  # set by `--json`: stdout then belongs to the JSON object


def say(text: str = "") -> None:
    """One line for a person, on stdout; nothing under `--json`."""
    if not _quiet:
        _write(text)


def as_text(renderable: RenderableType, width: int, *, colour: bool = False) -> str:
    """What rich makes of a table or the like, `width` characters wide, for `say`."""
    text = io.StringIO()  # not stdout, which rich would write to even while capturing
    Console(file=text, width=width, force_terminal=colour, no_color=not colour, highlight=False).print(renderable)
    return text.getvalue().rstrip("\n")


def progress(*, unit: str = "") -> Progress:
    """A bar with counts, elapsed and remaining time on stderr; shows nothing where stderr is no terminal.

    A task may carry the field `note` (a rate, a loss), shown at the end of its line:
    ``bar.add_task("frames", total=n, note="")``.
    """
    console = Console(stderr=True)
    suffix = [TextColumn(unit)] if unit else []
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        *suffix,
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        disable=not console.is_terminal,
        transient=False,
    )
