"""mtm-info: the papers' numbers, stages that add up, and a command that answers."""

import json
import math

import pytest
import torch
from click.testing import CliRunner

from mtmamba import MTMamba, preset, save_checkpoint
from mtmamba.info import model_cost
from mtmamba.info_cli import main


@pytest.fixture(scope="module")
def nyud():
    return model_cost(preset("nyudv2", "swin-large"))


def test_flops_of_the_paper(nyud):
    total = nyud[-1]
    assert total.name == "total"
    assert total.parameters == 307_999_137
    assert total.paper_flops / 1e9 == pytest.approx(540.81, rel=1e-3)  # found 540.77: the final resizing is not counted


def test_state_updates_by_hand(nyud):
    """13 SS2D a stage (4 tasks x 2 STM, 4 own, 1 shared), D = 2C, 4 directions, 16 states."""
    maps = ((28 * 36, 768), (56 * 72, 384), (112 * 144, 192))
    rows = {row.name: row for row in nyud}
    for (pixels, channels), stride in zip(maps, (16, 8, 4), strict=True):
        assert rows[f"decoder 1/{stride}"].state_updates == 13 * pixels * 2 * channels * 4 * 16
    assert nyud[-1].state_updates == sum(13 * pixels * 2 * channels * 64 for pixels, channels in maps)


def test_multiply_adds_by_hand(nyud):
    """One head: Linear(C -> 16C) at 1/4, Linear(C -> 1) at full size. First encoder level: patches, then two blocks."""
    rows = {row.name: row for row in nyud}
    assert rows["head depth"].multiply_adds == 112 * 144 * 192 * 16 * 192 + 448 * 576 * 192
    padded, pixels, C, window = 120 * 144, 112 * 144, 192, 144  # 112 rows are padded to ten windows of 12
    block = padded * (4 * C * C + 2 * window * C) + pixels * 8 * C * C
    assert rows["encoder 1/4"].multiply_adds == pixels * 48 * C + 2 * block


@pytest.mark.parametrize("variant, cross_task", [("mtmamba", "shared"), ("mtmamba++", "learned")])
def test_stages_add_up(variant, cross_task):
    *stages, total = model_cost(preset("cityscapes", "nano", variant=variant, cross_task=cross_task), (65, 64))
    for figure in ("parameters", "multiply_adds", "paper_flops"):
        assert sum(getattr(row, figure) for row in stages) == getattr(total, figure)
    assert total.size == (96, 64)
    assert all(row.multiply_adds > 0 for row in stages)


def invoke(*options):
    return CliRunner().invoke(main, list(options))


def test_command_with_a_preset():
    result = invoke("--dataset", "nyudv2", "--encoder", "nano", "--size", "64x96")
    assert result.exit_code == 0
    assert "64x96 pixels" in result.stdout and "decoder 1/16" in result.stdout and "head normals" in result.stdout
    total = model_cost(preset("nyudv2", "nano"), (64, 96))[-1]
    assert f"{total.parameters:,}" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 110


def test_command_with_a_checkpoint_as_json(golden_folder, tmp_path):
    result = invoke("--ckpt", str(golden_folder / "mtmamba_plus_nyud_tiny.pth.tar"), "--json")
    values = json.loads(result.stdout)
    assert result.exit_code == 0 and values["config"]["variant"] == "mtmamba++" and values["size"] == [448, 576]
    torch.manual_seed(0)
    model = MTMamba(preset("nyudv2", "nano", ("depth",)))
    save_checkpoint(tmp_path / "best.pth", model)
    values = json.loads(invoke("--ckpt", str(tmp_path / "best.pth"), "--json").stdout)
    count = sum(p.numel() for p in model.parameters())
    assert values["parameters"] == count == sum(row["parameters"] for row in values["stages"])
    assert math.isclose(values["weights_mib"]["fp32"], count * 4 / 2**20, abs_tol=0.1)


@pytest.mark.parametrize(
    "options, status, words",
    [
        ((), 1, "give --ckpt or --dataset"),
        (("--ckpt", "none.pth"), 1, "found nothing there"),
        (("--ckpt", "none.pth", "--cross-task", "own"), 1, "--cross-task: a checkpoint has its own"),
        (("--dataset", "nyudv2", "--variant", "mtmamba++", "--cross-task", "own"), 1, "cross_task 'own' is none of"),
        (("--dataset", "imagenet"), 2, "imagenet"),
        (("--dataset", "nyudv2", "--size", "448"), 2, "HEIGHTxWIDTH"),
        (("--dataset", "nyudv2", "--size", "0x32"), 2, "HEIGHTxWIDTH"),
    ],
)
def test_bad_options(options, status, words):
    result = invoke(*options)
    assert result.exit_code == status and words in result.stderr
    assert "Traceback" not in result.output
