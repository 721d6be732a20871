"""Recipes: everything that decides the numbers of a training run, and the published values by dataset. Imports no
torch."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from mtmamba.config import ModelConfig
from mtmamba.errors import MtmError
from mtmamba.tasks import dataset

Size = tuple[int, int]  # (height, width), pixels
Combine = Literal["log", "sum"]
Precision = Literal["fp32", "bf16"]

MAX_SEED = 2**31 - 1
"""Larger seeds are held out: the evaluation scenes of `synthetic` come from them."""

RECIPES: dict[str, dict[str, Any]] = {
    "nyudv2": {"iterations": 50_000},
    "pascal-context": {"iterations": 50_000},
    "cityscapes": {"iterations": 40_000, "weight_decay": 1e-6},
    "synthetic": {"iterations": 50_000, "augment": False},  # endless: no scene is seen twice
}
"""What a dataset's published training sets differently from `Recipe`'s own defaults; sizes are `mtmamba.tasks`'s."""

NANO: dict[str, Any] = {"lr": 4e-3, "warmup": 0.05, "batch": 4, "ema": 0.998}
"""The nano model starts from scratch: a larger rate, risen to slowly. A short run wants a short average."""

SCENES: dict[str, Any] = {"augment": True, "scales": (0.8, 1.25)}
"""Rendered scenes that are seen again. Larger views are nearer (their depth is divided by the scale) and nothing in a room
tells its scale as things in a photograph do: from 0.5 to 2 times, a small model learns depths of the middle of that range."""

NANO_LOOK: dict[str, Any] = {"sizes": [(64, 96)], "iterations": None, "minutes": 1.0}
"""The nano model on `synthetic`, unless told otherwise: a look, not a training."""

PLUS_PLUS_WEIGHTS: dict[str, dict[str, float]] = {
    "nyudv2": {"normals": 10.0, "edge": 50.0},
    "pascal-context": {"human_parts": 2.0, "sal": 5.0, "normals": 10.0, "edge": 50.0},
}
"""Weights of the plain sum that MTMamba++ is trained with; tasks not named have 1."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train. Exactly one of `iterations` and `minutes` is given.

    sizes: (height, width) in pixels of the training images; with several, steps take them in turn. batch: images a
    step, over all processes and accumulated parts. accumulate: parts that a process's share of the batch is cut into,
    one after the other. lr: AdamW's at the start; it falls as (1 - progress)^power, where progress is the share of the
    iterations or minutes spent, after a linear rise over the first `warmup` of it. clip_norm: gradients are scaled down
    to this norm. loss, loss_weights: see `mtmamba.losses.total_loss`. ema: decay of the weights' moving average; 0 for
    none. recompute: activation checkpointing. augment: random views and colours; scales: (from, to) of the views.
    scenes: of `synthetic`, render only so many, most of them with people, and see them again in other views; None: never
    the same twice.
    Raises MtmError for values that make no run.
    """

    sizes: tuple[Size, ...]
    iterations: int | None = None
    minutes: float | None = None
    batch: int = 8
    accumulate: int = 1
    lr: float = 1e-4
    weight_decay: float = 1e-5
    power: float = 0.9
    warmup: float = 0.0
    clip_norm: float = 10.0
    loss: Combine = "log"
    loss_weights: Mapping[str, float] = field(default_factory=dict)
    precision: Precision = "fp32"
    ema: float = 0.0
    recompute: bool = False
    scenes: int | None = None
    augment: bool = True
    scales: tuple[float, float] = (0.5, 2.0)
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.iterations is None) == (self.minutes is None):
            raise MtmError(
                "expected either a number of iterations or of minutes; give --iterations or --minutes, not both"
            )
        positive = ("iterations", "minutes", "batch", "accumulate", "lr", "clip_norm", "scenes", "power")
        wrong = [
            name for name in positive if (value := getattr(self, name)) is not None and not 0 < value < float("inf")
        ]
        wrong += [] if 0 < self.scales[0] <= self.scales[1] < float("inf") else ["scales, in order"]
        if wrong or not self.sizes:
            raise MtmError(f"expected more than 0 of {', '.join(wrong) or 'sizes'}; choose another value")
        for name, most in (("ema", 1.0), ("warmup", 1.0), ("weight_decay", math.inf)):
            if not 0 <= getattr(self, name) < most:
                raise MtmError(f"expected {name} of at least 0 and below {most:g}, found {getattr(self, name)}")
        bad = [name for name, weight in self.loss_weights.items() if not 0 <= weight < math.inf]
        if bad:
            raise MtmError(f"expected loss weights of 0 or more, found {self.loss_weights[bad[0]]} for {bad[0]}")
        if not 0 <= self.seed <= MAX_SEED:
            raise MtmError(f"expected a seed of 0 to {MAX_SEED}, found {self.seed}; larger ones are held out")

    def share(self, processes: int) -> int:
        """Images that one process takes at a time. Raises MtmError where the batch does not divide."""
        share, rest = divmod(self.batch, processes * self.accumulate)
        if rest or not share:
            raise MtmError(
                f"expected a batch that divides by {processes} processes x {self.accumulate} parts, found {self.batch}; "
                "choose another --batch"
            )
        return share

    def to_dict(self) -> dict[str, Any]:
        """Plain data; `from_dict` reads it back."""
        plain = {"sizes": [list(size) for size in self.sizes], "scales": list(self.scales)}
        return {**asdict(self), **plain, "loss_weights": dict(self.loss_weights)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Recipe":
        """Raises MtmError naming unknown keys and wrong types."""
        known = {item.name for item in fields(cls)}
        unknown = sorted(str(name) for name in values.keys() - known)
        if unknown:
            raise MtmError(f"unknown keys in the recipe: {', '.join(unknown)}; another version of mtmamba wrote it")
        try:
            sizes = tuple((int(height), int(width)) for height, width in values["sizes"])
            least, most = values.get("scales", cls.scales)
            return cls(**{**values, "sizes": sizes, "scales": (float(least), float(most))})
        except (KeyError, TypeError, ValueError) as error:
            raise MtmError(f"incomplete or ill-typed recipe: {error}") from error


def recipe_for(config: ModelConfig, encoder: str, changes: Mapping[str, Any]) -> Recipe:
    """The published recipe for a model, `changes` by field name made to it.

    encoder: the preset's name. Raises MtmError for a change that is no field or makes no run.
    """
    values = {"sizes": [dataset(config.dataset).input_size], **RECIPES[config.dataset]}
    if config.variant == "mtmamba++":
        values |= {"loss": "sum", "loss_weights": PLUS_PLUS_WEIGHTS.get(config.dataset, {})}
    if encoder == "nano":
        values |= NANO | (NANO_LOOK if config.dataset == "synthetic" else {})
    if changes.get("scenes"):
        if config.dataset != "synthetic":
            raise MtmError(f"--scenes: only synthetic scenes are rendered; {config.dataset} has the images it has")
        values |= SCENES
    if changes.get("loss", values.get("loss")) != values.get("loss"):
        values.pop("loss_weights", None)  # weights of one total mean nothing in the other
    if changes.keys() & {"iterations", "minutes"}:
        values |= {"iterations": None, "minutes": None}
    recipe = Recipe.from_dict({**values, **changes})
    strangers = sorted(recipe.loss_weights.keys() - set(config.tasks))
    if "loss_weights" in changes and strangers:
        raise MtmError(f"--loss-weight: the model has no task {strangers[0]!r}; it has {', '.join(config.tasks)}")
    return recipe


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """`name: old, now new` for every value that differs."""
    return [f"{name}: {old.get(name)!r}, now {new.get(name)!r}" for name in new if old.get(name) != new.get(name)]


def learning_rate(recipe: Recipe, progress: float) -> float:
    """The rate at this share of the run."""
    rise = min(1.0, (progress + 1e-3) / recipe.warmup) if recipe.warmup else 1.0
    return recipe.lr * rise * (1 - min(progress, 1.0)) ** recipe.power
