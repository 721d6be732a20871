"""Engines of a free batch, really built by TensorRT for RTX with the plugin: one profile, of the range that the export has."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from mtmamba.runtime import engine
from mtmamba.runtime.build_cli import main
from mtmamba.runtime.calibrate import calibrate
from mtmamba.runtime.onnx_model import load_onnx
from mtmamba.runtime.plugin import PluginLibrary
from mtmamba.runtime.sidecar import read

pytestmark = pytest.mark.trt
Found = dict[str, Any]


@pytest.fixture(autouse=True)
def ready(plugins: PluginLibrary, no_gpu: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> Iterator[Found]:
    """profiles: what the built engine's are, (fewest, tuned for, most); shapes: of the network's inputs and outputs."""
    told: Found = {}
    original: Callable[..., Any] = engine._build

    def build(trt: Any, builder: Any, network: Any, config: Any, *rest: Any) -> Any:
        values = [network.get_input(0), *map(network.get_output, range(network.num_outputs))]
        told["shapes"] = {value.name: tuple(value.shape) for value in values}
        told["count"] = config.num_optimization_profiles
        return original(trt, builder, network, config, *rest)

    def add_profile(builder: Any, config: Any, *rest: Any) -> None:
        class Builder:
            def create_optimization_profile(self) -> Any:
                told["profile"] = builder.create_optimization_profile()
                return told["profile"]

        add(Builder(), config, *rest)

    add = engine.add_profile
    monkeypatch.setattr(engine, "add_profile", add_profile)
    monkeypatch.setattr(engine, "_build", build)
    yield told


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments), "--target", "sm_89"])


def build(*arguments: object) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


@pytest.mark.parametrize(("options", "tuned"), [((), 4), (("--opt-batch", "2"), 2)])
def test_one_profile(free_onnx: Path, found: Found, options: tuple[str, ...], tuned: int) -> None:
    answer = build(free_onnx, *options)
    assert answer["plugin_layers"] == 9
    assert (answer["min_batch"], answer["batch"]) == (1, 4)
    shapes = [tuple(shape) for shape in found["profile"].get_shape("image")]
    assert shapes == [(batch, 3, 32, 32) for batch in (1, tuned, 4)] and found["count"] == 1
    assert found["shapes"] == {"image": (-1, 3, 32, 32), "semseg": (-1, 40, 32, 32), "depth": (-1, 1, 32, 32)}
    side = read(Path(answer["engine"]))
    assert (side.metadata.min_batch, side.metadata.batch) == (1, 4)
    assert ("--opt-batch 2" in side.rebuild_command(Path(answer["engine"]))) == bool(options)
    assert "any batch of 1-4" in run(free_onnx).stdout


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_pictures_at_the_ends_of_other_precisions(free_onnx: Path, found: Found, precision: str) -> None:
    images = np.random.default_rng(0).normal(size=(4, 3, 32, 32)).astype(np.float32)
    calibrate(load_onnx(free_onnx), [images, images[:1]], method="max").write(Path("c.json"))
    answer = build(free_onnx, f"--{precision}", "--picture-io", "--calibration", "c.json")
    assert answer["plugin_layers"] == 9 and answer["io"] == "picture"
    shapes = [tuple(shape) for shape in found["profile"].get_shape("image")]
    assert shapes == [(batch, 32, 32, 3) for batch in (1, 4, 4)]
    assert found["shapes"] == {"image": (-1, 32, 32, 3), "semseg": (-1, 32, 32), "depth": (-1, 32, 32)}


def test_a_fixed_batch_has_no_profile(small_onnx: Path, found: Found) -> None:
    answer = build(small_onnx)
    assert "profile" not in found and found["count"] == 0
    assert (answer["min_batch"], answer["batch"]) == (1, 1)


@pytest.mark.parametrize(("batch", "range_"), [(5, "1-4"), (2, "1")])
def test_tuned_for_what_it_does_not_take(free_onnx: Path, small_onnx: Path, batch: int, range_: str) -> None:
    result = run(free_onnx if range_ == "1-4" else small_onnx, "--opt-batch", batch)
    assert result.exit_code == 1
    assert f"--opt-batch {batch}: expected what" in result.stderr
    assert f"was exported for, {range_} images a run; choose such a number" in " ".join(result.stderr.split())
    assert not list(Path.cwd().glob("*.engine*"))
