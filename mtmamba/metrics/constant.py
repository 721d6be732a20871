"""The best constant: what a model that looks at no picture could score at most."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from mtmamba.data.labels import valid_pixels
from mtmamba.metrics.base import Array
from mtmamba.metrics.board import Figures, Scoreboard
from mtmamba.metrics.meters import depth_limit
from mtmamba.tasks import Task

DIRECTIONS = 2000
NORMALS_A_PICTURE = 200


class ConstantFinder:
    """Finds the raw output [C] that, given at every pixel of the set, scores best on the task's meter.

    labels: the most frequent class, whose IoU is largest. depth: the mean. normals: the direction of least mean angle
    to 200 normals a picture, among 2,000 directions, within about 2 degrees of the best. saliency, boundary: positive
    everywhere.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self._directions = _directions(DIRECTIONS)
        self._scores = np.zeros({"labels": task.channels, "normals": DIRECTIONS}.get(task.kind, 2))

    def update(self, label: Array) -> None:
        """Add a batch of labels."""
        kind = self.task.kind
        if kind in ("saliency", "boundary"):
            return
        valid = valid_pixels(kind, label)
        if kind == "labels":
            self._scores += np.bincount(label[valid], minlength=self.task.channels)
        elif kind == "depth":
            metres = label[:, 0][valid & (label[:, 0] < depth_limit(self.task))].astype(np.float64)
            self._scores += metres.sum(), metres.size
        else:
            for normals, counts in zip(label.transpose(0, 2, 3, 1), valid, strict=True):
                self._add_normals(normals[counts])

    def _add_normals(self, normals: Array) -> None:
        if len(normals):
            sample = normals[np.linspace(0, len(normals) - 1, min(len(normals), NORMALS_A_PICTURE)).astype(int)]
            angles = np.arccos(np.clip(self._directions @ sample.T.astype(np.float64), -1, 1))
            self._scores -= angles.mean(axis=1) * len(normals)

    def result(self) -> Array:
        if self.task.kind == "labels":
            return np.eye(self.task.channels)[int(self._scores.argmax())]
        if self.task.kind == "depth":
            return np.array([self._scores[0] / max(self._scores[1], 1)])
        if self.task.kind == "normals":
            return np.asarray(self._directions[int(self._scores.argmax())])
        return np.array([-50.0, 50.0]) if self.task.kind == "saliency" else np.array([50.0])


def best_constant(task: Task, labels: Iterable[Array]) -> Array:
    """`ConstantFinder` over batches of labels."""
    finder = ConstantFinder(task)
    for batch in labels:
        finder.update(batch)
    return finder.result()


def _directions(count: int) -> Array:
    """Unit vectors [count, 3] spread evenly (a Fibonacci spiral)."""
    z = 1 - (2 * np.arange(count) + 1) / count
    turn = np.pi * (3 - 5**0.5) * np.arange(count)
    radius = np.sqrt(1 - z * z)
    return np.stack([radius * np.cos(turn), radius * np.sin(turn), z], axis=1)


class ConstantBaseline:
    """The figures of the best constants on a set that is gone through twice: first `learn`, then `score`, each with
    every batch of labels. Boundaries are scored pixel by pixel."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._finders = {task.name: ConstantFinder(task) for task in tasks}
        self._board = Scoreboard(tasks)

    def learn(self, labels: Mapping[str, Array]) -> None:
        for name, finder in self._finders.items():
            finder.update(labels[name])

    def score(self, labels: Mapping[str, Array]) -> None:
        constants = {name: finder.result() for name, finder in self._finders.items()}
        for name, value in constants.items():
            shape = (len(labels[name]), value.size, *labels[name].shape[-2:])
            self._board.meters[name].update(np.broadcast_to(value[:, None, None], shape), labels[name])

    def result(self) -> Figures:
        return self._board.result()


def constant_baseline(tasks: Sequence[Task], batches: Sequence[Mapping[str, Array]]) -> Figures:
    """`ConstantBaseline` of the set whose label batches these are."""
    baseline = ConstantBaseline(tasks)
    for batch in batches:
        baseline.learn(batch)
    for batch in batches:
        baseline.score(batch)
    return baseline.result()
