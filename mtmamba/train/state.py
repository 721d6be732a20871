"""The state of a run, to go on from exactly: `last.pth`, a checkpoint like any other with one more entry, `training`.

Its `model` is what evaluation and export use (the average of the weights where there is one); `training` holds what only
the next step needs. All of it is tensors and plain data. Writing is atomic: a run killed in the middle of it leaves the
state before.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mtmamba.checkpoint import read_content, save_checkpoint
from mtmamba.config import ModelConfig
from mtmamba.errors import MtmError
from mtmamba.model import MTMamba
from mtmamba.train.engine import Trainer
from mtmamba.train.plan import STATE_NAME
from mtmamba.train.recipe import Recipe, differences

TRAINING_VERSION = 2


@dataclass(kw_only=True)
class Counters:
    """What a run has come to beside its weights: steps, seconds spent in them, the best score so far."""

    iteration: int = 0
    seconds: float = 0.0
    best: float = float("-inf")


@dataclass(frozen=True, kw_only=True)
class State:
    """A saved state: `model` and, where an average is kept, the trained `weights` themselves, by tensor name."""

    path: Path
    config: ModelConfig
    recipe: Recipe
    counters: Counters
    encoder: str
    model: dict[str, Tensor]
    weights: dict[str, Tensor] | None
    optimizer: dict[str, Any]
    best: dict[str, Any]


def save_state(path: Path, trainer: Trainer, counters: Counters, encoder: str, best: dict[str, Any]) -> None:
    """Write the state atomically; best: what was written beside the best checkpoint so far. Raises MtmError where it
    cannot be written; the older
    state then stays."""
    model = trainer.weights
    assert isinstance(model, MTMamba)
    raw = trainer.module.state_dict() if trainer.ema else None
    training = {
        "version": TRAINING_VERSION,
        "recipe": trainer.recipe.to_dict(),
        "encoder": encoder,
        "iteration": counters.iteration,
        "seconds": counters.seconds,
        "best": counters.best,
        "weights": raw and {name: tensor.detach().cpu() for name, tensor in raw.items()},
        "optimizer": trainer.optimizer.state_dict(),
    }
    save_checkpoint(path, model, {"iterations": counters.iteration, "best": best}, training)


def read_state(path: Path) -> State:
    """Read a state, as data. path: the file, or the run's folder. Raises MtmError for a file that is none."""
    path = path / STATE_NAME if path.is_dir() else path
    content = read_content(path)
    training = content.get("training")
    if not isinstance(training, dict):
        raise MtmError(
            f"{path}: expected the state of a training run, found a checkpoint without one; name the run's folder or its "
            f"{STATE_NAME} with --resume"
        )
    if training.get("version") != TRAINING_VERSION:
        raise MtmError(
            f"{path}: expected a training state of version {TRAINING_VERSION}, found version {training.get('version')!r}; "
            "go on with the mtmamba release that wrote it, or start again without --resume"
        )
    try:
        return State(
            path=path,
            config=ModelConfig.from_dict(content["config"]),
            recipe=Recipe.from_dict(training["recipe"]),
            counters=Counters(
                iteration=int(training["iteration"]), seconds=float(training["seconds"]), best=float(training["best"])
            ),
            encoder=str(training["encoder"]),
            model=content["model"],
            weights=training["weights"],
            optimizer=training["optimizer"],
            best=dict(content["extra"]["best"]),
        )
    except MtmError as error:
        raise MtmError(f"{path}: {error}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise MtmError(f"{path}: the training state is damaged ({error}); start again without --resume") from error


def check_same_run(state: State, config: ModelConfig, recipe: Recipe) -> None:
    """Raise MtmError naming what differs between the run that wrote the state and the one that would go on."""
    found = differences(state.config.to_dict(), config.to_dict())
    found += differences(state.recipe.to_dict(), recipe.to_dict())
    if found:
        raise MtmError(
            f"{state.path}: this run was started otherwise ({'; '.join(found)}); leave these options out to go on with it, "
            "or choose another --output"
        )


def restore(trainer: Trainer, state: State) -> None:
    """Put a state into a fresh trainer of the same configuration and recipe. Raises MtmError where it does not fit."""
    try:
        trainer.module.load_state_dict(state.weights if state.weights is not None else state.model)
        if trainer.ema:
            trainer.ema.module.load_state_dict(state.model)
        trainer.optimizer.load_state_dict(state.optimizer)
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise MtmError(
            f"{state.path}: the training state is damaged ({reason}); start again without --resume"
        ) from error
    trainer.iteration = state.counters.iteration
