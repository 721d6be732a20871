"""Scenes as lists of placed primitives, and their assembly into one triangle soup.

World coordinates: x and y along the floor, z up, metres. V vertices, F faces, M materials.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import trimesh

from mtmamba.tasks import HUMAN_PARTS, NYU40

Array = np.ndarray[Any, Any]
Colour3 = tuple[float, float, float]
Point = tuple[float, float, float]

PLAIN, CHECKER, STRIPES, PLANKS, NOISE, SPOTS = range(6)
"""Texture patterns between a material's two colours."""

_LABELS = {name: index for index, name in enumerate(NYU40)}
_PARTS = {name: index for index, name in enumerate(HUMAN_PARTS)}


@dataclass(frozen=True, kw_only=True)
class Material:
    """colour, other: RGB reflectances 0..1 that the `pattern` mixes; scale: pattern cells per metre; gloss: strength
    of the highlight; glow: light given off, as a multiple of the colour."""

    colour: Colour3
    other: Colour3
    pattern: int = PLAIN
    scale: float = 4.0
    phase: tuple[float, float] = (0.0, 0.0)
    gloss: float = 0.0
    glow: float = 0.0

    def row(self) -> tuple[float, ...]:
        return (*self.colour, *self.other, self.pattern, self.scale, *self.phase, self.gloss, self.glow)


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """triangles: [F, 3, 3] float32, metres, outward by the right-hand rule. objects: [F] int32 instance ids.
    semseg: [F] uint8, index in NYU40. parts: [F] uint8, index in HUMAN_PARTS. materials: [F] int32, row of `table`.
    table: [M, 12] float32, `Material.row` each."""

    triangles: Array
    objects: Array
    semseg: Array
    parts: Array
    materials: Array
    table: Array


@lru_cache(maxsize=1)
def _templates() -> dict[str, Array]:
    """Triangles [F, 3, 3] of every primitive. All fit the cube -0.5..0.5."""
    ball = trimesh.creation.icosphere(subdivisions=2, radius=0.5)
    cushion = trimesh.creation.icosphere(subdivisions=2, radius=1.0)
    cushion.vertices = np.sign(cushion.vertices) * np.abs(cushion.vertices) ** 0.45
    cushion.vertices *= 0.5 / np.abs(cushion.vertices).max(axis=0)
    cylinder = trimesh.creation.cylinder(radius=0.5, height=1.0, sections=12)
    shade = trimesh.creation.cylinder(radius=0.5, height=1.0, sections=12)
    shade.vertices[shade.vertices[:, 2] > 0, :2] *= 0.6
    meshes = {
        "box": trimesh.creation.box(extents=(1.0, 1.0, 1.0)),
        "cylinder": cylinder,
        "shade": shade,
        "ball": ball,
        "joint": trimesh.creation.icosphere(subdivisions=1, radius=0.5),
        "cushion": cushion,
    }
    return {name: np.asarray(mesh.vertices)[np.asarray(mesh.faces)] for name, mesh in meshes.items()}


class Builder:
    """Collects primitives in a movable local frame.

    `place` sets the frame, `start` begins a new object of one label, then every primitive is added to it. Positions are
    metres in the frame; for upright primitives z is the *bottom*.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self._placed: dict[str, list[tuple[Array, Array, int, int, int, int]]] = {name: [] for name in _templates()}
        self._rows: list[tuple[float, ...]] = []
        self._object = -1
        self._semseg = 0
        self._rotation = np.eye(3)
        self._origin = np.zeros(3)

    def place(self, x: float, y: float, z: float = 0.0, yaw: float = 0.0) -> None:
        """Move the frame's origin to a world position, turned by `yaw` radians about the vertical."""
        self._origin = np.array([x, y, z])
        self._rotation = _turn(yaw)

    def start(self, label: str) -> None:
        """Begin a new object of this NYU40 class."""
        self._object += 1
        self._semseg = _LABELS[label]

    def add(self, material: Material) -> int:
        """Register a material; primitives take the number returned."""
        self._rows.append(material.row())
        return len(self._rows) - 1

    def box(
        self, x: float, y: float, z: float, size: Point, material: int, yaw: float = 0.0, part: str = "background"
    ) -> None:
        """A box of `size` (x, y, z) centred on (x, y), standing on z."""
        self._put("box", (x, y, z + size[2] / 2), _turn(yaw) * np.array(size), material, part)

    def cushion(self, x: float, y: float, z: float, size: Point, material: int, part: str = "background") -> None:
        """A box with round edges."""
        self._put("cushion", (x, y, z + size[2] / 2), np.diag(size), material, part)

    def cylinder(self, x: float, y: float, z: float, radius: float, height: float, material: int) -> None:
        """An upright cylinder."""
        self._put("cylinder", (x, y, z + height / 2), np.diag((2 * radius, 2 * radius, height)), material)

    def shade(self, x: float, y: float, z: float, radius: float, height: float, material: int) -> None:
        """An upright frustum whose top has 0.6 of the radius."""
        self._put("shade", (x, y, z + height / 2), np.diag((2 * radius, 2 * radius, height)), material)

    def ball(self, centre: Point, radii: Point, material: int, part: str = "background") -> None:
        """An ellipsoid; z is its centre's."""
        self._put("ball", centre, np.diag(radii) * 2, material, part)

    def limb(self, start: Array, end: Array, radius: float, material: int, part: str) -> None:
        """A cylinder between two points of the frame, with a ball at its end."""
        axis = end - start
        length = float(np.linalg.norm(axis))
        w = axis / length
        side = np.array([1.0, 0.0, 0.0]) if abs(w[0]) < 0.9 else np.array([0.0, 1.0, 0.0])
        u = np.cross(side, w)
        u /= np.linalg.norm(u)
        basis = np.stack([u, np.cross(w, u), w], axis=1) * np.array([2 * radius, 2 * radius, length])
        middle = (start + end) / 2
        self._put("cylinder", (middle[0], middle[1], middle[2]), basis, material, part)
        self._put("joint", (end[0], end[1], end[2]), np.eye(3) * 2 * radius, material, part)

    def _put(self, shape: str, centre: Point, basis: Array, material: int, part: str = "background") -> None:
        linear = self._rotation @ basis
        offset = self._rotation @ np.array(centre) + self._origin
        self._placed[shape].append((linear, offset, self._object, self._semseg, _PARTS[part], material))

    def finish(self) -> Geometry:
        """All primitives as one geometry."""
        triangles, ids = [], []
        for shape, placed in self._placed.items():
            if not placed:
                continue
            template = _templates()[shape]
            linear = np.stack([entry[0] for entry in placed])  # [n, 3, 3]
            offset = np.stack([entry[1] for entry in placed])  # [n, 3]
            moved = np.einsum("nij,fvj->nfvi", linear, template) + offset[:, None, None]
            triangles.append(moved.reshape(-1, 3, 3))
            ids.append(np.repeat(np.array([entry[2:] for entry in placed]), len(template), axis=0))
        numbers = np.concatenate(ids)
        return Geometry(
            triangles=np.concatenate(triangles).astype(np.float32),
            objects=numbers[:, 0].astype(np.int32),
            semseg=numbers[:, 1].astype(np.uint8),
            parts=numbers[:, 2].astype(np.uint8),
            materials=numbers[:, 3].astype(np.int32),
            table=np.array(self._rows, dtype=np.float32),
        )


def _turn(yaw: float) -> Array:
    """Rotation matrix about the vertical, radians."""
    cosine, sine = np.cos(yaw), np.sin(yaw)
    return np.array([[cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0]])
