"""The dataset `synthetic`: furnished rooms rendered on the fly, with exact labels of six tasks
(`mtmamba.tasks.DATASETS`)."""

from dataclasses import dataclass

import numpy as np
import torch

from mtmamba.data.augment import Sample, Size
from mtmamba.data.dataset import DenseDataset
from mtmamba.data.render import Rendering, RoomRenderer
from mtmamba.data.rooms import build_room
from mtmamba.errors import MtmError
from mtmamba.tasks import Task, dataset

HELD_OUT_SEED = 2**31
"""Evaluation scenes have this seed; training seeds are smaller, so that no scene is in both."""

ENDLESS = 2**31
"""Scenes of a training set that never shows one twice."""

MIN_SIDE = 8
_NEAREST_M = 0.35
_ATTEMPTS = 4
_PREVIEW = (24, 32)


def _worth_looking_at(renderer: RoomRenderer) -> bool:
    """Not a camera with its nose against a cupboard, nor a bare wall: decided on a small preview."""
    _, face, depth = renderer.cast(_PREVIEW)
    geometry = renderer.room.geometry
    largest = np.bincount(geometry.semseg[face]).max() / face.size
    instances = np.count_nonzero(np.bincount(geometry.objects[face]) >= face.size / 200)
    return bool(
        depth.min() > _NEAREST_M and (depth < 2 * _NEAREST_M).mean() < 0.25 and largest < 0.7 and instances >= 6
    )


def render_sample(seed: int, index: int, size: tuple[int, int]) -> Rendering:
    """Room `index` of `seed` (both 0 or more) at `size` (height, width) pixels: always the same bits with the same
    versions of NumPy and embree. The room does not depend on the size."""
    for attempt in range(_ATTEMPTS):
        room_rng, photo_rng = (
            np.random.default_rng(s) for s in np.random.SeedSequence((seed, index, attempt)).spawn(2)
        )
        renderer = RoomRenderer(build_room(room_rng))
        if _worth_looking_at(renderer):
            break
    return renderer.render(size, photo_rng)


def to_raw(rendering: Rendering) -> Sample:
    """`image` uint8 and every label, as `mtmamba.data.dataset.Source.decode` gives them."""
    return {
        "image": torch.from_numpy(rendering.image).permute(2, 0, 1),
        "semseg": torch.from_numpy(rendering.semseg),
        "human_parts": torch.from_numpy(rendering.parts),
        "sal": torch.from_numpy(rendering.sal),
        "depth": torch.from_numpy(rendering.depth)[None],
        "normals": torch.from_numpy(rendering.normals).permute(2, 0, 1),
        "edge": torch.from_numpy(rendering.edge)[None],
    }


@dataclass(frozen=True)
class _Rooms:
    """The source of `SyntheticScenes`."""

    length: int
    size: Size
    seed: int

    def __len__(self) -> int:
        return self.length

    def name_of(self, index: int) -> str:
        return f"room-{self.seed}-{index:06d}"

    def decode(self, index: int, tasks: tuple[Task, ...]) -> Sample:
        return to_raw(render_sample(self.seed, index, self.size))


class SyntheticScenes(DenseDataset):
    """`length` rooms of `size` (height, width) pixels; item i is `render_sample(seed, i, size)`, augmented on request.

    All labels are exact and every pixel is labelled, but for what augmentation pads. `semseg` is the NYU40 class;
    `human_parts` is background everywhere but on people, so a room with nobody in it is all background
    (PASCAL-Context ignores such images instead); `sal` is defined by `render.salient_pixels`, `edge` by
    `render.boundaries`; `depth` is in metres along the optical axis. Raises MtmError for a length below 1, a side
    below 8 pixels or a negative seed.
    """

    def __init__(
        self,
        length: int,
        size: Size,
        seed: int = 0,
        *,
        tasks: tuple[Task, ...] = dataset("synthetic").tasks,
        augment: bool = False,
    ) -> None:
        if length < 1:
            raise MtmError(f"expected at least one scene, found a length of {length}")
        if min(size) < MIN_SIDE:
            raise MtmError(
                f"expected scenes of at least {MIN_SIDE}x{MIN_SIDE} pixels, found {size[0]}x{size[1]}; "
                "choose a larger size"
            )
        if seed < 0:
            raise MtmError(f"expected a seed of 0 or more, found {seed}")
        super().__init__(_Rooms(length, size, seed), tasks, size, augment=augment, seed=seed)
