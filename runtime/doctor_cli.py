"""mtm-doctor: a table of what is here and what is missing."""

import shutil
import sys
from dataclasses import asdict
from typing import Any

from rich.table import Table
from rich.text import Text

from mtmamba.console import as_text, command, say
from mtmamba.runtime.doctor import Finding, examine


@command(epilog="Example: mtm-doctor")
def main() -> dict[str, Any]:
    """Show what is installed, what is missing, what that costs, and how to get it. Always exits with 0."""
    findings = examine()
    say(render(findings, width=shutil.get_terminal_size((110, 24)).columns, colour=sys.stdout.isatty()))
    return {"findings": [asdict(finding) for finding in findings]}


def render(findings: list[Finding], width: int, colour: bool) -> str:
    """The table as text, `width` characters wide."""
    table = Table(title=None, expand=False, pad_edge=False, show_edge=False)
    table.add_column("what", no_wrap=True)
    table.add_column("")
    table.add_column("found, or what it costs and how to get it", ratio=1)
    for finding in findings:
        status = "[green]yes[/]" if finding.ok else "[yellow]no[/]"
        detail = Text(finding.found)
        if not finding.ok:
            detail = Text(finding.found if finding.found != "not found" else "")
            detail.append(("; " if detail else "") + finding.cost)
            detail.append(f"\n-> {finding.cure}", style="cyan")
        table.add_row(finding.name, status, detail)
    missing = sum(not finding.ok for finding in findings)
    return as_text(table, width, colour=colour) + f"\n\n{len(findings) - missing} found, {missing} missing"


if __name__ == "__main__":
    main()
