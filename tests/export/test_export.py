"""mtm-export end to end: the file is the model, carries what runtimes need, and bad input gets one sentence."""

import dataclasses
import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from click.testing import CliRunner

from mtmamba import MTMamba, load_checkpoint, preset, save_checkpoint
from mtmamba.errors import MtmError
from mtmamba.export import verify
from mtmamba.export.cli import main
from mtmamba.export.contract import OPERATORS
from mtmamba.export.metadata import read_metadata
from mtmamba.export.torch_to_onnx import export_model
from mtmamba.metadata import INPUT_NAME, METADATA_KEY


@pytest.fixture(scope="module")
def golden(golden_folder):
    return load_checkpoint(golden_folder / "mtmamba_nyud_tiny.pth.tar")


@pytest.fixture(scope="module")
def exported(golden):
    return export_model(golden, input_size=(64, 96))


def test_golden_export_gives_the_published_outputs(golden_folder, exported):
    arrays = np.load(golden_folder / "mtmamba_nyud_tiny.npz")
    session = onnxruntime.InferenceSession(exported.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    for name, found in zip(names, session.run(None, {INPUT_NAME: arrays["image"]}), strict=True):
        np.testing.assert_allclose(found, arrays[f"out.{name}"], rtol=0, atol=1e-4)


def test_mtmamba_plus_plus_gives_the_published_outputs(golden_folder):
    arrays = np.load(golden_folder / "mtmamba_plus_nyud_tiny.npz")
    model = export_model(load_checkpoint(golden_folder / "mtmamba_plus_nyud_tiny.pth.tar"), input_size=(64, 96))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    for name, found in zip(names, session.run(None, {INPUT_NAME: arrays["image"]}), strict=True):
        np.testing.assert_allclose(found, arrays[f"out.{name}"], rtol=0, atol=1e-4)


def test_a_model_without_cross_task_blocks():
    torch.manual_seed(0)
    config = dataclasses.replace(preset("nyudv2", "nano", ("depth", "edge")), cross_task="none")
    model = MTMamba(config).eval()
    exported = export_model(model, input_size=(32, 64))
    assert all(difference.passed for difference in verify.compare(model, exported, images=1))
    assert sum(node.op_type == "SelectiveScan2D" for node in exported.graph.node) == 6


@pytest.mark.parametrize("size, batch, opset", [((50, 70), 1, 20), ((33, 100), 2, 18), ((96, 64), 1, 23)])
def test_sizes_that_fit_no_window_match_pytorch(golden, size, batch, opset):
    model = export_model(golden, input_size=size, batch=batch, opset=opset)
    for difference in verify.compare(golden, model, images=1):
        assert difference.max_abs <= 1e-4, difference
    assert next(o.version for o in model.opset_import if o.domain == "") == opset


def test_what_is_in_the_file(exported, golden):
    metadata = read_metadata(exported, "test")
    assert metadata.config == golden.config
    assert metadata.input_size == (64, 96) and metadata.batch == 1
    assert [task.name for task in metadata.tasks] == [output.name for output in exported.graph.output]
    assert {"torch", "onnx", "mtmamba"} <= metadata.versions.keys()
    assert {f.name for f in exported.functions} == OPERATORS.keys()
    scans = [node for node in exported.graph.node if node.op_type == "SelectiveScan2D"]
    assert len(scans) == 9  # 3 stages, 2 STM blocks and the CTM block
    weights = {tensor.name for tensor in exported.graph.initializer}
    for node in scans:
        assert set(node.input[2:]) <= weights  # -exp(A_log) and its like are folded
    assert b"site-packages" not in exported.SerializeToString()  # no stack traces of this machine


def test_weights_are_not_transposed_at_run_time(exported):
    weights = {tensor.name for tensor in exported.graph.initializer}
    assert [
        n.name for n in exported.graph.node if n.op_type in ("Transpose", "Exp", "Neg") and n.input[0] in weights
    ] == []


def test_a_wrong_export_fails_the_check(golden, exported):
    broken = onnx.ModelProto()
    broken.CopyFrom(exported)
    bias = next(t for t in broken.graph.initializer if t.name == "heads.depth.project.bias")
    values = onnx.numpy_helper.to_array(bias) + 1e-3
    bias.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float32), bias.name))
    differences = verify.compare(golden, broken, images=1)
    assert [d.task for d in differences if not d.passed] == ["depth"]
    with pytest.raises(MtmError, match="depth by 1.0.e-03"):
        verify.require_equal(differences)


def test_nan_fails_the_check(golden, exported):
    broken = onnx.ModelProto()
    broken.CopyFrom(exported)
    bias = next(t for t in broken.graph.initializer if t.name == "heads.edge.project.bias")
    bias.CopyFrom(onnx.numpy_helper.from_array(np.full(1, np.nan, np.float32), bias.name))
    assert [d.task for d in verify.compare(golden, broken, images=1) if not d.passed] == ["edge"]


def invoke(*arguments):
    return CliRunner().invoke(main, list(map(str, arguments)))


def test_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "best.pth", MTMamba(preset("nyudv2", "nano", ("depth", "edge"))))
    result = invoke("--size", "64x64", "--json")
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert answer["onnx"] == "best.onnx" and answer["scan_nodes"] == 9
    assert all(d["passed"] for d in answer["differences"])
    onnx.checker.check_model(str(tmp_path / "best.onnx"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best.onnx", "best.pth"]


def test_a_failed_check_writes_nothing(tmp_path, monkeypatch, golden_folder):
    monkeypatch.setattr(verify, "TOLERANCE", 0.0)
    output = tmp_path / "x.onnx"
    result = invoke("--ckpt", golden_folder / "mtmamba_nyud_tiny.pth.tar", "--size", "32x32", "-o", output)
    assert result.exit_code == 1
    assert "the export is not the model" in result.stderr and len(result.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments, status, words",
    [
        (["--ckpt", "none.pth"], 1, "found nothing there"),
        ([], 1, "no checkpoint (*.pth or *.pt or *.pth.tar)"),
        (["--size", "64"], 2, "expected HEIGHTxWIDTH"),
        (["--batch", "0"], 2, "--batch"),
        (["--opset", "99"], 2, "is not in the range 18<=x<=23"),
    ],
)
def test_bad_input(tmp_path, monkeypatch, arguments, status, words):
    monkeypatch.chdir(tmp_path)
    result = invoke(*arguments)
    assert result.exit_code == status
    assert words in result.stderr


def test_two_checkpoints_are_listed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.pth", "b.pth"):
        (tmp_path / name).write_text("x")
    result = invoke()
    assert result.exit_code == 1
    assert "a.pth, b.pth" in result.stderr and "--ckpt" in result.stderr


@pytest.mark.parametrize("opset", [17, 24])
def test_unsupported_opset(golden, opset):
    with pytest.raises(MtmError, match="choose one of 18 to 23"):
        export_model(golden, input_size=(32, 32), opset=opset)


def test_metadata_of_a_foreign_file():
    with pytest.raises(MtmError, match="expected mtmamba metadata, found none"):
        read_metadata(onnx.ModelProto(), "foreign.onnx")
    model = onnx.ModelProto()
    onnx.helper.set_model_props(model, {METADATA_KEY: '{"format": 99}'})
    with pytest.raises(MtmError, match="format 1, found 99"):
        read_metadata(model, "new.onnx")
