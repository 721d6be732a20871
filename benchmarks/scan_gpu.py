"""The two-dimensional scan on a GPU, for scan.py --device cuda: the plugin, PyTorch, mamba_ssm, and the same bytes copied.

Sizes: the SS2D of the three Swin-L decoder stages, as the model calls it, for every dataset of the paper: all of its tasks
stacked (`nyudv2.1` and so on), and with them the map they share, in the cross-task block (`nyudv2.1.cross`), at batch 1 and 8.

A row says how long a call takes (p50, p99), from events on the stream around each of many calls in a row, after a warm-up,
with the inputs where the layers before would have left them. Beside it stands the work: `bytes` of all inputs and the output,
once; `exps`, one a state update; `floor_ms`, the time the GPU's special-function units need for the exps (16 a clock and
multiprocessor, at the highest clock); `times_floor`, p50 over it; `error`, the distance from the vectorised path as a fraction
of its largest value.
"""

import os
import statistics
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mtmamba.config import preset
from mtmamba.errors import MtmError
from mtmamba.ops import selective_scan_2d
from mtmamba.ops.selective_scan_2d import DIRECTIONS, map_orders, scan_orders

STATES = 16
EXPS_A_CLOCK = 16  # of one multiprocessor's special-function units, compute capability 8.0 to 12.0
DATASETS = ("nyudv2", "pascal-context", "cityscapes")
CUDA_SWITCH = "MTMAMBA_CUDA_KERNEL"  # "0": PyTorch takes the vectorised path on CUDA tensors too
WARM_UP, CALLS = 5, 100
PAUSE_CYCLES = 20_000_000  # 10 ms: longer than Python takes to start CALLS calls of a kernel
BUDGET_S = 0.5  # for one implementation and size, at most
Tensors = dict[str, Tensor]
Run = Callable[[], Any]


@dataclass(frozen=True, kw_only=True)
class Size:
    """B, G, D, H, W, R, as in plugins/ops.yaml; K = 4, N = 16."""

    name: str
    batch: int
    groups: int
    channels: int
    height: int
    width: int
    rank: int

    @property
    def exps(self) -> int:
        return self.batch * self.groups * DIRECTIONS * self.channels * self.height * self.width * STATES

    def bytes(self, item: int) -> int:
        """Of x, x_dbl and y, `item` bytes a value, and of the float32 parameters: read or written once."""
        values = 2 * self.channels + DIRECTIONS * (self.rank + 2 * STATES)
        parameters = self.groups * DIRECTIONS * self.channels * (self.rank + 2 + STATES)
        return self.batch * self.groups * self.height * self.width * values * item + 4 * parameters


def sizes(batches: tuple[int, ...] = (1, 8)) -> Iterator[Size]:
    for name in DATASETS:
        config = preset(name, "swin-large")
        for stage in range(3):
            dim = config.level_channels[2 - stage]
            scale = 4 << (2 - stage)
            height, width = (length // scale for length in config.input_size)
            for batch in batches:
                for suffix, groups in (("", len(config.tasks)), (".cross", len(config.tasks) + 1)):
                    yield Size(
                        name=f"{name}.{stage + 1}{suffix}",
                        batch=batch,
                        groups=groups,
                        channels=config.expand * dim,
                        height=height,
                        width=width,
                        rank=dim // 16,
                    )


def make_tensors(size: Size, dtype: torch.dtype, device: str) -> Tensors:
    """Values as an SS2D layer starts with: A = -(1..16), steps log-uniform in 0.001..0.1; parameters float32."""
    g = torch.Generator().manual_seed(0)
    B, G, D, H, W, R = size.batch, size.groups, size.channels, size.height, size.width, size.rank
    step = torch.empty(G, DIRECTIONS, D).uniform_(-6.9, -2.3, generator=g).exp()
    tensors = {
        "x": torch.randn(1, G, D, H, W, generator=g).expand(B, -1, -1, -1, -1).to(dtype),
        "x_dbl": torch.randn(1, G, DIRECTIONS, R + 2 * STATES, H, W, generator=g).expand(B, *[-1] * 5).to(dtype),
        "dt_weight": torch.empty(G, DIRECTIONS, D, R).uniform_(-(R**-0.5), R**-0.5, generator=g),
        "dt_bias": step + torch.log(-torch.expm1(-step)),
        "A": -torch.arange(1.0, STATES + 1).expand(G, DIRECTIONS, D, STATES),
        "D": torch.ones(G, DIRECTIONS, D),
    }
    return {name: tensor.contiguous().to(device) for name, tensor in tensors.items()}


def four_directions(selective_scan: Callable[..., Tensor], tensors: Tensors) -> Tensor:
    """SS2D's core with a one-dimensional scan of `selective_scan_fn`'s arguments: cross-scan and merge in PyTorch."""
    x, x_dbl, dt_weight, dt_bias, A, D = tensors.values()
    groups, channels, rank = x.shape[1], x.shape[2], dt_weight.shape[-1]
    low, B, C = scan_orders(x_dbl).split([rank, STATES, STATES], dim=3)
    u = scan_orders(x.unsqueeze(2).expand(-1, -1, DIRECTIONS, -1, -1, -1)).flatten(1, 3)
    delta = torch.matmul(dt_weight.to(x.dtype), low).flatten(1, 3)
    B, C = (v.flatten(1, 2).contiguous() for v in (B, C))
    y = selective_scan(u, delta, A.flatten(0, 2), B, C, D.flatten(), dt_bias.flatten())
    y = map_orders(y.unflatten(1, (groups, DIRECTIONS, channels)), tuple(x.shape[-2:]))
    return y.sum(2).permute(0, 1, 3, 4, 2).contiguous()


def mamba_ssm_scan() -> Callable[..., Tensor]:
    """Raises ImportError where it, or its CUDA extension, is not installed."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    def scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor) -> Tensor:
        result: Tensor = selective_scan_fn(u, delta, A, B, C, D, delta_bias=bias, delta_softplus=True)
        return result

    return scan


def with_mamba_ssm(tensors: Tensors) -> Run:
    scan = mamba_ssm_scan()
    return lambda: four_directions(scan, tensors)


def with_torch(switch: str, tensors: Tensors) -> Run:
    def run() -> Tensor:
        os.environ[CUDA_SWITCH] = switch
        y: Tensor = selective_scan_2d(**tensors)
        return y

    return run


def with_plugin(harness: Any, tensors: Tensors) -> Run:
    kind = str(tensors["x"].dtype).removeprefix("torch.")
    plugin = harness.plugin("SelectiveScan2D", {n: tuple(t.shape) for n, t in tensors.items()}, kind)
    x = tensors["x"]
    y = torch.empty(plugin.output_shape, dtype=x.dtype, device=x.device)
    workspace = torch.empty(max(1, plugin.workspace_bytes), dtype=torch.uint8, device=x.device)

    def run() -> Tensor:
        plugin.enqueue(tensors, y, workspace, torch.cuda.current_stream().cuda_stream)
        return y

    return run


def with_copy(size: Size, tensors: Tensors) -> Run:
    """Half of the bytes read, half of them written."""
    half = size.bytes(tensors["x"].element_size()) // 2
    source, target = (torch.zeros(half, dtype=torch.uint8, device=tensors["x"].device) for _ in range(2))
    return lambda: target.copy_(source)


def makers(harness: Any) -> dict[str, Callable[[Size, Tensors], Run]]:
    """The first is what the others are compared with."""
    return {
        "vectorised": lambda _, tensors: with_torch("0", tensors),
        "plugin": lambda _, tensors: with_plugin(harness, tensors),
        "torch op": lambda _, tensors: with_torch("1", tensors),
        "mamba_ssm": lambda _, tensors: with_mamba_ssm(tensors),
        "copy": with_copy,
    }


def timed(run: Run) -> list[float]:
    """Milliseconds of each call. Where a single call is longer than the budget it is the only one, and its own warm-up
    was the comparison before."""
    first = _batch(run, 1)
    if first[0] > 1e3 * BUDGET_S:
        return first
    calls = max(2, min(CALLS, int(1e3 * BUDGET_S / max(first[0], 1e-3))))
    _batch(run, min(WARM_UP, calls))
    return _batch(run, calls)


def _batch(run: Run, calls: int) -> list[float]:
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(calls)]
    torch.cuda.synchronize()
    torch.cuda._sleep(PAUSE_CYCLES)  # the calls queue up behind it: what follows is the GPU's time, not Python's
    for start, stop in events:
        start.record()
        run()
        stop.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(stop) for start, stop in events]


def row_of(size: Size, item: int, times: list[float], exps_a_second: float) -> dict[str, Any]:
    floor = 1e3 * size.exps / exps_a_second
    p50 = statistics.median(times)
    return {
        "p50_ms": p50,
        "p99_ms": sorted(times)[min(len(times) - 1, int(0.99 * len(times)))],
        "calls": len(times),
        "bytes": size.bytes(item),
        "exps": size.exps,
        "floor_ms": floor,
        "times_floor": p50 / floor,
        "gigabytes_per_s": size.bytes(item) / p50 / 1e6,
    }


def measure(size: Size, dtype: torch.dtype, harness: Any, only: set[str] | None, rate: float) -> list[dict[str, Any]]:
    tensors = make_tensors(size, dtype, "cuda")
    head = {"size": size.name, "batch": size.batch, "groups": size.groups, "dtype": str(dtype).removeprefix("torch.")}
    rows: list[dict[str, Any]] = []
    expected: Tensor | None = None
    for name, make in makers(harness).items():
        if only is not None and name not in only | {"vectorised"}:
            continue
        row = head | {"implementation": name}
        try:
            run = make(size, tensors)
            y = run()
        except (ImportError, torch.cuda.OutOfMemoryError, MtmError) as error:
            row["not_run"] = (str(error) or type(error).__name__).splitlines()[0]
        else:
            if name == "vectorised":
                expected = y.float()
            elif name != "copy" and expected is not None:
                row["error"] = float((y.float() - expected).abs().max() / expected.abs().max().clamp(min=1))
            if only is None or name in only:
                row |= row_of(size, tensors["x"].element_size(), timed(run), rate)
        rows.append(row)
        tell(row)
        torch.cuda.empty_cache()
    return rows


def tell(row: dict[str, Any]) -> None:
    start = f"{row['size']:24} batch {row['batch']} x{row['groups']} {row['dtype']:9}{row['implementation']:12}"
    if "p50_ms" not in row:
        print(start, row.get("not_run", "compared only"), flush=True)
        return
    error = f"  error {row['error']:.1e}" if "error" in row else ""
    print(
        f"{start}{row['p50_ms']:9.3f} ms (p99 {row['p99_ms']:9.3f}), {row['times_floor']:6.2f} x floor, "
        f"{row['gigabytes_per_s']:6.0f} GB/s{error}",
        flush=True,
    )


def machine() -> dict[str, Any]:
    """The first GPU: its name, driver, multiprocessors, highest clock, and exps a second."""
    asked = "driver_version,clocks.max.sm,clocks.sm,temperature.gpu"
    command = ["nvidia-smi", "--id=0", f"--query-gpu={asked}", "--format=csv,noheader,nounits"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip().split(", ")
    properties = torch.cuda.get_device_properties(0)
    clock_hz = 1e6 * float(said[1])
    return {
        "gpu": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "driver": said[0],
        "cuda": torch.version.cuda,
        "multiprocessors": properties.multi_processor_count,
        "highest_clock_mhz": float(said[1]),
        "clock_before_mhz": float(said[2]),
        "temperature_before": float(said[3]),
        "exps_per_s": properties.multi_processor_count * EXPS_A_CLOCK * clock_hz,
    }


def measure_all(
    prefixes: list[str], batches: tuple[int, ...], dtypes: list[str], only: set[str] | None
) -> dict[str, Any]:
    """Every size whose name starts with one of `prefixes`. Raises MtmError without a GPU."""
    if not torch.cuda.is_available():
        raise MtmError("--device cuda needs an NVIDIA GPU that PyTorch can use, found none; leave --device away")
    from mtmamba.runtime.harness import Harness

    result = machine()
    result |= {"warm_up": WARM_UP, "results": []}
    with Harness() as harness, torch.inference_mode():
        for size in sizes(batches):
            if any(size.name.startswith(prefix) for prefix in prefixes):
                for dtype in dtypes:
                    rows = measure(size, getattr(torch, dtype), harness, only, result["exps_per_s"])
                    result["results"] += rows
    return result
