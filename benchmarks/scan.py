"""Times the two-dimensional scan on the CPU: float64 loop, vectorised PyTorch, C++ library, ONNX function body.

    python benchmarks/scan.py [--sizes nano,stage3] [--only cpu-kernel,vectorised] [--threads 1] [--json OUT.json]

Sizes: those of the synthetic nano model (192x256 image, six tasks), and the three NYUDv2 Swin-L decoder stages (448x576
image, one task). A state update is one step of one state of one channel in one direction. p50 of as many runs as fit the
time budget, after one warm-up; where a single run is longer than the budget it is the only one, and says so. Threads that
spin while they wait make a busy machine's numbers useless (tenfold): they sleep here, `cpu_ms` is the processor time of a
run, and the load before and after is recorded. On a machine that is not quiet take ratios from --threads 1.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when PyTorch is imported

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import helper

from mtmamba.export.contract import DOMAIN, DOMAIN_VERSION, SELECTIVE_SCAN_2D
from mtmamba.export.function_body import functions
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
STATES, DIRECTIONS, OPSET = 16, 4, 20
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
    shape = tuple(tensors["x"].shape)
    value, kind = helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node(SELECTIVE_SCAN_2D.name, list(tensors), ["y"], domain=DOMAIN)],
        "scan",
        [value(name, kind, tuple(tensor.shape)) for name, tensor in tensors.items()],
        [value("y", kind, (shape[0], shape[1], shape[3], shape[4], shape[2]))],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, DOMAIN_VERSION)]
    model = helper.make_model(graph, functions=functions(OPSET), ir_version=10, opset_imports=opsets)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feeds = {name: tensor.numpy() for name, tensor in tensors.items()}
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default=",".join(SIZES), help="comma-separated, prefixes allowed (nano, stage)")
    parser.add_argument("--only", help="comma-separated implementations; default: all")
    parser.add_argument("--budget", type=float, default=5.0, help="seconds for each implementation and size")
    parser.add_argument("--threads", type=int, help="default: PyTorch's own choice")
    parser.add_argument("--json", type=Path, help="write the results there too")
    arguments = parser.parse_args()
    wanted = [name for name in SIZES if any(name.startswith(prefix) for prefix in arguments.sizes.split(","))]
    if not wanted:
        parser.error(f"no size starts with {arguments.sizes}; known: {', '.join(SIZES)}")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    result = machine()
    print(f"{result['processor']}, {result['torch_threads']} threads, load {result['load_before']:.1f}")
    only = set(arguments.only.split(",")) if arguments.only else None
    result["results"] = [row for name in wanted for row in measure(name, arguments.budget, only)]
    result["load_after"] = os.getloadavg()[0]
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
