"""The HTML page: everything in one file, everything escaped."""

import base64
from pathlib import Path

import cv2
import numpy as np
import pytest

from mtmamba.errors import MtmError
from mtmamba.runtime import page as pages
from mtmamba.runtime.page import Figure, Figures, Note, Page, Swatches, Table, new_plot, picture_uri, plot_uri


def decoded(uri: str) -> np.ndarray:
    head, data = uri.split(",", 1)
    assert head == "data:image/png;base64"
    return np.asarray(cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR))


def test_blocks() -> None:
    page = Page(title="a < b", facts=[("model", "x & y")])
    table = Table(headers=("task", "value"), rows=[("depth", "1.5"), ("edge", "<i>")], numeric=frozenset({1}),
                  strong=frozenset({0}))  # fmt: skip
    page.add("One", table, Note("50 % < 60 %"), Swatches([("wall", (10, 20, 30))]))
    page.add("Two", Figures([Figure(uri="data:,", caption='"quoted"', width=12)]))
    html = page.html()
    assert "<h1>a &lt; b</h1>" in html and "x &amp; y" in html and "&lt;i&gt;" in html and "50 % &lt; 60 %" in html
    assert '<tr class="strong"><td>depth</td><td class="number">1.5</td></tr>' in html
    assert '<th>task</th><th class="number">value</th>' in html.replace("\n", "")
    assert "rgb(30, 20, 10)" in html, "colours are BGR"
    assert 'alt="&#34;quoted&#34;" width="12"' in html
    assert html.index("<h2>One</h2>") < html.index("<h2>Two</h2>") and html.rstrip().endswith("</html>")


def test_pictures_come_back_as_they_were() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    assert np.array_equal(decoded(picture_uri(picture)), picture)
    plot = new_plot(2, 1)
    plot.add_subplot().plot([0, 1], [0, 1], color="#ff0000")
    drawn = decoded(plot_uri(plot))
    assert drawn.shape == (110, 220, 3) and ((drawn[:, :, 2] > 200) & (drawn[:, :, 0] < 50)).any()


def test_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Page(title="t").write(tmp_path / "t.html")
    assert (tmp_path / "t.html").read_text().startswith("<!doctype html>")

    def missing(name: str) -> None:
        raise ImportError(f"no {name}")

    monkeypatch.setattr(pages.importlib, "import_module", missing)
    with pytest.raises(MtmError, match=r"--html: expected the package jinja2.*pip install 'mtmamba\[eval\]'"):
        pages.check_page_packages()
