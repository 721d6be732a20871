"""`mtm-train`: what it writes and says, resuming by command, and the errors of its options."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from mtmamba.checkpoint import load_checkpoint
from mtmamba.tasks import dataset
from mtmamba.train_cli import main

NAMES = {task.name for task in dataset("synthetic").tasks}
SHORT = ("--batch", "1", "--size", "16x24", "--eval-items", "2", "--workers", "0", "--scenes", "4", "--device", "cpu")


@pytest.fixture(autouse=True)
def threads_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.set_num_threads", lambda threads: None)


def run(*options: str) -> Result:
    return CliRunner().invoke(main, list(options))


def test_a_checkpoint_with_its_metrics(tmp_path: Path) -> None:
    output = tmp_path / "new" / "best.pth"
    result = run(*SHORT, "--iterations", "2", "--output", str(output), "--json")
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    assert printed["iterations"] == 2 and printed["checkpoint"] == str(output)
    assert set(printed["metrics"]) == set(printed["constant"]) == NAMES
    model = load_checkpoint(output)
    assert set(model(torch.zeros(1, 3, 32, 32))) == NAMES and model.config.input_size == (16, 24)
    extra = torch.load(output, weights_only=True)["extra"]
    assert extra["metrics"] == printed["metrics"] and extra == json.loads(output.with_suffix(".json").read_text())
    assert not result.stderr, "quiet in a pipe"
    assert sorted(path.name for path in output.parent.iterdir()) == ["best.json", "best.pth", "best.run"]

    again = run(*SHORT, "--iterations", "2", "--output", str(output))
    assert again.exit_code == 1 and "there is a run already" in again.stderr
    told = run("--resume", str(tmp_path / "new" / "best.run"), "--workers", "0", "--eval-items", "2")
    assert told.exit_code == 0 and "held-out images" in told.stdout and "2 steps" in told.stdout
    other = run("--resume", str(output), "--lr", "0.5", "--workers", "0")
    assert other.exit_code == 1 and "started otherwise (lr: 0.004, now 0.5)" in other.stderr
    anew = run(*SHORT, "--iterations", "1", "--output", str(output), "--overwrite", "--json")
    assert anew.exit_code == 0 and json.loads(anew.stdout)["iterations"] == 1


def test_options_reach_the_model_and_the_recipe(tmp_path: Path) -> None:
    options = ("--tasks", "depth,edge", "--variant", "mtmamba++", "--cross-task", "none", "--loss-weight", "edge=5")
    result = run(*SHORT, *options, "--iterations", "1", "--ema", "0", "--resume", "auto", "--output", str(tmp_path))
    assert result.exit_code == 0, result.output
    about = json.loads((tmp_path / "best.json").read_text())
    config = load_checkpoint(tmp_path / "best.pth").config
    assert (config.tasks, config.variant, config.cross_task) == (("depth", "edge"), "mtmamba++", "none")
    recipe = about["recipe"]
    assert recipe["loss"] == "sum" and recipe["loss_weights"] == {"edge": 5.0} and recipe["ema"] == 0
    assert recipe["sizes"] == [[16, 24]] and recipe["augment"] and set(about["metrics"]) == {"depth", "edge"}


def write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, pixels) if path.suffix == ".npy" else cv2.imwrite(str(path), pixels)


def street(root: Path) -> None:
    """A Cityscapes of one noisy 64x96 picture a split: labels twice as large as the network's input."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        stem = f"{split}/aachen/aachen_000000_000019"
        write(root / f"leftImg8bit/{stem}_leftImg8bit.png", rng.integers(0, 256, (64, 96, 3), np.uint8))
        write(root / f"gtFine/{stem}_gtFine_labelIds.png", rng.integers(0, 34, (64, 96), np.uint8))
        write(root / f"disparity/{stem}_disparity.png", rng.integers(0, 9000, (64, 96), np.uint16))


def flat(root: Path) -> None:
    """A NYUDv2 of one noisy 64x96 picture."""
    rng = np.random.default_rng(0)
    write(root / "images/1.png", rng.integers(0, 256, (64, 96, 3), np.uint8))
    write(root / "segmentation/1.png", rng.integers(0, 41, (64, 96), np.uint8))
    write(root / "depth/1.npy", rng.uniform(0.5, 9, (64, 96)))
    write(root / "normals/1.png", rng.integers(0, 256, (64, 96, 3), np.uint8))
    write(root / "edge/1.png", 255 * rng.integers(0, 2, (64, 96), np.uint8))
    (root / "gt_sets").mkdir()
    for split in ("train", "val"):
        (root / f"gt_sets/{split}.txt").write_text("1\n")


@pytest.mark.parametrize(
    ("data", "files", "variant"), [("cityscapes", street, "mtmamba++"), ("nyudv2", flat, "mtmamba")]
)
def test_datasets_from_files(data: str, files: Callable[[Path], None], variant: str, tmp_path: Path) -> None:
    """Two steps by the dataset's recipe, with a loader process, then scores and sample pages at the labels' size."""
    files(tmp_path / "data")
    options = (
        "--data",
        data,
        "--root",
        str(tmp_path / "data"),
        "--variant",
        variant,
        "--size",
        "32x48",
        "--batch",
        "2",
    )
    result = run(
        *options, "--iterations", "2", "--precision", "bf16", "--device", "cpu", "--output", str(tmp_path / "run")
    )
    assert result.exit_code == 0, result.output
    about = json.loads((tmp_path / "run/best.json").read_text())
    assert about["recipe"]["weight_decay"] == (1e-6 if data == "cityscapes" else 1e-5)
    assert all(value is not None for figures in about["metrics"].values() for value in figures.values())
    page = cv2.imread(str(tmp_path / "run/samples/000002-depth.png"))
    height, width = (64, 96) if data == "cityscapes" else (32, 48)
    assert page.shape == (height, 3 * width + 8, 3)


def test_a_signal_is_answered_with_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mtmamba.train.engine import Trainer

    step = Trainer.step

    def interrupted_step(self: Trainer, *arguments: Any) -> Any:
        done = step(self, *arguments)
        if done.iteration == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return done

    monkeypatch.setattr(Trainer, "step", interrupted_step)
    options = (*SHORT, "--iterations", "50", "--output", str(tmp_path))
    result = run(*options)
    assert result.exit_code == 130
    assert f"stopped after 2 steps; go on with: mtm-train --resume {tmp_path}" in result.stdout
    assert torch.load(tmp_path / "last.pth", weights_only=True)["training"]["iteration"] == 2


@pytest.mark.parametrize("size", ["96", "96x", "ax128", "4x128", "96x128x3", "-96x128"])
def test_bad_size(size: str) -> None:
    result = run(f"--size={size}")
    assert result.exit_code == 2 and "expected HEIGHTxWIDTH of at least 8 pixels" in result.stderr


def test_iterations_and_minutes() -> None:
    result = run("--iterations", "3", "--minutes", "1")
    assert result.exit_code == 2 and "not both" in result.stderr


@pytest.mark.parametrize(
    "option",
    ["--iterations=0", "--minutes=0", "--batch=0", "--lr=0", "--seed=-1", "--data=x", "--preset=x", "--ema=1"]
    + ["--loss=x", "--loss-weight=edge", "--precision=fp16", "--variant=x", "--cross-task=x", "--save-every=0"],
)
def test_bad_options(option: str) -> None:
    result = run(option)
    assert result.exit_code == 2 and "Invalid value" in result.stderr


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--tasks", "depth,colour"), "dataset synthetic has no task 'colour'"),
        (("--lr", "nan"), "more than 0 of lr"),
        (("--loss-weight", "colour=2"), "the model has no task 'colour'"),
        (("--data", "nyudv2"), "name its folder"),
        (("--resume", "nowhere"), "expected a checkpoint file, found nothing there"),
        (("--pretrained", "no-such.pth", "--scenes", "1"), "found nothing there"),
        (("--device", "cuda"), "choose --device cpu"),
    ],
)
def test_one_sentence_errors(
    options: tuple[str, ...], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    result = run(*options)
    assert result.exit_code == 1 and result.stderr.startswith("error: ") and sentence in result.stderr, result.stderr
    assert not list(tmp_path.rglob("*.pth"))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("mtmamba.train_cli.find_spec", lambda name: None if name == "lightning_fabric" else name)
    result = run("--output", str(tmp_path))
    assert result.exit_code == 1 and "mtm-train needs lightning_fabric" in result.stderr


def test_unwritable_output(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    result = run("--output", str(tmp_path / "file" / "best.pth"))
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ") and "choose another output with --output" in result.stderr
    result = run("--output", str(tmp_path / "file" / "best.pth"), "--json")
    assert result.exit_code == 1 and "choose another output" in json.loads(result.stdout)["error"]
