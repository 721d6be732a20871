"""`DenseDataset`: decoded pictures of any source, seen whole or augmented, as samples of one size."""

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch.utils.data

from mtmamba.data.augment import SCALES, Colours, Sample, Size, centred_view, look, random_colours, random_view
from mtmamba.tasks import Task

Index = int | tuple[int, int]


class Source(Protocol):
    """Pictures with labels, by index from 0."""

    def __len__(self) -> int: ...

    def name_of(self, index: int) -> str:
        """What the picture is called: its ID in the dataset."""

    def decode(self, index: int, tasks: tuple[Task, ...]) -> Sample:
        """`image` [3, H, W] uint8 RGB and the tasks' labels, laid out as `mtmamba.data.labels` says, at the picture's
        own size. Raises MtmError naming the file that does not decode."""


class DenseDataset(torch.utils.data.Dataset[Sample]):
    """Samples as `mtmamba.data.labels` lays them out, of the `tasks`, with images of `size` (height, width) pixels and
    labels `output_scale` times larger.

    Item `index` is picture `index`. With augmentation, item (epoch, index) is that picture's view of that epoch, and
    `index` alone is epoch 0: the view is drawn from (seed, epoch, index) and nothing else, so that any number of
    workers, in any order, and a resumed run see the same. `mtmamba.data.sampler` hands out such pairs. Without
    augmentation the picture is seen whole, in the middle, brought down to fit where it is larger; depth keeps its unit.
    """

    def __init__(
        self,
        source: Source,
        tasks: tuple[Task, ...],
        size: Size,
        *,
        output_scale: int = 1,
        augment: bool,
        seed: int,
        scales: tuple[float, float] = SCALES,
    ) -> None:
        self.source, self.tasks, self.size = source, tasks, size
        self.output_scale, self.augment, self.seed, self.scales = output_scale, augment, seed, scales

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: Index) -> Sample:
        epoch, number = index if isinstance(index, tuple) else (0, index)
        if not 0 <= number < len(self):
            raise IndexError(f"item {number} of {len(self)}")
        raw = self.source.decode(number, self.tasks)
        picture = (raw["image"].shape[1], raw["image"].shape[2])
        output = (self.output_scale * self.size[0], self.output_scale * self.size[1])
        if self.augment:
            rng = np.random.default_rng((self.seed, epoch, number))
            view, colours = random_view(picture, output, rng, self.scales), random_colours(rng)
        else:
            view, colours = centred_view(picture, output), Colours()
        return look(raw, self.tasks, self.size, self.output_scale, view, colours)

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def name_of(self, index: int) -> str:
        """The picture's ID, the same in every run."""
        return self.source.name_of(index)
