"""`open_dataset`: any of the four datasets by name."""

from pathlib import Path
from typing import Literal

from mtmamba.data.augment import Size
from mtmamba.data.dataset import DenseDataset, Source
from mtmamba.errors import MtmError
from mtmamba.tasks import Task, dataset, tasks_of

Split = Literal["train", "val"]
SPLITS: tuple[Split, ...] = ("train", "val")
VAL_SCENES = 64
"""Held-out scenes of `synthetic` unless a length is given."""


def open_dataset(
    name: str,
    root: Path | None = None,
    split: Split = "val",
    *,
    size: Size | None = None,
    tasks: tuple[str, ...] | None = None,
    augment: bool = False,
    seed: int = 0,
    length: int | None = None,
) -> DenseDataset:
    """The split of a dataset, checked: every file that it names is there, or one MtmError lists what is missing.

    name: `nyudv2`, `pascal-context`, `cityscapes` (docs/datasets.md shows the folders below `root`) or `synthetic`
    (no root: rooms are rendered; `train` is as good as endless and `val` has scenes of `HELD_OUT_SEED`, which no
    training seed reaches). size: (height, width) in pixels of `sample["image"]`; default the paper's. tasks: names, in
    the order wanted; default all of the dataset's. augment: each item (epoch, index) is a view drawn from
    (seed, epoch, index), see `DenseDataset`; for training only. seed: of augmentation, and of the scenes of
    `synthetic` train. length: the first so many items only.

    The result has `len`, `[index]` -> {"image", and the tasks' names: Tensor} as `mtmamba.data.labels` lays out,
    `name_of(index)`, `tasks`, `size` and `output_scale`. Raises MtmError also for an unknown name, split or task, and
    for a size, seed or length that cannot be.
    """
    facts, wanted = dataset(name), tasks_of(name, tasks)
    if split not in SPLITS:
        raise MtmError(f"unknown split {split!r}; known: {', '.join(SPLITS)}")
    if length is not None and length < 1:
        raise MtmError(f"expected a length of at least one item, found {length}")
    size = size or facts.input_size
    if name == "synthetic":
        return _synthetic(split, size, wanted, augment, seed, length)
    if min(size) < 1 or seed < 0:
        raise MtmError(f"expected a size above 0 and a seed of 0 or more, found {size[0]}x{size[1]} and {seed}")
    if root is None:
        raise MtmError(f"the dataset {name} is read from files; name its folder (docs/datasets.md shows what is in it)")
    source = _source(name, Path(root), split, wanted, length)
    return DenseDataset(source, wanted, size, output_scale=facts.output_scale, augment=augment, seed=seed)


def _source(name: str, root: Path, split: Split, tasks: tuple[Task, ...], length: int | None) -> Source:
    if name == "nyudv2":
        from mtmamba.data.nyudv2 import NYUDv2

        return NYUDv2(root, split, tasks, length)
    if name == "pascal-context":
        from mtmamba.data.pascal_context import PascalContext

        return PascalContext(root, split, tasks, length)
    from mtmamba.data.cityscapes import Cityscapes

    return Cityscapes(root, split, tasks, length)


def _synthetic(
    split: Split, size: Size, tasks: tuple[Task, ...], augment: bool, seed: int, length: int | None
) -> DenseDataset:
    from mtmamba.data.synthetic import ENDLESS, HELD_OUT_SEED, SyntheticScenes

    if not 0 <= seed < HELD_OUT_SEED:
        raise MtmError(f"expected a seed of 0 to {HELD_OUT_SEED - 1}, found {seed}; larger ones are held out")
    if split == "train":
        return SyntheticScenes(length or ENDLESS, size, seed, tasks=tasks, augment=augment)
    return SyntheticScenes(length or VAL_SCENES, size, HELD_OUT_SEED, tasks=tasks, augment=augment)
