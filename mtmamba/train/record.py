"""What a run shows of itself: TensorBoard curves, and pages of sample predictions.

A page is one task's: a row an image, with input, prediction and label beside each other.
"""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from mtmamba.data.dataset import DenseDataset
from mtmamba.data.page import image_picture, label_picture, label_scale
from mtmamba.draw import Picture, paint
from mtmamba.errors import MtmError
from mtmamba.files import atomic_path
from mtmamba.metrics import Figures
from mtmamba.postprocess import postprocess
from mtmamba.train.engine import Step

SAMPLES = 4
GAP = 4  # pixels between the pictures of a page
CURVES, PAGES = "tensorboard", "samples"


class Record:
    """Writes into `folder`/tensorboard and `folder`/samples. iteration: where a resumed run goes on; curves behind it are
    dropped."""

    def __init__(self, folder: Path, iteration: int = 0) -> None:
        self.folder = folder
        self._writer = SummaryWriter(str(folder / CURVES), purge_step=iteration + 1 if iteration else None)

    def step(self, step: Step, images_per_second: float) -> None:
        """Curves of one training step."""
        curves = {"loss": step.loss, "lr": step.lr, "grad_norm": step.grad_norm, "images_per_second": images_per_second}
        for name, value in (curves | {f"loss/{name}": value for name, value in step.losses.items()}).items():
            self._writer.add_scalar(f"train/{name}", value, step.iteration)

    def evaluation(self, iteration: int, figures: Figures, score: float, pages: dict[str, Picture]) -> None:
        """Curves of an evaluation, and its pages."""
        self._writer.add_scalar("val/mean_skill", score, iteration)
        for task, values in figures.items():
            for name, value in values.items():
                self._writer.add_scalar(f"val/{task}/{name}", value, iteration)
        for task, page in pages.items():
            self._writer.add_image(f"samples/{task}", page[:, :, ::-1], iteration, dataformats="HWC")
            with atomic_path(self.folder / PAGES / f"{iteration:06d}-{task}.png") as temporary:
                if not cv2.imwrite(str(temporary), page):
                    raise MtmError(f"{self.folder / PAGES}: writing a picture failed; free space")
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def sample_pages(model: nn.Module, dataset: DenseDataset) -> dict[str, Picture]:
    """{task: its page} over `SAMPLES` items spread over the dataset. model: in eval mode, on any device."""
    device = next(model.parameters()).device
    rows: dict[str, list[Picture]] = {task.name: [] for task in dataset.tasks}
    count = min(SAMPLES, len(dataset))
    for index in np.linspace(0, len(dataset) - 1, count).astype(int).tolist():
        sample = dataset[index]
        with torch.inference_mode():
            raw = model(sample["image"][None].to(device))
        for task in dataset.tasks:
            label = sample[task.name]
            size = (label.shape[-2], label.shape[-1])
            image = image_picture(sample["image"], size)
            prediction = postprocess(raw[task.name][0].float().cpu().numpy(), task, size)
            scale = label_scale(label, task)
            drawn = paint(image, prediction, task, scale)[0]
            rows[task.name].append(_join([image, drawn, label_picture(image, label, task, scale)], axis=1))
    return {name: _join(pictures, axis=0) for name, pictures in rows.items()}


def _join(pictures: Sequence[Picture], axis: int) -> Picture:
    shape = list(pictures[0].shape)
    shape[axis] = GAP
    gap = np.full(shape, 255, np.uint8)
    parts = [part for picture in pictures for part in (gap, picture)][1:]
    return np.concatenate(parts, axis=axis)
