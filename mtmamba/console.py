"""What every command shares: errors as one sentence, `--json`, and progress on a terminal only."""

import json
import logging
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from mtmamba.errors import MtmError

HELP = {"help_option_names": ["-h", "--help"], "show_default": True, "max_content_width": 110}

json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object on stdout.")


def command(epilog: str) -> Callable[[Callable[..., dict[str, Any]]], click.Command]:
    """Make a click command of a function that returns its result as a dict.

    The command gains `-h` and `--json`. With `--json` the dict is printed on stdout (and on failure
    ``{"error": sentence}``); otherwise the function has said what there is to say through `say`. MtmError
    becomes one sentence on stderr and exit status 1; click itself answers a bad option with status 2.
    """

    def wrap(function: Callable[..., dict[str, Any]]) -> click.Command:
        @wraps(function)
        def run(as_json: bool, **options: Any) -> None:
            logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", stream=sys.stderr)
            global _quiet
            _quiet = as_json
            try:
                result = function(**options)
            except MtmError as error:
                if as_json:
                    click.echo(json.dumps({"error": str(error)}))
                else:
                    click.echo(f"error: {error}", err=True)
                raise SystemExit(1) from error
            except KeyboardInterrupt:
                click.echo("interrupted: nothing half-written was left behind", err=True)
                raise SystemExit(130) from None
            if as_json:
                click.echo(json.dumps(result, indent=2))

        return click.command(context_settings=HELP, epilog=epilog)(json_option(run))

    return wrap


_quiet = False  # set by `--json`: stdout then belongs to the JSON object


def say(text: str = "") -> None:
    """One line for a person, on stdout; nothing under `--json`."""
    if not _quiet:
        click.echo(text)


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
