"""Furniture of primitives. Every function builds one piece into a footprint of width w (along local x, centred on 0)
and depth d (local y from 0, the wall, to d), standing on z = 0 and h high; metres."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mtmamba.data import materials as m
from mtmamba.data.geometry import Builder, Point

Span = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A kind of furniture: how it is built, the ranges of its sizes in metres, and how often it is chosen."""

    build: Callable[[Builder, float, float, float], None]
    width: Span
    depth: Span
    height: Span
    weight: float = 1.0


def _legs(b: Builder, w: float, d: float, h: float, thick: float, material: int) -> None:
    for x in (-w / 2 + thick / 2, w / 2 - thick / 2):
        for y in (thick / 2, d - thick / 2):
            b.box(x, y, 0.0, (thick, thick, h), material)


def _props(b: Builder, w: float, d: float, h: float, count: int) -> None:
    """Small things on top of a surface at height h."""
    rng = b.rng
    for index in range(count):
        x = -w / 2 + w * (index + rng.uniform(0.3, 0.7)) / count
        y = d * rng.uniform(0.3, 0.7)
        room = min(0.12, w / count / 2, d / 3)
        kind = rng.integers(5)
        if kind == 0:
            b.start("books")
            for layer in range(int(rng.integers(1, 4))):
                b.box(x, y, h + 0.04 * layer, (1.5 * room, 2 * room, 0.04), m.print_(b), yaw=rng.uniform(-0.3, 0.3))
        elif kind == 1:
            b.start("box")
            b.box(x, y, h, (1.6 * room, 1.4 * room, rng.uniform(0.1, 0.3)), m.print_(b), yaw=rng.uniform(-0.6, 0.6))
        elif kind == 2:
            b.start("otherprop")  # a bottle or a vase
            tall, skin = rng.uniform(0.12, 0.3), m.surface(b)
            b.cylinder(x, y, h, 0.4 * room, 0.7 * tall, skin)
            b.cylinder(x, y, h + 0.7 * tall, 0.15 * room, 0.3 * tall, skin)
        elif kind == 3:
            b.start("otherprop")  # a bowl or a ball
            b.ball((x, y, h + 0.6 * room), (0.7 * room, 0.7 * room, 0.6 * room), m.print_(b))
        else:
            table_lamp(b, x, y, h)


def table_lamp(b: Builder, x: float, y: float, z: float) -> None:
    b.start("lamp")
    stand, tall = m.metal(b), b.rng.uniform(0.15, 0.35)
    b.cylinder(x, y, z, 0.07, 0.02, stand)
    b.cylinder(x, y, z, 0.015, tall, stand)
    b.shade(x, y, z + tall, 0.12, 0.18, m.glowing(b, (0.2, 1.0)))


def floor_lamp(b: Builder, w: float, d: float, h: float) -> None:
    b.start("lamp")
    stand = m.metal(b)
    b.cylinder(0, d / 2, 0, 0.14, 0.03, stand)
    b.cylinder(0, d / 2, 0, 0.02, h - 0.25, stand)
    b.shade(0, d / 2, h - 0.28, w / 2, 0.28, m.glowing(b, (0.2, 1.0)))


def cabinet(b: Builder, w: float, d: float, h: float, label: str = "cabinet") -> None:
    """A box with fronts and knobs; low ones carry things."""
    rng = b.rng
    b.start(label)
    body, front, knob = m.surface(b), m.surface(b), m.metal(b)
    b.box(0, (d - 0.03) / 2, 0, (w, d - 0.03, h), body)
    columns = max(1, round(w / rng.uniform(0.4, 0.7)))
    rows = max(1, round(h / rng.uniform(0.3, 1.0)))
    for column in range(columns):
        x = -w / 2 + w * (column + 0.5) / columns
        for row in range(rows):
            z = 0.06 + (h - 0.08) * row / rows
            b.box(x, d - 0.015, z, (w / columns - 0.03, 0.03, (h - 0.08) / rows - 0.03), front)
            b.box(x, d, z + 0.4 * h / rows, (0.08, 0.03, 0.02), knob)
    if h < 1.3:
        _props(b, w, d, h, int(rng.integers(0, 4)))


def dresser(b: Builder, w: float, d: float, h: float) -> None:
    cabinet(b, w, d, h, "dresser")


def night_stand(b: Builder, w: float, d: float, h: float) -> None:
    cabinet(b, w, d, h, "night stand")


def refrigerator(b: Builder, w: float, d: float, h: float) -> None:
    b.start("refrigerator")
    body, handle, split = m.metal(b), m.metal(b), b.rng.uniform(0.3, 0.65) * h
    b.box(0, (d - 0.05) / 2, 0, (w, d - 0.05, h), body)
    for z, tall in ((0.03, split - 0.04), (split, h - split - 0.01)):
        b.box(0, d - 0.025, z, (w - 0.01, 0.05, tall), body)
        b.box(-w / 2 + 0.08, d + 0.02, z + tall * 0.3, (0.03, 0.04, tall * 0.4), handle)


def counter(b: Builder, w: float, d: float, h: float) -> None:
    """Kitchen units with a worktop."""
    b.start("cabinet")
    front = m.surface(b)
    b.box(0, (d - 0.05) / 2, 0, (w, d - 0.05, h - 0.05), m.surface(b))
    columns = max(1, round(w / 0.6))
    for column in range(columns):
        b.box(-w / 2 + w * (column + 0.5) / columns, d - 0.04, 0.1, (w / columns - 0.03, 0.03, h - 0.2), front)
    b.start("counter")
    b.box(0, d / 2, h - 0.05, (w + 0.02, d, 0.05), m.surface(b))
    _props(b, w, d, h, int(b.rng.integers(1, 5)))


def bookshelf(b: Builder, w: float, d: float, h: float) -> None:
    """Boards between two sides; the books of one board are one object."""
    rng = b.rng
    filled = rng.random() < 0.75
    b.start("bookshelf" if filled else "shelves")
    wood = m.surface(b)
    for x in (-w / 2 + 0.015, w / 2 - 0.015):
        b.box(x, d / 2, 0, (0.03, d, h), wood)
    b.box(0, 0.01, 0, (w, 0.02, h), wood)
    boards = max(2, round(h / rng.uniform(0.3, 0.45)))
    levels = [0.05 + (h - 0.08) * board / boards for board in range(boards + 1)]
    for z in levels:
        b.box(0, d / 2, z, (w - 0.06, d, 0.03), wood)
    for z in levels[:-1]:
        if filled and rng.random() < 0.85:
            _books(b, w - 0.1, d, z + 0.03, (h - 0.08) / boards - 0.05)
        elif rng.random() < 0.5:
            _props(b, w - 0.1, d, z + 0.03, 1)


def _books(b: Builder, w: float, d: float, z: float, room: float) -> None:
    rng = b.rng
    b.start("books")
    covers = [m.print_(b) for _ in range(3)]
    x, end = -w / 2, w / 2 * rng.uniform(0.2, 1.0)
    while x < end:
        thick = rng.uniform(0.03, 0.09)
        b.box(
            x + thick / 2,
            d * 0.5,
            z,
            (thick - 0.004, d * rng.uniform(0.6, 0.85), room * rng.uniform(0.6, 0.95)),
            covers[int(rng.integers(3))],
        )
        x += thick


def bed(b: Builder, w: float, d: float, h: float) -> None:
    rng = b.rng
    b.start("bed")
    frame, sheet, cover = m.surface(b), m.cloth(b), m.cloth(b)
    low = 0.6 * h
    b.box(0, d / 2, 0.05, (w, d, low - 0.05), frame)
    b.box(0, 0.03, 0, (w, 0.06, h + rng.uniform(0.3, 0.7)), frame)
    b.cushion(0, d / 2 + 0.03, low, (w - 0.06, d - 0.1, h - low), sheet)
    b.cushion(0, d * 0.64, low + 0.02, (w + 0.02, d * 0.7, h - low + 0.03), cover)
    pillows = 1 if w < 1.2 else 2
    for index in range(pillows):
        b.start("pillow")
        b.cushion((index - (pillows - 1) / 2) * w / 2, 0.3, h - 0.04, (0.6, 0.4, 0.16), m.cloth(b))


def sofa(b: Builder, w: float, d: float, h: float) -> None:
    rng = b.rng
    b.start("sofa")
    fabric, seat, arm = m.cloth(b), 0.42, rng.uniform(0.12, 0.25)
    b.box(0, d / 2, 0.06, (w, d, seat - 0.18), fabric)
    b.cushion(0, 0.12, 0.06, (w, 0.26, h - 0.06), fabric)
    for x in (-w / 2 + arm / 2, w / 2 - arm / 2):
        b.cushion(x, d / 2, 0.05, (arm, d, 0.58), fabric)
    seats = max(1, round((w - 2 * arm) / 0.65))
    each = (w - 2 * arm) / seats
    for index in range(seats):
        x = -w / 2 + arm + each * (index + 0.5)
        b.cushion(x, d / 2 + 0.08, seat - 0.14, (each, d - 0.2, 0.18), fabric)
        if rng.random() < 0.4:
            b.start("pillow")
            b.cushion(x, 0.32, seat + 0.02, (0.4, 0.16, 0.38), m.cloth(b))
            b.start("sofa")


def chair(b: Builder, w: float, d: float, h: float) -> None:
    """A chair that faces +y: four legs, an office chair, or a stool."""
    rng = b.rng
    b.start("chair")
    frame, seat_material = m.surface(b), m.cloth(b) if rng.random() < 0.5 else m.surface(b)
    seat, kind = rng.uniform(0.42, 0.5), rng.random()
    if kind < 0.6:
        _legs(b, w, d, seat, rng.uniform(0.03, 0.06), frame)
    else:
        steel = m.metal(b)
        b.cylinder(0, d / 2, 0.05, 0.03, seat - 0.05, steel)
        b.box(0, d / 2, 0.02, (w, 0.06, 0.04), steel)
        b.box(0, d / 2, 0.02, (0.06, d, 0.04), steel)
    if kind > 0.88:
        b.cylinder(0, d / 2, seat, w / 2, 0.06, seat_material)
        return
    (b.cushion if kind < 0.3 else b.box)(0, d / 2, seat, (w, d, 0.07), seat_material)
    if rng.random() < 0.6:
        b.box(0, 0.02, seat + 0.07, (w, 0.04, h - seat - 0.07), seat_material)
    else:
        for x in (-w / 2 + 0.02, w / 2 - 0.02):
            b.box(x, 0.02, seat, (0.04, 0.04, h - seat), frame)
        for z in np.arange(seat + 0.15, h - 0.02, 0.14):
            b.box(0, 0.02, float(z), (w, 0.025, 0.07), frame)


def table(b: Builder, w: float, d: float, h: float, label: str = "table") -> None:
    rng = b.rng
    b.start(label)
    top, legs = m.surface(b), m.surface(b)
    if label == "table" and rng.random() < 0.3:
        radius = min(w, d) / 2
        b.cylinder(0, d / 2, h - 0.04, radius, 0.04, top)
        b.cylinder(0, d / 2, 0.03, 0.05, h - 0.06, legs)
        b.cylinder(0, d / 2, 0, 0.6 * radius, 0.03, legs)
        _props(b, radius, d, h, int(rng.integers(0, 3)))
        return
    b.box(0, d / 2, h - 0.04, (w, d, 0.04), top)
    _legs(b, w, d, h - 0.04, rng.uniform(0.04, 0.09), legs)
    _props(b, w, d, h, int(rng.integers(0, 5)))


def desk(b: Builder, w: float, d: float, h: float) -> None:
    """A desk with drawers on one side and often a screen."""
    rng = b.rng
    b.start("desk")
    top, side, sign = m.surface(b), m.surface(b), 1 if rng.random() < 0.5 else -1
    b.box(0, d / 2, h - 0.04, (w, d, 0.04), top)
    b.box(sign * (w / 2 - 0.02), d / 2, 0, (0.04, d, h - 0.04), side)
    b.box(-sign * (w / 2 - 0.2), d / 2, 0, (0.4, d - 0.06, h - 0.04), side)
    for row in range(3):
        b.box(-sign * (w / 2 - 0.2), d - 0.02, 0.04 + row * h / 3.3, (0.36, 0.03, h / 3.3 - 0.04), top)
    if rng.random() < 0.7:
        screen(b, (0.0, d * 0.35, h), rng.uniform(0.4, 0.6))
    else:
        _props(b, w, d, h, int(rng.integers(1, 4)))


def screen(b: Builder, place: Point, width: float) -> None:
    """A television or monitor on a foot at `place`."""
    x, y, z = place
    b.start("television")
    dark = m.dark_glass(b)
    b.box(x, y, z, (width * 0.4, 0.15, 0.02), dark)
    b.box(x, y - 0.02, z, (0.05, 0.03, 0.15), dark)
    b.box(x, y, z + 0.08, (width, 0.04, width * 0.58), m.metal(b))
    face = m.dark_glass(b) if b.rng.random() < 0.6 else m.print_(b)
    b.box(x, y + 0.02, z + 0.1, (width - 0.04, 0.02, width * 0.58 - 0.04), face)


def tv_stand(b: Builder, w: float, d: float, h: float) -> None:
    b.start("cabinet")
    b.box(0, d / 2, 0, (w, d, h), m.surface(b))
    b.box(0, d - 0.005, 0.05, (w - 0.1, 0.02, h - 0.1), m.surface(b))
    screen(b, (0.0, d * 0.4, h), min(w * 0.9, b.rng.uniform(0.7, 1.3)))


def plant(b: Builder, w: float, d: float, h: float) -> None:
    rng = b.rng
    b.start("otherprop")
    pot = 0.3 * h
    b.shade(0, d / 2, 0, w * 0.35, pot, m.surface(b))
    green = m.leaves(b)
    for _ in range(int(rng.integers(4, 8))):
        x, y, z = rng.uniform(-0.25, 0.25) * w, d / 2 + rng.uniform(-0.25, 0.25) * d, rng.uniform(0.45, 0.9) * h
        size = rng.uniform(0.15, 0.3) * w
        b.ball((x, y, z), (size, size, size * rng.uniform(0.5, 1.2)), green)
    b.cylinder(0, d / 2, pot, 0.02, 0.3 * h, m.surface(b))


def cardboard(b: Builder, w: float, d: float, h: float) -> None:
    b.start("box")
    b.box(0, d / 2, 0, (w, d, h), m.print_(b) if b.rng.random() < 0.5 else m.surface(b))


def bag(b: Builder, w: float, d: float, h: float) -> None:
    b.start("bag")
    fabric = m.cloth(b)
    b.cushion(0, d / 2, 0, (w, d, h), fabric)
    b.box(0, d / 2, h - 0.02, (w * 0.5, 0.03, 0.08), fabric)


def floor_mat(b: Builder, w: float, d: float, h: float) -> None:
    b.start("floor mat")
    b.box(0, d / 2, 0, (w, d, h), m.cloth(b))
    b.box(0, d / 2, h, (w - 0.2, d - 0.2, 0.003), m.cloth(b))


def otherfurniture(b: Builder, w: float, d: float, h: float) -> None:
    """A pouffe or a bench."""
    b.start("otherfurniture")
    if b.rng.random() < 0.5:
        b.cylinder(0, d / 2, 0, min(w, d) / 2, h, m.cloth(b))
    else:
        b.cushion(0, d / 2, 0, (w, d, h), m.cloth(b))


AT_WALL = (
    Piece(build=cabinet, width=(0.6, 1.6), depth=(0.35, 0.6), height=(0.7, 2.1), weight=2),
    Piece(build=dresser, width=(0.7, 1.3), depth=(0.4, 0.55), height=(0.75, 1.2)),
    Piece(build=bookshelf, width=(0.6, 1.6), depth=(0.25, 0.4), height=(0.9, 2.1), weight=2),
    Piece(build=bed, width=(0.9, 1.9), depth=(1.9, 2.2), height=(0.4, 0.6), weight=1.5),
    Piece(build=sofa, width=(0.9, 2.3), depth=(0.8, 1.0), height=(0.75, 0.95), weight=2),
    Piece(build=desk, width=(1.0, 1.6), depth=(0.55, 0.8), height=(0.7, 0.78), weight=1.5),
    Piece(build=table, width=(0.7, 1.6), depth=(0.4, 0.8), height=(0.6, 0.8)),
    Piece(build=tv_stand, width=(0.9, 1.6), depth=(0.35, 0.5), height=(0.35, 0.6)),
    Piece(build=counter, width=(1.0, 2.4), depth=(0.55, 0.65), height=(0.85, 0.95)),
    Piece(build=refrigerator, width=(0.6, 0.9), depth=(0.6, 0.75), height=(1.4, 1.95), weight=0.7),
    Piece(build=night_stand, width=(0.4, 0.55), depth=(0.35, 0.45), height=(0.45, 0.6)),
    Piece(build=floor_lamp, width=(0.3, 0.45), depth=(0.35, 0.45), height=(1.3, 1.75)),
    Piece(build=plant, width=(0.4, 0.7), depth=(0.4, 0.7), height=(0.5, 1.5)),
    Piece(build=chair, width=(0.4, 0.55), depth=(0.4, 0.55), height=(0.8, 1.1)),
)
FREE = (
    Piece(build=chair, width=(0.4, 0.55), depth=(0.4, 0.55), height=(0.8, 1.1), weight=3),
    Piece(build=table, width=(0.7, 1.6), depth=(0.6, 1.0), height=(0.4, 0.78), weight=2),
    Piece(build=otherfurniture, width=(0.4, 0.9), depth=(0.4, 0.6), height=(0.35, 0.5)),
    Piece(build=cardboard, width=(0.25, 0.6), depth=(0.2, 0.5), height=(0.15, 0.5)),
    Piece(build=bag, width=(0.3, 0.5), depth=(0.15, 0.3), height=(0.3, 0.5)),
    Piece(build=plant, width=(0.4, 0.6), depth=(0.4, 0.6), height=(0.5, 1.2), weight=0.7),
    Piece(build=sofa, width=(0.8, 1.9), depth=(0.8, 0.95), height=(0.75, 0.9), weight=0.7),
)
