"""The multi-task delta, and the baselines it is told against."""

import json
from pathlib import Path

import pytest

from mtmamba.errors import MtmError
from mtmamba.metrics import BASELINES, Definitions, Matching, Scoreboard, load_baseline, multi_task_delta
from mtmamba.tasks import DATASETS, dataset

ODS = Definitions(matching=Matching(max_distance=0.011))
METERS = Scoreboard(dataset("nyudv2").tasks, ODS).meters


def test_the_papers_own_gain() -> None:
    """MTMamba, Swin-L, against the paper's single-task models: +2.38."""
    ours, single = BASELINES["nyudv2-mtmamba-swin-l"], load_baseline("nyudv2-single-task-swin-l")
    assert round(multi_task_delta(METERS, ours, single), 2) == 2.38
    parts = (55.82 / 54.32 - 1, 1 - 0.5066 / 0.5166, 1 - 18.63 / 19.21, 78.70 / 77.30 - 1)
    assert multi_task_delta(METERS, ours, single) == pytest.approx(100 * sum(parts) / 4, rel=1e-12)
    assert multi_task_delta(METERS, single, single) == 0


def test_every_baseline_fits_its_dataset() -> None:
    for name, figures in BASELINES.items():
        tasks = next(DATASETS[key].tasks for key in DATASETS if name.startswith(key))
        meters = Scoreboard(tasks, Definitions(published_maxf=True, matching=ODS.matching)).meters
        assert multi_task_delta(meters, figures, figures) == 0, name


def test_other_definitions_are_not_compared() -> None:
    single = BASELINES["nyudv2-single-task-swin-l"]
    with pytest.raises(MtmError, match="expected a baseline with boundary_f_pixel of edge, found odsF"):
        multi_task_delta(Scoreboard(dataset("nyudv2").tasks).meters, single, single)
    with pytest.raises(MtmError, match="expected a baseline of the tasks semseg, depth, found semseg, depth, normals"):
        multi_task_delta(Scoreboard(dataset("cityscapes").tasks).meters, single, single)


def test_baselines_from_files(tmp_path: Path) -> None:
    single = BASELINES["nyudv2-single-task-swin-l"]
    plain, evaluated = tmp_path / "a.json", tmp_path / "b.json"
    plain.write_text(json.dumps(single))
    evaluated.write_text(json.dumps({"model": "x.onnx", "figures": single}))
    assert load_baseline(str(plain)) == load_baseline(str(evaluated)) == single
    with pytest.raises(MtmError, match="expected a file or one of nyudv2-single-task-swin-l, .* found no file 'swin'"):
        load_baseline("swin")
    for text in ("{", "[]", '{"semseg": 3}', '{"semseg": {"mIoU": "high"}}', "{}"):
        plain.write_text(text)
        with pytest.raises(MtmError, match="expected"):
            load_baseline(str(plain))
