"""The output picture: the source and every task as titled tiles, each with its legend below. All colours are BGR."""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from mtmamba.draw import Chip, Colour, Picture, Ramp, paint
from mtmamba.postprocess import postprocess
from mtmamba.runtime.preprocess import resize_image
from mtmamba.runtime.sheet import Sheet
from mtmamba.runtime.text import draw_text, fit_text, text_width
from mtmamba.tasks import Task

PAGE: Colour = (23, 19, 17)
CARD: Colour = (39, 33, 30)
BRIGHT: Colour = (240, 238, 236)
MUTED: Colour = (170, 160, 152)
FAINT: Colour = (74, 64, 58)

MARGIN, GAP, PAD = 12, 8, 12
HEADER, FOOTER, ROW = 36, 62, 25
TITLE_PX, TEXT_PX, SMALL_PX = 18, 15, 14
WIDE_SCREEN = 16 / 9
MIN_TILE_WIDTH = 240  # below this a title and a legend have no room


@dataclass(frozen=True, kw_only=True)
class Layout:
    """columns x rows of cells of `tile` (width, height), each with a picture of `picture` (width, height) pixels.
    size: (width, height) of the whole, even numbers, as video codecs want."""

    columns: int
    rows: int
    picture: tuple[int, int]
    tile: tuple[int, int]
    size: tuple[int, int]

    def corner(self, cell: int) -> tuple[int, int]:
        """(x, y) of a cell's top left pixel, cells counted row by row."""
        row, column = divmod(cell, self.columns)
        return MARGIN + column * (self.tile[0] + GAP), MARGIN + row * (self.tile[1] + GAP)


def plan_layout(source: tuple[int, int], tiles: int, picture_width: int = 624) -> Layout:
    """A layout for `tiles` tiles of a source of `source` (width, height) pixels.

    Pictures keep the source's aspect and are `picture_width` wide (the source is enlarged if it is smaller), or, where
    it is taller than 3:4, as wide as that height allows. The grid is the one nearest to a wide screen with few empty
    cells.
    """
    scale = min(picture_width / source[0], 0.75 * picture_width / source[1])
    picture = max(2, round(source[0] * scale)), max(2, round(source[1] * scale))
    tile = max(picture[0], min(MIN_TILE_WIDTH, picture_width)), HEADER + picture[1] + FOOTER

    def size(columns: int) -> tuple[int, int]:
        rows = math.ceil(tiles / columns)
        width = 2 * MARGIN + columns * (tile[0] + GAP) - GAP
        height = 2 * MARGIN + rows * (tile[1] + GAP) - GAP
        return width + width % 2, height + height % 2

    def cost(columns: int) -> float:
        width, height = size(columns)
        empty = math.ceil(tiles / columns) * columns - tiles
        return abs(math.log(width / height / WIDE_SCREEN)) + 0.3 * empty / tiles

    columns = min(range(1, tiles + 1), key=cost)
    return Layout(columns=columns, rows=math.ceil(tiles / columns), picture=picture, tile=tile, size=size(columns))


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the empty cells say: a name and a value a line."""

    title: str
    lines: tuple[tuple[str, str], ...]


class Mosaic:
    """Draws sheets as one page each, on any thread.

    tasks: those to draw, in the order of the tiles after the source's. facts: for the empty cells, if any.
    """

    def __init__(self, tasks: tuple[Task, ...], facts: Facts, *, picture_width: int = 624) -> None:
        self._tasks, self._facts, self._picture_width = tasks, facts, picture_width
        self._blank: tuple[tuple[int, int], Layout, Picture] | None = None

    def draw(self, sheet: Sheet) -> Picture:
        """The page [H, W, 3] of one frame, W and H even."""
        layout, blank = self._page(sheet.size)
        width, height = layout.picture
        page = blank.copy()
        source = resize_image(sheet.image, (height, width))
        _place(page, layout, 0, source)
        self._caption(page, layout, sheet.name, sheet.note)
        shares: tuple[Chip, ...] = ()
        for cell, task in enumerate(self._tasks, start=1):
            prediction = postprocess(sheet.planes[task.name], task, (height, width))
            picture, legend = paint(source, prediction, task, sheet.scale)
            footer = _place(page, layout, cell, picture)
            if legend.ramp is not None:
                draw_ramp(footer, legend.ramp)
            draw_chips(footer, legend.chips)
            shares = shares or (legend.chips if task.kind == "labels" else ())
        self._shares_card(page, layout, shares)
        return page

    def _page(self, size: tuple[int, int]) -> tuple[Layout, Picture]:
        """The layout for a source of `size` (width, height), and the page with all that no frame changes."""
        kept = self._blank
        if kept is None or kept[0] != size:
            layout = plan_layout(size, 1 + len(self._tasks), self._picture_width)
            page = np.empty((layout.size[1], layout.size[0], 3), np.uint8)
            page[:] = PAGE
            titles = [("Source", f"{size[0]} x {size[1]}")]
            titles += [(task.title.capitalize(), subtitle(task)) for task in self._tasks]
            for cell, (title, note) in enumerate(titles):
                _empty_tile(page, layout, cell, title, note)
            card = _rest(page, layout, len(titles))
            if card is not None:
                card[:] = CARD
                draw_facts(card[:, : layout.tile[0]], self._facts)
            kept = self._blank = size, layout, page
        return kept[1:]

    def _caption(self, page: Picture, layout: Layout, name: str, note: str) -> None:
        x, y = layout.corner(0)
        bottom, room = y + layout.tile[1], layout.tile[0] - 2 * PAD
        _write(page, fit_text(name, TEXT_PX, room), (x + PAD, bottom - 44), TEXT_PX, BRIGHT)
        _write(page, fit_text(note, SMALL_PX, room), (x + PAD, bottom - 19), SMALL_PX, MUTED)

    def _shares_card(self, page: Picture, layout: Layout, shares: tuple[Chip, ...]) -> None:
        """The largest classes as bars: beside the facts where the card is wide, below them where it is high."""
        card = _rest(page, layout, 1 + len(self._tasks))
        if card is None or not shares:
            return
        below = 2 * PAD + 62 + 28 * len(self._facts.lines)
        if card.shape[1] > layout.tile[0]:
            draw_bars(card[:, layout.tile[0] + GAP :], "Largest classes", shares)
        elif card.shape[0] - below > 150:
            draw_bars(card[below:], "Largest classes", shares)


def _write(card: Picture, text: str, at: tuple[int, int], height_px: int, colour: Colour, **options: bool) -> int:
    """`draw_text` on a card, where all text stands."""
    return draw_text(card, text, at, height_px, colour, on=CARD, **options)


def _empty_tile(page: Picture, layout: Layout, cell: int, title: str, note: str) -> None:
    """A card with its title at the left and a muted note at the right of its head."""
    x, y = layout.corner(cell)
    width, height = layout.tile
    page[y : y + height, x : x + width] = CARD
    middle = y + HEADER // 2
    title = fit_text(title, TITLE_PX, width - 2 * PAD, bold=True)
    used = PAD + _write(page, title, (x + PAD, middle), TITLE_PX, BRIGHT, bold=True)
    note = fit_text(note, SMALL_PX, width - used - 2 * PAD)
    _write(page, note, (x + width - PAD, middle), SMALL_PX, MUTED, right=True)


def _place(page: Picture, layout: Layout, cell: int, picture: Picture) -> Picture:
    """Put a tile's picture on the page; returns the page's part below it, the footer."""
    x, y = layout.corner(cell)
    width, height = layout.tile
    left = x + (width - picture.shape[1]) // 2
    page[y + HEADER : y + HEADER + picture.shape[0], left : left + picture.shape[1]] = picture
    return page[y + height - FOOTER : y + height, x : x + width]


def _rest(page: Picture, layout: Layout, used: int) -> Picture | None:
    """The page's part over the empty cells at the end of the last row; None where there are none."""
    cells = layout.columns * layout.rows
    if used >= cells:
        return None
    x, y = layout.corner(used)
    return page[y : y + layout.tile[1], x : layout.corner(cells - 1)[0] + layout.tile[0]]


def subtitle(task: Task) -> str:
    """A few words on how to read a task's tile."""
    return {
        "labels": f"{task.channels} classes",
        "depth": "near warm, far cool",
        "normals": "unit vectors",
        "boundary": "opacity is probability",
        "saliency": "heat is probability",
    }[task.kind]


def draw_facts(card: Picture, facts: Facts) -> None:
    """A title, a rule, and a name and a value a line, as many as there is room for."""
    _card_title(card, facts.title)
    column = 2 * PAD + 16 + max((text_width(label, TEXT_PX) for label, _ in facts.lines), default=0)
    for (label, value), middle in zip(facts.lines, _card_lines(card), strict=False):
        _write(card, label, (2 * PAD, middle), TEXT_PX, MUTED)
        _write(card, fit_text(value, TEXT_PX, card.shape[1] - column - 2 * PAD), (column, middle), TEXT_PX, BRIGHT)


def draw_bars(card: Picture, title: str, chips: tuple[Chip, ...]) -> None:
    """The chips' shares as horizontal bars, the full width standing for the largest."""
    _card_title(card, title)
    names = 2 * PAD + 130
    room = card.shape[1] - names - 2 * PAD - 50
    largest = max((chip.share or 0.0) for chip in chips) or 1.0
    for chip, middle in zip(chips, _card_lines(card), strict=False):
        share = chip.share or 0.0
        _write(card, fit_text(chip.name, TEXT_PX, 120), (2 * PAD, middle), TEXT_PX, BRIGHT)
        end = names + max(2, round(room * share / largest))
        card[middle - 7 : middle + 7, names:end] = [channel // 2 + 90 for channel in chip.colour]
        card[middle - 6 : middle + 6, names + 1 : end - 1] = chip.colour
        _write(card, percent(share), (end + 10, middle), SMALL_PX, MUTED)


def _card_title(card: Picture, title: str) -> None:
    _write(card, title, (2 * PAD, 2 * PAD + 12), 22, BRIGHT, bold=True)
    card[2 * PAD + 36 : 2 * PAD + 37, 2 * PAD : -2 * PAD] = FAINT


def _card_lines(card: Picture) -> range:
    """The middles of the lines of text a card has room for."""
    return range(2 * PAD + 62, card.shape[0] - PAD - 8, 28)


def draw_chips(footer: Picture, chips: tuple[Chip, ...]) -> None:
    """Chips from left to right in two rows, as many as there is room for, then how many more there are."""
    rows, width = (footer.shape[0] // 2 - ROW // 2, footer.shape[0] // 2 + ROW // 2 + 1), footer.shape[1] - PAD
    x, row = PAD, 0
    for index, chip in enumerate(chips):
        name = fit_text(chip.name, SMALL_PX, width - PAD - 70)
        share = "" if chip.share is None else percent(chip.share)
        needed = 19 + text_width(name, SMALL_PX) + (6 + text_width(share, SMALL_PX) if share else 0)
        rest = len(chips) - index - 1
        reserve = 16 + text_width(f"+{rest} more", SMALL_PX) if rest and row == 1 else 0
        if x + needed + reserve > width:
            if row == 1:
                _write(footer, f"+{rest + 1} more", (x, rows[1]), SMALL_PX, MUTED)
                return
            x, row = PAD, 1
        _swatch(footer, x, rows[row], chip.colour)
        end = x + 19 + _write(footer, name, (x + 19, rows[row]), SMALL_PX, BRIGHT)
        _write(footer, share, (end + 6, rows[row]), SMALL_PX, MUTED)
        x += needed + 18


def percent(share: float) -> str:
    """Such as "26%"; what is less than one is not nothing."""
    return f"{100 * share:.0f}%" if share >= 0.01 else "<1%"


def _swatch(footer: Picture, x: int, middle: int, colour: Colour) -> None:
    footer[middle - 7 : middle + 7, x : x + 14] = [channel // 2 + 90 for channel in colour]  # a rim dark colours need
    footer[middle - 6 : middle + 6, x + 1 : x + 13] = colour


def draw_ramp(footer: Picture, ramp: Ramp) -> None:
    """A colour bar over the footer's width with numbers at round values and the unit at the right."""
    unit_width = text_width(ramp.unit, SMALL_PX) + PAD if ramp.unit else 0
    left, right, top = PAD + 4, footer.shape[1] - PAD - unit_width - 4, 14
    columns = np.linspace(0, len(ramp.colours) - 1, right - left).round().astype(int)
    footer[top : top + 14, left:right] = ramp.colours[columns]
    _write(footer, ramp.unit, (footer.shape[1] - PAD, top + 7), SMALL_PX, MUTED, right=True)
    for value, label in ticks(ramp.low, ramp.high, most=max(2, (right - left) // 60)):
        x = left + round((value - ramp.low) / (ramp.high - ramp.low) * (right - left - 1))
        half = text_width(label, SMALL_PX) // 2
        start = min(max(x - half, 4), footer.shape[1] - 2 * half - 4)
        _write(footer, label, (start, top + 30), SMALL_PX, BRIGHT)
        footer[top + 14 : top + 19, x] = MUTED


@lru_cache(maxsize=64)
def ticks(low: float, high: float, most: int) -> tuple[tuple[float, str], ...]:
    """Round values (1, 2 or 5 times a power of ten apart) in low..high, at most `most` of them, with their text."""
    exponent = math.floor(math.log10((high - low) / most))
    for digits, factor in ((-power, factor) for power in range(exponent, exponent + 3) for factor in (1, 2, 5)):
        step = factor * 10.0**-digits
        first, last = math.ceil(low / step - 1e-6), math.floor(high / step + 1e-6)
        if last - first < most:
            break
    return tuple((index * step, f"{index * step:.{max(0, digits)}f}") for index in range(first, last + 1))
