"""Every dataset's files, made small here, decode to exactly the labels they hold; what is missing or damaged is said."""

import re
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image

from mtmamba.data import open_dataset
from mtmamba.data.classes import CITYSCAPES_TRAIN_ID, CONTEXT_NORMALS, PERSON_PARTS
from mtmamba.data.labels import ignored_value, picture_box, valid_pixels
from mtmamba.data.synthetic import HELD_OUT_SEED, SyntheticScenes
from mtmamba.errors import MtmError
from mtmamba.tasks import CITYSCAPES19, HUMAN_PARTS, IMAGENET_MEAN, IMAGENET_STD, dataset

SIZE = (6, 8)  # of the pictures made here
RNG = np.random.default_rng(0)


def save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, values)
    else:
        Image.fromarray(values).save(path, quality=95)


def save_palette(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(values).convert("P")
    picture.putdata(values.ravel().tolist())
    picture.putpalette(RNG.integers(0, 256, 768).tolist())
    picture.save(path)


def structs(rows: list[dict]) -> np.ndarray:
    """A MATLAB array of structs."""
    result = np.empty((1, len(rows)), dtype=[(name, object) for name in rows[0]])
    for column, row in enumerate(rows):
        for name, value in row.items():
            result[0, column][name] = value
    return result


def mask(rows: slice, columns: slice) -> np.ndarray:
    result = np.zeros(SIZE, dtype=np.uint8)
    result[rows, columns] = 1
    return result


IMAGE = RNG.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
FLOOR = np.array([128, 20, 60], dtype=np.uint8)  # a direction; its length is near 1


@pytest.fixture
def nyudv2(tmp_path: Path) -> Path:
    for name in ("0001", "0002"):
        save(tmp_path / f"images/{name}.png", IMAGE)
        labels = np.full(SIZE, 40, dtype=np.uint8)
        labels[0], labels[1] = 0, 1
        save(tmp_path / f"segmentation/{name}.png", labels)
        depth = np.full(SIZE, 2.5, dtype=np.float64)
        depth[0, :4] = 0, -1, np.nan, np.inf
        save(tmp_path / f"depth/{name}.npy", depth)
        normals = np.broadcast_to(FLOOR, (*SIZE, 3)).copy()
        normals[0, 0], normals[0, 1], normals[0, 2] = 0, 128, 255
        save(tmp_path / f"normals/{name}.png", normals)
        save(
            tmp_path / f"edge/{name}.png", np.where(np.arange(SIZE[1]) == 3, 255, 0)[None].repeat(6, 0).astype(np.uint8)
        )
    (tmp_path / "gt_sets").mkdir()
    (tmp_path / "gt_sets/train.txt").write_text("0001\n0002\n")
    (tmp_path / "gt_sets/val.txt").write_text("0002\n")
    return tmp_path


LABEL_MAP = np.full(SIZE, CONTEXT_NORMALS["wall"], dtype=np.uint16)
LABEL_MAP[:, 4:] = 360  # sky
PARTS = ("hair", "neck", "luarm", "rhand", "ruleg", "lfoot")


def save_parts(path: Path, things: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(path, {"anno": {"imname": path.stem, "objects": structs(things)}}, do_compression=True)


def person(parts: object) -> dict:
    return {"class": "person", "class_ind": 15, "mask": mask(slice(0, 6), slice(0, 3)), "parts": parts}


@pytest.fixture
def pascal(tmp_path: Path) -> Path:
    for name in ("2008_000001", "2008_000002"):
        save(tmp_path / f"JPEGImages/{name}.jpg", IMAGE)
        save(tmp_path / f"sal_distill/{name}.png", np.array([[127] * 8, [128] * 8] * 3, dtype=np.uint8))
        save(tmp_path / f"normals_distill/{name}.png", np.broadcast_to(FLOOR, (*SIZE, 3)).copy())
        (tmp_path / "pascal-context/trainval").mkdir(parents=True, exist_ok=True)
        scipy.io.savemat(tmp_path / f"pascal-context/trainval/{name}.mat", {"LabelMap": LABEL_MAP})
    classes = np.zeros(SIZE, dtype=np.uint8)
    classes[0], classes[1] = 255, 20
    save_palette(tmp_path / "semseg/VOC12/2008_000001.png", classes)
    save_palette(tmp_path / "semseg/pascal-context/2008_000001.png", np.zeros(SIZE, dtype=np.uint8))
    save_palette(tmp_path / "semseg/pascal-context/2008_000002.png", np.full(SIZE, 15, dtype=np.uint8))
    rows = [{"part_name": part, "mask": mask(slice(row, row + 1), slice(0, 2))} for row, part in enumerate(PARTS)]
    horse = {"class": "horse", "class_ind": 13, "mask": mask(slice(0, 6), slice(5, 8))}
    horse["parts"] = structs([{"part_name": "lfho", "mask": mask(slice(0, 6), slice(5, 8))}])
    save_parts(tmp_path / "human_parts/2008_000001.mat", [person(structs(rows)), horse])
    save_parts(tmp_path / "human_parts/2008_000002.mat", [person(np.empty((0, 0)))])
    (tmp_path / "ImageSets/Context").mkdir(parents=True)
    (tmp_path / "ImageSets/Context/train.txt").write_text("2008_000001\n2008_000002\n")
    return tmp_path


@pytest.fixture
def cityscapes(tmp_path: Path) -> Path:
    for city, number in (("aachen", "000000"), ("bochum", "000001")):
        stem = f"{city}/{city}_{number}_000019"
        save(tmp_path / f"leftImg8bit/val/{stem}_leftImg8bit.png", IMAGE)
        labels = np.full(SIZE, 7, dtype=np.uint8)
        labels[0], labels[1, 0], labels[1, 1] = 23, 0, 33
        save(tmp_path / f"gtFine/val/{stem}_gtFine_labelIds.png", labels)
        disparity = np.full(SIZE, 1 + 256 * 10 + 64, dtype=np.uint16)
        disparity[2, :3] = 0, 1, 65535
        save(tmp_path / f"disparity/val/{stem}_disparity.png", disparity)
    return tmp_path


def check_forms(sample: dict[str, torch.Tensor], name: str, image: tuple[int, int], label: tuple[int, int]) -> None:
    """Every tensor has the shape and type that `mtmamba.data.labels` promises."""
    assert list(sample) == ["image", *(task.name for task in dataset(name).tasks)]
    assert sample["image"].shape == (3, *image) and sample["image"].dtype == torch.float32
    for task in dataset(name).tasks:
        flat = task.kind in ("labels", "saliency")
        assert sample[task.name].shape == (label if flat else (task.channels, *label)), task.name
        assert sample[task.name].dtype == (torch.uint8 if flat else torch.float32), task.name
        assert sample[task.name].is_contiguous(), task.name


def unit(stored: np.ndarray) -> torch.Tensor:
    vector = torch.from_numpy(stored.astype(np.float64)) * 2 / 255 - 1
    return (vector / vector.norm()).float()


def test_nyudv2_values(nyudv2: Path) -> None:
    data = open_dataset("nyudv2", nyudv2, "train", size=SIZE)
    assert len(data) == 2 and [data.name_of(i) for i in range(2)] == ["0001", "0002"]
    sample = data[0]
    check_forms(sample, "nyudv2", SIZE, SIZE)
    expected = (IMAGE.transpose(2, 0, 1) / 255 - np.reshape(IMAGENET_MEAN, (3, 1, 1))) / np.reshape(
        IMAGENET_STD, (3, 1, 1)
    )
    assert np.allclose(sample["image"], expected, atol=1e-6)
    assert (
        (sample["semseg"][0] == 255).all() and (sample["semseg"][1] == 0).all() and (sample["semseg"][2:] == 39).all()
    )
    assert sample["depth"][0, 0].tolist() == [0, 0, 0, 0, 2.5, 2.5, 2.5, 2.5] and (sample["depth"][0, 1:] == 2.5).all()
    assert (sample["normals"][:, 0, :3] == 0).all(), "black, grey and white stand for no direction"
    assert torch.allclose(sample["normals"][:, 3, 3], unit(FLOOR), atol=1e-6)
    assert torch.equal(sample["edge"][0, 0], torch.eye(8)[3])


def test_pascal_context_values(pascal: Path) -> None:
    data = open_dataset("pascal-context", pascal, "train", size=SIZE)
    sample, other = data[0], data[1]
    check_forms(sample, "pascal-context", SIZE, SIZE)
    assert sample["semseg"][:3, 0].tolist() == [255, 20, 0], "indices of the palette, from VOC12 where it has the file"
    assert (other["semseg"] == 15).all(), "else from pascal-context"
    names = [HUMAN_PARTS[i] for i in sample["human_parts"][:, 0]]
    assert names == ["head", "torso", "upper arm", "lower arm", "upper leg", "lower leg"]
    assert (sample["human_parts"][:, 2:] == 0).all(), "other objects' parts, and persons outside their parts"
    assert (other["human_parts"] == 255).all(), "a person with no part drawn"
    assert sample["sal"][:, 0].tolist() == [0, 1] * 3
    assert torch.allclose(sample["normals"][:, 0, 0], unit(FLOOR), atol=1e-6)
    assert (sample["normals"][:, :, 4:] == 0).all(), "no normals were distilled for the sky"
    assert sample["edge"].sum() >= 5, "a line along the border; thinning may take its end"
    assert (sample["edge"][0].sum(1) <= 1).all() and (sample["edge"][0, :, [0, 1, 2, 5, 6, 7]] == 0).all()


def test_cityscapes_values(cityscapes: Path) -> None:
    data = open_dataset("cityscapes", cityscapes, "val", size=(3, 4))
    assert data.output_scale == 2 and data.name_of(1) == "bochum_000001_000019"
    sample = data[0]
    check_forms(sample, "cityscapes", (3, 4), SIZE)
    classes = [name for name, _ in CITYSCAPES19]
    assert (sample["semseg"][0] == classes.index("sky")).all() and (sample["semseg"][3] == classes.index("road")).all()
    assert sample["semseg"][1, :2].tolist() == [255, classes.index("bicycle")]
    assert (sample["depth"][0, 0] == 0).all(), "the sky has no disparity"
    assert sample["depth"][0, 2, :4].tolist() == [0, 0, 65534 / 256, 10.25]


def test_tables_of_classes() -> None:
    assert sorted(set(CITYSCAPES_TRAIN_ID.tolist())) == [*range(19), 255] and (CITYSCAPES_TRAIN_ID != 255).sum() == 19
    assert set(PERSON_PARTS.values()) == set(range(1, 7)) and len(PERSON_PARTS) == 24
    assert len(CONTEXT_NORMALS) == len(set(CONTEXT_NORMALS.values()))
    assert not {"sky", "tree", "road", "grass", "unknown"} & set(CONTEXT_NORMALS)
    assert list(CONTEXT_NORMALS) == sorted(CONTEXT_NORMALS), "the ids follow the alphabet, as LabelMap's do"
    assert list(CONTEXT_NORMALS.values()) == sorted(CONTEXT_NORMALS.values())


def test_smaller_pictures_are_padded_in_the_middle(nyudv2: Path) -> None:
    """To the paper's size, with an image of 0 and labels that count in nothing; nothing inside is resampled."""
    data = open_dataset("nyudv2", nyudv2, "val", size=(10, 14))
    plain, sample = open_dataset("nyudv2", nyudv2, "val", size=SIZE)[0], data[0]
    check_forms(sample, "nyudv2", (10, 14), (10, 14))
    inside = (slice(2, 8), slice(3, 11))
    outside = torch.ones(10, 14, dtype=torch.bool)
    outside[inside] = False
    for name, values in sample.items():
        assert torch.equal(values[..., inside[0], inside[1]], plain[name]), name
    assert (sample["image"][:, outside] == 0).all()
    for task in data.tasks:
        assert (sample[task.name][..., outside] == ignored_value(task.kind)).all()
        assert not valid_pixels(task.kind, sample[task.name][None])[0][outside].any()
    assert picture_box(sample["edge"]) == (2, 3, 8, 11) == picture_box(sample["edge"].numpy())
    assert picture_box(torch.full((1, 4, 4), 255.0)) == (0, 0, 0, 0)


def test_larger_pictures_are_brought_down_to_fit(nyudv2: Path) -> None:
    sample = open_dataset("nyudv2", nyudv2, "val", size=(3, 8))[0]
    assert picture_box(sample["edge"]) == (0, 2, 3, 6), "half the size, its aspect kept"
    assert set(sample["depth"].unique().tolist()) <= {0.0, 2.5}, "metres do not depend on the resolution"
    assert (sample["edge"] == 1).any(1).sum() == 1, "a line one pixel wide stays a line"


def test_tasks_are_chosen_and_only_their_files_needed(pascal: Path) -> None:
    for folder in ("human_parts", "sal_distill", "normals_distill"):
        for file in (pascal / folder).iterdir():
            file.unlink()
    data = open_dataset("pascal-context", pascal, "train", tasks=("edge", "semseg"), size=SIZE)
    assert [task.name for task in data.tasks] == ["edge", "semseg"] and list(data[0]) == ["image", "edge", "semseg"]


def test_first_items_only(nyudv2: Path) -> None:
    (nyudv2 / "images/0002.png").unlink()
    assert len(open_dataset("nyudv2", nyudv2, "train", length=1)) == 1


def test_everything_missing_is_listed_at_once(nyudv2: Path) -> None:
    names = [f"{index:04d}" for index in range(10)]
    (nyudv2 / "gt_sets/train.txt").write_text("\n".join(names))
    for file in (nyudv2 / "normals").iterdir():
        file.unlink()
    (nyudv2 / "normals").rmdir()
    with pytest.raises(MtmError) as caught:
        open_dataset("nyudv2", nyudv2, "train")
    said = str(caught.value)
    assert "expected nyudv2 train with images/ID.png, segmentation/ID.png, depth/ID.npy, normals/ID.png" in said
    assert "the folder normals (ID.png)" in said
    assert "8 of 10 files of depth (0000.npy, 0003.npy, 0004.npy, ...)" in said and "docs/datasets.md" in said


@pytest.mark.parametrize("name", ["nyudv2", "pascal-context", "cityscapes"])
def test_wrong_roots_are_answered(name: str, tmp_path: Path) -> None:
    with pytest.raises(MtmError, match="is read from files; name its folder"):
        open_dataset(name)
    for root in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(MtmError, match=re.escape(f"{root}: expected ")):
            open_dataset(name, root)


def test_missing_cities(cityscapes: Path) -> None:
    (cityscapes / "disparity/val/bochum/bochum_000001_000019_disparity.png").unlink()
    with pytest.raises(MtmError, match=r"1 of 2 files of disparity/val \(bochum/bochum_000001_000019_disparity.png\)"):
        open_dataset("cityscapes", cityscapes, "val")
    assert len(open_dataset("cityscapes", cityscapes, "val", tasks=("semseg",))) == 2
    with pytest.raises(MtmError, match="leftImg8bit/train/CITY"):
        open_dataset("cityscapes", cityscapes, "train")


@pytest.mark.parametrize("text", ["", "../secret\n", "a/b\n"])
def test_strange_lists_are_refused(nyudv2: Path, text: str) -> None:
    (nyudv2 / "gt_sets/val.txt").write_text(text)
    with pytest.raises(MtmError, match=r"val.txt: expected item IDs, one a line"):
        open_dataset("nyudv2", nyudv2, "val")


DAMAGE = {  # file: what is written over it, and what the sentence must say
    "images/0002.png": (b"not a picture", "expected a picture"),
    "segmentation/0002.png": ("cut", "expected a picture"),
    "depth/0002.npy": (b"\x93NUMPY\x01\x00", "expected an array of numbers"),
    "normals/0002.png": (np.zeros((5, 8, 3), np.uint8), r"expected values of shape \(6, 8, 3\).* found \(5, 8, 3\)"),
    "edge/0002.png": (np.zeros((6, 8, 3), np.uint8), r"expected values of shape \(6, 8\)"),
}


@pytest.mark.parametrize("file", DAMAGE)
def test_damaged_files_are_named(nyudv2: Path, file: str) -> None:
    damage, sentence = DAMAGE[file]
    path = nyudv2 / file
    if isinstance(damage, np.ndarray):
        save(path, damage)
    else:
        path.write_bytes(path.read_bytes()[:48] if damage == "cut" else damage)
    with pytest.raises(MtmError, match=f"{re.escape(str(path))}: {sentence}"):
        open_dataset("nyudv2", nyudv2, "val")[0]


class Bomb:
    """What a pickle may do when it is opened."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return Path.touch, (self.target,)


def test_pickles_are_not_loaded(nyudv2: Path) -> None:
    np.save(nyudv2 / "depth/0002.npy", np.array([Bomb(nyudv2 / "gone off")], dtype=object), allow_pickle=True)
    with pytest.raises(MtmError, match="depth/0002.npy: expected an array of numbers"):
        open_dataset("nyudv2", nyudv2, "val")[0]
    assert not (nyudv2 / "gone off").exists()


def test_impossible_class_numbers_are_named(nyudv2: Path) -> None:
    save(nyudv2 / "segmentation/0002.png", np.full(SIZE, 41, dtype=np.uint8))
    with pytest.raises(MtmError, match="0002.png: expected class numbers below 40, or 255, found 40"):
        open_dataset("nyudv2", nyudv2, "val")[0]


def test_damaged_matlab_files_are_named(pascal: Path) -> None:
    path = pascal / "human_parts/2008_000001.mat"
    whole = path.read_bytes()
    rng = np.random.default_rng(1)
    outcomes = set()
    for _ in range(60):  # whatever the parser trips over comes out as one sentence naming the file
        broken = bytearray(whole[: int(rng.integers(1, len(whole)))] if rng.random() < 0.5 else whole)
        broken[int(rng.integers(len(broken)))] ^= int(rng.integers(1, 256))
        path.write_bytes(bytes(broken))
        try:
            open_dataset("pascal-context", pascal, "train", tasks=("human_parts",), size=SIZE)[0]
            outcomes.add("read")
        except MtmError as error:
            assert str(error).startswith(f"{path}: expected a")
            outcomes.add("named")
    assert "named" in outcomes
    scipy.io.savemat(path, {"other": 1})
    with pytest.raises(MtmError, match="with the variable anno"):
        open_dataset("pascal-context", pascal, "train", size=SIZE)[0]
    save_parts(path, [person(structs([{"part_name": "tentacle", "mask": mask(slice(0, 1), slice(0, 1))}]))])
    with pytest.raises(MtmError, match="another structure .*tentacle"):
        open_dataset("pascal-context", pascal, "train", size=SIZE)[0]


def test_single_person_and_single_part(pascal: Path) -> None:
    """MATLAB arrays of one struct come back as a bare dict."""
    rows = [{"part_name": "torso", "mask": mask(slice(0, 2), slice(0, 2))}]
    save_parts(pascal / "human_parts/2008_000001.mat", [person(structs(rows))])
    label = open_dataset("pascal-context", pascal, "train", size=SIZE)[0]["human_parts"]
    assert (label[:2, :2] == HUMAN_PARTS.index("torso")).all() and label.sum() == 4 * HUMAN_PARTS.index("torso")


def test_synthetic_by_name() -> None:
    train = open_dataset("synthetic", split="train", size=(24, 32), seed=5)
    val = open_dataset("synthetic", size=(24, 32), length=2, seed=5)
    assert len(train) == 2**31 and len(val) == 2
    for name, values in SyntheticScenes(3, (24, 32), seed=5)[2].items():
        assert torch.equal(train[2][name], values), name
    assert torch.equal(val[1]["depth"], SyntheticScenes(2, (24, 32), seed=HELD_OUT_SEED)[1]["depth"])
    assert train.name_of(2) != val.name_of(2)
    assert list(open_dataset("synthetic", size=(24, 32), tasks=("edge",))[0]) == ["image", "edge"]
    with pytest.raises(MtmError, match="larger ones are held out"):
        open_dataset("synthetic", split="train", seed=HELD_OUT_SEED)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"name": "kitti"}, "unknown dataset 'kitti'"),
        ({"split": "test"}, "unknown split 'test'; known: train, val"),
        ({"tasks": ("sal",)}, "has no task 'sal'"),
        ({"length": 0}, "at least one item"),
        ({"size": (0, 8)}, "expected a size above 0"),
        ({"seed": -1}, "a seed of 0 or more"),
    ],
)
def test_impossible_requests(nyudv2: Path, arguments: dict, sentence: str) -> None:
    with pytest.raises(MtmError, match=sentence):
        open_dataset(**{"name": "nyudv2", "root": nyudv2, "split": "train", **arguments})
