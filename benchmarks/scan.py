"""Times the two-dimensional scan. On the CPU: float64 loop, vectorised PyTorch, C++ library, ONNX function body. On a GPU: the
plugin, PyTorch, mamba_ssm, and a copy of the same bytes (scan_gpu.py says what is reported).

    python benchmarks/scan.py [--sizes nano,stage3] [--only cpu-kernel,vectorised] [--threads 1] [--json OUT.json]
    python benchmarks/scan.py --device cuda [--sizes nyudv2] [--batches 1,8] [--dtypes float16] [--json OUT.json]

Sizes on the CPU: those of the synthetic nano model (192x256 image, six tasks), and the three NYUDv2 Swin-L decoder stages
(448x576 image, one task). A state update is one step of one state of one channel in one direction. p50 of as many runs as fit
the time budget, after one warm-up; where a single run is longer than the budget it is the only one, and says so. Threads that
spin while they wait make a busy machine's numbers useless (tenfold): they sleep here, `cpu_ms` is the processor time of a
run, and the load before and after is recorded. On a machine that is not quiet take ratios from --threads 1.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when PyTorch is imported

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import numpy as np
import onnxruntime
import scan_gpu
import torch
from onnx_node import session_of

from mtmamba.errors import MtmError
from mtmamba.native import CPU_SWITCH
from mtmamba.ops import selective_scan_2d, selective_scan_2d_reference
from mtmamba.ops.selective_scan_2d import selective_scan_2d_backward

SIZES = {  # groups G (stacked tasks), height, width, channels D, rank R; N = 16 states
    "nano1": (6, 12, 16, 48, 3),
    "nano2": (6, 24, 32, 24, 2),
    "nano3": (6, 48, 64, 12, 1),
    "stage1": (1, 28, 36, 1536, 48),
    "stage2": (1, 56, 72, 768, 24),
    "stage3": (1, 112, 144, 384, 12),
}
STATES, DIRECTIONS = 16, 4
Tensors = dict[str, torch.Tensor]


def make_tensors(groups: int, height: int, width: int, channels: int, rank: int) -> Tensors:
    """Values as an SS2D layer starts with: A = -(1..16), steps log-uniform in 0.001..0.1."""
    g = torch.Generator().manual_seed(0)
    step = torch.empty(groups, DIRECTIONS, channels).uniform_(np.log(1e-3), np.log(1e-1), generator=g).exp()
    return {
        "x": torch.randn(1, groups, channels, height, width, generator=g),
        "x_dbl": torch.randn(1, groups, DIRECTIONS, rank + 2 * STATES, height, width, generator=g),
        "dt_weight": torch.empty(groups, DIRECTIONS, channels, rank).uniform_(-(rank**-0.5), rank**-0.5, generator=g),
        "dt_bias": step + torch.log(-torch.expm1(-step)),
        "A": -torch.arange(1.0, STATES + 1).expand(groups, DIRECTIONS, channels, STATES).contiguous(),
        "D": torch.ones(groups, DIRECTIONS, channels),
    }


def switched(value: str, run: Callable[[], Any]) -> Callable[[], Any]:
    def call() -> Any:
        os.environ[CPU_SWITCH] = value
        return run()

    return call


def onnx_body(tensors: Tensors) -> Callable[[], Any]:
    """The function body alone in a model, in ONNX Runtime on the CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    feeds = {name: tensor.numpy() for name, tensor in tensors.items()}
    session = session_of("SelectiveScan2D", feeds, options=options)
    return lambda: session.run(None, feeds)[0]


def implementations(tensors: Tensors) -> dict[str, Callable[[], Any]]:
    batch, groups, channels, height, width = tensors["x"].shape
    grad_y = torch.randn(batch, groups, height, width, channels, generator=torch.Generator().manual_seed(1))
    forward: Callable[[], Any] = lambda: selective_scan_2d(**tensors)  # noqa: E731
    backward: Callable[[], Any] = lambda: selective_scan_2d_backward(grad_y, **tensors)  # noqa: E731
    arrays = {name: tensor.double().numpy() for name, tensor in tensors.items()}
    return {
        "cpu-kernel": switched("1", forward),
        "vectorised": switched("0", forward),
        "onnx-body": onnx_body(tensors),
        "loop": lambda: selective_scan_2d_reference(**arrays),
        "cpu-kernel backward": switched("1", backward),
        "vectorised backward": switched("0", backward),
    }


def timed(run: Callable[[], Any], budget_s: float, most: int = 50) -> list[tuple[float, float]]:
    """(wall, processor) seconds of each run. The first is the warm-up, dropped unless it is longer than the budget."""
    times: list[tuple[float, float]] = []
    while len(times) <= most and (len(times) < 2 or sum(wall for wall, _ in times) < budget_s):
        wall, processor = time.perf_counter(), time.process_time()
        run()
        times.append((time.perf_counter() - wall, time.process_time() - processor))
        if times[0][0] > budget_s:
            return times
    return times[1:]


def measure(name: str, budget_s: float, only: set[str] | None) -> list[dict[str, Any]]:
    groups, height, width, channels, _ = SIZES[name]
    updates = groups * height * width * channels * STATES * DIRECTIONS
    tensors = make_tensors(*SIZES[name])
    rows = []
    for implementation, run in implementations(tensors).items():
        if only is not None and implementation not in only:
            continue
        times = timed(run, budget_s)
        (p50, processor), (best, _) = np.median(times, axis=0), np.min(times, axis=0)
        row = {"size": name, "implementation": implementation, "p50_ms": 1e3 * p50, "best_ms": 1e3 * best}
        row |= {"cpu_ms": 1e3 * processor, "runs": len(times), "updates": updates, "updates_per_s": updates / p50}
        rows.append(row)
        print(
            f"{name:8}{groups} x {height:3}x{width:<4} D {channels:<5}{implementation:22}"
            f"{1e3 * p50:11.2f} ms (cpu {1e3 * processor:11.2f}){updates / p50 / 1e9:9.3f} G updates/s  ({len(times)} runs)",
            flush=True,
        )
    return rows


def machine() -> dict[str, Any]:
    model = "unknown"
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    names = ("torch", "numpy", "onnxruntime")
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "load_before": os.getloadavg()[0],
        "versions": {"python": platform.python_version(), **{name: metadata.version(name) for name in names}},
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--sizes", help="comma-separated, prefixes allowed (nano, stage; nyudv2); default: all")
    parser.add_argument("--only", help="comma-separated implementations; default: all")
    parser.add_argument("--json", type=Path, help="write the results there too")
    parser.add_argument("--budget", type=float, default=5.0, help="cpu: seconds for each implementation and size")
    parser.add_argument("--threads", type=int, help="cpu: default: PyTorch's own choice")
    parser.add_argument("--batches", default="1,8", help="cuda: comma-separated")
    parser.add_argument("--dtypes", default="float16", help="cuda: comma-separated, of float32, float16, bfloat16")
    arguments = parser.parse_args()
    known = list(SIZES) if arguments.device == "cpu" else [size.name for size in scan_gpu.sizes()]
    arguments.sizes = arguments.sizes.split(",") if arguments.sizes else known
    if not any(name.startswith(prefix) for name in known for prefix in arguments.sizes):
        parser.error(f"no size starts with {', '.join(arguments.sizes)}; known: {', '.join(known)}")
    return arguments


def on_cpu(arguments: argparse.Namespace, only: set[str] | None) -> dict[str, Any]:
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    result = machine()
    print(f"{result['processor']}, {result['torch_threads']} threads, load {result['load_before']:.1f}")
    wanted = [name for name in SIZES if name.startswith(tuple(arguments.sizes))]
    result["results"] = [row for name in wanted for row in measure(name, arguments.budget, only)]
    result["load_after"] = os.getloadavg()[0]
    return result


def main() -> int:
    arguments = parse()
    only = set(arguments.only.split(",")) if arguments.only else None
    if arguments.device == "cpu":
        result = on_cpu(arguments, only)
    else:
        batches = tuple(map(int, arguments.batches.split(",")))
        try:
            found = scan_gpu.measure_all(arguments.sizes, batches, arguments.dtypes.split(","), only)
        except MtmError as error:
            print(error, file=sys.stderr)
            return 1
        result = machine() | found
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
