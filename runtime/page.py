"""A page of results as one HTML file: no scripts, nothing fetched, pictures inside, readable in the dark too.

A `Page` is a title, facts, and sections of blocks: `Table`, `Verdicts`, `Note`, `Figures` (pictures with captions),
`Swatches`.
All text is escaped.
"""

import base64
import importlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2

from mtmamba.draw import Colour, Picture
from mtmamba.errors import MtmError
from mtmamba.files import atomic_path

CSS = """
:root { color-scheme: light dark; --line: #8884; --dim: light-dark(#666, #9a9a9a); }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1180px; margin: 2em auto; padding: 0 1.2em; }
h1 { font-size: 1.7em; margin-bottom: .1em; } h2 { margin: 2em 0 .5em; border-bottom: 1px solid var(--line); }
table { display: block; overflow-x: auto; border-collapse: collapse; margin: .8em 0; font-variant-numeric: tabular-nums; }
th, td { padding: .25em .9em .25em 0; text-align: left; border-bottom: 1px solid var(--line); }
th { color: var(--dim); font-weight: 600; } td.number, th.number { text-align: right; } td.number { white-space: nowrap; }
tr.strong td { font-weight: 600; } h3 { margin: 1.6em 0 .3em; font-size: 1.05em; }
b.good, b.bad, b.none { display: inline-block; min-width: 5.8em; padding: .05em .7em; border-radius: 1em; text-align: center;
  font-weight: 600; font-size: .87em; } b.good { background: #1a7f3730; color: light-dark(#116329, #56d364); }
b.bad { background: #cf222e30; color: light-dark(#a40e26, #ff7b72); } b.info { background: #0969da28;
  color: light-dark(#0550ae, #79c0ff); } b.none { background: #8883; color: var(--dim); }
p.note { color: var(--dim); max-width: 60em; }
.figures { display: flex; flex-wrap: wrap; gap: .8em; margin: .6em 0; } figure { margin: 0; }
figure img { display: block; max-width: 100%; background: #fff; border-radius: 4px; }
figcaption { color: var(--dim); font-size: .87em; }
.swatches span { display: inline-block; margin-right: 1em; font-size: .87em; }
.swatches i { display: inline-block; width: .9em; height: .9em; margin-right: .35em; vertical-align: -.1em; }
"""

TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{{ page.title }}</title><style>{{ css }}</style></head><body>
<h1>{{ page.title }}</h1>{{ table(page.facts) if page.facts }}
{% for section in page.sections %}<h2>{{ section.heading }}</h2>
{% for block in section.blocks %}{{ draw(block) }}
{% endfor %}{% endfor %}</body></html>
"""
MACROS = """{% macro Table(b) %}<table>{% if b.headers %}<tr>{% for h in b.headers -%}
<th{% if loop.index0 in b.numeric %} class="number"{% endif %}>{{ h }}</th>{% endfor %}</tr>{% endif %}
{% for row in b.rows %}<tr{% if loop.index0 in b.strong %} class="strong"{% endif %}>
{%- for value in row %}<td{% if loop.index0 in b.numeric %} class="number"{% endif %}>{{ value }}</td>{% endfor %}</tr>
{% endfor %}</table>{% endmacro %}
{% macro Verdicts(b) %}<table>{% for name, verdict, tone, detail in b.rows %}<tr><td>{{ name }}</td>
<td><b class="{{ tone }}">{{ verdict }}</b></td><td>{{ detail }}</td></tr>{% endfor %}</table>{% endmacro %}
{% macro Heading(b) %}<h3>{{ b.text }}</h3>{% endmacro %}
{% macro Note(b) %}<p class="note">{{ b.text }}</p>{% endmacro %}
{% macro Figures(b) %}<div class="figures">{% for f in b.figures %}<figure>
<img src="{{ f.uri }}" alt="{{ f.caption }}"{% if f.width %} width="{{ f.width }}"{% endif %}>
<figcaption>{{ f.caption }}</figcaption></figure>{% endfor %}</div>{% endmacro %}
{% macro Swatches(b) %}<div class="swatches">{% for name, (blue, green, red) in b.colours %}<span>
<i style="background: rgb({{ red }}, {{ green }}, {{ blue }})"></i>{{ name }}</span>{% endfor %}</div>{% endmacro %}
"""


@dataclass(frozen=True, kw_only=True)
class Table:
    """rows of texts. numeric: columns set to the right. strong: rows in bold."""

    rows: Sequence[Sequence[str]]
    headers: Sequence[str] = ()
    numeric: frozenset[int] = frozenset()
    strong: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Verdicts:
    """Lines of (name, verdict, tone, detail); the tone, "good", "bad", "info" or "none", is the verdict's colour."""

    rows: Sequence[tuple[str, str, str, str]]


@dataclass(frozen=True)
class Heading:
    """A heading inside a section."""

    text: str


@dataclass(frozen=True)
class Note:
    """A paragraph."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A picture. uri: from `picture_uri` or `plot_uri`. width: in pixels of the page; None: the picture's own."""

    uri: str
    caption: str
    width: int | None = None


@dataclass(frozen=True)
class Figures:
    """Pictures side by side."""

    figures: Sequence[Figure]


@dataclass(frozen=True)
class Swatches:
    """A legend: names with their colours (BGR)."""

    colours: Sequence[tuple[str, Colour]]


Block = Table | Verdicts | Heading | Note | Figures | Swatches


@dataclass(frozen=True)
class Section:
    heading: str
    blocks: Sequence[Block]


@dataclass(kw_only=True)
class Page:
    """facts: (name, value) lines below the title."""

    title: str
    facts: Sequence[tuple[str, str]] = ()
    sections: list[Section] = field(default_factory=list)

    def add(self, heading: str, *blocks: Block) -> None:
        self.sections.append(Section(heading, blocks))

    def html(self) -> str:
        """The whole document. Raises MtmError where jinja2 is not installed."""
        jinja2 = _import("jinja2")
        environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
        macros = environment.from_string(MACROS).module
        return str(
            environment.from_string(TEMPLATE).render(
                page=self,
                css=CSS,
                table=lambda facts: macros.Table(Table(rows=facts)),
                draw=lambda block: getattr(macros, type(block).__name__)(block),
            )
        )

    def write(self, path: Path) -> None:
        """Write the document, whole or not at all. Raises MtmError where it cannot be written."""
        text = self.html()
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


def picture_uri(picture: Picture) -> str:
    """A picture [H, W, 3] uint8 BGR as a PNG in a data URI."""
    encoded, data = cv2.imencode(".png", picture)
    if not encoded:
        raise MtmError("this OpenCV cannot encode PNG; install opencv-python-headless from PyPI")
    return "data:image/png;base64," + base64.b64encode(data.tobytes()).decode()


def new_plot(width: float, height: float) -> Any:
    """An empty matplotlib figure of so many inches, that no window ever shows. Raises MtmError where matplotlib is not
    installed."""
    _import("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Plot

    plot = Plot(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(plot)
    return plot


def plot_uri(plot: Any) -> str:
    """A matplotlib figure as a PNG in a data URI, at 110 dots an inch."""
    buffer = io.BytesIO()
    plot.savefig(buffer, format="png", dpi=110)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def check_page_packages() -> None:
    """Raise MtmError now, not after the work, where a page cannot be made."""
    for name in ("jinja2", "matplotlib"):
        _import(name)


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MtmError(
            f"--html: expected the package {name}, found none that loads ({error}); install it with "
            "pip install 'mtmamba[eval]'"
        ) from error
