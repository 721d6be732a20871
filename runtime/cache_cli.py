"""mtm-cache: what mtm-run has made and kept, and how to be rid of it."""

from typing import Any

import click

from mtmamba.cache import cache_dir
from mtmamba.console import command, say
from mtmamba.runtime.model_cache import FOLDER, clear, clear_unfinished, entries


@command(epilog="Example: mtm-cache --clear")
@click.option("--clear", "delete", is_flag=True, help="Delete them all; what is needed is made again.")
def main(delete: bool) -> dict[str, Any]:
    """List the exports and engines that mtm-run has made and kept, with what each was made from."""
    folder = cache_dir(FOLDER)
    rows: list[dict[str, Any]] = [
        {"name": entry.name, "bytes": entry.size, "folder": str(entry.folder), "facts": entry.facts}
        for entry in entries()
    ]
    for row in rows:
        facts = row["facts"]
        what = [str(facts[key]) for key in ("gpu", "flavour", "tensorrt", "precision", "io") if key in facts]
        say(f"{row['bytes'] / 2**20:9.1f} MiB  {row['name']:<32} {', '.join(what)}")
    total = sum(row["bytes"] for row in rows)
    say(f"{total / 2**20:9.1f} MiB  in {folder}")
    if delete:
        say(f"deleted {clear()} models")
        if unfinished := clear_unfinished():
            say(f"deleted {unfinished} that were never finished")
    return {"folder": str(folder), "models": rows, "bytes": total, "deleted": delete}


if __name__ == "__main__":
    main()
