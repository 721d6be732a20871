"""What of the benchmarks runs without a GPU: the work they count, the path they compare with, the GPU check's books."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import gpu_check  # noqa: E402
import gpu_check_tests  # noqa: E402
import scan_gpu  # noqa: E402

from mtmamba.ops import selective_scan, selective_scan_2d  # noqa: E402

SMALL = scan_gpu.Size(name="small", batch=2, groups=3, channels=20, height=5, width=7, rank=3)


def test_exps_of_a_frame():
    """NYUDv2, Swin-L: per stage two STM blocks and one CTM block of four tasks, and its shared map; 9.0 G state updates."""
    of_frame = {size.name: size for size in scan_gpu.sizes((1,)) if size.name.startswith("nyudv2")}
    total = sum((1 if name.endswith("shared") else 3) * size.exps for name, size in of_frame.items())
    assert len(of_frame) == 6
    assert total == 13 * 4 * 16 * (1008 * 1536 + 4032 * 768 + 16128 * 384)
    assert total == pytest.approx(9.0e9, rel=0.01)


def test_bytes_are_those_of_the_tensors():
    tensors = scan_gpu.make_tensors(SMALL, torch.float16, "cpu")
    y = selective_scan_2d(**tensors)
    assert SMALL.bytes(2) == sum(t.nbytes for t in (*tensors.values(), y))


def test_the_compared_path_computes_the_same():
    tensors = scan_gpu.make_tensors(SMALL, torch.float32, "cpu")
    expected = selective_scan_2d(**tensors)
    found = scan_gpu.four_directions(selective_scan, tensors)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_row():
    row = scan_gpu.row_of(SMALL, 2, [3.0, 1.0, 2.0], exps_a_second=SMALL.exps * 1e3)
    assert row["floor_ms"] == pytest.approx(1.0)
    assert (row["p50_ms"], row["p99_ms"], row["times_floor"]) == (2.0, 3.0, pytest.approx(2.0))


def check(*arguments, **environment):
    return subprocess.run(
        [str(ROOT / "benchmarks" / "gpu_check.sh"), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": "", **environment},
    )


def test_list_names_every_step():
    done = check("--list")
    assert done.returncode == 0, done.stderr
    names = [line.split()[0] for line in done.stdout.splitlines()]
    kernels = ["build", "cpp", "memcheck", "racecheck", "initcheck", "synccheck"]
    assert names == [*kernels, "pytest", "accuracy", "scan", "model", "engine"]
    assert "[not run: no NVIDIA GPU]" in done.stdout


def test_without_a_gpu_it_says_so(tmp_path):
    done = check("--out", tmp_path, "--steps", "memcheck,scan")
    assert done.returncode == 3, done.stderr
    answer = json.loads((tmp_path / "gpu_check.json").read_text())
    assert answer["gpu"] is None
    assert [(step["name"], step["status"], step["why"]) for step in answer["steps"]] == [
        ("memcheck", "not run", "no NVIDIA GPU"),
        ("scan", "not run", "no NVIDIA GPU"),
    ]
    assert not [step for step in answer["steps"] if str(ROOT) in step["command"] or sys.executable in step["command"]]
    assert "no NVIDIA GPU" in (tmp_path / "gpu_check.log").read_text()


def test_bad_options(tmp_path):
    assert check("--steps", "nothing").returncode == 2
    assert check("--no-such").returncode == 2
    assert "no such folder" in check("--list", "--tensorrt", tmp_path / "none").stderr


def outcome(tmp_path, command, limit_s=20, **more):
    step = gpu_check.Step(name="step", summary="", command=["sh", "-c", command], limit_s=limit_s, **more)
    with (tmp_path / "log").open("w") as log:
        return gpu_check.run(step, log)


def test_outcomes(tmp_path):
    good = outcome(tmp_path, "echo fine")
    assert good.status == "ok" and "fine" in (tmp_path / "log").read_text()
    bad = outcome(tmp_path, "echo the reason; exit 4")
    assert bad.status == "failed" and bad.why == "exit status 4: the reason"
    slow = outcome(tmp_path, "sleep 60 & wait", limit_s=1)
    assert slow.status == "timeout" and slow.seconds < 10
    missing = outcome(tmp_path, "exit 1", missing=lambda: "no tool")
    assert (missing.status, missing.why) == ("not run", "no tool")
    status = gpu_check.exit_status
    assert [status([good]), status([good, bad]), status([good, slow]), status([good, missing])] == [0, 1, 1, 3]


def test_results_of_steps_are_in_the_answer(tmp_path):
    result = tmp_path / "result.json"
    step = gpu_check.Step(name="step", summary="", command=[], limit_s=1, result=result)
    done = outcome(tmp_path, f"echo 7 > {result}", result=result)
    gpu_check.write(tmp_path / "all.json", gpu_check.Machine(), [done], [step])
    assert json.loads((tmp_path / "all.json").read_text())["results"] == {"step": 7}


def test_tests_without_their_packages_are_left_out(tmp_path):
    (tmp_path / "test_lacking.py").write_text("import no_such_package\n")
    (tmp_path / "test_broken.py").write_text("import pytest\npytest.no_such_name\n")
    found = gpu_check_tests.without_packages(["-c", "/dev/null", str(tmp_path)])
    assert found == {"test_lacking.py": "no_such_package"}
