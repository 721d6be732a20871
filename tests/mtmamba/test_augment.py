"""Views keep picture and labels together: pixels, directions and lengths, whatever is cut, scaled or mirrored."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from mtmamba.data import open_dataset
from mtmamba.data.augment import (
    SCALES,
    Colours,
    Sample,
    View,
    centred_view,
    change_colours,
    look,
    random_colours,
    random_view,
)
from mtmamba.data.labels import valid_pixels
from mtmamba.data.synthetic import render_sample, to_raw
from mtmamba.tasks import IMAGENET_MEAN, IMAGENET_STD, NYU40, dataset

SIZE = (60, 80)
TASKS = dataset("synthetic").tasks
PX = dataset("cityscapes").tasks[1]  # a disparity
PLAIN = Colours()


@pytest.fixture(scope="module")
def rooms() -> list[tuple[Sample, float]]:
    """Raw samples and their focal lengths."""
    return [(to_raw(room), room.focal) for room in (render_sample(5, index, SIZE) for index in range(6))]


def pixels(sample: Sample) -> Tensor:
    """The image back in 0..255."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (sample["image"] * std + mean) * 255


def pattern(height: int, width: int, rng: np.random.Generator) -> Sample:
    """Every label, and the image, says where its pixel is: x and y in the image's first two channels, and x, y or both
    in what each label can hold."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    vector = torch.stack([x / width - 0.5, y / height - 0.5, -torch.ones(height, width)])
    return {
        "image": torch.stack([x, y, torch.zeros_like(x)]).to(torch.uint8),
        "semseg": (x // 8).to(torch.uint8),
        "human_parts": (y // 16 % 7).to(torch.uint8),
        "sal": ((x // 16 + y // 16) % 2).to(torch.uint8),
        "depth": (1 + x + 1000 * y).float()[None],
        "normals": vector / vector.norm(dim=0),
        "edge": (x % 16 == 0).float()[None],
    }


def assert_same(one: Sample, other: Sample) -> None:
    for name, values in one.items():
        assert torch.equal(values, other[name]), name


def test_whole_view_changes_nothing(rooms: list[tuple[Sample, float]]) -> None:
    for raw, _ in rooms:
        sample = look(raw, TASKS, SIZE, 1, centred_view(SIZE, SIZE), PLAIN)
        assert torch.allclose(pixels(sample), raw["image"].float(), atol=1e-3)
        for task in TASKS:
            assert torch.equal(sample[task.name], raw[task.name]), task.name


def test_flip_twice_is_identity(rooms: list[tuple[Sample, float]]) -> None:
    view = replace(centred_view(SIZE, SIZE), flip=True)
    for raw, _ in rooms:
        once = look(raw, TASKS, SIZE, 1, view, PLAIN)
        assert not torch.equal(once["depth"], raw["depth"])
        again = {**once, "image": pixels(once).round().to(torch.uint8)}
        twice = look(again, TASKS, SIZE, 1, view, PLAIN)
        assert torch.equal(pixels(twice).round().to(torch.uint8), raw["image"])
        for task in TASKS:
            assert torch.equal(twice[task.name], raw[task.name]), task.name


def measured_normals(depth: Tensor, focal: float) -> tuple[np.ndarray, np.ndarray]:
    """Normals [h, w, 3] of the inner pixels from the depth map alone, and where they can be trusted: where the surface
    goes straight on from the left neighbour to the right one and from the upper to the lower."""
    height, width = depth.shape[-2:]
    v, u = np.mgrid[:height, :width]
    x, y = (u - (width - 1) / 2) / focal, (v - (height - 1) / 2) / focal
    p = np.stack([x, y, np.ones_like(x)], axis=-1) * depth[0].double().numpy()[..., None]
    across, down = p[1:-1, 2:] - p[1:-1, :-2], p[2:, 1:-1] - p[:-2, 1:-1]
    normal = -np.cross(across, down)
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    inverse = 1 / depth[0].double().numpy()  # of a plane, it is linear in the picture
    bend = [abs(inverse[1:-1, 2:] + inverse[1:-1, :-2] - 2 * inverse[1:-1, 1:-1])]
    bend += [abs(inverse[2:, 1:-1] + inverse[:-2, 1:-1] - 2 * inverse[1:-1, 1:-1])]
    return normal, np.maximum(*bend) < 1e-5


def angles(label: Tensor, depth: Tensor, focal: float) -> np.ndarray:
    """Degrees between a normals label and the depth label's own normals, where both can be compared."""
    normal, good = measured_normals(depth, focal)
    inner = label[:, 1:-1, 1:-1].double().numpy().transpose(1, 2, 0)
    good &= np.linalg.norm(inner, axis=-1) > 0.5
    assert good.mean() > 0.2
    return np.degrees(np.arccos(np.clip((normal * inner).sum(-1), -1, 1)))[good]


def test_flipped_normals_are_those_of_the_flipped_depth(rooms: list[tuple[Sample, float]]) -> None:
    view = replace(centred_view(SIZE, SIZE), flip=True)
    for raw, focal in rooms:
        sample = look(raw, TASKS, SIZE, 1, view, PLAIN)
        assert np.median(angles(sample["normals"], sample["depth"], focal)) < 0.1
        wrong = sample["normals"] * torch.tensor([-1.0, 1.0, 1.0])[:, None, None]
        assert np.percentile(angles(wrong, sample["depth"], focal), 90) > 10, "the check sees an unmirrored x"


@pytest.mark.parametrize("factor", [2, 0.5])
def test_scaled_depth_back_projects_to_the_same_planes(rooms: list[tuple[Sample, float]], factor: float) -> None:
    """Zoomed by z, with the camera zoomed too, the scaled depth is the room z times nearer and smaller: the same planes,
    so the same normals."""
    height, width = (round(side / factor) for side in SIZE)
    top, left = (SIZE[0] - height) // 2, (SIZE[1] - width) // 2
    view = View(top=top, left=left, height=height, width=width, zoom=factor)
    for raw, focal in rooms:
        sample = look(raw, TASKS, SIZE, 1, view, PLAIN)
        if factor > 1:  # every pixel is shown four times: take one
            depth, normals = (sample[name][:, 1::2, 1::2] for name in ("depth", "normals"))
            assert torch.equal(depth, raw["depth"][:, 15:45, 20:60] / 2)
            zoomed, tolerance = focal, 0.1
        else:
            depth, normals = (sample[name][:, 15:45, 20:60] for name in ("depth", "normals"))
            assert torch.equal(depth, raw["depth"][:, 1::2, 1::2] * 2)
            zoomed, tolerance = focal / 2, 1.0  # the nearest pixel is half a pixel off the middle of four: 0.6 degrees
        assert np.median(angles(normals, depth, zoomed)) < tolerance
        assert np.median(angles(normals, depth, 2 * zoomed)) > 3, "the check sees a camera that was not zoomed"


def test_zoom_of_depth_and_disparity() -> None:
    raw = {"image": torch.zeros(3, *SIZE, dtype=torch.uint8), "depth": torch.full((1, *SIZE), 6.0)}
    raw["depth"][0, :10] = 0
    raw["depth"][0, 10] = float("inf")
    view = replace(centred_view(SIZE, SIZE), zoom=1.5)
    metres = look(raw, [task for task in TASKS if task.name == "depth"], SIZE, 1, view, PLAIN)["depth"]
    disparity = look(raw, [PX], SIZE, 1, view, PLAIN)["depth"]
    assert (metres[0, 11:] == 4).all() and (disparity[0, 11:] == 9).all(), (
        "nearer by the zoom: depth less, disparity more"
    )
    for label in (metres, disparity):
        assert torch.equal(valid_pixels("depth", label[None])[0], torch.arange(60)[:, None].expand(SIZE) > 10)


@pytest.mark.parametrize("seed", range(8))
def test_random_views_keep_everything_aligned(seed: int) -> None:
    """A picture that says where its pixels are: after any view, every label at a pixel is the one of the place that
    the image shows there."""
    rng = np.random.default_rng(seed)
    height, width = (int(rng.integers(96, 250)) for _ in range(2))
    size = (96, 128)
    raw = pattern(height, width, rng)
    view = random_view((height, width), size, rng)
    sample = look(raw, TASKS, size, 1, view, PLAIN)
    valid = valid_pixels("depth", sample["depth"][None])[0]
    for task in TASKS:
        assert torch.equal(valid_pixels(task.kind, sample[task.name][None])[0], valid), f"{task.name}: the same padding"
    assert valid.float().mean() > 0.05
    assert (sample["image"][:, ~valid] == 0).all(), "the padding of the image is that of the labels"
    place = ((sample["depth"][0] * view.zoom).round().long() - 1).clamp(min=0)
    x, y = place % 1000, place // 1000
    for name in ("semseg", "human_parts", "sal"):
        assert torch.equal(sample[name][valid], raw[name][y, x][valid]), name
    mirrored = torch.tensor([-1.0 if view.flip else 1.0, 1, 1])[:, None]
    assert torch.allclose(sample["normals"][:, valid], mirrored * raw["normals"][:, y[valid], x[valid]])
    # The image is interpolated: away from the padding it shows the same place to within a pixel of either grid.
    inner = -torch.nn.functional.max_pool2d(-valid.float()[None, None], 5, 1, 2)[0, 0] > 0.5
    step = max(1.0, view.height / size[0], view.width / size[1])
    shown = pixels(sample)[:2]
    for channel, place_of in enumerate((x, y)):
        error = (shown[channel] - place_of)[inner].abs()
        assert error.max() <= 0.75 * step + 0.6, "bilinear picture, nearest label"
        assert (shown[channel] - place_of)[inner].mean().abs() < 0.3 * step, "no shift between them"


@pytest.mark.parametrize("seed", range(4))
def test_disparity_sets_have_labels_twice_the_input(seed: int) -> None:
    """As Cityscapes: an input pixel is where its four label pixels are."""
    rng = np.random.default_rng(seed)
    raw = pattern(128, 250, rng)
    view = random_view((128, 250), (128, 192), rng)
    sample = look(raw, (PX,), (64, 96), 2, view, PLAIN)
    assert sample["image"].shape == (3, 64, 96) and sample["depth"].shape == (1, 128, 192)
    place = (sample["depth"][0] / view.zoom).round() - 1
    valid = valid_pixels("depth", sample["depth"][None])[0]
    x = torch.nn.functional.avg_pool2d((place % 1000)[None], 2)[0]
    inner = -torch.nn.functional.max_pool2d(-torch.nn.functional.avg_pool2d(valid.float()[None], 2), 3, 1, 1)[0] > 0.9
    assert inner.any() and (pixels(sample)[0] - x)[inner].abs().max() <= 1 + view.width / 96


def test_invalid_pixels_stay_and_do_not_spread() -> None:
    """At every scale, an output pixel counts exactly where the pixel it is taken from does, and its value is one that
    stood there: no blend of a label with a mark."""
    rng = np.random.default_rng(3)
    holes = torch.from_numpy(rng.random(SIZE) < 0.3)
    raw = {**pattern(*SIZE, rng), "sal": torch.from_numpy(rng.integers(0, 2, SIZE, dtype=np.uint8))}
    for task in TASKS:
        mark = 255 if task.kind in ("labels", "saliency", "boundary") else 0
        raw[task.name][..., holes] = mark
    for scale in (0.5, 0.7, 1.3, 2.0):
        height, width = (round(side / scale) for side in SIZE)
        view = View(top=(60 - height) // 2, left=(80 - width) // 2, height=height, width=width)
        sample = look(raw, TASKS, SIZE, 1, view, PLAIN)
        first = valid_pixels("depth", sample["depth"][None])[0]
        assert 0.1 < first.float().mean() < 0.8
        for task in TASKS:
            valid = valid_pixels(task.kind, sample[task.name][None])[0]
            assert torch.equal(valid, first), (task.name, scale)
            if task.kind != "normals":
                kept = set(raw[task.name][..., ~holes].unique().tolist())
                assert set(sample[task.name][..., valid].unique().tolist()) <= kept, task.name
        assert torch.allclose(sample["normals"][:, first].norm(dim=0), torch.ones(int(first.sum())))


def test_thin_lines_survive_shrinking() -> None:
    """The nearest pixel alone would lose every other line."""
    edge = torch.zeros(1, *SIZE)
    edge[0, 10] = edge[0, :, 21] = 1
    raw = {"image": torch.zeros(3, *SIZE, dtype=torch.uint8), "edge": edge}
    task = [task for task in TASKS if task.name == "edge"]
    small = look(raw, task, (30, 40), 1, centred_view(SIZE, (30, 40)), PLAIN)["edge"][0]
    assert small[5].all() and small[:, 10].all() and small.sum() == 30 + 40 - 1, "one pixel wide, in the right place"


def test_views_cover_the_scales_and_stay_on_the_picture() -> None:
    rng = np.random.default_rng(0)
    picture, size = (425, 560), (448, 576)
    views = [random_view(picture, size, rng) for _ in range(500)]
    zooms = np.array([view.zoom for view in views])
    assert SCALES[0] * 0.99 < zooms.min() < 0.52 and 1.95 < zooms.max() < SCALES[1] * 1.01
    assert 0.4 < np.mean([view.flip for view in views]) < 0.6
    for view in views:
        for start, length, side in ((view.top, view.height, 425), (view.left, view.width, 560)):
            assert (0 <= start <= side - length) if length <= side else start == (side - length) // 2
        assert view.zoom * view.height == pytest.approx(448, abs=2) and view.zoom * view.width == pytest.approx(
            576, abs=2
        )
    assert len({(view.top, view.left) for view in views if view.zoom > 1.2}) > 250


def test_colours_change_the_image_alone(rooms: list[tuple[Sample, float]]) -> None:
    raw, _ = rooms[0]
    rng = np.random.default_rng(0)
    drawn = [random_colours(rng) for _ in range(200)]
    for name in ("offset", "gain", "saturation", "hue"):
        assert 0.35 < np.mean([getattr(colours, name) is None for colours in drawn]) < 0.65
    for colours in (Colours(offset=-20.0), Colours(gain=0.6), Colours(saturation=1.4), Colours(hue=0.05)):
        changed = change_colours(raw["image"], colours)
        assert changed.dtype == torch.uint8 and not torch.equal(changed, raw["image"]), colours
    late, early = (Colours(gain=1.5, saturation=1.5, hue=0.04, gain_last=last) for last in (True, False))
    assert not torch.equal(change_colours(raw["image"], late), change_colours(raw["image"], early))
    shifted = change_colours(raw["image"], Colours(offset=-20.0)).int()
    assert torch.equal(shifted, (raw["image"].int() - 20).clamp(min=0))
    view = centred_view(SIZE, SIZE)
    one, other = look(raw, TASKS, SIZE, 1, view, PLAIN), look(raw, TASKS, SIZE, 1, view, Colours(offset=9.0))
    assert not torch.equal(one["image"], other["image"])
    assert_same({task.name: one[task.name] for task in TASKS}, other)


def test_items_depend_on_seed_epoch_and_index_alone() -> None:
    def make(seed: int) -> object:
        return open_dataset("synthetic", split="train", size=(24, 32), augment=True, seed=seed, length=4)

    first, second = make(7), make(7)
    assert_same(first[1, 2], second[1, 2])
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002 - the global streams must not matter
    assert_same(first[3, 1], second[3, 1])
    assert_same(first[2], first[0, 2])
    assert not torch.equal(first[0, 2]["depth"], first[1, 2]["depth"]), "another epoch is another view of the same room"
    assert set(first[0, 2]["semseg"].unique().tolist()) & set(first[1, 2]["semseg"].unique().tolist()) - {255}
    for bad in (4, -1, (0, 4)):
        with pytest.raises(IndexError):
            first[bad]


def test_classes_of_augmented_rooms_are_classes() -> None:
    data = open_dataset("synthetic", split="train", size=(24, 32), augment=True, length=6)
    samples = list(data)
    assert len(samples) == 6
    for sample in samples:
        assert set(sample["semseg"].unique().tolist()) <= {*range(len(NYU40)), 255}
        assert torch.isfinite(sample["image"]).all()
