"""The task registry: every task, its channels, classes and colours, and the task lists of the datasets.

The one home of these facts: the model reads channel counts here, losses and metrics read kinds, drawing reads palettes.
The order of a dataset's tasks matters: the cross-task block concatenates their features in this order.
"""

from dataclasses import dataclass
from typing import Literal

from mtmamba.errors import MtmError

Kind = Literal["labels", "saliency", "depth", "normals", "boundary"]
Colour = tuple[int, int, int]  # RGB, 0..255

IGNORE_LABEL = 255
"""Label value of pixels that count in no loss and no metric."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # RGB, of images in 0..1
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Task:
    """One dense prediction.

    kind: `labels` (argmax over `channels` classes), `saliency` (softmax over 2, channel 1 is the answer), `depth`
    (1 channel, `unit`), `normals` (3 channels, unit vectors), `boundary` (1 channel, sigmoid).
    classes, palette: names and RGB colours, one a channel, for `labels` only.
    """

    name: str
    title: str
    kind: Kind
    channels: int
    classes: tuple[str, ...] = ()
    palette: tuple[Colour, ...] = ()
    unit: str = ""


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A dataset's task list and its training size.

    input_size: (height, width) in pixels the paper's models take. output_scale: labels and outputs are this many times
    larger than the input (2 for Cityscapes).
    """

    name: str
    tasks: tuple[Task, ...]
    input_size: tuple[int, int]
    output_scale: int = 1


def voc_palette(count: int, start: int = 0) -> tuple[Colour, ...]:
    """The PASCAL VOC colours of class ids start..start+count-1: the bits of the id, three at a time, from the top bit."""

    def colour(index: int) -> Colour:
        red = green = blue = 0
        for bit in range(8):
            red |= (index >> 0 & 1) << (7 - bit)
            green |= (index >> 1 & 1) << (7 - bit)
            blue |= (index >> 2 & 1) << (7 - bit)
            index >>= 3
        return red, green, blue

    return tuple(colour(index) for index in range(start, start + count))


NYU40 = (
    "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf",
    "picture", "counter", "blinds", "desk", "shelves", "curtain", "dresser", "pillow", "mirror", "floor mat",
    "clothes", "ceiling", "books", "refrigerator", "television", "paper", "towel", "shower curtain", "box", "whiteboard",
    "person", "night stand", "toilet", "sink", "lamp", "bathtub", "bag", "otherstructure", "otherfurniture", "otherprop",
)  # fmt: skip
PASCAL21 = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
HUMAN_PARTS = ("background", "head", "torso", "upper arm", "lower arm", "upper leg", "lower leg")
CITYSCAPES19: tuple[tuple[str, Colour], ...] = (
    ("road", (128, 64, 128)), ("sidewalk", (244, 35, 232)), ("building", (70, 70, 70)), ("wall", (102, 102, 156)),
    ("fence", (190, 153, 153)), ("pole", (153, 153, 153)), ("traffic light", (250, 170, 30)),
    ("traffic sign", (220, 220, 0)), ("vegetation", (107, 142, 35)), ("terrain", (152, 251, 152)),
    ("sky", (70, 130, 180)), ("person", (220, 20, 60)), ("rider", (255, 0, 0)), ("car", (0, 0, 142)),
    ("truck", (0, 0, 70)), ("bus", (0, 60, 100)), ("train", (0, 80, 100)), ("motorcycle", (0, 0, 230)),
    ("bicycle", (119, 11, 32)),
)  # fmt: skip


def _labels(name: str, title: str, classes: tuple[str, ...], palette: tuple[Colour, ...]) -> Task:
    return Task(name=name, title=title, kind="labels", channels=len(classes), classes=classes, palette=palette)


_SEMSEG_NYU = _labels("semseg", "semantic segmentation", NYU40, voc_palette(40, start=1))
_SEMSEG_PASCAL = _labels("semseg", "semantic segmentation", PASCAL21, voc_palette(21))
_SEMSEG_CITY = _labels(
    "semseg", "semantic segmentation", tuple(n for n, _ in CITYSCAPES19), tuple(c for _, c in CITYSCAPES19)
)
_PARTS = _labels("human_parts", "human parts", HUMAN_PARTS, voc_palette(7))
_SAL = Task(name="sal", title="saliency", kind="saliency", channels=2)
_DEPTH = Task(name="depth", title="depth", kind="depth", channels=1, unit="m")
_DISPARITY = Task(name="depth", title="disparity", kind="depth", channels=1, unit="px")
_NORMALS = Task(name="normals", title="surface normals", kind="normals", channels=3)
_EDGE = Task(name="edge", title="boundaries", kind="boundary", channels=1)

DATASETS: dict[str, Dataset] = {
    dataset.name: dataset
    for dataset in (
        Dataset(name="nyudv2", tasks=(_SEMSEG_NYU, _DEPTH, _NORMALS, _EDGE), input_size=(448, 576)),
        Dataset(name="pascal-context", tasks=(_SEMSEG_PASCAL, _PARTS, _SAL, _NORMALS, _EDGE), input_size=(512, 512)),
        Dataset(name="cityscapes", tasks=(_SEMSEG_CITY, _DISPARITY), input_size=(512, 1024), output_scale=2),
        # Rendered indoor scenes with exact labels of all six tasks: mtmamba.data.synthetic.
        Dataset(name="synthetic", tasks=(_SEMSEG_NYU, _PARTS, _SAL, _DEPTH, _NORMALS, _EDGE), input_size=(192, 256)),
    )
}


def dataset(name: str) -> Dataset:
    """The dataset of this name; MtmError lists the known ones."""
    if name not in DATASETS:
        raise MtmError(f"unknown dataset {name!r}; known: {', '.join(DATASETS)}")
    return DATASETS[name]


def tasks_of(dataset_name: str, names: tuple[str, ...] | None = None) -> tuple[Task, ...]:
    """The dataset's tasks, or the named ones of them in the order given. Raises MtmError for a task it lacks."""
    known = {task.name: task for task in dataset(dataset_name).tasks}
    names = tuple(known) if names is None else names
    if not isinstance(names, tuple) or not all(isinstance(name, str) for name in names):
        raise MtmError(f"expected names of tasks, found {names!r}")
    for name in names:
        if name not in known:
            raise MtmError(f"dataset {dataset_name} has no task {name!r}; it has {', '.join(known)}")
    if not names or len(set(names)) != len(names):
        raise MtmError(f"expected one or more different tasks, found {list(names)}")
    return tuple(known[name] for name in names)
