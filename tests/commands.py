"""The console commands, for tests over all of them, and how tests run one."""

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import click
from click.testing import CliRunner, Result

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest's own need

ROOT = Path(__file__).resolve().parents[1]
COMMANDS: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
"""Name -> "module:attribute"."""


def command_of(name: str) -> click.Command:
    module, _, attribute = COMMANDS[name].partition(":")
    found = getattr(import_module(module), attribute)
    assert isinstance(found, click.Command)
    return found


def run(command: click.Command, *arguments: object) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments], catch_exceptions=False)


def answer(command: click.Command, *arguments: object, status: int = 0) -> dict[str, Any]:
    """What `command` says with --json; it must end with `status`."""
    result = run(command, *arguments, "--json")
    assert result.exit_code == status, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found
