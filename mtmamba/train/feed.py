"""The batches of a run: endless, decided by the seed and the iteration alone, shared out over the processes.

Keys are (which size, epoch, index): the loader's sampler draws them, `SizedViews` answers them.
"""

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mtmamba.config import ModelConfig
from mtmamba.data.augment import Sample
from mtmamba.data.catalog import open_dataset
from mtmamba.data.dataset import DenseDataset, Source
from mtmamba.data.sampler import EndlessSampler
from mtmamba.tasks import Task
from mtmamba.train.recipe import Recipe

Batch = dict[str, Tensor]
Key = tuple[int, int, int]

PARTS = "human_parts"  # the task that wants people
PREFETCH = 4  # batches a worker has ready
SCENE_MARGIN = 1.25  # scenes that are seen again are rendered this much larger than the largest view


@dataclass
class Remembered:
    """A source that decodes every picture once and keeps it. half: floats in half precision, for memory (depth is then off
    by up to 0.05 %, normals by 0.03 degrees). Each loader process keeps its own."""

    source: Source
    half: bool = True
    kept: dict[int, Sample] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.source)

    def name_of(self, index: int) -> str:
        return self.source.name_of(index)

    def decode(self, index: int, tasks: tuple[Task, ...]) -> Sample:
        if index not in self.kept:
            raw = self.source.decode(index, tasks)
            self.kept[index] = {name: v.half() if self.half and v.is_floating_point() else v for name, v in raw.items()}
        return {name: v.float() if v.is_floating_point() else v for name, v in self.kept[index].items()}


@dataclass
class Peopled:
    """Of the rooms 2i and 2i + 1 of a source, the first that shows somebody, else the first: item i. People are rare in
    rooms and human parts are small; drawing scenes by what is rare in them is the usual cure (rare class sampling,
    Hoyer et al., "DAFormer", CVPR 2022, section 3.3), and leaves the losses as they are."""

    source: Source
    least: float = 0.01  # of the pixels are a person's

    def __len__(self) -> int:
        return len(self.source) // 2

    def name_of(self, index: int) -> str:
        return self.source.name_of(2 * index)

    def decode(self, index: int, tasks: tuple[Task, ...]) -> Sample:
        first = self.source.decode(2 * index, tasks)
        if self._shows_somebody(first):
            return first
        second = self.source.decode(2 * index + 1, tasks)
        return second if self._shows_somebody(second) else first

    def _shows_somebody(self, raw: Sample) -> bool:
        return bool((raw[PARTS] > 0).float().mean() >= self.least)


class SizedViews(Dataset[Sample]):
    """Item (which, epoch, index): view (epoch, index) of the `which`-th dataset. All are of one source, at different
    sizes."""

    def __init__(self, datasets: Sequence[DenseDataset]) -> None:
        self.datasets = tuple(datasets)

    def __len__(self) -> int:
        return len(self.datasets[0])

    def __getitem__(self, key: Key) -> Sample:
        which, epoch, index = key
        return self.datasets[which][epoch, index]


class Batches:
    """The keys of this process's batches from an iteration on. Iteration i of the run takes the items i * batch up to
    (i + 1) * batch of the endless order, whatever the number of processes, at size i modulo the sizes."""

    def __init__(self, length: int, recipe: Recipe, iteration: int = 0, rank: int = 0, world: int = 1) -> None:
        self.recipe, self.iteration, self.share = recipe, iteration, recipe.share(world)
        self.sampler = EndlessSampler(length, recipe.seed, start=iteration * recipe.batch, rank=rank, world=world)

    def __iter__(self) -> Iterator[list[Key]]:
        items, iteration = iter(self.sampler), self.iteration
        while True:
            which = iteration % len(self.recipe.sizes)
            for _ in range(self.recipe.accumulate):
                yield [(which, *next(items)) for _ in range(self.share)]
            iteration += 1


def training_views(config: ModelConfig, recipe: Recipe, root: Path | None) -> SizedViews:
    """The training split at the recipe's sizes. Raises MtmError for a dataset that is not there."""
    largest = max(recipe.sizes)
    if recipe.scenes and recipe.augment:
        largest = (round(SCENE_MARGIN * largest[0]), round(SCENE_MARGIN * largest[1]))
    length = 2 * recipe.scenes if recipe.scenes else None
    first = open_dataset(
        config.dataset, root, "train", size=largest, tasks=config.tasks, seed=recipe.seed, length=length
    )
    source: Source = first.source
    if recipe.scenes:
        source = Remembered(Peopled(source))
    return SizedViews(
        [
            DenseDataset(
                source,
                first.tasks,
                size,
                output_scale=first.output_scale,
                augment=recipe.augment,
                seed=recipe.seed,
                scales=recipe.scales,
            )
            for size in recipe.sizes
        ]
    )


def held_out(config: ModelConfig, recipe: Recipe, root: Path | None, length: int | None) -> DenseDataset:
    """The evaluation split at the recipe's first size; length: its first items only. Rendered scenes are kept."""
    dataset = open_dataset(config.dataset, root, "val", size=recipe.sizes[0], tasks=config.tasks, length=length)
    if config.dataset == "synthetic":
        dataset.source = Remembered(dataset.source, half=False)
    return dataset


def _leave_interrupts_to_the_parent(_worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)


def loader(dataset: Dataset[Sample], workers: int, batches: Batches | None = None, batch: int = 8) -> DataLoader[Batch]:
    """Batches by the given keys, or the dataset once through in order."""
    more: dict[str, Any] = {
        "prefetch_factor": PREFETCH,
        "worker_init_fn": _leave_interrupts_to_the_parent,
        # A forked child of a process whose OpenMP threads have worked waits for them for ever in its first parallel loop.
        "multiprocessing_context": "spawn",
    }
    order: dict[str, Any] = {"batch_sampler": batches} if batches else {"batch_size": batch}
    return DataLoader(
        dataset, num_workers=workers, pin_memory=torch.cuda.is_available(), **order, **(more if workers else {})
    )
