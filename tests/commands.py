"""The console commands, for tests over all of them."""

from importlib import import_module
from pathlib import Path

import click
import tomllib

ROOT = Path(__file__).resolve().parents[1]
COMMANDS: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
"""Name -> "module:attribute"."""


def command_of(name: str) -> click.Command:
    module, _, attribute = COMMANDS[name].partition(":")
    found = getattr(import_module(module), attribute)
    assert isinstance(found, click.Command)
    return found
