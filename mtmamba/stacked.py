"""Layers with a leading task dimension: T tasks run the same layer on the same shapes with their own weights, as one tensor.

B batch, T tasks, H W map, C channels; maps are [B, T, H, W, C].
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class StackedLinear(nn.Module):
    """T linear layers: [B, T, H, W, in] -> [B, T, H, W, out]; an input [B, 1, H, W, in] is shared by all tasks.

    weight [T, out, in], bias [T, out] or None.
    """

    def __init__(self, tasks: int, in_features: int, out_features: int, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(tasks, out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(tasks, out_features)) if bias else None
        nn.init.uniform_(self.weight, -1 / math.sqrt(in_features), 1 / math.sqrt(in_features))

    def forward(self, x: Tensor) -> Tensor:
        return stacked_linear(x, self.weight, self.bias)


def stacked_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [B, T or 1, H, W, in], weight [T, out, in], bias [T, out] -> [B, T, H, W, out]"""
    y = torch.matmul(x.flatten(2, 3), weight.transpose(1, 2))
    if bias is not None:
        y = y + bias[:, None]
    return y.unflatten(2, x.shape[2:4])


def stacked_linear_channels_first(x: Tensor, weight: Tensor) -> Tensor:
    """x [B, T or 1, H, W, in], weight [T, out, in] -> [B, T, out, H, W]"""
    return torch.matmul(weight, x.flatten(2, 3).transpose(2, 3)).unflatten(3, x.shape[2:4])


class StackedLayerNorm(nn.Module):
    """T LayerNorms over the last axis, eps 1e-5: [B, T, H, W, C] -> the same. weight, bias [T, C]."""

    def __init__(self, tasks: int, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(tasks, channels))
        self.bias = nn.Parameter(torch.zeros(tasks, channels))

    def forward(self, x: Tensor) -> Tensor:
        y = F.layer_norm(x, x.shape[-1:])
        return y * self.weight[:, None, None] + self.bias[:, None, None]


class StackedDropPath(nn.Module):
    """Stochastic depth, drawn for every sample and every task: [B, T, ...] -> the same."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        keep = 1 - self.rate
        mask = x.new_empty(x.shape[:2] + (1,) * (x.ndim - 2)).bernoulli_(keep)
        return x * mask / keep


class PatchExpand(nn.Module):
    """A linear layer to `scale`^2 * out channels, spread over `scale` x `scale` pixels, then LayerNorm.

    [B, T or 1, H, W, in] -> [B, T, scale*H, scale*W, out]. Channel (p1 * scale + p2) * out + c goes to pixel
    (scale*h + p1, scale*w + p2).
    """

    def __init__(self, tasks: int, in_features: int, out_features: int, scale: int) -> None:
        super().__init__()
        self.scale = scale
        self.expand = StackedLinear(tasks, in_features, scale * scale * out_features)
        self.norm = StackedLayerNorm(tasks, out_features)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.scale
        x = self.expand(x).unflatten(4, (scale, scale, -1))  # [B, T, H, W, p1, p2, out]
        return self.norm(x.permute(0, 1, 2, 4, 3, 5, 6).flatten(4, 5).flatten(2, 3))
