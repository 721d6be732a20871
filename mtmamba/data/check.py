"""Is a dataset on disk what it should be: every file there, samples that decode, labels with the values they should
have, normals along the axes one thinks."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import permutations, product
from typing import Any

import numpy as np

from mtmamba.data.augment import Sample
from mtmamba.data.dataset import DenseDataset
from mtmamba.data.files import Array
from mtmamba.data.labels import valid_pixels
from mtmamba.tasks import Task

ITEMS = {"nyudv2": (795, 654), "pascal-context": (4998, 5105), "cityscapes": (2975, 500)}
"""How many items the published train and val splits have."""

NYU_FOCAL_PX = 518.9  # of the Kinect's colour camera, 640 pixels wide; the packaged pictures are cropped, not scaled
_FLAT = 2e-4  # bend of the inverse depth, 1/m a pixel^2, below which three pixels lie in a plane
_AXES = ("x", "y", "z")
_TWO_SIDES = {"saliency": ("not salient", "salient"), "boundary": ("inside", "boundary")}


def spread(length: int, count: int) -> list[int]:
    """`count` indices, or all there are, spread evenly over 0..length-1."""
    return [int(index) for index in np.unique(np.linspace(0, length - 1, min(count, length)).round())]


def depth_normals(depth: Array, focal: float) -> tuple[Array, Array]:
    """(unit normals [H-2, W-2, 3] of the inner pixels of a depth map [H, W], in the coordinates of
    `mtmamba.data.labels`; where they can be trusted [H-2, W-2]: on surfaces that go straight on to all four
    neighbours). focal: pixels; the principal point is taken as the centre."""
    height, width = depth.shape
    v, u = np.mgrid[:height, :width]
    rays = np.stack([(u - (width - 1) / 2) / focal, (v - (height - 1) / 2) / focal, np.ones((height, width))], axis=-1)
    p = rays * depth[..., None]
    normal = -np.cross(p[1:-1, 2:] - p[1:-1, :-2], p[2:, 1:-1] - p[:-2, 1:-1])
    length = np.linalg.norm(normal, axis=-1)
    near = np.divide(1, depth, out=np.full(depth.shape, np.nan), where=depth > 0)
    across = np.abs(near[1:-1, 2:] + near[1:-1, :-2] - 2 * near[1:-1, 1:-1])
    down = np.abs(near[2:, 1:-1] + near[:-2, 1:-1] - 2 * near[1:-1, 1:-1])
    flat = (across < _FLAT) & (down < _FLAT) & (length > 0)  # false where a depth is unknown
    return normal / np.where(length > 0, length, 1)[..., None], flat


@dataclass(kw_only=True)
class AxesVote:
    """Which axes stored normals are along, by comparing them with those of the depth map: sums of the products of
    stored and measured coordinates."""

    focal: float
    products: Array = field(default_factory=lambda: np.zeros((3, 3)))
    pixels: int = 0

    def add(self, normals: Array, depth: Array) -> None:
        """normals: [3, H, W]; depth: [H, W]."""
        measured, good = depth_normals(depth.astype(np.float64), self.focal)
        stored = normals[:, 1:-1, 1:-1].transpose(1, 2, 0)
        good &= (stored != 0).any(-1)
        self.products += stored[good].T.astype(np.float64) @ measured[good]
        self.pixels += int(good.sum())

    def result(self) -> dict[str, Any] | None:
        """axes: what the stored (x, y, z) are in the coordinates of `mtmamba.data.labels`, such as ["x", "-y", "-z"];
        agreement: the mean cosine with the depth's own normals under that reading. None with nothing to compare."""
        if not self.pixels:
            return None
        readings = product(permutations(range(3)), product((1, -1), repeat=3))

        def agreement(reading: tuple[tuple[int, ...], tuple[int, ...]]) -> float:
            return float(
                sum(sign * self.products[row, axis] for row, (axis, sign) in enumerate(zip(*reading, strict=True)))
            )

        best = max(readings, key=agreement)
        axes = [("-" if sign < 0 else "") + _AXES[axis] for axis, sign in zip(*best, strict=True)]
        return {"axes": axes, "agreement": round(agreement(best) / self.pixels, 3), "pixels": self.pixels}


@dataclass(kw_only=True)
class TaskFacts:
    """What the labels of one task hold, over the samples added."""

    task: Task
    pixels: int = 0
    counted: int = 0
    classes: Counter[int] = field(default_factory=Counter)
    values: list[Array] = field(default_factory=list)

    def add(self, label: Any) -> None:
        valid = np.asarray(valid_pixels(self.task.kind, label[None])[0])
        planes = label.numpy().reshape(-1, *valid.shape)[:, valid]
        self.pixels += valid.size
        self.counted += planes.shape[1]
        if self.task.kind == "depth" and planes.size:
            self.values.append(np.percentile(planes, (0, 50, 100)))
        elif self.task.kind in _TWO_SIDES or self.task.classes:
            counts = np.bincount((planes > 0.5 if self.task.kind == "boundary" else planes).ravel())
            self.classes.update({int(c): int(counts[c]) for c in np.flatnonzero(counts)})

    def result(self) -> dict[str, Any]:
        """counted: the percent of pixels that count. classes: those seen, in percent; a depth's least and largest
        value, and the median over samples of their medians."""
        facts: dict[str, Any] = {"counted": round(100 * self.counted / max(1, self.pixels), 2)}
        if self.classes:
            names = self.task.classes or _TWO_SIDES[self.task.kind]
            facts["classes"] = {names[c]: round(100 * n / self.counted, 2) for c, n in self.classes.most_common()}
        elif self.values:
            low, middle, high = np.array(self.values).T
            facts |= {"least": float(low.min()), "median": float(np.median(middle)), "largest": float(high.max())}
        return facts


def examine(dataset: DenseDataset, indices: Sequence[int], focal: float) -> Iterator[tuple[Sample, dict[str, Any]]]:
    """Decode these items; after each, (the sample, the facts so far: {task: facts}, and "axes" where the dataset has
    both depth in metres and normals). Raises MtmError for a file that does not decode."""
    facts = {task.name: TaskFacts(task=task) for task in dataset.tasks}
    vote = AxesVote(focal=focal)
    compare = {"depth", "normals"} <= set(facts)
    for index in indices:
        sample = dataset[index]
        for name, task_facts in facts.items():
            task_facts.add(sample[name])
        if compare:
            vote.add(sample["normals"].numpy(), sample["depth"][0].numpy())
        result: dict[str, Any] = {name: task_facts.result() for name, task_facts in facts.items()}
        yield sample, {"tasks": result, "axes": vote.result()}
