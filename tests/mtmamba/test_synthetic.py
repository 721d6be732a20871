"""Rendered rooms: the same bits every time, and labels that agree with each other and with the geometry."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from mtmamba.data.furniture import AT_WALL, FREE
from mtmamba.data.geometry import Builder, Material
from mtmamba.data.labels import valid_pixels
from mtmamba.data.person import person
from mtmamba.data.render import BACKGROUND, Rendering, RoomRenderer, boundaries, salient_pixels
from mtmamba.data.rooms import build_room
from mtmamba.data.synthetic import SyntheticScenes, render_sample
from mtmamba.errors import MtmError
from mtmamba.tasks import HUMAN_PARTS, NYU40, dataset

SIZE = (60, 80)
PERSON = NYU40.index("person")


@pytest.fixture(scope="module")
def rooms() -> list[Rendering]:
    return [render_sample(5, index, SIZE) for index in range(12)]


def points_of(rendering: Rendering) -> np.ndarray:
    """Back-projected points [H, W, 3] in camera coordinates, metres."""
    height, width = rendering.depth.shape
    v, u = np.mgrid[:height, :width]
    x, y = (u - (width - 1) / 2) / rendering.focal, (v - (height - 1) / 2) / rendering.focal
    return np.stack([x, y, np.ones_like(x)], axis=-1) * rendering.depth[..., None]


def test_sample_layout() -> None:
    sample = SyntheticScenes(3, (33, 47), seed=1)[2]
    assert list(sample) == ["image", *(task.name for task in dataset("synthetic").tasks)]
    for name, channels, dtype in [
        ("image", 3, torch.float32),
        ("depth", 1, torch.float32),
        ("normals", 3, torch.float32),
        ("edge", 1, torch.float32),
    ]:
        assert sample[name].shape == (channels, 33, 47) and sample[name].dtype == dtype, name
    for name in ("semseg", "human_parts", "sal"):
        assert sample[name].shape == (33, 47) and sample[name].dtype == torch.uint8, name
    for task in dataset("synthetic").tasks:
        assert valid_pixels(task.kind, sample[task.name][None]).all(), f"{task.name}: every pixel is labelled"


def test_same_bits_every_time_and_in_workers() -> None:
    here = [SyntheticScenes(4, SIZE, seed=9)[index] for index in range(4)]
    loader = DataLoader(SyntheticScenes(4, SIZE, seed=9), batch_size=None, num_workers=1)
    for first, second in zip(here, loader, strict=True):
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_other_index_or_seed_is_another_room() -> None:
    base, other_index, other_seed = (SyntheticScenes(4, SIZE, seed=s)[i] for s, i in ((1, 0), (1, 1), (2, 0)))
    assert not torch.equal(base["depth"], other_index["depth"])
    assert not torch.equal(base["depth"], other_seed["depth"])


def test_room_does_not_depend_on_size() -> None:
    large, small = render_sample(3, 0, (61, 81)), render_sample(3, 0, (31, 41))
    assert set(np.unique(small.objects)) <= set(np.unique(large.objects))
    assert np.median(small.depth) == pytest.approx(np.median(large.depth), rel=0.05)


@pytest.mark.parametrize(
    ("length", "size", "seed", "sentence"),
    [
        (0, (60, 80), 0, "at least one scene"),
        (1, (7, 80), 0, "at least 8x8 pixels, found 7x80"),
        (1, (60, 80), -1, "seed of 0 or more"),
    ],
)
def test_impossible_sets_are_refused(length: int, size: tuple[int, int], seed: int, sentence: str) -> None:
    with pytest.raises(MtmError, match=sentence):
        SyntheticScenes(length, size, seed)


def test_set_ends() -> None:
    assert len(SyntheticScenes(2, SIZE)) == 2
    with pytest.raises(IndexError):
        SyntheticScenes(2, SIZE)[2]


def test_normals_are_unit_and_face_the_camera(rooms: list[Rendering]) -> None:
    for rendering in rooms:
        assert np.abs(np.linalg.norm(rendering.normals, axis=-1) - 1).max() < 1e-5
        towards = (rendering.normals * points_of(rendering)).sum(-1)
        assert towards.max() < 1e-4, "no visible surface faces away"


def test_normals_are_the_depth_maps_own(rooms: list[Rendering]) -> None:
    """Where a pixel and its neighbours share object and normal, the cross product of the differences of their
    back-projected points is that normal."""
    checked = 0
    for rendering in rooms:
        p, n, ids = points_of(rendering), rendering.normals, rendering.objects
        centre = (slice(1, -1), slice(1, -1))
        neighbours = [(slice(1, -1), slice(2, None)), (slice(1, -1), slice(None, -2))]
        neighbours += [(slice(2, None), slice(1, -1)), (slice(None, -2), slice(1, -1))]
        flat = np.ones(ids[centre].shape, dtype=bool)
        for there in neighbours:
            flat &= (ids[there] == ids[centre]) & (np.abs(n[there] - n[centre]).max(-1) < 1e-6)
        # Parallel faces of one object (a drawer's front on its cabinet) are not one plane: leave steps in depth out.
        for there in neighbours:
            flat &= np.abs(((p[there] - p[centre]) * n[centre]).sum(-1)) < 1e-3
        measured = np.cross(p[neighbours[0]] - p[neighbours[1]], p[neighbours[2]] - p[neighbours[3]])
        measured /= -np.linalg.norm(measured, axis=-1, keepdims=True)
        angle = np.degrees(np.arccos(np.clip((measured * n[centre]).sum(-1), -1, 1)))
        assert np.median(angle[flat]) < 0.1 and np.percentile(angle[flat], 99) < 2
        checked += int(flat.sum())
    assert checked > 0.5 * len(rooms) * SIZE[0] * SIZE[1]


def test_floor_normals_point_up_and_ceiling_down(rooms: list[Rendering]) -> None:
    for label, sign in (("floor", -1), ("ceiling", 1)):
        normals = np.concatenate([r.normals[r.semseg == NYU40.index(label)] for r in rooms])
        assert len(normals) and (sign * normals[:, 1] > 0.5).all(), label


def test_edges_are_exactly_where_instances_change(rooms: list[Rendering]) -> None:
    for rendering in rooms:
        ids, padded = rendering.objects, np.pad(rendering.objects, 1, mode="edge")
        shifted = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
        change = np.any([other != ids for other in shifted], axis=0)
        assert np.array_equal(rendering.edge, change.astype(np.float32))
        assert 0.01 < rendering.edge.mean() < 0.5
        for instance in np.unique(ids):
            assert len(np.unique(rendering.semseg[ids == instance])) == 1, "an instance has one class"


def test_mirroring_commutes_with_edges() -> None:
    ids = np.random.default_rng(0).integers(0, 3, (20, 30))
    assert np.array_equal(boundaries(ids[:, ::-1]), boundaries(ids)[:, ::-1])


def test_body_parts_are_on_people_only_and_cover_them(rooms: list[Rendering]) -> None:
    people = [rendering for rendering in rooms if (rendering.semseg == PERSON).any()]
    assert people and len(people) < len(rooms)
    for rendering in rooms:
        assert np.array_equal(rendering.parts > 0, rendering.semseg == PERSON)
    assert set(np.unique([r.parts for r in people])) == set(range(len(HUMAN_PARTS)))


def test_salient_are_foreground_instances_with_half_the_largest_weight(rooms: list[Rendering]) -> None:
    for rendering in rooms:
        salient = rendering.sal == 1
        assert not (set(np.unique(rendering.semseg[salient])) & BACKGROUND)
        for instance in np.unique(rendering.objects):
            assert len(np.unique(rendering.sal[rendering.objects == instance])) == 1
    assert sum((rendering.sal == 1).any() for rendering in rooms) > len(rooms) / 2


def test_saliency_by_hand() -> None:
    """A chair at 1 m and a person at 3 m, of one size and place, weigh 1 and 4/3; a bag at 4 m weighs 1/4."""
    objects = np.array([[0, 1, 2, 1, 0], [3, 3, 3, 3, 3], [0, 2, 1, 2, 0]])
    chair, bag, wall = NYU40.index("chair"), NYU40.index("bag"), NYU40.index("wall")
    semseg = np.array([bag, chair, PERSON, wall], dtype=np.uint8)[objects]
    depth = np.array([4.0, 1.0, 3.0, 0.5])[objects]
    assert np.array_equal(salient_pixels(objects, semseg, depth), np.array([0, 1, 1, 0], dtype=np.uint8)[objects])
    bare = np.zeros((4, 4), dtype=np.int64)
    assert not salient_pixels(bare, np.full((4, 4), wall), np.ones((4, 4))).any(), "a bare wall is not salient"


def test_rooms_are_furnished_and_varied(rooms: list[Rendering]) -> None:
    classes = {int(label) for rendering in rooms for label in np.unique(rendering.semseg)}
    assert len(classes) >= 15
    assert {NYU40.index(name) for name in ("wall", "floor", "ceiling", "person")} <= classes
    for rendering in rooms:
        assert rendering.depth.min() > 0.1 and rendering.depth.max() < 12
        assert 10 < rendering.image.mean() < 245 and rendering.image.std() > 5


@pytest.mark.parametrize("piece", [*AT_WALL, *FREE], ids=lambda piece: piece.build.__name__)
def test_furniture_stays_near_its_footprint(piece) -> None:  # type: ignore[no-untyped-def]
    for seed in range(5):
        b = Builder(np.random.default_rng(seed))
        w, d, h = (low + (high - low) * seed / 4 for low, high in (piece.width, piece.depth, piece.height))
        piece.build(b, w, d, h)
        corners = b.finish().triangles.reshape(-1, 3)
        low, high = corners.min(0), corners.max(0)
        assert low[2] >= -1e-3 and (low[:2] >= (-w / 2 - 0.15, -0.15)).all(), (low, w, d)
        assert (high[:2] <= (w / 2 + 0.15, d + 0.15)).all() and high[2] <= h + 0.85, (high, w, d, h)


@pytest.mark.parametrize("seat", [None, 0.46])
def test_people_stand_on_the_floor(seat: float | None) -> None:
    for seed in range(10):
        b = Builder(np.random.default_rng(seed))
        person(b, 1.75, seat)
        z = b.finish().triangles[..., 2]
        assert -0.05 < z.min() < 0.2 and 1.1 < z.max() < 2.3


def test_depth_reaches_the_triangle_hit() -> None:
    """Every ray's hit, from its z-depth, lies on the plane and inside the outline of the triangle it reports."""
    room = build_room(np.random.default_rng(3))
    rays, face, depth = RoomRenderer(room).cast((9, 11))
    hit = room.camera.position + rays * depth[:, None]
    triangles = room.geometry.triangles[face].astype(np.float64)
    normal = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    assert np.abs(((hit - triangles[:, 0]) * normal).sum(1)).max() < 1e-4
    inside = [np.cross(b - a, hit - a) for a, b in pairwise([*triangles.transpose(1, 0, 2), triangles[:, 0]])]
    assert all(((edge * normal).sum(1) > -1e-3).all() for edge in inside)


def test_material_rows() -> None:
    b = Builder(np.random.default_rng(0))
    number = b.add(Material(colour=(0.1, 0.2, 0.3), other=(0.4, 0.5, 0.6), glow=2.0))
    b.start("box")
    b.box(0, 0, 0, (1, 2, 3), number)
    geometry = b.finish()
    assert geometry.table[number].tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0, 4, 0, 0, 0, 2])
    assert geometry.triangles.reshape(-1, 3).min(0).tolist() == [-0.5, -1, 0]
    assert geometry.triangles.reshape(-1, 3).max(0).tolist() == [0.5, 1, 3]
    assert set(geometry.semseg) == {NYU40.index("box")} and set(geometry.parts) == {0}
