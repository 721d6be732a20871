"""Labels as pictures: one task's label over its image, and a page of samples. All pictures are [H, W, 3] uint8 BGR."""

from collections.abc import Sequence

import cv2
import numpy as np
from torch import Tensor

from mtmamba.data.augment import Sample
from mtmamba.data.dataset import DenseDataset
from mtmamba.data.labels import as_prediction
from mtmamba.draw import DepthScale, Picture, paint
from mtmamba.tasks import IMAGENET_MEAN, IMAGENET_STD, Task

TILE_WIDTH = 320
GAP, HEADER, TITLE_PX = 6, 24, 0.5
BLANK = 200  # grey of pixels that do not count


def image_picture(image: Tensor, size: tuple[int, int]) -> Picture:
    """A sample's image [3, h, w] as the picture it was, at `size` (height, width)."""
    rgb = image.numpy().transpose(1, 2, 0) * np.array(IMAGENET_STD, np.float32) + np.array(IMAGENET_MEAN, np.float32)
    bgr = np.rint(255 * np.clip(rgb[:, :, ::-1], 0, 1)).astype(np.uint8)
    return bgr if bgr.shape[:2] == size else np.asarray(cv2.resize(bgr, size[::-1]), np.uint8)


def label_scale(label: Tensor, task: Task) -> DepthScale:
    """The range of a label's depths that count, to draw label and prediction with; a fresh one for other tasks."""
    scale = DepthScale(momentum=1.0)
    if task.kind == "depth":
        depth, valid = as_prediction(task.kind, label.numpy())
        if valid.any():
            scale.update(np.where(valid, depth, np.nan).astype(np.float32))
    return scale


def label_picture(image: Picture, label: Tensor, task: Task, scale: DepthScale | None = None) -> Picture:
    """A label, as `mtmamba.data.labels` lays it out, drawn over its image as a prediction would be. Pixels that do not
    count are striped grey. scale: None for the label's own."""
    truth, valid = as_prediction(task.kind, label.numpy())
    picture = paint(image, truth, task, scale or label_scale(label, task))[0].copy()
    rows, columns = np.indices(valid.shape)
    picture[~valid] = np.where((rows + columns) % 12 < 6, BLANK, BLANK + 25)[~valid][:, None]
    return picture


def sample_row(sample: Sample, tasks: Sequence[Task]) -> list[Picture]:
    """The image and every label, as tiles `TILE_WIDTH` wide."""
    size = (sample[tasks[0].name].shape[-2], sample[tasks[0].name].shape[-1])
    image = image_picture(sample["image"], size)
    pictures = [image, *(label_picture(image, sample[task.name], task) for task in tasks)]
    tile = (TILE_WIDTH, max(1, round(TILE_WIDTH * size[0] / size[1])))
    shrinks = tile[0] < size[1]
    return [
        np.asarray(cv2.resize(p, tile, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_NEAREST), np.uint8)
        for p in pictures
    ]


def sample_page(dataset: DenseDataset, samples: Sequence[Sample]) -> Picture:
    """A row a sample: its image and its labels, under the tasks' titles."""
    rows = [sample_row(sample, dataset.tasks) for sample in samples]
    columns, height = len(rows[0]), rows[0][0].shape[0]
    page = np.full((HEADER + len(rows) * (height + GAP), columns * (TILE_WIDTH + GAP) + GAP, 3), 255, np.uint8)
    titles = ("image", *(f"{task.title}, {task.unit}" if task.unit else task.title for task in dataset.tasks))
    for column, title in enumerate(titles):
        x = GAP + column * (TILE_WIDTH + GAP)
        cv2.putText(page, title, (x, HEADER - 8), cv2.FONT_HERSHEY_SIMPLEX, TITLE_PX, (0, 0, 0), 1, cv2.LINE_AA)
        for row, tiles in enumerate(rows):
            y = HEADER + row * (height + GAP)
            page[y : y + height, x : x + TILE_WIDTH] = tiles[column]
    return page
