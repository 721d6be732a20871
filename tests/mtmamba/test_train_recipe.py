"""Recipes: the published values, what may be changed, the schedule; the order in which a run sees its items."""

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mtmamba.config import preset
from mtmamba.data.synthetic import SyntheticScenes
from mtmamba.errors import MtmError
from mtmamba.train.feed import Batches, Peopled, Remembered, training_views
from mtmamba.train.plan import places
from mtmamba.train.recipe import MAX_SEED, Recipe, differences, learning_rate, recipe_for


def recipe(**changes: Any) -> Recipe:
    return Recipe(**{"sizes": ((32, 40),), "iterations": 4, **changes})


@pytest.mark.parametrize(
    ("data", "iterations", "decay", "size"),
    [
        ("nyudv2", 50_000, 1e-5, (448, 576)),
        ("pascal-context", 50_000, 1e-5, (512, 512)),
        ("cityscapes", 40_000, 1e-6, (512, 1024)),
    ],
)
def test_published_values(data: str, iterations: int, decay: float, size: tuple[int, int]) -> None:
    found = recipe_for(preset(data, "swin-large"), "swin-large", {})
    assert (found.iterations, found.weight_decay, found.sizes) == (iterations, decay, (size,))
    assert (found.lr, found.power, found.batch, found.loss, dict(found.loss_weights)) == (1e-4, 0.9, 8, "log", {})


def test_mtmamba_plus_plus_sums() -> None:
    config = preset("nyudv2", "swin-tiny", variant="mtmamba++")
    found = recipe_for(config, "swin-tiny", {})
    assert found.loss == "sum" and dict(found.loss_weights) == {"normals": 10.0, "edge": 50.0}
    assert dict(recipe_for(config, "swin-tiny", {"loss": "log"}).loss_weights) == {}
    assert dict(recipe_for(config, "swin-tiny", {"loss_weights": {"edge": 2.0}}).loss_weights) == {"edge": 2.0}


def test_changes() -> None:
    config = preset("nyudv2", "swin-tiny", tasks=("depth",))
    assert recipe_for(config, "swin-tiny", {"minutes": 2.0}).iterations is None
    assert recipe_for(config, "swin-tiny", {"iterations": 7}).iterations == 7
    with pytest.raises(MtmError, match="--loss-weight: the model has no task 'edge'; it has depth"):
        recipe_for(config, "swin-tiny", {"loss_weights": {"edge": 2.0}})
    with pytest.raises(MtmError, match="--scenes: only synthetic scenes are rendered"):
        recipe_for(config, "swin-tiny", {"scenes": 3})
    nano = preset("synthetic", "nano")
    assert recipe_for(nano, "nano", {}).minutes == 1 and not recipe_for(nano, "nano", {}).augment
    scenes = recipe_for(nano, "nano", {"scenes": 10})
    assert scenes.augment and scenes.scales == (0.8, 1.25)
    assert recipe_for(nano, "nano", {"scenes": 10, "scales": (1, 2)}).scales == (1.0, 2.0)
    assert recipe_for(nano, "nano", {"iterations": 5}).minutes is None


def test_plain_data_and_back() -> None:
    one = recipe(sizes=((32, 40), (64, 64)), loss="sum", loss_weights={"edge": 50.0}, ema=0.9)
    assert Recipe.from_dict(one.to_dict()) == one
    assert differences(one.to_dict(), one.to_dict()) == []
    assert differences(one.to_dict(), recipe(sizes=one.sizes, loss="sum").to_dict()) == [
        "loss_weights: {'edge': 50.0}, now {}",
        "ema: 0.9, now 0.0",
    ]
    with pytest.raises(MtmError, match="unknown keys in the recipe: colour"):
        Recipe.from_dict({**one.to_dict(), "colour": 1})
    with pytest.raises(MtmError, match="ill-typed recipe"):
        Recipe.from_dict({**one.to_dict(), "lr": "fast"})


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"minutes": 1.0}, "either a number of iterations or of minutes"),
        ({"iterations": None}, "either a number of iterations or of minutes"),
        ({"lr": 0.0}, "more than 0 of lr"),
        ({"lr": float("nan")}, "more than 0 of lr"),
        ({"batch": 0}, "more than 0 of batch"),
        ({"ema": 1.0}, "ema of at least 0 and below 1"),
        ({"loss_weights": {"edge": -1.0}}, "loss weights of 0 or more, found -1.0 for edge"),
        ({"scales": (2.0, 0.5)}, "scales, in order"),
        ({"seed": MAX_SEED + 1}, "held out"),
    ],
)
def test_recipes_that_make_no_run(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(MtmError, match=sentence):
        recipe(**changes)


def test_schedule() -> None:
    plain = recipe(lr=1.0)
    assert [learning_rate(plain, x) for x in (0, 0.5, 1)] == pytest.approx([1, 0.5**0.9, 0])
    risen = recipe(lr=1.0, warmup=0.1)
    assert 0 < learning_rate(risen, 0) < 0.02
    assert learning_rate(risen, 0.05) == pytest.approx(0.51 * 0.95**0.9)
    assert learning_rate(risen, 0.2) == pytest.approx(0.8**0.9)


def keys(plan: Recipe, count: int, length: int = 10, **where: int) -> list[list[tuple[int, int, int]]]:
    return list(islice(Batches(length, plan, **where), count))


def test_the_order_is_decided_by_the_iteration() -> None:
    plan = recipe(batch=4, sizes=((32, 40), (64, 64)))
    straight = keys(plan, 8)
    assert straight[3:] == keys(plan, 5, iteration=3)
    assert [{key[0] for key in batch} for batch in straight[:4]] == [{0}, {1}, {0}, {1}]
    first_epoch = [index for batch in straight for which, epoch, index in batch if epoch == 0]
    assert sorted(first_epoch) == list(range(10)), "an epoch shows every item once"
    assert keys(recipe(batch=4, seed=1), 1) != keys(recipe(batch=4), 1)


def test_processes_share_the_batch() -> None:
    plan = recipe(batch=4, accumulate=2)
    joint = [key for batch in keys(plan, 6) for key in batch]
    zero, one = (keys(plan, 6, rank=rank, world=2) for rank in (0, 1))
    for i in range(3):
        shared = [key for part in (2 * i, 2 * i + 1) for key in zero[part] + one[part]]
        assert sorted(shared) == sorted(joint[4 * i : 4 * i + 4])
    with pytest.raises(MtmError, match="a batch that divides by 3 processes x 2 parts, found 4"):
        keys(plan, 1, world=3)


def test_remembered_scenes_are_rendered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = SyntheticScenes(2, (24, 32), seed=5)
    calls: list[int] = []

    class Counting:
        def __len__(self) -> int:
            return len(exact)

        def name_of(self, index: int) -> str:
            return exact.name_of(index)

        def decode(self, index: int, tasks: Any) -> Any:
            calls.append(index)
            return exact.source.decode(index, tasks)

    source = Remembered(Counting())
    for index in (0, 1, 0, 1):
        found, wanted = source.decode(index, exact.tasks), exact.source.decode(index, exact.tasks)
        assert found["image"].dtype == torch.uint8 and found["depth"].dtype == torch.float32
        assert torch.equal(found["semseg"], wanted["semseg"])
        torch.testing.assert_close(found["depth"], wanted["depth"], rtol=6e-4, atol=0)
    assert calls == [0, 1]
    assert torch.equal(Remembered(exact.source, half=False).decode(0, exact.tasks)["depth"], wanted_depth(exact))


def wanted_depth(scenes: SyntheticScenes) -> torch.Tensor:
    return scenes.source.decode(0, scenes.tasks)["depth"]


def test_scenes_with_people_are_preferred() -> None:
    rooms = SyntheticScenes(12, (24, 32), seed=0)
    people = [bool((rooms.source.decode(i, rooms.tasks)["human_parts"] > 0).float().mean() >= 0.01) for i in range(12)]
    wanted = [2 * i + (not people[2 * i] and people[2 * i + 1]) for i in range(6)]
    assert wanted != list(range(0, 12, 2)) and not all(people), "the case has all kinds of pairs"
    source = Peopled(rooms.source)
    assert len(source) == 6
    for index, number in enumerate(wanted):
        found, expected = (s.decode(n, rooms.tasks) for s, n in ((source, index), (rooms.source, number)))
        assert torch.equal(found["image"], expected["image"])


def test_views_are_of_the_recipes_scales() -> None:
    """A lone scene seen at twice its scale: its depths are halved, and every view is a part of it."""
    config = preset("synthetic", "nano")
    plain = training_views(config, recipe(sizes=((32, 48),), scenes=1, augment=False), None)[0, 0, 0]["depth"]
    views = training_views(config, recipe(sizes=((32, 48),), scenes=1, scales=(2.0, 2.0)), None)
    nearest = min(views[0, epoch, 0]["depth"].min().item() for epoch in range(12))
    farthest = max(views[0, epoch, 0]["depth"].max().item() for epoch in range(12))
    assert nearest == pytest.approx(plain.min().item() / 2, rel=0.1)
    assert farthest == pytest.approx(plain.max().item() / 2, rel=0.1)


def test_views_of_several_sizes_are_of_one_scene() -> None:
    config = preset("synthetic", "nano")
    views = training_views(config, recipe(sizes=((16, 24), (32, 48)), scenes=3, augment=False), None)
    small, large = views[0, 0, 1], views[1, 0, 1]
    assert small["image"].shape == (3, 16, 24) and large["image"].shape == (3, 32, 48)
    again = torch.nn.functional.interpolate(large["image"][None], size=(16, 24), mode="area")[0]
    assert np.corrcoef(again.flatten(), small["image"].flatten())[0, 1] > 0.97
    assert len(views) == 3


def test_places() -> None:
    run, file = Path("a/best.run"), Path("a/best.pth")
    assert places(file) == places(run) == (run, file)
    assert places(Path("a/new")) == (Path("a/new"), Path("a/new/best.pth"))
