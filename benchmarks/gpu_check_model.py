"""A whole model on the GPU, NYUDv2 at 448x576 with random weights: in PyTorch, or with --engine in TensorRT.

    python benchmarks/gpu_check_model.py [--encoder swin-tiny] [--batches 1,8] [--types float16] [--modes eager,compile]
        [--engine] [--json OUT.json]

PyTorch: p50 and p99 of a forward pass in milliseconds, wall-clock with the wait for the GPU, and the peak memory in MiB:

    mamba_ssm, by task   one decoder after another, as the published code runs it, each scan by mamba_ssm's kernel
    mamba_ssm            our task-stacked model, each scan by mamba_ssm's kernel
    eager, compile       our task-stacked model with our operator
    graph                what torch.compile made, replayed as one CUDA graph

--engine: mtm-export, mtm-build-engine, mtm-bench and mtm-run as a user types them, FP32 and FP16, pictures in and predictions
out: the engine's p50, frames a second of a whole video, and for every task the largest and the RMS difference of raw outputs
from PyTorch float32 on one image. `floor` says what the physical limit of the network is on this GPU, and from what.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import scan_gpu
import torch
from model import TaskByTask

import mtmamba.ss2d
from mtmamba import MTMamba, preset, save_checkpoint
from mtmamba.info import model_cost
from mtmamba.runtime.backends import open_backend

SIZE = (448, 576)
SECONDS = 3.0  # of timed calls
COMMANDS = {
    "export": "mtmamba.export.cli",
    "build": "mtmamba.runtime.build_cli",
    "bench": "mtmamba.runtime.bench_cli",
    "run": "mtmamba.runtime.run_cli",
    "train": "mtmamba.train_cli",
    "eval": "mtmamba.runtime.eval_cli",
}
Call = Callable[[], Any]


def model_of(encoder: str) -> MTMamba:
    torch.manual_seed(0)
    return MTMamba(preset("nyudv2", encoder)).eval()


def timed(call: Call) -> dict[str, Any]:
    """Wall-clock milliseconds of a call with the wait for the GPU, after a warm-up."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    for _ in range(3):
        call()
    wait()
    times: list[float] = []
    while sum(times) < SECONDS * 1e3 and len(times) < 200:
        start = time.perf_counter()
        call()
        wait()
        times.append((time.perf_counter() - start) * 1e3)
    return {"p50_ms": statistics.median(times), "p99_ms": float(np.percentile(times, 99)), "calls": len(times)}


@contextmanager
def scans_by_mamba_ssm() -> Iterator[None]:
    """Raises ImportError where it, or its CUDA extension, is not installed."""
    ours = mtmamba.ss2d.selective_scan_2d
    names = ("x", "x_dbl", "dt_weight", "dt_bias", "A", "D")

    def theirs(*tensors: torch.Tensor) -> torch.Tensor:
        full = {name: t if name in ("x", "x_dbl") else t.float() for name, t in zip(names, tensors, strict=True)}
        with torch.autocast(tensors[0].device.type, enabled=False):  # which would sum the directions in float32
            return scan_gpu.four_directions(scan_gpu.mamba_ssm_scan(), full)

    scan_gpu.mamba_ssm_scan()
    mtmamba.ss2d.selective_scan_2d = theirs
    try:
        yield
    finally:
        mtmamba.ss2d.selective_scan_2d = ours


def with_mamba_ssm(function: Any, image: torch.Tensor) -> Any:
    with scans_by_mamba_ssm():
        return function(image)


def graph_of(function: Any, image: torch.Tensor) -> Call:
    for _ in range(3):
        function(image)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function(image)
    return graph.replay


def makers(model: MTMamba) -> dict[str, Callable[[torch.Tensor], Call]]:
    compiled = torch.compile(model, dynamic=False)
    return {
        "mamba_ssm, by task": lambda image: partial(with_mamba_ssm, TaskByTask(model), image),
        "mamba_ssm": lambda image: partial(with_mamba_ssm, model, image),
        "eager": lambda image: partial(model, image),
        "compile": lambda image: partial(compiled, image),
        "graph": lambda image: graph_of(compiled, image),
    }


def in_pytorch(encoder: str, batches: list[int], kinds: list[str], modes: list[str] | None) -> Iterator[dict[str, Any]]:
    for kind in kinds:
        dtype = getattr(torch, kind)
        model = model_of(encoder).to("cuda", dtype)
        for batch in batches:
            image = torch.randn(batch, 3, *SIZE, device="cuda", dtype=dtype)
            for name, make in makers(model).items():
                if modes is not None and name not in modes:
                    continue
                row: dict[str, Any] = {"encoder": encoder, "type": kind, "batch": batch, "mode": name}
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
                try:
                    with torch.inference_mode():
                        row |= timed(make(image))
                    row["peak_mib"] = torch.cuda.max_memory_allocated() >> 20
                except (ImportError, RuntimeError) as error:  # a mode that does not work here is a result too
                    row["not_run"] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
                yield row


def floor_of(encoder: str) -> dict[str, float]:
    """Milliseconds a frame that the exponentials and the products need at this GPU's rates: of the special-function units by
    the clock, of the tensor cores by the fastest float16 product of 8192x8192 matrices here."""
    total = model_cost(preset("nyudv2", encoder), SIZE)[-1]
    exps, multiply_adds = total.state_updates, total.multiply_adds
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.float16) for _ in range(2))
    product_ms = timed(lambda: a @ b)["p50_ms"]
    rate = 8192**3 / product_ms
    exp_ms, matmul_ms = 1e3 * exps / scan_gpu.machine()["exps_per_s"], multiply_adds / rate
    return {"exp_ms": exp_ms, "matmul_ms": matmul_ms, "sum_ms": exp_ms + matmul_ms, "tflops": 2e-9 * rate}


def command(name: str, *arguments: object) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", COMMANDS[name], *map(str, arguments), "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    sys.stderr.write(done.stderr)
    if done.returncode != 0:
        raise SystemExit(f"{name} failed with exit status {done.returncode}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def video(path: Path, frames: int = 200) -> Path:
    """A drifting pattern, 640x480."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 25.0, (640, 480))
    pattern = np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)
    picture = cv2.resize(pattern, (640, 480), interpolation=cv2.INTER_CUBIC)
    for frame in range(frames):
        writer.write(np.roll(picture, 4 * frame, axis=1))
    writer.release()
    return path


def differences(engine: Path, model: MTMamba) -> dict[str, dict[str, float]]:
    """Of the engine's outputs from PyTorch float32 on the CPU, by task."""
    image = np.random.default_rng(1).normal(size=(1, 3, *SIZE)).astype(np.float32)
    with torch.inference_mode():
        expected = {task: y.numpy() for task, y in model(torch.from_numpy(image)).items()}
    backend = open_backend(engine)
    found = backend.infer(image)
    backend.close()
    return {
        task: {
            "largest": float(np.abs(found[task] - y).max()),
            "rms": float(np.sqrt(np.square(found[task] - y).mean())),
            "scale": float(np.abs(y).max()),
        }
        for task, y in expected.items()
    }


def in_tensorrt(encoder: str, folder: Path, batches: list[int]) -> Iterator[dict[str, Any]]:
    model = model_of(encoder)
    checkpoint = folder / "model.pth"
    save_checkpoint(checkpoint, model)
    clip = video(folder / "clip.mp4")
    for batch in batches:
        onnx = folder / f"batch{batch}.onnx"
        command("export", "--ckpt", checkpoint, "--size", f"{SIZE[0]}x{SIZE[1]}", "--batch", batch, "-o", onnx)
        for precision in ("fp32", "fp16"):
            engine = folder / f"batch{batch}.{precision}.engine"
            row: dict[str, Any] = {"encoder": encoder, "precision": precision, "batch": batch}
            row["built"] = command("build", onnx, f"--{precision}", "--picture-io", "-o", engine)
            row["speed"] = command("bench", engine, "--calls", 100)
            row["video"] = command("run", clip, "--model", engine, "-o", folder / "out.mp4")
            if batch == 1:
                raw = folder / f"raw.{precision}.engine"
                command("build", onnx, f"--{precision}", "-o", raw)
                row["differences"] = differences(raw, model)
            yield row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="swin-tiny", help="of the preset (default: swin-tiny)")
    parser.add_argument("--batches", default="1,8", help="comma-separated")
    parser.add_argument("--types", default="float16", help="comma-separated, of PyTorch")
    parser.add_argument("--modes", help="comma-separated, of PyTorch (default: all)")
    parser.add_argument("--engine", action="store_true", help="TensorRT instead of PyTorch")
    parser.add_argument("--json", type=Path, help="write the results there too")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print(
            "expected an NVIDIA GPU that PyTorch can use, found none; run this on a machine with one", file=sys.stderr
        )
        return 1
    batches = list(map(int, arguments.batches.split(",")))
    modes = arguments.modes.split(",") if arguments.modes else None
    result: dict[str, Any] = {"gpu": torch.cuda.get_device_name(), "floor": floor_of(arguments.encoder), "rows": []}
    print(json.dumps(result["floor"]))
    with tempfile.TemporaryDirectory() as folder:
        found = (
            in_tensorrt(arguments.encoder, Path(folder), batches)
            if arguments.engine
            else in_pytorch(arguments.encoder, batches, arguments.types.split(","), modes)
        )
        for row in found:
            print(row, flush=True)
            result["rows"].append(row)
            if arguments.json:  # after every row: a killed run loses none
                arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
