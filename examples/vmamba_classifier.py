"""A small VMamba-style image classifier in plain PyTorch, taken to ONNX and to a TensorRT engine with mtmamba's operator.

    python examples/vmamba_classifier.py [--folder OUT] [--engine]

Writes classifier.onnx, which any ONNX runtime runs (a body of standard operators is in it), and classifier.trt.onnx, without
that body, for `trtexec --dynamicPlugins`, Polygraphy or C++ with the plugin library. ONNX Runtime's answer is compared with
PyTorch's. With --engine, TensorRT builds classifier.engine; TensorRT for RTX does so without a GPU, for compute capability 8.9.
docs/operators.md explains each step.

B batch, C channels, H W map, L = H*W tokens, K = 4 directions, N states, R rank of the step, D = 2C inner channels.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtmamba.errors import MtmError
from mtmamba.export.torch_to_onnx import export_module
from mtmamba.ops import selective_scan
from mtmamba.runtime.plugin import load_plugins
from mtmamba.runtime.trt import quoted, resolve

DIRECTIONS, STATES, CLASSES = 4, 16, 10
IMAGE = (1, 3, 64, 64)
TOLERANCE = 1e-5  # of ONNX Runtime beside PyTorch


class VSSBlock(nn.Module):
    """VMamba's block (Liu et al., 2024, section 4.3): x + out(LN(scan(SiLU(conv(in(LN(x)))))))), on maps [B, H, W, C]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner, rank = 2 * channels, max(1, channels // 16)
        self.rank = rank
        self.norm = nn.LayerNorm(channels)
        self.in_proj = nn.Linear(channels, inner, bias=False)
        self.conv = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.x_proj = nn.Parameter(torch.randn(DIRECTIONS, rank + 2 * STATES, inner) * inner**-0.5)
        self.dt_weight = nn.Parameter(torch.randn(DIRECTIONS, inner, rank) * rank**-0.5)
        self.dt_bias = nn.Parameter(torch.full((DIRECTIONS * inner,), -4.0))  # softplus: steps of about 0.02
        self.A_log = nn.Parameter(torch.arange(1.0, STATES + 1).log().repeat(DIRECTIONS * inner, 1))
        self.D = nn.Parameter(torch.ones(DIRECTIONS * inner))
        self.out_norm = nn.LayerNorm(inner)
        self.out_proj = nn.Linear(inner, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.in_proj(self.norm(x)).permute(0, 3, 1, 2)
        y = F.silu(self.conv(y))
        y = self.scan(y).permute(0, 2, 3, 1)
        return x + self.out_proj(self.out_norm(y))

    def scan(self, x: Tensor) -> Tensor:
        """The four orders of a map [B, D, H, W], one direction's channels a group of `selective_scan`, and their sum."""
        B, D, H, W = x.shape
        rows, columns = x.flatten(2), x.transpose(2, 3).flatten(2)
        u = torch.stack([rows, columns, rows.flip(-1), columns.flip(-1)], dim=1)  # [B, K, D, L]
        low, B_, C_ = torch.matmul(self.x_proj, u).split([self.rank, STATES, STATES], dim=2)
        delta = torch.matmul(self.dt_weight, low)
        A = -torch.exp(self.A_log)
        y = selective_scan(u.flatten(1, 2), delta.flatten(1, 2), A, B_, C_, self.D, self.dt_bias)
        rows, columns, rows_back, columns_back = y.unflatten(1, (DIRECTIONS, D)).unbind(1)
        rows, columns = rows + rows_back.flip(-1), columns + columns_back.flip(-1)
        return rows.unflatten(-1, (H, W)) + columns.unflatten(-1, (W, H)).transpose(2, 3)


class Classifier(nn.Module):
    """Images [B, 3, H, W], H and W multiples of 8 -> scores [B, CLASSES]."""

    def __init__(self, channels: int = 32, blocks: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, channels, 4, stride=4)
        self.first = nn.Sequential(*(VSSBlock(channels) for _ in range(blocks)))
        self.halve = nn.Conv2d(channels, 2 * channels, 2, stride=2)
        self.second = nn.Sequential(*(VSSBlock(2 * channels) for _ in range(blocks)))
        self.norm = nn.LayerNorm(2 * channels)
        self.head = nn.Linear(2 * channels, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        x = self.first(self.patches(image).permute(0, 2, 3, 1))
        x = self.second(self.halve(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        scores: Tensor = self.head(self.norm(x).mean((1, 2)))
        return scores


def export(model: Classifier, folder: Path) -> Path:
    """Write both files; the one with bodies, for any runtime."""
    for name, bodies in (("classifier.onnx", True), ("classifier.trt.onnx", False)):
        image = torch.zeros(IMAGE)
        proto = export_module(model, (image,), input_names=("image",), output_names=("scores",), bodies=bodies)
        onnx.save(proto, str(folder / name))
    return folder / "classifier.onnx"


def difference(model: Classifier, path: Path) -> float:
    """The largest difference of ONNX Runtime's scores from PyTorch's, on a random image."""
    image = np.random.default_rng(0).normal(size=IMAGE).astype(np.float32)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"image": image})
    with torch.no_grad():
        return float(np.abs(found - model(torch.from_numpy(image)).numpy()).max())


def build(path: Path, engine: Path) -> int:
    """Build an engine with the plugin; how many plugin layers its network has. Raises MtmError where TensorRT cannot."""
    trt = resolve()  # TensorRT or TensorRT for RTX, whichever is installed
    load_plugins(trt)  # compiled on first need
    module: Any = trt.module
    builder = module.Builder(trt.logger)
    typed = getattr(module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    trt.prepare_parser()
    parser = module.OnnxParser(network, trt.logger)
    with trt.messages.quoting() as errors:
        if not parser.parse(path.read_bytes()):
            raise MtmError(f"{path}: TensorRT cannot parse it: {quoted(errors)}")
        config = builder.create_builder_config()
        if trt.targets:  # TensorRT for RTX, which needs no GPU to build
            config.num_compute_capabilities = 1
            config.set_compute_capability(module.ComputeCapability.SM89, 0)
        serialised = builder.build_serialized_network(network, config)
        if serialised is None:
            raise MtmError(f"{path}: TensorRT could not build an engine: {quoted(errors)}")
    engine.write_bytes(serialised)
    return sum(network.get_layer(i).type == module.LayerType.PLUGIN_V3 for i in range(network.num_layers))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(), help="where the files go (default: here)")
    parser.add_argument("--engine", action="store_true", help="build classifier.engine too")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    model = Classifier().eval()
    path = export(model, arguments.folder)
    largest = difference(model, path)
    print(f"{path}: differs from PyTorch by {largest:.1e}")
    if not largest <= TOLERANCE:
        print(f"expected at most {TOLERANCE}; the export is not the model", file=sys.stderr)
        return 1
    if arguments.engine:
        layers = build(arguments.folder / "classifier.trt.onnx", arguments.folder / "classifier.engine")
        print(f"{arguments.folder / 'classifier.engine'}: {layers} plugin layers")
    return 0


if __name__ == "__main__":
    sys.exit(main())
