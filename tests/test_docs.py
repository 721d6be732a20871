"""The pages against the code: command lines parse, links lead somewhere, quoted errors exist, every page is in the index."""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from commands import COMMANDS, command_of

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", *DOCS.glob("*.md")])
SHELL = re.compile(r"^```(?:sh|bash|console)?\n(.*?)^```", re.DOTALL | re.MULTILINE)
INDENTED = re.compile(r"(?:^    \S.*\n?)+", re.MULTILINE)
FENCED = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"`(mtm-[^`\n]+)`")
COMMAND_END = re.compile(r"\s[|>;&]{1,2}(?:\s|$)")


def shell_lines(text: str) -> Iterator[str]:
    """Lines that start with a command of ours, in fenced and in indented blocks; continued lines joined."""
    blocks = SHELL.findall(text) + INDENTED.findall(FENCED.sub("", text))
    for block in blocks:
        for line in block.replace("\\\n", " ").splitlines():
            line = re.sub(r"^\s*(?:\$ )?", "", line)
            if re.match(r"mtm-[\w-]+(\s|$)", line):
                yield COMMAND_END.split(line)[0]


def documented() -> list[tuple[str, str]]:
    return [(page.name, line) for page in PAGES for line in shell_lines(page.read_text())]


@pytest.mark.parametrize(("page", "line"), documented(), ids=str)
def test_command_lines_are_valid(page: str, line: str) -> None:
    """Click itself parses every line: options, their values, missing arguments."""
    name, *arguments = shlex.split(re.sub(r"<[^>]+>", "", line), comments=True)  # <what the reader fills in>
    assert name in COMMANDS, f"{page}: {line}"
    command = command_of(name)
    if isinstance(command, click.Group):
        command = command.commands[arguments.pop(0)]
    try:
        command.make_context(name, arguments)
    except click.UsageError as error:
        pytest.fail(f"{page}: {line}: {error.format_message()}")


def test_every_command_is_shown() -> None:
    lines = [line for _, line in documented()]
    assert len(lines) > 40
    text = "".join(page.read_text() for page in PAGES)
    assert [name for name in COMMANDS if f"`{name}" not in text] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_in_running_text_exist(page: Path) -> None:
    for text in INLINE.findall(FENCED.sub("", page.read_text())):
        name, *words = text.split()
        assert name in COMMANDS, f"{page.name}: `{text}`"
        command = command_of(name)
        if isinstance(command, click.Group):
            assert not words or words[0] in command.commands, f"{page.name}: `{text}`"
            command = command.commands[words[0]] if words else command
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        for word in words:
            if word.startswith("-") and len(word) > 1:
                assert word.split("=")[0].rstrip(",.") in known | {"-h", "--help"}, f"{page.name}: `{text}`"


def links(page: Path) -> list[str]:
    targets = re.findall(r"\]\(([^)\s]+)\)", FENCED.sub("", page.read_text()))
    return [target for target in targets if not re.match(r"https?://", target)]


def anchor(heading: str) -> str:
    """As GitHub makes it of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        target, _, place = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{page.name}: {link}"
        if place:
            headings = re.findall(r"^#+ (.*)$", FENCED.sub("", path.read_text()), re.MULTILINE)
            assert place in {anchor(heading) for heading in headings}, f"{page.name}: {link}"


def test_every_page_is_in_the_index() -> None:
    listed = {link.partition("#")[0] for link in links(DOCS / "README.md")}
    assert {page.name for page in DOCS.glob("*.md")} - {"README.md"} <= listed


def templates() -> list[str]:
    """Every text in the source, the fields of f-strings as "…", neighbouring spaces as one."""
    found = []
    for folder in ("mtmamba", "calib", "export", "runtime"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
                elif isinstance(node, ast.JoinedStr):
                    found.append("".join(v.value if isinstance(v, ast.Constant) else "…" for v in node.values))
    return [" ".join(text.split()) for text in found if len(text) > 12]


def quoted() -> list[str]:
    return re.findall(r"^\| `(.+?)` \|", (DOCS / "troubleshooting.md").read_text(), re.MULTILINE)


def test_quoted_errors_exist() -> None:
    """Each part of a quoted sentence between the "…" stands in one text of the source, in that order."""
    texts = templates()
    sentences = quoted()
    assert len(sentences) > 50

    def is_there(sentence: str) -> bool:
        parts = [part.strip() for part in sentence.split("…") if len(part.strip()) > 2]
        pattern = re.compile(".*?".join(re.escape(part) for part in parts))
        return max(map(len, parts)) > 10 and any(pattern.search(text) for text in texts)

    assert [sentence for sentence in sentences if not is_there(sentence)] == []


def test_troubleshooting_speaks_of_every_command() -> None:
    page = (DOCS / "troubleshooting.md").read_text()
    assert [name for name in COMMANDS if f"`{name}" not in page] == []
