"""A whole model on the GPU, NYUDv2 at 448x576 with random weights: PyTorch eager and compiled, or with --engine TensorRT.

    python benchmarks/gpu_check_model.py [--encoder swin-tiny] [--batches 1,8] [--engine] [--json OUT.json]

PyTorch: p50 and p99 of a forward pass in milliseconds, peak memory in MiB, in float32 and float16, eager and torch.compile.
--engine: mtm-export, mtm-build-engine and mtm-run as a user types them, FP32 and FP16, batch 1: the engine's p50, frames a
second of a whole video, and for every task the largest and the RMS difference from PyTorch float32 on one image.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from mtmamba import MTMamba, preset, save_checkpoint
from mtmamba.runtime.backends import open_backend

SIZE = (448, 576)
SECONDS = 3.0  # of timed calls
COMMANDS = {"export": "mtmamba.export.cli", "build": "mtmamba.runtime.build_cli", "run": "mtmamba.runtime.run_cli"}


def model_of(encoder: str) -> MTMamba:
    torch.manual_seed(0)
    return MTMamba(preset("nyudv2", encoder)).eval()


def timed(call: Callable[[], Any]) -> dict[str, Any]:
    """Wall-clock milliseconds of a call with the wait for the GPU, after a warm-up."""
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    times: list[float] = []
    while sum(times) < SECONDS * 1e3 and len(times) < 200:
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        times.append((time.perf_counter() - start) * 1e3)
    return {"p50_ms": statistics.median(times), "p99_ms": float(np.percentile(times, 99)), "calls": len(times)}


def in_pytorch(encoder: str, batches: list[int]) -> list[dict[str, Any]]:
    rows = []
    for kind in ("float32", "float16"):
        dtype = getattr(torch, kind)
        model = model_of(encoder).to("cuda", dtype)
        for batch in batches:
            image = torch.randn(batch, 3, *SIZE, device="cuda", dtype=dtype)
            for name, function in (("eager", model), ("compile", torch.compile(model))):
                row: dict[str, Any] = {"encoder": encoder, "type": kind, "batch": batch, "mode": name}
                torch.cuda.reset_peak_memory_stats()
                try:
                    with torch.inference_mode():
                        row |= timed(lambda f=function, x=image: f(x))  # type: ignore[misc]
                    row["peak_mib"] = torch.cuda.max_memory_allocated() >> 20
                except RuntimeError as error:  # a mode that does not work here is a result too
                    row["not_run"] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
                rows.append(row)
                print(row, flush=True)
    return rows


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


def in_tensorrt(encoder: str, folder: Path) -> list[dict[str, Any]]:
    model = model_of(encoder)
    save_checkpoint(folder / "model.pth", model)
    onnx = folder / "model.onnx"
    command("export", "--ckpt", folder / "model.pth", "--size", f"{SIZE[0]}x{SIZE[1]}", "-o", onnx)
    clip = video(folder / "clip.mp4")
    rows = []
    for precision in ("fp32", "fp16"):
        engine = folder / f"model.{precision}.engine"
        built = command("build", onnx, f"--{precision}", "-o", engine)
        ran = command("run", clip, "--model", engine, "-o", folder / f"{precision}.mp4")
        row = {"encoder": encoder, "precision": precision, "built": built, "video": ran}
        rows.append(row | {"differences": differences(engine, model)})
        print(rows[-1], flush=True)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="swin-tiny", help="of the preset (default: swin-tiny)")
    parser.add_argument("--batches", default="1,8", help="comma-separated, of PyTorch")
    parser.add_argument("--engine", action="store_true", help="TensorRT instead of PyTorch")
    parser.add_argument("--json", type=Path, help="write the results there too")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print(
            "expected an NVIDIA GPU that PyTorch can use, found none; run this on a machine with one", file=sys.stderr
        )
        return 1
    if arguments.engine:
        with tempfile.TemporaryDirectory() as folder:
            rows = in_tensorrt(arguments.encoder, Path(folder))
    else:
        rows = in_pytorch(arguments.encoder, list(map(int, arguments.batches.split(","))))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
