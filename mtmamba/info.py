"""What a model costs: parameters, multiply-adds and scan work of every stage, counted on the meta device (nothing is computed).

Three numbers, since "FLOPs" means different things: matrix products and convolutions in multiply-adds; the scan's state updates
h = exp(d A) h + d B u, each one exponential, four multiplications or multiply-adds and an addition to the output; and the
papers' "FLOPs", in which a multiply-add counts 1, a state update 9, the skip D u 1 and LayerNorm 5 an element.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from mtmamba.config import ModelConfig
from mtmamba.model import STRIDE, MTMamba
from mtmamba.ops.selective_scan_2d import DIRECTIONS

SCAN = torch.ops.mtmamba.selective_scan_2d
NORM = torch.ops.aten.native_layer_norm
PAPER_PER_UPDATE, PAPER_PER_NORM_ELEMENT = 9, 5
MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class StageCost:
    """One stage, batch 1. size: (height, width) of its map in pixels. parameters: trained values. multiply_adds: of matrix
    products and convolutions. state_updates: of the scans. paper_flops: see the file's docstring."""

    name: str
    size: tuple[int, int]
    parameters: int
    multiply_adds: int
    state_updates: int
    paper_flops: int

    def weights_mib(self, bytes_each: int = 4) -> float:
        """MiB of the weights, 4 bytes each for FP32, 2 for FP16."""
        return self.parameters * bytes_each / MIB


def model_cost(config: ModelConfig, size: tuple[int, int] | None = None) -> list[StageCost]:
    """The cost of every stage for one image of `size` (height, width; default: the configuration's), the total last."""
    height, width = size or config.input_size
    with torch.device("meta"):
        model = MTMamba(config).eval()
        image = torch.zeros(1, 3, height, width)
    products = _count(model, image, {SCAN: _low_rank_flops})
    others = _count(model, image, {SCAN: _updates, NORM: _elements})
    grid = [side + -side % STRIDE for side in (height, width)]
    rows = []
    for name, stride, modules in (*_stages(config), ("total", 1, [""])):
        places = [f"MTMamba.{module}".rstrip(".") for module in modules]
        multiply_adds = sum(sum(products.get(place, {}).values()) for place in places) // 2
        updates, elements = (sum(others.get(place, {}).get(op, 0) for place in places) for op in (SCAN, NORM))
        skip = updates // config.d_state
        rows.append(
            StageCost(
                name=name,
                size=(grid[0] // stride, grid[1] // stride),
                parameters=sum(p.numel() for module in modules for p in model.get_submodule(module).parameters()),
                multiply_adds=multiply_adds,
                state_updates=updates,
                paper_flops=multiply_adds + PAPER_PER_UPDATE * updates + skip + PAPER_PER_NORM_ELEMENT * elements,
            )
        )
    return rows


def _stages(config: ModelConfig) -> list[tuple[str, int, list[str]]]:
    """Name, stride and modules of every stage; together they are the whole model."""
    rows = []
    for level in range(4):
        modules = [f"encoder.layers.{level}", f"encoder.norms.{level}"] + ["encoder.patch_embed"] * (level == 0)
        rows.append((f"encoder 1/{4 << level}", 4 << level, modules))
    rows += [(f"decoder 1/{16 >> stage}", 16 >> stage, [f"stages.{stage}"]) for stage in range(3)]
    stride = 1 if config.variant == "mtmamba" else 4
    return rows + [(f"head {task}", stride, [f"heads.{task}"]) for task in config.tasks]


Formula = Callable[..., int]


def _count(model: MTMamba, image: torch.Tensor, formulas: dict[Any, Formula]) -> dict[str, dict[Any, int]]:
    """Module -> operator -> count: torch's own count of products (2 a multiply-add) and what the formulas add."""
    with FlopCounterMode(display=False, custom_mapping=formulas) as counter, torch.no_grad():
        model(image)
    return {str(name): dict(counts) for name, counts in counter.get_flop_counts().items()}


def _updates(x: tuple[int, ...], x_dbl: Any, dt_weight: Any, dt_bias: Any, A: Any, D: Any, **_: Any) -> int:
    """Shapes of `selective_scan_2d`'s tensors -> its state updates: B G D L K N."""
    return math.prod(x) * DIRECTIONS * A[-1]


def _low_rank_flops(x: tuple[int, ...], x_dbl: Any, dt_weight: Any, dt_bias: Any, A: Any, D: Any, **_: Any) -> int:
    """Twice the multiply-adds of the step's projection from rank R, which is inside the operator: B G D L K R."""
    return 2 * math.prod(x) * DIRECTIONS * dt_weight[-1]


def _elements(x: tuple[int, ...], *_args: Any, **_: Any) -> int:
    return math.prod(x)
