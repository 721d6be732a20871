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
# fail: of an option's type
ERRORS = {"MtmError", "CheckFailedError", "_StdoutLostError", "UsageError", "BadParameter", "fail"}
WITHOUT_ENTRY = {  # (file, sentence) that only carries a sentence made elsewhere, which has an entry where that one is made
    ("mtmamba/checkpoint.py", "…: …"),  # the file's name before a sentence about its configuration
    ("mtmamba/train/state.py", "…: …"),  # likewise, or about its recipe
    ("runtime/evaluate.py", "…: …"),  # the picture's name before a sentence about the outputs
    ("mtmamba/console.py", "…"),  # a defect's sentence, which is on the page
    ("runtime/parity_cli.py", "…"),  # a failed comparison's sentence, and a wrong --tolerance's: both are on the page
    ("runtime/parity_cli.py", "… …"),  # an option before "needs --bisect" and the like, which are on the page
}
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


def template(node: ast.AST) -> str:
    """A text in the source, the fields of an f-string as "…", neighbouring spaces as one; "…" for what is no text."""
    if isinstance(node, ast.JoinedStr):
        text = "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
    else:
        text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else "…"
    return " ".join(text.split())


def source_nodes() -> Iterator[tuple[str, ast.AST]]:
    for folder in ("mtmamba", "calib", "export", "runtime"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                yield str(path.relative_to(ROOT)), node


def templates() -> list[str]:
    return [text for _, node in source_nodes() if len(text := template(node)) > 12]


def raised() -> list[tuple[str, str]]:
    """(file, sentence) of every error made for users."""
    found = []
    for file, node in source_nodes():
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in ERRORS:
            found.append((file, template(node.args[0]) if node.args else "…"))
    return found


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


def test_every_error_has_an_entry() -> None:
    """An entry fits a sentence from its start, its parts between the "…" in their order, and is a third of it or more."""
    entries = quoted()
    patterns = [re.compile(".*?".join(re.escape(part.strip()) for part in entry.split("…"))) for entry in entries]

    def has_entry(sentence: str) -> bool:
        least = len(sentence.replace("…", "")) / 3
        fitting = (entry for entry, pattern in zip(entries, patterns, strict=True) if pattern.match(sentence))
        return any(len(entry.replace("…", "")) >= least for entry in fitting)

    errors = raised()
    assert len(errors) > 250
    assert set(errors) >= WITHOUT_ENTRY
    assert [error for error in errors if error not in WITHOUT_ENTRY and not has_entry(error[1])] == []


def test_troubleshooting_speaks_of_every_command() -> None:
    page = (DOCS / "troubleshooting.md").read_text()
    assert [name for name in COMMANDS if f"`{name}" not in page] == []
