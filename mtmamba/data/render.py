"""Ray casting of rooms into a picture and exact labels, with embree.

N = H * W pixels in raster order, F faces. Camera coordinates: see `mtmamba.data.labels`.
"""

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene

from mtmamba.data.geometry import CHECKER, NOISE, PLANKS, SPOTS, STRIPES, Array
from mtmamba.data.rooms import Camera, Light, Room
from mtmamba.tasks import NYU40

BACKGROUND = frozenset(
    NYU40.index(name)
    for name in (
        "wall",
        "floor",
        "ceiling",
        "door",
        "window",
        "picture",
        "curtain",
        "blinds",
        "mirror",
        "whiteboard",
        "floor mat",
    )
)
"""Classes that are never salient."""

_OFFSET_M = 0.003  # shadow rays start this far off the surface


@dataclass(frozen=True, kw_only=True)
class Rendering:
    """image: [H, W, 3] uint8 RGB. semseg, parts, sal: [H, W] uint8. objects: [H, W] int32 instance ids. depth: [H, W]
    float32 metres. normals: [H, W, 3] float32 in camera coordinates. edge: [H, W] float32, 0 or 1. focal: pixels; the
    principal point is the picture's centre ((W - 1) / 2, (H - 1) / 2)."""

    image: Array
    semseg: Array
    parts: Array
    sal: Array
    objects: Array
    depth: Array
    normals: Array
    edge: Array
    focal: float


def focal_pixels(camera: Camera, width: int) -> float:
    return float(width / (2 * np.tan(camera.fov / 2)))


def camera_rays(camera: Camera, size: tuple[int, int]) -> Array:
    """World directions [N, 3] float32 through the pixel centres. Their camera z is 1, so ray lengths are z-depths."""
    height, width = size
    focal = focal_pixels(camera, width)
    x = (np.arange(width) - (width - 1) / 2) / focal
    y = (np.arange(height) - (height - 1) / 2) / focal
    grid = np.stack([*np.meshgrid(x, y), np.ones((height, width))], axis=-1).reshape(-1, 3)
    return (grid @ camera.rotation.T).astype(np.float32)


def boundaries(objects: Array) -> Array:
    """[H, W] float32: 1 on both sides of every border between instance ids (4-neighbours), so lines are two pixels
    wide and mirroring commutes with it."""
    edge = np.zeros(objects.shape, dtype=bool)
    across, down = objects[:, 1:] != objects[:, :-1], objects[1:] != objects[:-1]
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    edge[1:] |= down
    edge[:-1] |= down
    return edge.astype(np.float32)


def salient_pixels(objects: Array, semseg: Array, depth: Array) -> Array:
    """[H, W] uint8, 1 where the eye goes: instances that are large, near and central, people before things.

    An instance's weight is the sum over its pixels of exp(-2 r^2) / depth, where r is the distance from the picture's
    centre as a share of half its diagonal; a person's counts four times, a `BACKGROUND` class has none. Salient are
    the instances with at least half the largest weight; nothing is where no instance has any.
    """
    height, width = objects.shape
    y = (np.arange(height) - (height - 1) / 2)[:, None]
    x = (np.arange(width) - (width - 1) / 2)[None]
    weight = np.exp(-2 * (x * x + y * y) / ((height * height + width * width) / 4)) / depth
    weight[np.isin(semseg, list(BACKGROUND))] = 0.0
    weight[semseg == NYU40.index("person")] *= 4
    totals = np.bincount(objects.ravel(), weight.ravel())
    chosen = (totals > 0) & (totals >= totals.max() / 2)
    return chosen[objects].astype(np.uint8)


@lru_cache(maxsize=1)
def _noise_tile() -> Array:
    """[512, 512] float32 in 0..1, periodic, several octaves; 32 pixels a pattern cell."""
    rng = np.random.default_rng(20240)
    tile = np.zeros((512, 512), dtype=np.float32)
    for cells, strength in ((16, 1.0), (48, 0.6), (160, 0.4)):
        coarse = np.pad(rng.random((cells, cells), dtype=np.float32), 2, mode="wrap")
        scale = 512 / cells
        fine = cv2.resize(coarse, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
        start = round(2 * scale)
        tile += strength * fine[start : start + 512, start : start + 512]
    tile -= tile.min()
    return np.asarray(tile / tile.max(), dtype=np.float32)


def _blend(pattern: int, u: Array, v: Array) -> Array:
    """Share of the second colour, float32 0..1, at texture coordinates in pattern cells."""
    if pattern == CHECKER:
        return ((np.floor(u) + np.floor(v)) % 2).astype(np.float32)
    if pattern == STRIPES:
        return (u % 1 < 0.5).astype(np.float32)
    if pattern == SPOTS:
        return ((u % 1 - 0.5) ** 2 + (v % 1 - 0.5) ** 2 < 0.08).astype(np.float32)
    if pattern == PLANKS:
        plank = np.floor(u)
        joint = (u - plank < 0.06).astype(np.float32)
        grain = _noise_tile()[(plank * 37 + u * 24).astype(np.int64) % 512, (v * 5 + plank * 91).astype(np.int64) % 512]
        return np.asarray(np.maximum(joint, grain))
    return np.asarray(_noise_tile()[(u * 32).astype(np.int64) % 512, (v * 32).astype(np.int64) % 512])


def _albedo(points: Array, rows: Array, normals: Array) -> Array:
    """Reflectances [N, 3]: the texture is laid along the two world axes most in the surface's plane."""
    axis = np.abs(normals).argmax(axis=1)
    p, n = points, np.arange(len(points))
    u = p[n, (axis == 0).astype(np.int64)] * rows[:, 7] + rows[:, 8] * 16
    v = p[n, np.where(axis == 2, 1, 2)] * rows[:, 7] + rows[:, 9] * 16
    share = np.zeros(len(points), dtype=np.float32)
    for pattern in (CHECKER, STRIPES, SPOTS, PLANKS, NOISE):
        where = np.flatnonzero(rows[:, 6] == pattern)
        if where.size:
            share[where] = _blend(pattern, u[where], v[where])
    return np.asarray(rows[:, :3] + (rows[:, 3:6] - rows[:, :3]) * share[:, None])


def _lit(
    scene: EmbreeScene, light: Light, points: Array, normals: Array, eyes: Array, gloss: Array
) -> tuple[Array, Array]:
    """Diffuse [N] and highlight [N] strength of one light."""
    towards = light.position.astype(np.float32) - points
    distance = np.sqrt(np.einsum("ni,ni->n", towards, towards))
    unit = towards / distance[:, None]
    facing = np.maximum(np.einsum("ni,ni->n", unit, normals), 0)
    half = unit - eyes
    half /= np.sqrt(np.einsum("ni,ni->n", half, half))[:, None]
    shine = np.maximum(np.einsum("ni,ni->n", half, normals), 0)
    for _ in range(4):
        shine = shine * shine  # to the power of 16
    shine *= gloss
    strength = 1 / (1 + (distance / light.reach) ** 2)
    if light.shadows:
        starts = points + normals * _OFFSET_M
        reached = np.full(len(points), 1 - 1e-3, dtype=np.float32)
        strength *= scene.run(starts, towards, dists=reached, query="OCCLUDED") < 0
    return facing * strength, shine * strength


def _shade(scene: EmbreeScene, room: Room, points: Array, normals: Array, rays: Array, materials: Array) -> Array:
    """Linear radiance [N, 3] float32."""
    rows = room.geometry.table[materials]
    albedo = _albedo(points, rows, normals)
    eyes = rays / np.linalg.norm(rays, axis=1, keepdims=True)
    sky = (0.75 + 0.25 * normals[:, 2:]) * room.ambient.astype(np.float32)
    light_sum = np.asarray(sky)
    highlight = np.zeros_like(points)
    for light in room.lights:
        diffuse, shine = _lit(scene, light, points, normals, eyes, rows[:, 10])
        colour = light.colour.astype(np.float32)
        light_sum = np.add(light_sum, diffuse[:, None] * colour)
        highlight = highlight + shine[:, None] * colour
    return np.asarray(albedo * (light_sum + rows[:, 11:12]) + highlight)


def _photograph(radiance: Array, rng: np.random.Generator) -> Array:
    """Radiance [H, W, 3] to a uint8 picture: exposure, white balance, blur, vignette, gamma, sensor noise."""
    exposed: Array = radiance * (rng.uniform(0.16, 0.4) / max(float(radiance.mean()), 1e-6))
    exposed = exposed * rng.uniform(0.88, 1.12, 3).astype(np.float32)
    exposed = cv2.GaussianBlur(exposed.astype(np.float32), (0, 0), rng.uniform(0.35, 0.8))
    exposed = exposed * (1.05 - 0.1 * exposed)  # a soft shoulder
    picture = np.clip(exposed, 0.0, 1.0) ** (1 / rng.uniform(1.6, 2.4))
    noise = rng.standard_normal(picture.shape, dtype=np.float32) * rng.uniform(0.0, 0.02)
    return np.asarray(np.clip((picture + noise) * 255 + 0.5, 0, 255).astype(np.uint8))


def _face_normals(triangles: Array) -> Array:
    cross = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
    return np.asarray(cross / np.maximum(np.linalg.norm(cross, axis=1, keepdims=True), 1e-20), dtype=np.float32)


class RoomRenderer:
    """A room ready for ray casting, at any number of sizes."""

    def __init__(self, room: Room) -> None:
        self.room = room
        self._scene = EmbreeScene(robust=True)
        TriangleMesh(self._scene, room.geometry.triangles)

    def cast(self, size: tuple[int, int]) -> tuple[Array, Array, Array]:
        """(rays [N, 3], face hit [N] int32, z-depth [N] float32 in metres) of every pixel."""
        rays = camera_rays(self.room.camera, size)
        origins = np.tile(self.room.camera.position.astype(np.float32), (len(rays), 1))
        hits = self._scene.run(origins, rays, output=1)
        return rays, *_without_gaps(hits["primID"], hits["tfar"])

    def render(self, size: tuple[int, int], rng: np.random.Generator) -> Rendering:
        """Picture and labels of `size` (height, width) pixels. `rng` draws the photographic variation only.

        Every pixel is labelled: rooms are closed. One ray a pixel, through its centre, decides all labels, so they
        agree.
        """
        height, width = size
        geometry, camera = self.room.geometry, self.room.camera
        rays, face, depth = self.cast(size)
        normals = _face_normals(geometry.triangles)[face]
        normals = np.where(np.einsum("ni,ni->n", normals, rays)[:, None] > 0, -normals, normals)
        points = camera.position.astype(np.float32) + rays * depth[:, None]
        radiance = _shade(self._scene, self.room, points, normals, rays, geometry.materials[face])
        objects, semseg = geometry.objects[face].reshape(size), geometry.semseg[face].reshape(size)
        depth_map = depth.reshape(size)
        return Rendering(
            image=_photograph(radiance.reshape(height, width, 3), rng),
            semseg=semseg,
            parts=geometry.parts[face].reshape(size),
            sal=salient_pixels(objects, semseg, depth_map),
            objects=objects,
            depth=depth_map,
            normals=(normals @ camera.rotation.astype(np.float32)).reshape(height, width, 3),
            edge=boundaries(objects),
            focal=focal_pixels(camera, width),
        )


def _without_gaps(face: Array, depth: Array) -> tuple[Array, Array]:
    """Give a ray that slipped between two triangles its left neighbour's hit."""
    face, depth = face.copy(), depth.copy()
    while (missing := np.flatnonzero(face < 0)).size and missing.size < face.size:
        source = (missing - 1) % face.size
        face[missing], depth[missing] = face[source], depth[source]
    return face, depth
