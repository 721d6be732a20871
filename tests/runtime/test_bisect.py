"""The issue's model with activations beyond FP16 planted in one block: plain FP16 fails, the calibrated plan holds, and
bisection names that block and no other."""

import json
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import numpy_helper

from mtmamba.calib.calibration import Calibration, read_calibration
from mtmamba.errors import MtmError
from mtmamba.export.graph import block_of
from mtmamba.export.precision import to_fp16, to_precision
from mtmamba.runtime.bisect import Bisection, _minimal, bisect, candidates_of, run_all
from mtmamba.runtime.calibrate import calibrate
from mtmamba.runtime.emulation import Emulation
from mtmamba.runtime.onnx_model import load_onnx
from mtmamba.runtime.parity_cli import main

BLOCK = "encoder.layers.2.blocks.0"
PLANTED = 1e6


def plant(model: onnx.ModelProto) -> None:
    """Make the activations inside the block's MLP `PLANTED` times larger, and what leaves it as large as before."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        factor = PLANTED if "mlp.fc1/" in node.name else 1 / PLANTED if "mlp.fc2/" in node.name else 1
        scaled = node.op_type == "MatMul" and factor != 1 or node.op_type == "Add" and factor > 1
        if node.name.startswith(BLOCK) and scaled:
            index = next(i for i, name in enumerate(node.input) if name in weights)
            values = numpy_helper.to_array(weights[node.input[index]]) * np.float32(factor)
            node.input[index] += f"_planted_{node.name}"
            model.graph.initializer.append(numpy_helper.from_array(values, node.input[index]))


@pytest.fixture(scope="module")
def planted(small_onnx, tmp_path_factory):
    proto = onnx.load(str(small_onnx))
    plant(proto)
    path = tmp_path_factory.mktemp("planted") / "planted.onnx"
    onnx.save(proto, str(path))
    return load_onnx(path)


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return [rng.normal(size=(1, 3, 32, 32)).astype(np.float32) for _ in range(2)]


@pytest.fixture(scope="module")
def calibrated(planted, images):
    return calibrate(planted, images, method="max")


def run(*arguments):
    return CliRunner().invoke(main, ["--bisect", *arguments])


def holds(reference, candidate):
    """Finite, and an RMS difference of 0.5 %: ten times what FP16 costs this model."""
    for r, c in zip(reference, candidate, strict=True):
        for task, values in r.items():
            error = np.sqrt(np.mean((c[task] - values) ** 2)) / np.sqrt(np.mean(values**2))
            if not error < 5e-3:  # False for NaN
                return False
    return True


def test_plain_fp16_is_lost(planted, images):
    half, _ = to_fp16(planted.proto)
    assert not all(np.isfinite(values).all() for values in Emulation(half).run(images[0]).values())


def test_the_calibrated_plan_holds(planted, images, calibrated):
    kept = calibrated.kept["fp16"]
    assert {block_of(node) for node in kept} == {BLOCK}
    assert all("FP16 ends at 65504" in reason or "FP16 loses its bits" in reason for reason in kept.values())
    half, report = to_precision(planted.proto, "fp16", calibrated)
    assert set(kept) <= {entry["name"] for entry in report["fp32_nodes"]}
    assert report["low_nodes"] > 400, "all the rest is FP16"
    assert holds(run_all(Emulation(planted.proto), images), run_all(Emulation(half), images))


def test_bisection_names_the_block(planted, images, tmp_path, monkeypatch):
    """mtm-parity --bisect on a random image, by the table's own row; what it writes gives a graph that holds."""
    told, plan = [], tmp_path / "plan.json"

    def listening(*arguments, on_progress, **options):
        def hear(*state):
            told.append(state)
            on_progress(*state)

        return bisect(*arguments, on_progress=hear, **options)

    monkeypatch.setattr("mtmamba.runtime.parity_bisect.bisect", listening)
    model = ("--model", str(planted.path), "--calibration", str(plan))
    result = run(*model, "--tasks", "depth", "--images", "1", "--json")
    assert result.exit_code == 0, result.stderr
    answer = json.loads(result.stdout)
    assert answer["blocks"] == [BLOCK]
    assert answer["tolerances"] == {"depth": {"difference": 0.03, "depth": 0.5}}
    assert {node.split("/")[0] for node in answer["nodes"]} <= {f"{BLOCK}.mlp.{part}" for part in ("fc1", "act", "fc2")}
    made = read_calibration(plan, planted.path)
    assert list(made.kept["fp16"]) == answer["nodes"] != []
    half, _ = to_precision(planted.proto, "fp16", made)
    assert holds(run_all(Emulation(planted.proto), images), run_all(Emulation(half), images))
    assert {what for what, _, _ in told} == {"blocks", "nodes"}
    assert answer["trials"] < 60


def test_a_plan_that_holds_needs_nothing_more(planted, images, calibrated):
    assert bisect(planted.proto, "fp16", images[:1], holds, calibration=calibrated).nodes == ()


def test_what_cannot_be_held_is_an_error(planted, images):
    with pytest.raises(MtmError, match="beyond the tolerance even with every candidate node in FP32"):
        bisect(planted.proto, "fp16", images[:1], lambda reference, candidate: False)


def test_candidates(planted, calibrated):
    sixteen = candidates_of(planted.proto, "fp16", calibrated.plan("fp16"))
    eight = candidates_of(planted.proto, "int8", calibrated.plan("int8"))
    kinds = {node.name: node.op_type for node in planted.proto.graph.node}
    assert not {kinds[name] for name in sixteen} & {"Reshape", "Transpose", "Softmax", "LayerNormalization"}
    assert {kinds[name] for name in eight} == {"MatMul", "Conv"}
    assert not set(calibrated.kept["fp16"]) & (set(sixteen) | set(eight))
    assert any(".ctm.ss2d/" in name for name in sixteen)
    assert not any(".ctm.ss2d/" in name for name in eight), "the built-in plan keeps them in 16 bits"


@pytest.mark.parametrize("needed", [[0], [7], [3, 4], [0, 9], [1, 5, 8], list(range(10)), [2, 3, 5, 7]])
def test_minimal_finds_exactly_what_is_needed(needed):
    items = [str(i) for i in range(10)]
    wanted = {str(i) for i in needed}
    trials = []

    def enough(kept):
        trials.append(kept)
        return wanted <= set(kept)

    assert _minimal(items, enough, lambda left: None) == [str(i) for i in needed]
    assert len(trials) < 80


def test_results_replace_earlier_ones_and_leave_the_ranges_reasons():
    before = Calibration(
        onnx="x",
        onnx_sha256="",
        kept={"fp16": {"a": "it reached 1e6", "b": "found by bisection: once"}, "int8": {"c": "d"}},
    )
    after = Bisection(precision="fp16", nodes=("e",), blocks=("e",), kept={"e": "found by bisection: now"}).into(before)
    assert after.kept == {"fp16": {"e": "found by bisection: now", "a": "it reached 1e6"}, "int8": {"c": "d"}}


@pytest.fixture
def here(small_onnx, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("best.onnx").write_bytes(small_onnx.read_bytes())


def test_command(here):
    """On a picture and tolerances that anything meets: nothing has to be kept, and the file says so."""
    cv2.imwrite("a.png", np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8))
    wide = [
        part
        for figure in ("difference=1e9", "agreement=0", "depth=1e9", "angle=180")
        for part in ("--tolerance", figure)
    ]
    result = run("a.png", *wide, "--json")
    assert result.exit_code == 0, result.stderr
    answer = json.loads(result.stdout)
    assert (answer["nodes"], answer["trials"], answer["precision"]) == ([], 1, "fp16")
    assert answer["tolerances"]["depth"] == {"difference": 1e9, "depth": 1e9}
    assert read_calibration(Path("calibration.json"), Path("best.onnx")).kept == {"fp16": {}}
    needs_ranges = run("a.png", "--precision", "int8")
    assert needs_ranges.exit_code == 1
    assert "int8 needs the ranges of a calibration" in needs_ranges.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--bisect", "--html", "a.html"), "--html is not for --bisect"),
        (("--bisect", "--precision", "tf32"), "--bisect is for fp16, bf16, int8, fp8; found --precision tf32"),
        (("--bisect", "--max-frames", "2"), "--max-frames is for a SOURCE"),
        (("--calibration", "a.json"), "--calibration needs --bisect"),
    ],
)
def test_options_that_do_not_go_together(arguments, sentence):
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2 and sentence in result.stderr
