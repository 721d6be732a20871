"""What of the benchmarks runs without a GPU: the work they count, the path they compare with, the GPU check's books."""

import argparse
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
import gpu_check_counters  # noqa: E402
import gpu_check_model  # noqa: E402
import gpu_check_tests  # noqa: E402
import gpu_check_train  # noqa: E402
import scan_gpu  # noqa: E402
from model import TaskByTask  # noqa: E402

from mtmamba import native  # noqa: E402
from mtmamba.ops import selective_scan, selective_scan_2d  # noqa: E402

SMALL = scan_gpu.Size(name="small", batch=2, groups=3, channels=20, height=5, width=7, rank=3)


def test_exps_of_a_frame():
    """NYUDv2, Swin-L: per stage two STM blocks of four tasks and one CTM block, with its shared map; 9.0 G state updates."""
    of_frame = {size.name: size for size in scan_gpu.sizes((1,)) if size.name.startswith("nyudv2")}
    total = sum((1 if name.endswith("cross") else 2) * size.exps for name, size in of_frame.items())
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


def test_task_by_task_computes_the_same():
    """In the model's type, forward and backward."""
    stacked = gpu_check_model.model_of("nano").double()
    image = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    found = []
    for model in (stacked, TaskByTask(stacked)):
        stacked.zero_grad()
        outputs = model(image)
        sum(output.square().mean() for output in outputs.values()).backward()
        found.append([*outputs.values(), *(p.grad.clone() for p in stacked.encoder.parameters())])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(theirs, ours, rtol=1e-9, atol=1e-12)


def test_training_steps(monkeypatch):
    monkeypatch.setattr(gpu_check_model, "SECONDS", 1e-6)
    arguments = argparse.Namespace(encoder="nano", batch=2, size=(64, 96), device="cpu")
    rows = gpu_check_train.steps(arguments)
    assert [(row["precision"], row["mode"], row.get("steps")) for row in rows] == [
        (precision, mode, 1 if mode == "ours" else None)
        for precision in ("fp32", "bf16")
        for mode in gpu_check_train.MODES
    ]
    assert all(row["samples_per_s"] == pytest.approx(2e3 / row["p50_ms"]) for row in rows if row["mode"] == "ours")
    assert all("mamba_ssm" in row["not_run"] for row in rows if row["mode"] != "ours")


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


@pytest.mark.skipif(sys.version_info < (3, 11), reason="gpu_check.sh needs Python 3.11")
def test_the_package_need_not_be_installed(tmp_path):
    """By an interpreter without its site-packages (-S), in the repository's root as the tests and commands are."""
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\nexec {sys.executable} -S -c "import mtmamba.calib, mtmamba.export, mtmamba.runtime"\n'
    )
    python.chmod(0o755)
    done = check(PYTHON=str(python))
    assert done.returncode == 0, done.stderr


def test_list_names_every_step():
    done = check("--list")
    assert done.returncode == 0, done.stderr
    names = [line.split()[0] for line in done.stdout.splitlines()]
    models = [f"{what}-{encoder}" for what in ("model", "engine") for encoder in ("swin-tiny", "swin-large")]
    checks = ["cpp", "memcheck", "racecheck", "initcheck", "synccheck", "pytest", "accuracy"]
    assert names == [
        "build",
        "mamba",
        *checks,
        "scan",
        "counters",
        "pipes",
        "plans",
        "pipeline",
        "video",
        *models,
        "train",
    ]
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
    assert "no NVIDIA GPU" in (tmp_path / "gpu_check.log").read_text()


@pytest.mark.parametrize("program", sorted((ROOT / "benchmarks").glob("*.cu")), ids=lambda path: path.stem)
def test_programs_for_a_gpu_compile(program, tmp_path):
    nvcc = native.find_nvcc()
    if nvcc is None:
        pytest.skip("no CUDA toolkit: nvcc was not found")
    command = [nvcc, "-std=c++17", "-O1", "-arch=sm_90", "-Werror=all-warnings", "-Iplugins", "-cubin"]
    done = subprocess.run(
        [*command, "-o", tmp_path / "out", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]


def test_bad_options(tmp_path):
    assert check("--steps", "nothing").returncode == 2
    assert check("--no-such").returncode == 2
    assert "no such folder" in check("--list", "--tensorrt", tmp_path / "none").stderr


def step_of(name, command="", limit_s=20, **more):
    return gpu_check.Step(name=name, summary="", command=["sh", "-c", command], limit_s=limit_s, **more)


def outcome(tmp_path, command, limit_s=20, **more):
    with (tmp_path / "log").open("w") as log:
        return gpu_check.run(step_of("step", command, limit_s, **more), log)


def test_outcomes(tmp_path):
    good = outcome(tmp_path, "echo fine")
    assert good.status == "ok" and "fine" in (tmp_path / "log").read_text()
    bad = outcome(tmp_path, "echo the reason; exit 4")
    assert bad.status == "failed" and bad.why == "exit status 4: the reason"
    slow = outcome(tmp_path, "sleep 60 & wait", limit_s=1)
    assert slow.status == "timeout" and slow.seconds < 10
    torn = outcome(tmp_path, f"echo '[1' > {tmp_path / 'torn'}", result=tmp_path / "torn")
    assert torn.status == "failed" and torn.why.startswith("expected JSON in")
    missing = outcome(tmp_path, "exit 1", missing=lambda: "no tool")
    assert (missing.status, missing.why) == ("not run", "no tool")
    status = gpu_check.exit_status
    assert [status([good]), status([good, bad]), status([good, slow]), status([good, missing])] == [0, 1, 1, 3]


def test_timed_steps_run_alone():
    steps = [step_of(name, alone=name.isupper()) for name in "abCDef"]
    assert ["".join(step.name for step in group) for group in gpu_check.groups(steps)] == ["ab", "C", "D", "ef"]


def test_steps_side_by_side_do_not_mix_their_output(tmp_path):
    """Each waits for the other in the middle of what it says."""
    says = "echo {0} first; touch {0}; while [ ! -e {1} ]; do sleep 0.01; done; echo {0} last"
    steps = [step_of(a, f"cd {tmp_path}; " + says.format(a, b)) for a, b in ("xy", "yx")]
    with (tmp_path / "log").open("w") as log:
        outcomes = list(gpu_check.run_all(steps, log))
    assert {(done.name, done.status) for done in outcomes} == {("x", "ok"), ("y", "ok")}
    _, *parts = (tmp_path / "log").read_text().split("\n===== ")
    said = {part[0]: part.splitlines()[1:] for part in parts}
    assert said == {name: [f"{name} first", f"{name} last"] for name in "xy"}


def test_no_folder_of_this_machine_is_kept(tmp_path, monkeypatch):
    root = gpu_check.ROOT
    done = outcome(tmp_path, f"echo {root}/a.py:3 https://b.c/d 5 GB/s /e; exit 1")
    done.command = (
        f"{sys.executable} {tmp_path}/f/g.py /home/me/mamba_ssm-2.3 -I/opt/h -isystem /opt/i/j -o {tmp_path}/k"
    )
    monkeypatch.setattr(gpu_check, "ROOT", tmp_path)  # no repository
    monkeypatch.setenv("MTMAMBA_COMMIT", "1234")
    gpu_check.write(tmp_path / "all.json", gpu_check.Machine(), [done], [])
    answer = json.loads((tmp_path / "all.json").read_text())
    assert answer["commit"] == "1234"
    assert answer["steps"][0]["why"] == "exit status 1: a.py:3 https://b.c/d 5 GB/s /e"
    assert answer["steps"][0]["command"] == "python3 f/g.py mamba_ssm-2.3 -Ih -isystem j -o k"


def test_results_of_steps_are_in_the_answer(tmp_path):
    result = tmp_path / "result.json"
    done = outcome(tmp_path, f"echo 7 > {result}", result=result)
    gpu_check.write(tmp_path / "all.json", gpu_check.Machine(), [done], [step_of("step", result=result)])
    assert json.loads((tmp_path / "all.json").read_text())["results"] == {"step": 7}


def test_tests_without_their_packages_are_left_out(tmp_path):
    (tmp_path / "test_lacking.py").write_text("import no_such_package\n")
    (tmp_path / "test_broken.py").write_text("import pytest\npytest.no_such_name\n")
    (tmp_path / "test_ours.py").write_text("import mtmamba.no_such_part\n")
    found = gpu_check_tests.without_packages(["-c", "/dev/null", str(tmp_path)])
    assert found == {"test_lacking.py": "no_such_package"}


NCU = """SIZE one
==PROF== Profiling "mapScanKernel": 0%....100% - 1 pass
"ID","Process ID","Kernel Name","Section Name","Metric Name","Metric Unit","Metric Value"
"0","7","void scan<2, 4>(Arguments)","Command line profiler metrics","gpu__time_duration.sum","ns","12,345"
"0","7","void scan<2, 4>(Arguments)","Command line profiler metrics","dram__bytes.sum","byte","1,000,000"
"1","7","void scan<1, 8>(Arguments)","Command line profiler metrics","gpu__time_duration.sum","ns","678.5"
"1","7","void scan<1, 8>(Arguments)","Command line profiler metrics","dram__bytes.sum","byte","0"
"""


def test_counters_of_every_launch():
    time, traffic = "gpu__time_duration.sum [ns]", "dram__bytes.sum [byte]"
    assert gpu_check_counters.rows(NCU, ["one", "two"]) == [
        {"size": "one", "kernel": "void scan<2, 4>(Arguments)", "metrics": {time: 12345, traffic: 1e6}},
        {"size": "two", "kernel": "void scan<1, 8>(Arguments)", "metrics": {time: 678.5, traffic: 0}},
    ]
    with pytest.raises(ValueError, match="zip"):  # a launch too many: it would be named after another's size
        gpu_check_counters.rows(NCU, ["one"])
