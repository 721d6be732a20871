"""mtm-bench against a model whose time is known."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from mtmamba.metadata import ModelMetadata
from mtmamba.runtime.backends.base import Array, Backend
from mtmamba.runtime.bench import Times, bench
from mtmamba.runtime.bench_cli import main


class Sleeper(Backend):
    """Its first calls are slow (a warm-up), then each takes 10 ms, of which it says 6 are the model's."""

    name = "sleeper"

    def __init__(self, metadata: ModelMetadata, slow: int = 2) -> None:
        super().__init__(Path("sleeper"), metadata, "a clock")
        self.calls, self.slow = 0, slow

    def _execute(self, images: Array) -> dict[str, Array]:
        self.calls += 1
        time.sleep(0.1 if self.calls <= self.slow else 0.01)
        self.engine_ms = 6.0
        shape = self.metadata.output_size
        return {
            task.name: np.zeros((self.metadata.batch, task.channels, *shape), np.float32)
            for task in self.metadata.tasks
        }


def test_the_clock(toy_metadata_of: Callable[..., ModelMetadata]) -> None:
    backend = Sleeper(toy_metadata_of(batch=2))
    speed = bench(backend, warmup=2, calls=20)
    assert backend.calls == 22 and speed.call.calls == 20
    assert 10 <= speed.call.p50_ms < 16 and speed.engine.p50_ms == 6
    assert speed.images_per_s == pytest.approx(2e3 / speed.call.p50_ms)
    assert speed.call.p50_ms <= speed.call.p90_ms <= speed.call.p99_ms


def test_a_time_limit(metadata: ModelMetadata) -> None:
    assert 2 <= bench(Sleeper(metadata, slow=0), warmup=0, calls=1000, max_s=0.05).call.calls < 20


def test_percentiles() -> None:
    times = Times.of([float(value) for value in range(1, 102)])
    assert (times.p50_ms, times.p90_ms, times.p99_ms, times.mean_ms) == (51, 91, 100, 51)


def test_the_command(tmp_path: Path, make_toy: Callable[..., Path]) -> None:
    models = [make_toy(tmp_path / f"{name}.onnx", batch=batch) for name, batch in (("a", 1), ("b", 2))]
    result = CliRunner().invoke(main, [*map(str, models), "--calls", "5", "--warmup", "1", "--rounds", "2", "--json"])
    assert result.exit_code == 0, result.output
    answer: dict[str, Any] = json.loads(result.stdout)
    assert [row["batch"] for row in answer["models"]] == [1, 2] and answer["machine"]["cpu"]
    for row in answer["models"]:
        assert 0 < row["engine"]["p50_ms"] <= row["call"]["p50_ms"] and row["call"]["calls"] == 5
    said = CliRunner().invoke(main, [str(models[0]), "--calls", "3", "--rounds", "1"]).output
    assert "images/s at batch 1 with onnxruntime on CPU" in said
    assert CliRunner().invoke(main, [str(tmp_path / "none.onnx")]).exit_code == 1
