"""The dataset `nyudv2`: 1,449 Kinect pictures of rooms, with classes, depth, normals and boundaries."""

from pathlib import Path

import numpy as np
import torch

from mtmamba.data.augment import Sample
from mtmamba.data.files import (
    Files,
    classes_of,
    damaged,
    find_files,
    fitting,
    read_ids,
    read_npy,
    read_picture,
    read_pixels,
    read_plane,
    unit_normals,
)
from mtmamba.tasks import NYU40, Task

_FOLDERS = {  # task or image: (folder, suffix)
    "image": ("images", ".png"),
    "semseg": ("segmentation", ".png"),
    "depth": ("depth", ".npy"),
    "normals": ("normals", ".png"),
    "edge": ("edge", ".png"),
}


class NYUDv2:
    """The items that `gt_sets/SPLIT.txt` names. Raises MtmError where a file of the tasks is missing."""

    def __init__(self, root: Path, split: str, tasks: tuple[Task, ...], length: int | None = None) -> None:
        title = f"nyudv2 {split}"
        self.ids = read_ids(root, f"gt_sets/{split}.txt", title)[:length]
        wanted = {}
        for name in ("image", *(task.name for task in tasks)):
            folder, suffix = _FOLDERS[name]
            names = tuple(name + suffix for name in self.ids)
            wanted[name] = Files(folders=(folder,), names=names, pattern=f"ID{suffix}")
        self.paths = find_files(root, title, wanted)

    def __len__(self) -> int:
        return len(self.ids)

    def name_of(self, index: int) -> str:
        return self.ids[index]

    def decode(self, index: int, tasks: tuple[Task, ...]) -> Sample:
        image = read_picture(self.paths["image"][index])
        sample, size = {"image": image}, image.shape[1:]
        for task in tasks:
            path = self.paths[task.name][index]
            if task.name == "semseg":
                stored = read_plane(path, size)
                if stored.dtype != np.uint8:
                    raise damaged(path, "8-bit class numbers", stored.dtype)
                sample["semseg"] = classes_of(stored - np.uint8(1), path, len(NYU40))  # 0, unlabelled, becomes 255
            elif task.name == "depth":
                metres = fitting(read_npy(path), path, size, ()).astype(np.float32)
                known = np.isfinite(metres) & (metres > 0)
                sample["depth"] = torch.from_numpy(np.where(known, metres, np.float32(0)))[None]
            elif task.name == "normals":
                sample["normals"] = unit_normals(fitting(read_pixels(path, "RGB"), path, size, (3,)))
            else:
                sample["edge"] = torch.from_numpy(read_plane(path, size).astype(np.float32) / 255)[None]
        return sample
