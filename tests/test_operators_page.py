"""docs/operators.md against plugins/ops.yaml. Run as a program it writes the page's tables."""

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "operators.md"
PLACE = re.compile(r"(<!-- contract -->\n).*(<!-- end of contract -->)", re.DOTALL)


def tables():
    """The page's section between its two comments."""
    contract = yaml.safe_load((ROOT / "plugins" / "ops.yaml").read_text())
    return "\n".join(section(name, op, contract["types"]) for name, op in contract["ops"].items())


def section(name, op, types):
    any_type = f"T: {', '.join(types)}"
    rows = [(entry["name"], entry["dims"], "float32" if entry.get("float32") else "T") for entry in op["inputs"]]
    rows.append((f"-> {op['output']['name']}", op["output"]["dims"], "T"))
    lines = [f"### {name}", "", op["summary"].strip(), "", f"| tensor | sizes | type ({any_type}) |", "|---|---|---|"]
    lines += [f"| {tensor} | [{', '.join(dims)}] | {kind} |" for tensor, dims, kind in rows]
    lines += ["", "; ".join(f"{symbol}: {meaning}" for symbol, meaning in op["dims"].items()) + "."]
    limits = [
        f"{s} = {high}" if low == high else f"{s} from {low} to {high}" for s, (low, high) in op["limits"].items()
    ]
    limits += [f"{multiple} a multiple of {divisor}" for multiple, divisor in op["multiples"].items()]
    lines += ["", f"Limits: {', '.join(limits)}."]
    for entry in op["attributes"]:
        lines += [
            "",
            f"Attribute `{entry['name']}` ({entry['type']}, {entry['default']} if not given): {entry['summary']}.",
        ]
    kinds = {kind: op["tolerances"][kind] for kind in types}
    text = ", ".join(f"{kind} {bound['normal']:.0e} ({bound['hostile']:.0e})" for kind, bound in kinds.items())
    lines += [
        "",
        f"Tolerance (for hostile inputs): {text}. In PyTorch: `torch.ops.{op['torch'].replace('::', '.')}`.",
        "",
    ]
    return "\n".join(lines)


def written(page):
    return PLACE.sub(lambda match: f"{match[1]}\n{tables()}\n{match[2]}", page)


def test_the_tables_are_the_contract():
    page = PAGE.read_text()
    assert PLACE.search(page)
    assert written(page) == page, "run python tests/test_operators_page.py"


def test_files_and_names_it_mentions_exist():
    page = PAGE.read_text()
    for link in re.findall(r"\]\(\.\./([^)]+)\)", page):
        assert (ROOT / link).exists(), link
    for path in re.findall(r"`((?:plugins|examples|tests)/[\w./]+)`", page):
        assert (ROOT / path).exists(), path
    for module, names in re.findall(r"from (mtmamba[\w.]*) import ([\w, ]+)", page):
        loaded = __import__(module, fromlist=["_"])
        assert all(hasattr(loaded, name.strip()) for name in names.split(";")[0].split(",")), module


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
