"""The dataset `cityscapes`: 3,475 pictures of streets in 21 cities, with classes and disparity."""

from pathlib import Path

import numpy as np
import torch

from mtmamba.data.augment import Sample
from mtmamba.data.classes import CITYSCAPES_SKY_ID, CITYSCAPES_TRAIN_ID
from mtmamba.data.files import Files, damaged, find_files, read_picture, read_plane
from mtmamba.errors import MtmError
from mtmamba.tasks import Task

_IMAGE = "_leftImg8bit.png"
_LABELS = "_gtFine_labelIds.png"
_DISPARITY = "_disparity.png"


class Cityscapes:
    """The items that have a picture in `leftImg8bit/SPLIT`. Raises MtmError where there is none, or where a file of the
    tasks is missing."""

    def __init__(self, root: Path, split: str, tasks: tuple[Task, ...], length: int | None = None) -> None:
        title = f"cityscapes {split}"
        images = root / "leftImg8bit" / split
        items = sorted(path.relative_to(images).as_posix() for path in images.glob(f"*/*{_IMAGE}"))[:length]
        if not items:
            raise MtmError(
                f"{root}: expected {title} with pictures leftImg8bit/{split}/CITY/*{_IMAGE}, found "
                f"{'none there' if images.is_dir() else 'no such folder'}; name the folder that holds leftImg8bit "
                "(docs/datasets.md shows the layout)"
            )
        self.ids = [item.removesuffix(_IMAGE) for item in items]  # CITY/CITY_SEQUENCE_FRAME
        kinds = {"image": ("leftImg8bit", _IMAGE), "labels": ("gtFine", _LABELS)}
        if any(task.name == "depth" for task in tasks):
            kinds["disparity"] = ("disparity", _DISPARITY)
        self.paths = find_files(
            root,
            title,
            {
                kind: Files(
                    folders=(f"{folder}/{split}",),
                    names=tuple(item + suffix for item in self.ids),
                    pattern=f"CITY/ID{suffix}",
                )
                for kind, (folder, suffix) in kinds.items()
            },
        )

    def __len__(self) -> int:
        return len(self.ids)

    def name_of(self, index: int) -> str:
        return self.ids[index].rpartition("/")[2]

    def decode(self, index: int, tasks: tuple[Task, ...]) -> Sample:
        image = read_picture(self.paths["image"][index])
        sample, size = {"image": image}, image.shape[1:]
        path = self.paths["labels"][index]
        labels = read_plane(path, size)
        if labels.dtype != np.uint8:
            raise damaged(path, "8-bit class numbers", labels.dtype)
        for task in tasks:
            if task.name == "semseg":
                sample["semseg"] = torch.from_numpy(CITYSCAPES_TRAIN_ID[labels])
            else:
                stored = read_plane(self.paths["disparity"][index], size).astype(np.float32)
                disparity = np.maximum(stored - 1, 0) / 256  # 0 is stored where there is none
                disparity[labels == CITYSCAPES_SKY_ID] = 0
                sample["depth"] = torch.from_numpy(disparity)[None]
        return sample
