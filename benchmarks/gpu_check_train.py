"""Training on the GPU: steps of NYUDv2 at 448x576 on random data, and mtm-train as a user types it.

    python benchmarks/gpu_check_train.py [--encoder swin-tiny] [--batch 8] [--minutes 3] [--workers 12] [--json OUT.json]

`steps`: whole steps of mtm-train's own trainer (forward, losses, backward, clipping, AdamW) in float32 and mixed bfloat16, data
on the GPU beforehand: p50 of a step in milliseconds, samples a second, the peak memory in MiB:

    ours                 our task-stacked model with our operator
    mamba_ssm            our task-stacked model, each scan by mamba_ssm's kernel
    mamba_ssm, by task   one decoder after another, as the published code runs it, each scan by mamba_ssm's kernel

`synthetic`: mtm-train on rendered rooms in mixed bfloat16 for --minutes (0: not at all), then mtm-eval of its best checkpoint.
Needs trimesh and embreex, the evaluation PyAV too.
"""

import argparse
import gc
import json
import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from gpu_check_model import SIZE, command, model_of, scans_by_mamba_ssm, timed
from gpu_check_steps import WORK
from model import TaskByTask
from torch import Tensor, nn

from mtmamba import MTMamba
from mtmamba.errors import MtmError
from mtmamba.tasks import Task
from mtmamba.train.engine import Trainer, launch
from mtmamba.train.recipe import recipe_for

FOLDER = WORK / "train"
MODES: dict[str, tuple[Callable[[MTMamba], nn.Module], Callable[[], Any]]] = {
    "ours": (lambda model: model, nullcontext),
    "mamba_ssm": (lambda model: model, scans_by_mamba_ssm),
    "mamba_ssm, by task": (TaskByTask, scans_by_mamba_ssm),
}


def random_batch(tasks: tuple[Task, ...], batch: int, size: tuple[int, int], device: str) -> dict[str, Tensor]:
    """Images and labels as mtmamba.data.labels lays them out."""

    def label(task: Task) -> Tensor:
        shape = (batch, task.channels, *size)
        if task.kind in ("labels", "saliency"):
            return torch.randint(0, task.channels, (batch, *size), dtype=torch.uint8, device=device)
        if task.kind == "normals":
            return F.normalize(torch.randn(shape, device=device), dim=1)
        noise = torch.rand(shape, device=device)
        return 0.5 + 9.5 * noise if task.kind == "depth" else (noise > 0.95).float()

    image = torch.randn(batch, 3, *size, device=device)
    return {"image": image, **{task.name: label(task) for task in tasks}}


def steps_of(mode: str, precision: str, arguments: argparse.Namespace) -> dict[str, Any]:
    make, scans = MODES[mode]
    stacked = model_of(arguments.encoder)
    changes = {"precision": precision, "batch": arguments.batch, "sizes": [arguments.size]}
    recipe = recipe_for(stacked.config, arguments.encoder, changes)
    tasks = stacked.config.task_list
    trainer = Trainer(launch(recipe, arguments.device), make(stacked), tasks, recipe)
    batch = random_batch(tasks, arguments.batch, arguments.size, arguments.device)
    with scans():
        times = timed(partial(trainer.step, [batch], 0.0))
    return {
        "p50_ms": times["p50_ms"],
        "steps": times["calls"],
        "samples_per_s": 1e3 * arguments.batch / times["p50_ms"],
    }


def steps(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for precision in ("fp32", "bf16"):
        for mode in MODES:
            head = {"encoder": arguments.encoder, "size": list(arguments.size), "batch": arguments.batch}
            row: dict[str, Any] = {**head, "precision": precision, "mode": mode}
            gc.collect()
            if arguments.device == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            try:
                row |= steps_of(mode, precision, arguments)
                row["peak_mib"] = torch.cuda.max_memory_allocated() >> 20 if arguments.device == "cuda" else None
            except (ImportError, RuntimeError, MtmError) as error:  # a mode that does not work here is a result too
                row["not_run"] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            rows.append(row)
            print(row, flush=True)
    return rows


def lacking(*packages: str) -> str:
    missing = [name for name in packages if find_spec(name) is None]
    return f"no Python package {', '.join(missing)}" if missing else ""


def synthetic(arguments: argparse.Namespace) -> dict[str, Any]:
    """What both commands answer."""
    if why := lacking("trimesh", "embreex"):
        return {"not_run": why}
    FOLDER.mkdir(parents=True, exist_ok=True)
    checkpoint = FOLDER / "best.pth"
    train: list[object] = ["--preset", arguments.encoder, "--precision", "bf16", "--device", arguments.device]
    train += ["--minutes", arguments.minutes, "--workers", arguments.workers, "--overwrite", "--output", checkpoint]
    if arguments.size != SIZE:
        train += ["--size", "x".join(map(str, arguments.size))]
    found: dict[str, Any] = {"train": command("train", *train)}
    if why := lacking("av"):
        return found | {"eval": {"not_run": why}}
    return found | {"eval": command("eval", checkpoint, "--data", "synthetic", "--edge-thresholds", 0)}  # no ortools


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="swin-tiny", help="of the preset (default: swin-tiny)")
    parser.add_argument("--batch", type=int, default=8, help="images a step of the random data (default: 8)")
    parser.add_argument("--minutes", type=float, default=3, help="of mtm-train (default: 3; 0: leave it out)")
    parser.add_argument("--workers", type=int, default=12, help="of mtm-train (default: 12)")
    parser.add_argument("--json", type=Path, help="write the results there too")
    parser.add_argument("--device", default="cuda", help=argparse.SUPPRESS)  # cpu: to try this script
    parser.add_argument("--size", type=size, default=SIZE, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print(
            "expected an NVIDIA GPU that PyTorch can use, found none; run this on a machine with one", file=sys.stderr
        )
        return 1
    result = {"gpu": torch.cuda.get_device_name() if arguments.device == "cuda" else None, "steps": steps(arguments)}
    save(arguments.json, result)  # what follows may fail
    if arguments.minutes:
        result["synthetic"] = synthetic(arguments)
        print(json.dumps(result["synthetic"]), flush=True)
        save(arguments.json, result)
    return 0


def size(text: str) -> tuple[int, int]:
    height, width = map(int, text.split("x"))
    return height, width


def save(path: Path | None, result: dict[str, Any]) -> None:
    if path:
        path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
