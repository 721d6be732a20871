"""The order of items: every item once an epoch, the same for any number of processes and workers, and after a resume."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from mtmamba.data import open_dataset
from mtmamba.data.sampler import EndlessSampler
from mtmamba.errors import MtmError


def test_sampler_covers_every_epoch_and_resumes() -> None:
    whole = list(islice(EndlessSampler(7, seed=3), 30))
    for epoch in range(4):
        assert sorted(whole[7 * epoch : 7 * epoch + 7]) == [(epoch, index) for index in range(7)]
    assert whole[:7] != [(0, index) for index in range(7)] and [i for _, i in whole[:7]] != [i for _, i in whole[7:14]]
    assert list(islice(EndlessSampler(7, seed=3, start=11), 19)) == whole[11:]
    assert list(islice(EndlessSampler(7, seed=4), 30)) != whole
    ranks = [list(islice(EndlessSampler(7, seed=3, start=4, rank=rank, world=2), 13)) for rank in range(2)]
    assert [pair for both in zip(*ranks, strict=True) for pair in both] == whole[4:]
    assert list(islice(EndlessSampler(2**31, seed=3, start=5), 2)) == [(0, 5), (0, 6)]
    with pytest.raises(MtmError, match="rank below 2"):
        EndlessSampler(7, seed=3, rank=2, world=2)


@pytest.fixture
def street(tmp_path: Path) -> Path:
    """Two pictures of Cityscapes' kind."""
    rng = np.random.default_rng(0)
    for index in range(2):
        for folder, suffix, values in (
            ("leftImg8bit", "leftImg8bit", rng.integers(0, 256, (32, 48, 3), dtype=np.uint8)),
            ("gtFine", "gtFine_labelIds", rng.integers(0, 34, (32, 48), dtype=np.uint8)),
            ("disparity", "disparity", rng.integers(0, 2**15, (32, 48), dtype=np.uint16)),
        ):
            path = tmp_path / folder / "train/aachen" / f"aachen_{index:06d}_000019_{suffix}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(path)
    return tmp_path


def batches(root: Path, workers: int, seed: int) -> list[dict[str, torch.Tensor]]:
    data = open_dataset("cityscapes", root, "train", size=(12, 16), augment=True, seed=seed)
    loader = DataLoader(data, batch_size=2, sampler=EndlessSampler(len(data), seed=1), num_workers=workers)
    return list(islice(loader, 4))


def test_workers_change_nothing(street: Path) -> None:
    here, there = batches(street, 0, seed=1), batches(street, 2, seed=1)
    for one, other in zip(here, there, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert not torch.equal(here[0]["image"], here[1]["image"]), "another epoch"
    assert not torch.equal(here[0]["image"], batches(street, 0, seed=2)[0]["image"]), "another seed"
