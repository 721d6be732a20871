"""The dataset `pascal-context`: 10,103 photographs, with classes, human parts, saliency, normals and boundaries."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtmamba.data.augment import Sample
from mtmamba.data.classes import CONTEXT_NORMALS, PASCAL_PART_PERSON, PERSON_PARTS
from mtmamba.data.files import (
    Array,
    Files,
    classes_of,
    damaged,
    find_files,
    fitting,
    read_ids,
    read_mat,
    read_picture,
    read_pixels,
    read_plane,
    unit_normals,
)
from mtmamba.tasks import IGNORE_LABEL, PASCAL21, Task

_LABEL_MAP = "label map"
_FOLDERS = {  # image, task or the label map: (folders, suffix)
    "image": (("JPEGImages",), ".jpg"),
    "semseg": (("semseg/VOC12", "semseg/pascal-context"), ".png"),
    "human_parts": (("human_parts",), ".mat"),
    "sal": (("sal_distill",), ".png"),
    "normals": (("normals_distill",), ".png"),
    _LABEL_MAP: (("pascal-context/trainval",), ".mat"),
}
_FILES_OF = {"normals": ("normals", _LABEL_MAP), "edge": (_LABEL_MAP,)}


class PascalContext:
    """The items that `ImageSets/Context/SPLIT.txt` names. Raises MtmError where a file of the tasks is missing."""

    def __init__(self, root: Path, split: str, tasks: tuple[Task, ...], length: int | None = None) -> None:
        title = f"pascal-context {split}"
        self.ids = read_ids(root, f"ImageSets/Context/{split}.txt", title)[:length]
        kinds = ["image", *(kind for task in tasks for kind in _FILES_OF.get(task.name, (task.name,)))]
        wanted = {}
        for kind in kinds:
            folders, suffix = _FOLDERS[kind]
            names = tuple(name + suffix for name in self.ids)
            wanted[kind] = Files(folders=folders, names=names, pattern=f"ID{suffix}")
        self.paths = find_files(root, title, wanted)

    def __len__(self) -> int:
        return len(self.ids)

    def name_of(self, index: int) -> str:
        return self.ids[index]

    def decode(self, index: int, tasks: tuple[Task, ...]) -> Sample:
        image = read_picture(self.paths["image"][index])
        sample, size = {"image": image}, (image.shape[1], image.shape[2])
        names = {task.name for task in tasks}
        if names & {"normals", "edge"}:
            path = self.paths[_LABEL_MAP][index]
            label_map = fitting(np.asarray(read_mat(path, "LabelMap")), path, size, ())
        if "semseg" in names:
            path = self.paths["semseg"][index]
            sample["semseg"] = classes_of(read_plane(path, size), path, len(PASCAL21))
        if "human_parts" in names:
            sample["human_parts"] = human_parts(self.paths["human_parts"][index], size)
        if "sal" in names:
            stored = read_plane(self.paths["sal"][index], size)
            sample["sal"] = torch.from_numpy((stored > 127.5).astype(np.uint8))
        if "normals" in names:
            path = self.paths["normals"][index]
            stored = fitting(read_pixels(path, "RGB"), path, size, (3,))
            sample["normals"] = unit_normals(stored, np.isin(label_map, list(CONTEXT_NORMALS.values())))
        if "edge" in names:
            sample["edge"] = boundaries(label_map)
        return sample


def boundaries(label_map: Array) -> Tensor:
    """[1, H, W] float32, 1 on lines one pixel wide between the regions of [H, W]: the pixels on both sides of every
    border (4-neighbours), thinned."""
    from skimage.morphology import thin
    from skimage.segmentation import find_boundaries

    both_sides = find_boundaries(label_map, connectivity=1, mode="thick")
    return torch.from_numpy(thin(both_sides).astype(np.float32))[None]


def human_parts(path: Path, size: tuple[int, int]) -> Tensor:
    """[H, W] uint8, index in HUMAN_PARTS, of a PASCAL-Part annotation; all 255 where it has no part of any person."""
    label = np.zeros(size, dtype=np.uint8)
    try:
        for thing in _listed(read_mat(path, "anno")["objects"]):
            if int(thing["class_ind"]) == PASCAL_PART_PERSON:
                for part in _listed(thing["parts"]):
                    label[fitting(part["mask"], path, size, ()).astype(bool)] = PERSON_PARTS[part["part_name"]]
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        found = f"another structure ({type(error).__name__}: {error})"
        raise damaged(path, "a PASCAL-Part annotation (anno.objects.parts)", found) from error
    return torch.from_numpy(label if label.any() else np.full(size, IGNORE_LABEL, dtype=np.uint8))


def _listed(values: Any) -> list[Any]:
    """MATLAB's array of structs as a list: SciPy makes a bare dict of a single one, an empty array of none."""
    return [values] if isinstance(values, dict) else list(values)
