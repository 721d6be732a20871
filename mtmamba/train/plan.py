"""A run's plan: what to train, by which recipe, and where everything goes. Imports no torch."""

from dataclasses import dataclass
from pathlib import Path

from mtmamba.config import ModelConfig
from mtmamba.train.recipe import Recipe

STATE_NAME = "last.pth"
FOLDER_SUFFIX = ".run"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run: what to train (`config`; `encoder` is its preset's name) by which `recipe`, and what decides no number.

    folder: for the state, curves and samples. checkpoint: the best weights so far, with their metrics in a .json beside
    it. root: the dataset's folder. pretrained: see `load_pretrained_encoder`. eval_every: iterations; None: ten times a
    run of counted iterations, and at the end of any. eval_items: held-out items, None: the whole split. save_every:
    iterations between states, which are also saved at each evaluation. workers: loader processes. resume: go on from
    the folder's state. overwrite: start anew although the folder has one. device: auto, cpu or cuda. command: told to
    the files that are written.
    """

    config: ModelConfig
    recipe: Recipe
    encoder: str
    folder: Path
    checkpoint: Path
    root: Path | None = None
    pretrained: str | None = None
    eval_every: int | None = None
    eval_items: int | None = None
    save_every: int = 1000
    workers: int = 0
    resume: bool = False
    overwrite: bool = False
    device: str = "auto"
    command: str = ""


def places(output: Path) -> tuple[Path, Path]:
    """(the run's folder, the checkpoint) of an output: `best.pth` has the folder `best.run` beside it, and any other name
    is a folder that the checkpoint `best.pth` is in. A run's folder gives the same answer as its output did."""
    if output.suffix == ".pth":
        return output.with_suffix(FOLDER_SUFFIX), output
    if output.suffix == FOLDER_SUFFIX:
        return output, output.with_suffix(".pth")
    return output, output / "best.pth"
