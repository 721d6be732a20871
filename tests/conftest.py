"""Fixtures of all tests. GPU and TensorRT tests are skipped, with the reason, where there is none."""

import importlib.util
import os
import shutil
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads slow each other down on small machines

import pytest

TENSORRT_PACKAGES = ("tensorrt", "tensorrt_rtx")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    no_gpu = None if shutil.which("nvidia-smi") else pytest.mark.skip(reason="no NVIDIA GPU (nvidia-smi not found)")
    missing = [] if any(map(importlib.util.find_spec, TENSORRT_PACKAGES)) else ["TensorRT (pip install 'mtmamba[rtx]')"]
    missing += [] if shutil.which("nvcc") or Path("/usr/local/cuda/bin/nvcc").exists() else ["nvcc (a CUDA toolkit)"]
    no_trt = pytest.mark.skip(reason=f"missing: {', '.join(missing)}") if missing else None
    for item in items:
        if no_gpu and item.get_closest_marker("gpu"):
            item.add_marker(no_gpu)
        if no_trt and item.get_closest_marker("trt"):
            item.add_marker(no_trt)


@pytest.fixture(scope="session")
def golden_folder() -> Path:
    """Small published-layout checkpoints with the published code's numbers."""
    return Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def small_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """small.onnx: a whole MTMamba with random weights, as small as one can be; two tasks, 32x32 pixels."""
    return _export_small(tmp_path_factory.mktemp("small") / "small.onnx", 1)


@pytest.fixture(scope="session")
def free_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """free.onnx: the same model for 1 to 4 images a run."""
    return _export_small(tmp_path_factory.mktemp("free") / "free.onnx", (1, 4))


def _export_small(path: Path, batch: int | tuple[int, int]) -> Path:
    import onnx
    import torch

    from mtmamba import ModelConfig, MTMamba
    from mtmamba.export.torch_to_onnx import export_model

    torch.manual_seed(0)
    config = ModelConfig(
        dataset="synthetic",
        tasks=("semseg", "depth"),
        embed_dim=8,
        depths=(1, 1, 1, 1),
        num_heads=(1, 2, 4, 8),
        window_size=4,
        input_size=(32, 32),
        expand=1,
        d_state=4,
    )
    onnx.save(export_model(MTMamba(config), batch=batch), str(path))
    return path
