"""mtm-eval: what it prints and writes, its page, and its errors."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from mtmamba.checkpoint import save_checkpoint
from mtmamba.config import preset
from mtmamba.model import MTMamba
from mtmamba.runtime.eval_cli import main
from mtmamba.tasks import NYU40

QUICK = ["--data", "synthetic", "--limit", "2", "--edge-thresholds", "3", "--workers", "0"]


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_the_table(toy_onnx: Path) -> None:
    result = run(toy_onnx, *QUICK)
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0].endswith("2 pictures of synthetic val")
    assert lines[1].split() == ["model", "best", "constant"]
    for task in ("semseg mIoU ", "human_parts mIoU ", "sal maxF ", "depth RMSE ", "normals mErr ", "edge odsF "):
        assert sum(line.startswith(task) for line in lines) == 1, task
    assert all(name in result.output for name in NYU40)


def test_the_model_it_finds_by_itself(toy_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(toy_onnx.parent)
    result = run(*QUICK)
    assert result.exit_code == 0 and result.output.startswith("model: toy.onnx\n"), result.output
    toy_onnx.unlink()
    result = run(*QUICK)
    assert result.exit_code == 1 and "no model (*.engine or *.onnx or " in result.output


def test_json_and_definitions(toy_onnx: Path) -> None:
    first = json.loads(run(toy_onnx, *QUICK, "--json").output)
    assert first["definitions"] == {
        "absent_classes": "zero", "maxF": "plain", "edge_tolerance": 0.011, "edge_thresholds": 3,
    }  # fmt: skip
    assert first["label_size"] == first["input_size"] == [48, 64] and first["pictures"] == 2
    assert set(first["figures"]["edge"]) == {
        "odsF", "oisF", "AP", "threshold", "boundary_f_pixel", "threshold_pixel",
    }  # fmt: skip
    assert first["constant"]["depth"]["RMSE"] > 0 and first["delta"] is None
    assert set(first["class_iou"]) == {"semseg", "human_parts"} and set(first["class_iou"]["semseg"]) == set(NYU40)
    assert first["class_iou"]["semseg"]["bathtub"] is None or first["class_iou"]["semseg"]["bathtub"] >= 0
    options = ("--published-maxf", "--absent-classes", "left-out", "--edge-thresholds", "0")
    table = run(toy_onnx, *QUICK, *options).output
    for headline in ("semseg mIoU_present", "sal maxF_published", "edge boundary_f_pixel"):
        assert headline in table


def test_its_own_json_is_a_baseline(toy_onnx: Path, tmp_path: Path) -> None:
    """Against itself the delta is 0; against a depth error 10 % lower it falls by 10 / 6."""
    first = json.loads(run(toy_onnx, *QUICK, "--json").output)
    baseline = tmp_path / "before.json"
    baseline.write_text(json.dumps(first))
    assert json.loads(run(toy_onnx, *QUICK, "--json", "--baseline", baseline).output)["delta"] == pytest.approx(
        0, abs=1e-3
    )
    first["figures"]["depth"]["RMSE"] /= 1.1
    baseline.write_text(json.dumps(first))
    result = run(toy_onnx, *QUICK, "--baseline", baseline)
    assert "multi-task delta" in result.output and "-1.67 %" in result.output


class Reader(HTMLParser):
    """Counts tags, and keeps text and sources."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_stands_alone(tmp_path: Path, make_toy: Callable[..., Path]) -> None:
    model, page = make_toy(tmp_path / "a <b>&.onnx"), tmp_path / "report.html"
    result = run(model, *QUICK, "--html", page, "--save-predictions", tmp_path / "p")
    assert result.exit_code == 0, result.output
    html = page.read_text()
    reader = Reader()
    reader.feed(html)
    assert "a <b>&.onnx on synthetic val" in reader.text and "b" not in reader.tags, "names are escaped"
    assert "script" not in reader.tags and "link" not in reader.tags
    # A chart each for semseg's and parts' IoU and confusion, the curve; two pictures of three views of six tasks.
    assert reader.tags.count("img") == 5 + 2 * 3 * 6
    assert all(source.startswith("data:image/png;base64,") for source in reader.sources)
    assert not re.search(r"https?://|url\(", html)
    for text in ("odsF", "best constant", "Surface normals", "Versions", "edge_thresholds 3"):
        assert text in reader.text
    assert sorted(path.suffix for path in (tmp_path / "p").iterdir()) == [".npz", ".npz"]
    with np.load(next((tmp_path / "p").iterdir())) as saved:
        assert saved["semseg"].shape == (48, 64)


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        (["--data", "nyudv2"], 1, "predicts human_parts, for which nyudv2 has no labels"),
        (["--data", "pascal-context", "--tasks", "semseg"], 1, "made for synthetic (40 classes)"),
        (["--data", "nyudv2", "--tasks", "depth"], 1, "name it with --root"),
        (["--data", "synthetic", "--split", "train"], 1, "choose how many rooms to score with --limit"),
        (["--data", "synthetic", "--batch", "4"], 1, "export again with mtm-export --batch 4"),
        (["--data", "synthetic", "--tasks", "smell"], 2, "--tasks"),
        (["--data", "synthetic", "--html", "report.pdf"], 1, "ending in .html"),
        (["--data", "synthetic", "--baseline", "nowhere"], 1, "nyudv2-single-task-swin-l"),
        (["--data", "synthetic", "--baseline", "nyudv2-single-task-swin-l"], 1, "expected a baseline of the tasks"),
        (["--data", "moon"], 2, "--data"),
        (["--data", "synthetic", "--size", "48"], 2, "--size"),
        ([], 2, "--data"),
    ],
)
def test_what_cannot_be_is_told_before_the_work(toy_onnx: Path, options: list[str], code: int, text: str) -> None:
    result = run(toy_onnx, *options)
    assert result.exit_code == code and text in " ".join(result.output.split()), result.output


def test_a_checkpoint_and_its_batch(tmp_path: Path) -> None:
    """A checkpoint of NYUDv2's tasks runs through torch and is scored on rooms; a batch of 2 gives the same."""
    checkpoint = tmp_path / "nyud.pth"
    torch.manual_seed(0)
    save_checkpoint(checkpoint, MTMamba(replace(preset("nyudv2", "nano"), input_size=(64, 96))))
    one = json.loads(run(checkpoint, *QUICK, "--json").output)
    assert one["backend"] == "torch" and one["input_size"] == [64, 96]
    assert list(one["figures"]) == ["semseg", "depth", "normals", "edge"]
    two = json.loads(run(checkpoint, *QUICK, "--json", "--batch", "2").output)
    for task, figures in one["figures"].items():
        assert two["figures"][task] == pytest.approx(figures, rel=1e-3), task
    told = json.loads(run(checkpoint, *QUICK, "--json", "--baseline", "nyudv2-single-task-swin-l").output)
    gains = [
        (told["figures"][task][name] / value - 1) * sign
        for task, name, value, sign in (
            ("semseg", "mIoU", 54.32, 1), ("depth", "RMSE", 0.5166, -1),
            ("normals", "mErr", 19.21, -1), ("edge", "odsF", 77.30, 1),
        )
    ]  # fmt: skip
    assert told["delta"] == pytest.approx(25 * sum(gains), rel=1e-4)


def write_nyudv2(root: Path, size: tuple[int, int]) -> list[np.ndarray]:
    """Two pictures in the community's layout; returns their depths, of which the first rows are not measured."""
    rng = np.random.default_rng(1)
    for folder in ("gt_sets", "images", "segmentation", "depth", "normals", "edge"):
        (root / folder).mkdir(parents=True)
    (root / "gt_sets" / "val.txt").write_text("0001\n0002\n")
    depths = []
    for name in ("0001", "0002"):
        depth = rng.uniform(1, 6, size).astype(np.float32)
        depth[:4] = 0
        depths.append(depth)
        np.save(root / "depth" / f"{name}.npy", depth)
        cv2.imwrite(str(root / "images" / f"{name}.png"), rng.integers(0, 256, (*size, 3), np.uint8))
        cv2.imwrite(str(root / "segmentation" / f"{name}.png"), rng.integers(0, 4, size, np.uint8))
        cv2.imwrite(str(root / "normals" / f"{name}.png"), rng.integers(0, 256, (*size, 3), np.uint8))
        cv2.imwrite(str(root / "edge" / f"{name}.png"), np.eye(*size, dtype=np.uint8) * 255)
    return depths


def test_a_dataset_from_files(tmp_path: Path, toy_onnx: Path) -> None:
    """NYUDv2's files, padded to a larger size: what is padded or not measured counts in nothing, so that the best
    constant's RMSE is the deviation of the depths that were written."""
    depths = write_nyudv2(tmp_path / "nyu", (40, 50))
    options = (
        "--data",
        "nyudv2",
        "--root",
        tmp_path / "nyu",
        "--size",
        "48x64",
        "--tasks",
        "semseg,depth,normals,edge",
    )
    result = run(toy_onnx, *options, "--workers", "0", "--edge-thresholds", "3", "--json")
    told = json.loads(result.output)
    assert result.exit_code == 0 and told["pictures"] == 2 and told["label_size"] == [48, 64]
    measured = np.concatenate([depth[depth > 0] for depth in depths]).astype(np.float64)
    assert told["constant"]["depth"]["RMSE"] == pytest.approx(measured.std(), abs=1e-5)
    ious = told["class_iou"]["semseg"]
    assert all(ious[name] is not None for name in ("wall", "floor", "cabinet")), "labels 1 to 3; 0 is ignored"
