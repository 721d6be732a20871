"""`mtm-data check`: what it counts, what it measures, and what it draws."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from mtmamba.data.check import AxesVote, spread
from mtmamba.data.page import BLANK, image_picture, label_picture
from mtmamba.data.synthetic import SyntheticScenes, render_sample
from mtmamba.data_cli import main
from mtmamba.tasks import dataset

SIZE = (60, 80)
STORED = np.array([1, -1, -1], dtype=np.float32)  # x right, y up, z towards the camera


@pytest.fixture(scope="module")
def rooms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four rendered rooms in the layout of nyudv2, normals along other axes than ours."""
    root = tmp_path_factory.mktemp("nyudv2")
    for folder in ("gt_sets", "images", "segmentation", "depth", "normals", "edge"):
        (root / folder).mkdir()
    for index in range(4):
        room = render_sample(11, index, SIZE)
        normals = np.rint((room.normals * STORED + 1) * 127.5).astype(np.uint8)
        np.save(root / f"depth/{index}.npy", room.depth)
        for folder, values in (
            ("images", room.image),
            ("segmentation", room.semseg + np.uint8(1)),
            ("normals", normals),
            ("edge", (255 * room.edge).astype(np.uint8)),
        ):
            Image.fromarray(values).save(root / folder / f"{index}.png")
    (root / "gt_sets/train.txt").write_text("0\n1\n2\n")
    (root / "gt_sets/val.txt").write_text("3\n")
    return root


def test_check_counts_measures_and_draws(rooms: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.png"
    run = CliRunner().invoke(main, ["check", "nyudv2", str(rooms), "--output", str(page), "--json"])
    assert run.exit_code == 0, run.output
    result = json.loads(run.stdout)
    train, val = result["splits"]["train"], result["splits"]["val"]
    assert (train["items"], train["decoded"], train["published"]) == (3, 3, 795)
    assert (val["items"], val["decoded"], val["published"]) == (1, 1, 654)
    assert train["axes"]["axes"] == val["axes"]["axes"] == ["x", "-y", "-z"]
    share = 100 * SIZE[0] * SIZE[1] / (448 * 576)
    for task in train["tasks"].values():
        assert task["counted"] == pytest.approx(share, abs=0.01), "the padding does not count"
    assert "wall" in train["tasks"]["semseg"]["classes"]
    assert sum(train["tasks"]["semseg"]["classes"].values()) == pytest.approx(100, abs=0.5)
    depths = np.stack([np.load(rooms / f"depth/{index}.npy") for index in range(3)])
    assert train["tasks"]["depth"]["least"] == pytest.approx(depths.min())
    edges = np.mean([np.asarray(Image.open(rooms / f"edge/{index}.png")) > 127 for index in range(3)])
    assert train["tasks"]["edge"]["classes"]["boundary"] == pytest.approx(100 * edges, abs=0.01)
    assert train["tasks"]["depth"]["largest"] == pytest.approx(depths.max())
    assert cv2.imread(str(page)).shape == (24 + 4 * (249 + 6), 6 + 5 * (320 + 6), 3)


def test_check_speaks(rooms: Path) -> None:
    run = CliRunner().invoke(main, ["check", "nyudv2", str(rooms), "--split", "val", "--all"])
    assert run.exit_code == 0, run.output
    assert "val: 1 items, where the published split has 654; every file is there; 1 decoded" in run.output
    assert "normals are stored along (x, -y, -z)" in run.output and "train" not in run.output


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (["nyudv2"], 1, "is read from files; name its folder"),
        (["synthetic", "--all"], 1, "leave --all out"),
        (["synthetic", "--output", "page.txt"], 1, "expected an output name ending in .png"),
        (["kitti"], 2, "kitti"),
        (["synthetic", "--samples", "0"], 2, "--samples"),
    ],
)
def test_check_refuses(arguments: list[str], status: int, sentence: str) -> None:
    run = CliRunner().invoke(main, ["check", *arguments])
    assert run.exit_code == status and sentence in run.output


def test_check_names_a_damaged_file(rooms: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    for file in rooms.rglob("*.*"):
        (copy / file.relative_to(rooms)).parent.mkdir(parents=True, exist_ok=True)
        (copy / file.relative_to(rooms)).write_bytes(file.read_bytes())
    (copy / "edge/3.png").write_bytes(b"gone")
    page = tmp_path / "page.png"
    run = CliRunner().invoke(main, ["check", "nyudv2", str(copy), "--output", str(page)])
    assert run.exit_code == 1 and f"error: {copy / 'edge/3.png'}: expected a picture" in run.output
    assert not page.exists() and [file.name for file in tmp_path.iterdir()] == ["copy"], "nothing half-written"


@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, -1, -1), (1, -1, 1)])
@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1)])
def test_axes_are_found(signs: tuple[int, int, int], order: tuple[int, int, int]) -> None:
    vote = AxesVote(focal=65.0)  # roughly: the cameras differ
    assert vote.result() is None
    for index in range(3):
        room = render_sample(2, index, SIZE)
        stored = (room.normals * np.array(signs))[..., list(order)].transpose(2, 0, 1)
        stored[:, :5] = 0  # pixels that do not count
        vote.add(stored, room.depth)
    result = vote.result()
    assert result is not None and result["agreement"] > 0.95
    assert result["axes"] == [("-" if signs[axis] < 0 else "") + "xyz"[axis] for axis in order]


def test_pictures_of_samples() -> None:
    sample = SyntheticScenes(1, SIZE, seed=4)[0]
    room = render_sample(4, 0, SIZE)
    image = image_picture(sample["image"], SIZE)
    assert np.abs(image.astype(int) - room.image[:, :, ::-1]).max() <= 1
    assert image_picture(sample["image"], (120, 160)).shape == (120, 160, 3)
    for task in dataset("synthetic").tasks:
        whole = label_picture(image, sample[task.name], task)
        assert whole.shape == image.shape and whole.dtype == np.uint8
        holes = sample[task.name].clone()
        holes[..., 10:20, :] = 255 if task.kind in ("labels", "saliency", "boundary") else 0
        picture = label_picture(image, holes, task)
        assert set(np.unique(picture[10:20])) == {BLANK, BLANK + 25}, task.name
        if task.kind in ("normals", "boundary", "saliency"):  # others shift with what is seen
            assert np.array_equal(picture[20:], whole[20:]), task.name
        nothing = torch.full_like(holes, 255 if task.kind in ("labels", "saliency", "boundary") else 0)
        assert set(np.unique(label_picture(image, nothing, task))) == {BLANK, BLANK + 25}


def test_spread() -> None:
    assert spread(10, 3) == [0, 4, 9] and spread(2, 8) == [0, 1] and spread(1, 1) == [0]
