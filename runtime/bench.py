"""How fast a model is: the model alone on its device, and the whole call with copies, measured after a warm-up.

Inputs are seeded noise: the work does not depend on what is in the picture.
"""

import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mtmamba.metadata import ModelMetadata
from mtmamba.runtime import gpu
from mtmamba.runtime.backends import Backend


@dataclass(frozen=True, kw_only=True)
class Times:
    """Milliseconds a call (the whole batch): percentiles of `calls` calls."""

    p50_ms: float
    p90_ms: float
    p99_ms: float
    mean_ms: float
    calls: int

    @classmethod
    def of(cls, ms: list[float]) -> "Times":
        p50, p90, p99 = (float(np.percentile(ms, q)) for q in (50, 90, 99))
        return cls(p50_ms=p50, p90_ms=p90, p99_ms=p99, mean_ms=statistics.fmean(ms), calls=len(ms))


@dataclass(frozen=True, kw_only=True)
class Speed:
    """engine: the model alone, as the backend's own clock has it. call: `infer`, with copies to the device and back.
    images_per_s: at the call's median."""

    engine: Times
    call: Times
    images_per_s: float


def bench(
    backend: Backend,
    *,
    warmup: int = 10,
    calls: int = 50,
    max_s: float | None = None,
    on_call: Callable[[], None] = lambda: None,
) -> Speed:
    """Time `calls` calls after `warmup` ones; fewer (but one) where they take longer than `max_s` seconds."""
    images = noise(backend.metadata)
    for _ in range(warmup):
        backend.infer(images)
    engine_ms: list[float] = []
    call_ms: list[float] = []
    start = time.perf_counter()
    for _ in range(calls):
        begin = time.perf_counter()
        backend.infer(images)
        call_ms.append((time.perf_counter() - begin) * 1e3)
        engine_ms.append(backend.engine_ms)
        on_call()
        if max_s is not None and time.perf_counter() - start > max_s:
            break
    call = Times.of(call_ms)
    return Speed(engine=Times.of(engine_ms), call=call, images_per_s=1e3 * backend.metadata.batch / call.p50_ms)


def noise(metadata: ModelMetadata) -> Any:
    """A full batch of seeded noise in the form the model takes."""
    rng = np.random.default_rng(0)
    if metadata.io == "picture":
        return rng.integers(0, 256, metadata.input_shape, dtype=np.uint8)
    return rng.normal(size=metadata.input_shape).astype(np.float32)


def machine() -> dict[str, Any]:
    """What the figures belong to: processor, GPUs and driver."""
    gpus = [device.name for device in gpu.find_gpus()]
    return {"cpu": _cpu(), "gpus": gpus, "driver": gpu.driver_release() if gpus else None}


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123  (no file: a device of the kernel)
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return f"{names[0]}, {len(names)} threads" if names else platform.processor() or platform.machine()
