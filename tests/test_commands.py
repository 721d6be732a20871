"""Every command of the package explains itself, as a module too: `python -m mtmamba.runtime.run_cli -h`."""

import importlib
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def entry_points() -> dict[str, str]:
    """Command -> module:function, of pyproject.toml (Python 3.10 cannot read TOML)."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    section = text.split("[project.scripts]\n")[1].split("\n[")[0]
    lines = [line.split(" = ") for line in section.splitlines() if line.strip()]
    return {name: target.strip('"') for name, target in lines}


COMMANDS = entry_points()


def test_every_command_module_is_an_entry_point() -> None:
    folders = {"mtmamba": "mtmamba", "export": "mtmamba.export", "runtime": "mtmamba.runtime"}
    found = {
        f"{package}.{path.stem}" for folder, package in folders.items() for path in (ROOT / folder).glob("*cli.py")
    }
    assert found == {target.split(":")[0] for target in COMMANDS.values()}


@pytest.mark.parametrize("name", COMMANDS)
def test_help(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    module, function = COMMANDS[name].split(":")
    assert callable(getattr(importlib.import_module(module), function))
    monkeypatch.delitem(sys.modules, module)  # else runpy warns that it runs an imported module again
    monkeypatch.setattr(sys, "argv", [module, "-h"])
    with pytest.raises(SystemExit) as left:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    printed = capsys.readouterr()
    assert left.value.code == 0 and printed.err == ""
    assert printed.out.startswith(f"Usage: python -m {module} ")
    assert "Commands:" in printed.out or ("Example" in printed.out and "--json" in printed.out)
