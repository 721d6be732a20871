"""MTMamba's decoder: patch expand, skip, self-task blocks, cross-task block, heads (paper sections 3.2 to 3.5).

B batch, T tasks, C channels of the stage, D = expand * C inner channels, H W map; maps are [B, T, H, W, C].
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtmamba.recompute import run
from mtmamba.ss2d import SS2D
from mtmamba.stacked import (
    PatchExpand,
    StackedDropPath,
    StackedLayerNorm,
    StackedLinear,
    stacked_linear,
    stacked_linear_channels_first,
)


class STMBlock(nn.Module):
    """Self-task Mamba block (paper section 3.4): x + out_proj(SS2D(in_proj_x(LN x)) * SiLU(in_proj_z(LN x))).

    [B, T, H, W, C] -> the same. in_proj.weight [T, 2D, C]: its first half makes x, its second z.
    """

    def __init__(self, tasks: int, dim: int, inner_dim: int, d_state: int, drop_path: float) -> None:
        super().__init__()
        self.norm = StackedLayerNorm(tasks, dim)
        self.in_proj = StackedLinear(tasks, dim, 2 * inner_dim)
        self.ss2d = SS2D(tasks, dim, inner_dim, d_state)
        self.out_proj = StackedLinear(tasks, inner_dim, dim)
        self.drop_path = StackedDropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x)

    def mix(self, x: Tensor, cross: Tensor | None = None) -> Tensor:
        """forward, with the map [B, T, D, H, W] that SS2D reads step, B and C off, if it is not x."""
        n = self.norm(x)
        to_x, to_z = self.in_proj.weight.chunk(2, dim=1)
        y = self.ss2d(stacked_linear_channels_first(n, to_x), cross) * F.silu(stacked_linear(n, to_z))
        return x + self.drop_path(self.out_proj(y))


class CTMBlock(nn.Module):
    """Cross-task Mamba block (paper section 3.5): every task's feature is mixed with one shared by all, by a learned gate.

    [B, T, H, W, C] -> the same: x_t + out_proj_t(g_t S + (1 - g_t) own_t), g_t = sigmoid(gate_t(LN x_t)).
    own_t = SS2D(in_proj_t(LN x_t)), S = SS2D(in_proj_shared(LN(concat of all x_t))): one call with T + 1 groups, S the last.
    mode (paper Table 6): `learned`, or `own` for g = 0 and `shared` for g = 1, which lack what has no effect then.
    """

    def __init__(
        self, tasks: int, dim: int, inner_dim: int, d_state: int, drop_path: float, mode: str = "learned"
    ) -> None:
        super().__init__()
        self.mode = mode
        if mode != "own":
            self.norm_shared = nn.LayerNorm(tasks * dim)
            self.in_proj_shared = StackedLinear(1, tasks * dim, inner_dim)
        if mode != "shared":
            self.norm = StackedLayerNorm(tasks, dim)
            self.in_proj = StackedLinear(tasks, dim, inner_dim)
        if mode == "learned":
            self.gate = StackedLinear(tasks, dim, inner_dim)
        self.ss2d = SS2D({"learned": tasks + 1, "own": tasks, "shared": 1}[mode], dim, inner_dim, d_state)
        self.out_proj = StackedLinear(tasks, inner_dim, dim)
        self.drop_path = StackedDropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.out_proj(self._mix(x)))

    def _mix(self, x: Tensor) -> Tensor:
        """[B, T or 1, H, W, D]"""
        if self.mode == "shared":
            return self.ss2d(self._shared(x))
        n = self.norm(x)
        own = stacked_linear_channels_first(n, self.in_proj.weight)
        if self.mode == "own":
            return self.ss2d(own)
        y = self.ss2d(torch.cat((own, self._shared(x)), 1))
        own, shared = y[:, :-1], y[:, -1:]
        return own + torch.sigmoid(self.gate(n)) * (shared - own)

    def _shared(self, x: Tensor) -> Tensor:
        """[B, T, H, W, C] -> [B, 1, D, H, W]"""
        n = self.norm_shared(concat_tasks(x)).unsqueeze(1)
        return stacked_linear_channels_first(n, self.in_proj_shared.weight)


def concat_tasks(x: Tensor) -> Tensor:
    """[B, T, H, W, C] -> [B, H, W, T*C]"""
    return x.permute(0, 2, 3, 1, 4).flatten(3)


class DecoderStage(nn.Module):
    """One stage: up to twice the resolution, join the encoder's skip, two STM blocks, then the cross-task block `ctm`.

    x [B, T or 1, H, W, 2C], skip [B, 2H, 2W, C] -> [B, T, 2H, 2W, C]. drop_paths: rates of the two STM blocks.
    ctm: [B, T, 2H, 2W, C] -> the same.
    """

    def __init__(
        self, tasks: int, dim: int, inner_dim: int, d_state: int, drop_paths: list[float], ctm: nn.Module
    ) -> None:
        super().__init__()
        self.expand = PatchExpand(tasks, 2 * dim, dim, scale=2)
        self.concat = StackedLinear(tasks, 2 * dim, dim, bias=True)
        self.stm = nn.ModuleList(STMBlock(tasks, dim, inner_dim, d_state, rate) for rate in drop_paths)
        self.ctm = ctm
        self.recompute = False

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        # Linear(concat(x, skip)) without the concatenation, so that the skip is never copied for every task.
        to_x, to_skip = self.concat.weight.chunk(2, dim=2)
        x = stacked_linear(self.expand(x), to_x, self.concat.bias) + stacked_linear(skip.unsqueeze(1), to_skip)
        for block in self.stm:
            x = run(block, x, recompute=self.recompute)
        return run(self.ctm, x, recompute=self.recompute)


class Head(nn.Module):
    """One task's head: patch expand to four times the resolution, then a 1x1 convolution.

    [B, 1, H, W, C] -> [B, channels, 4H, 4W]. Tasks differ in channels, so heads are not stacked.
    """

    stride = 1  # input pixels to one of the prediction's

    def __init__(self, dim: int, channels: int) -> None:
        super().__init__()
        self.expand = PatchExpand(1, dim, dim, scale=4)
        self.project = nn.Linear(dim, channels)
        self.recompute = False

    def forward(self, x: Tensor) -> Tensor:
        return run(self._predict, x, recompute=self.recompute)

    def _predict(self, x: Tensor) -> Tensor:
        return self.project(self.expand(x).squeeze(1)).permute(0, 3, 1, 2)
