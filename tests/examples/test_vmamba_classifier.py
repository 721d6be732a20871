"""The example for other models: a VMamba-style classifier in PyTorch, in ONNX Runtime, and as an engine with the plugin."""

import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import torch

from mtmamba.cache import CACHE_VARIABLE
from mtmamba.errors import MtmError
from mtmamba.export.torch_to_onnx import export_module
from mtmamba.runtime.trt import resolve

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples"))

import vmamba_classifier  # noqa: E402

SCANS = 4  # one a block


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return vmamba_classifier.Classifier().eval()


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    return vmamba_classifier.export(model, tmp_path_factory.mktemp("classifier"))


def scans(path):
    return [
        node for node in onnx.load(str(path)).graph.node if (node.domain, node.op_type) == ("mtmamba", "SelectiveScan")
    ]


def test_scans_are_nodes_and_bodies_are_optional(exported):
    assert len(scans(exported)) == SCANS
    assert {f.name for f in onnx.load(str(exported)).functions} == {"SelectiveScan", "SelectiveScan2D"}
    bare = exported.with_name("classifier.trt.onnx")
    assert len(scans(bare)) == SCANS
    assert not onnx.load(str(bare)).functions


def test_onnx_runtime_gives_what_pytorch_gives(model, exported):
    assert vmamba_classifier.difference(model, exported) <= vmamba_classifier.TOLERANCE


def test_the_comparison_notices_another_model(exported):
    """A model without the skip D of its scans is far off: the comparison sees the scan."""
    torch.manual_seed(0)
    other = vmamba_classifier.Classifier().eval()
    with torch.no_grad():
        other.second[1].A_log.add_(1.0)
    assert vmamba_classifier.difference(other, exported) > 10 * vmamba_classifier.TOLERANCE


def test_the_image_decides(model):
    with torch.no_grad():
        first, second = model(torch.zeros(vmamba_classifier.IMAGE)), model(torch.ones(vmamba_classifier.IMAGE))
    assert (first - second).abs().max() > 1e-2


@pytest.mark.trt
def test_engine_with_the_plugin_in_it(exported, tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, os.environ.get(CACHE_VARIABLE, str(ROOT / "build" / "tests-cache")))
    try:
        resolve("tensorrt-rtx")
    except MtmError as error:
        pytest.skip(str(error))
    engine = tmp_path / "classifier.engine"
    assert vmamba_classifier.build(exported.with_name("classifier.trt.onnx"), engine) == SCANS
    assert engine.stat().st_size > 100_000


def test_opset_that_is_not_supported(model):
    with pytest.raises(MtmError, match="opset 17 is not supported"):
        export_module(model, (torch.zeros(vmamba_classifier.IMAGE),), input_names=["i"], output_names=["o"], opset=17)


def test_help_says_what_it_writes():
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "vmamba_classifier.py"), "-h"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "classifier.trt.onnx" in done.stdout
