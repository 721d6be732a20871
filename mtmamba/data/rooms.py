"""A furnished room with a camera and lights: what stands where. World coordinates: x, y along the floor, z up,
metres."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from mtmamba.data import materials as m
from mtmamba.data.furniture import AT_WALL, FREE, Piece, floor_mat
from mtmamba.data.geometry import Array, Builder, Geometry
from mtmamba.data.person import person

CLEARANCE = 0.55
"""Half the side, in metres, of the square around the camera that stays empty."""


@dataclass(frozen=True, kw_only=True)
class Camera:
    """position: world metres [3]. rotation: [3, 3], columns are the camera's x (right), y (down) and z (forward) axes
    in the world. fov: horizontal angle of view, radians."""

    position: Array
    rotation: Array
    fov: float


@dataclass(frozen=True, kw_only=True)
class Light:
    """A point light. position: world metres [3]; colour: RGB [3], times its strength; reach: metres at which it has
    half its strength; shadows: whether it casts them."""

    position: Array
    colour: Array
    reach: float
    shadows: bool


@dataclass(frozen=True, kw_only=True)
class Room:
    geometry: Geometry
    camera: Camera
    lights: tuple[Light, ...]
    ambient: Array  # RGB [3]


class _Layout:
    """A room being furnished: which boxes of space are taken."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.b = Builder(rng)
        self.size = np.array([rng.uniform(3.0, 6.5), rng.uniform(3.2, 7.0), rng.uniform(2.3, 3.1)])
        self.taken: list[Array] = []  # [2, 3] each: low and high corner

    def free(self, low: Array, high: Array) -> bool:
        """Whether the box lies in the room and touches nothing."""
        if (low < -1e-6).any() or (high > self.size + 1e-6).any():
            return False
        return not any((low < other[1]).all() and (high > other[0]).all() for other in self.taken)

    def take(self, centre: tuple[float, float], size: tuple[float, float], yaw: float, z: float, height: float) -> bool:
        """Claim an upright box turned by yaw (by its bounds) if it is free."""
        cosine, sine = abs(np.cos(yaw)), abs(np.sin(yaw))
        half_x, half_y = (size[0] * cosine + size[1] * sine) / 2, (size[0] * sine + size[1] * cosine) / 2
        low = np.array([centre[0] - half_x, centre[1] - half_y, z])
        high = np.array([centre[0] + half_x, centre[1] + half_y, z + height])
        if not self.free(low, high):
            return False
        self.taken.append(np.stack([low, high]))
        return True

    def wall_spot(self, wall: int, along: float, depth: float) -> tuple[float, float, float, tuple[float, float]]:
        """(x, y, yaw, centre) of a footprint at this wall: its frame's y points into the room, x runs along the
        wall."""
        yaw = wall * np.pi / 2
        width, length = self.size[0], self.size[1]
        x, y = ((along, 0.0), (width, along), (width - along, length), (0.0, length - along))[wall]
        return x, y, yaw, (x - np.sin(yaw) * depth / 2, y + np.cos(yaw) * depth / 2)

    def wall_length(self, wall: int) -> float:
        return float(self.size[wall % 2])

    def at_wall(self, wall: int, width: float, depth: float, z: float, height: float, room: float = 0.0) -> bool:
        """Claim a place at a wall and move the builder's frame there. `room` is kept free in front of it."""
        spare = self.wall_length(wall) - width
        if spare <= 0:
            return False
        along = width / 2 + self.rng.uniform(0, spare)
        x, y, yaw, centre = self.wall_spot(wall, along, depth + room)
        if not self.take(centre, (width, depth + room), yaw, z, height):
            return False
        self.b.place(x, y, 0.0, yaw)
        return True


def _shell(layout: _Layout) -> None:
    """Floor, ceiling and the four walls with skirting; boxes outside the room's space."""
    b, (x, y, z) = layout.b, (float(v) for v in layout.size)
    t = 0.2
    b.place(0, 0)
    b.start("floor")
    b.box(x / 2, y / 2, -t, (x + 2 * t, y + 2 * t, t), m.floor_cover(b))
    b.start("ceiling")
    b.box(x / 2, y / 2, z, (x + 2 * t, y + 2 * t, t), m.ceiling_paint(b))
    b.start("wall")
    paint = m.wall_paint(b)
    accent = m.wall_paint(b) if b.rng.random() < 0.3 else paint
    b.box(x / 2, -t / 2, 0, (x, t, z), paint)
    b.box(x / 2, y + t / 2, 0, (x, t, z), accent)
    b.box(-t / 2, y / 2, 0, (t, y, z), paint)
    b.box(x + t / 2, y / 2, 0, (t, y, z), paint)
    if b.rng.random() < 0.6:
        board = m.surface(b)
        for wall in range(4):
            px, py, yaw, _ = layout.wall_spot(wall, layout.wall_length(wall) / 2, 0.0)
            b.place(px, py, 0.0, yaw)
            b.box(0, 0.008, 0, (layout.wall_length(wall), 0.016, 0.09), board)


def _door(layout: _Layout) -> None:
    b, rng = layout.b, layout.rng
    width, height = rng.uniform(0.75, 1.0), rng.uniform(1.95, 2.15)
    if not layout.at_wall(int(rng.integers(4)), width + 0.2, 0.06, 0.0, height, room=0.6):
        return
    b.start("door")
    leaf, frame = m.surface(b), m.surface(b)
    b.box(0, 0.015, 0, (width, 0.03, height), leaf)
    for x in (-width / 2 - 0.04, width / 2 + 0.04):
        b.box(x, 0.03, 0, (0.08, 0.06, height), frame)
    b.box(0, 0.03, height, (width + 0.16, 0.06, 0.08), frame)
    if rng.random() < 0.6:
        for z in (0.15, height * 0.55):
            b.box(0, 0.035, z, (width * 0.65, 0.02, height * 0.35), leaf)
    b.ball((width / 2 - 0.08, 0.08, 1.0), (0.035, 0.035, 0.035), m.metal(b))


def _window(layout: _Layout) -> None:
    b, rng = layout.b, layout.rng
    width, height, sill = rng.uniform(0.8, 2.0), rng.uniform(0.9, 1.4), rng.uniform(0.5, 1.0)
    if not layout.at_wall(int(rng.integers(4)), width + 0.5, 0.16, sill, height + 0.1):
        return
    b.start("window")
    frame = m.surface(b)
    b.box(0, 0.015, sill, (width, 0.03, height), m.glowing(b, (0.5, 1.6)))
    for x in np.linspace(-width / 2, width / 2, int(rng.integers(2, 5))):
        b.box(float(x), 0.03, sill, (0.06, 0.06, height), frame)
    for z in (sill, sill + height - 0.06):
        b.box(0, 0.03, z, (width, 0.06, 0.06), frame)
    cover = rng.random()
    if cover < 0.4:
        b.start("curtain")
        fabric = m.cloth(b)
        for side in (-1, 1):
            for fold in range(4):
                b.cylinder(
                    side * (width / 2 + 0.2 - 0.11 * fold), 0.1, max(sill - 0.4, 0.02), 0.06, height + 0.45, fabric
                )
    elif cover < 0.6:
        b.start("blinds")
        slat = m.surface(b)
        for z in np.arange(sill + height * rng.uniform(0, 0.7), sill + height, 0.07):
            b.box(0, 0.09, float(z), (width + 0.05, 0.03, 0.062), slat)


def _hanging(layout: _Layout) -> None:
    """A picture, mirror, whiteboard, television or shelf on a wall."""
    b, rng = layout.b, layout.rng
    width, height = rng.uniform(0.3, 1.1), rng.uniform(0.3, 0.8)
    bottom = rng.uniform(1.1, max(1.15, layout.size[2] - height - 0.2))
    kind = rng.choice(["picture", "mirror", "whiteboard", "television", "shelves"], p=[0.6, 0.08, 0.07, 0.1, 0.15])
    depth = 0.25 if kind == "shelves" else 0.06
    if not layout.at_wall(int(rng.integers(4)), width, depth, bottom, height):
        return
    b.start(kind)
    if kind == "shelves":
        b.box(0, 0.125, bottom, (width, 0.25, 0.03), m.surface(b))
        b.start("otherprop")
        b.cylinder(rng.uniform(-0.3, 0.3) * width, 0.12, bottom + 0.03, 0.07, rng.uniform(0.1, 0.25), m.surface(b))
        return
    faces: dict[str, Any] = {
        "picture": m.print_,
        "mirror": m.metal,
        "whiteboard": m.ceiling_paint,
        "television": m.dark_glass,
    }
    b.box(0, 0.015, bottom, (width, 0.03, height), m.surface(b))
    b.box(0, 0.03, bottom + 0.03, (width - 0.06, 0.02, height - 0.06), faces[kind](b))


def _draw(rng: np.random.Generator, pieces: tuple[Piece, ...]) -> tuple[Piece, float, float, float]:
    weights = np.array([piece.weight for piece in pieces])
    piece = pieces[int(rng.choice(len(pieces), p=weights / weights.sum()))]
    return piece, rng.uniform(*piece.width), rng.uniform(*piece.depth), rng.uniform(*piece.height)


def _furnish_walls(layout: _Layout) -> None:
    for _ in range(int(layout.rng.integers(14, 34))):
        piece, w, d, h = _draw(layout.rng, AT_WALL)
        if layout.at_wall(int(layout.rng.integers(4)), w, d, 0.0, h + (0.85 if h < 0.9 else 0.5 if h < 1.3 else 0.05)):
            piece.build(layout.b, w, d, h)


def _place_free(layout: _Layout, w: float, d: float, h: float, spread: float = 1.0) -> bool:
    """Claim a place anywhere and move the frame there."""
    rng = layout.rng
    x, y = (float(rng.uniform(0.5 * (1 - spread), 1 - 0.5 * (1 - spread)) * layout.size[axis]) for axis in (0, 1))
    yaw = float(rng.integers(4)) * np.pi / 2 if rng.random() < 0.5 else rng.uniform(0, 2 * np.pi)
    if not layout.take((x, y), (w, d), yaw, 0.01, h):
        return False
    layout.b.place(x + np.sin(yaw) * d / 2, y - np.cos(yaw) * d / 2, 0.0, yaw)
    return True


def _furnish_floor(layout: _Layout) -> None:
    for _ in range(int(layout.rng.integers(4, 13))):
        piece, w, d, h = _draw(layout.rng, FREE)
        if _place_free(layout, w, d, h):
            piece.build(layout.b, w, d, h)


def _mat(layout: _Layout) -> None:
    rng = layout.rng
    x, y = (float(rng.uniform(0.3, 0.7) * layout.size[axis]) for axis in (0, 1))
    w, d = (float(rng.uniform(0.3, 0.55) * layout.size[axis]) for axis in (0, 1))
    layout.b.place(x, y - d / 2, 0.0, 0.0)
    floor_mat(layout.b, w, d, 0.01)


def _people(layout: _Layout, camera: Camera) -> None:
    """Nobody, one or two people inside the camera's field of view."""
    rng, b = layout.rng, layout.b
    heading = np.arctan2(camera.rotation[1, 2], camera.rotation[0, 2])
    for _ in range(int(rng.choice([0, 1, 2], p=[0.35, 0.5, 0.15]))):
        height, sitting = rng.uniform(1.5, 1.9), rng.random() < 0.3
        for _attempt in range(6):
            away, angle = rng.uniform(1.6, 4.5), heading + rng.uniform(-0.4, 0.4) * camera.fov
            x, y = camera.position[0] + away * np.cos(angle), camera.position[1] + away * np.sin(angle)
            yaw = rng.uniform(0, 2 * np.pi)
            if not layout.take((x, y), (0.55, 0.55), 0.0, 0.01, height):
                continue
            b.place(x, y, 0.0, yaw)
            if sitting:
                b.start("chair")
                b.box(0, -0.05, 0.4, (0.45, 0.45, 0.06), m.surface(b))
                b.box(0, -0.26, 0.46, (0.45, 0.04, 0.45), m.surface(b))
                b.cylinder(0, -0.05, 0, 0.05, 0.4, m.metal(b))
            person(b, height, 0.46 if sitting else None)
            break


def _camera(layout: _Layout) -> Camera:
    """Eye height, near a wall or a corner, looking across the room, a little down."""
    rng, size = layout.rng, layout.size
    turned = rng.random() < 0.5  # look along x instead of y
    near, side = (0, 1) if turned else (1, 0)
    position = np.zeros(3)
    position[near] = rng.uniform(0.3, 0.3 * size[near])
    position[side] = rng.uniform(0.15, 0.85) * size[side]
    position[2] = rng.uniform(0.9, 1.75)
    target = np.zeros(3)
    target[near] = rng.uniform(0.7, 1.0) * size[near]
    target[side] = rng.uniform(0.1, 0.9) * size[side]
    if rng.random() < 0.5:
        position[near], target[near] = size[near] - position[near], size[near] - target[near]
    target[2] = position[2] - rng.uniform(-0.1, 0.45) * np.linalg.norm(target[:2] - position[:2])
    forward = (target - position) / np.linalg.norm(target - position)
    right = np.cross(forward, (0.0, 0.0, 1.0))
    right /= np.linalg.norm(right)
    down = np.cross(forward, right)
    roll = rng.normal(0, 0.03)
    right, down = right * np.cos(roll) + down * np.sin(roll), down * np.cos(roll) - right * np.sin(roll)
    x, y = position[:2]
    layout.taken.append(np.array([[x - CLEARANCE, y - CLEARANCE, 0.0], [x + CLEARANCE, y + CLEARANCE, size[2]]]))
    return Camera(position=position, rotation=np.stack([right, down, forward], axis=1), fov=rng.uniform(0.9, 1.4))


def _lights(layout: _Layout) -> tuple[Light, ...]:
    rng, lights = layout.rng, []
    for index in range(int(rng.integers(1, 4))):
        place = layout.size * rng.uniform((0.15, 0.15, 0.8), (0.85, 0.85, 0.96))
        colour = np.array([1.0, rng.uniform(0.75, 1.0), rng.uniform(0.5, 1.1)]) * rng.uniform(0.5, 1.3)
        lights.append(Light(position=place, colour=colour, reach=rng.uniform(1.5, 4.0), shadows=index == 0))
    return tuple(lights)


def build_room(rng: np.random.Generator) -> Room:
    """Draw a room. Everything depends on `rng` alone."""
    layout = _Layout(rng)
    _shell(layout)
    camera = _camera(layout)
    _door(layout)
    for _ in range(int(rng.integers(0, 3))):
        _window(layout)
    _people(layout, camera)
    if rng.random() < 0.35:
        _mat(layout)
    _furnish_walls(layout)
    _furnish_floor(layout)
    for _ in range(int(rng.integers(1, 8))):
        _hanging(layout)
    ambient = np.array([1.0, rng.uniform(0.85, 1.0), rng.uniform(0.8, 1.1)]) * rng.uniform(0.2, 0.5)
    return Room(geometry=layout.b.finish(), camera=camera, lights=_lights(layout), ambient=ambient)
