"""Swin encoder: timm's layers, put together the way the published MTMamba checkpoints expect.

Three things differ from timm's own SwinTransformer, and each changes numbers: the window never shrinks on small maps; a map
that is no multiple of the window is padded first and rolled then (timm rolls, then pads); every level's output has a LayerNorm.
Parameter names are timm's, so that its ImageNet weights load.

B batch, C channels, H W map; maps are channels-last [B, H, W, C] inside.
"""

import numpy as np
import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp, PatchEmbed
from timm.models.swin_transformer import PatchMerging, WindowAttention, window_partition, window_reverse
from torch import Tensor, nn

from mtmamba.recompute import run

MASKED = -100.0  # added to the attention logits of pixels that are no neighbours before the roll


class SwinBlock(nn.Module):
    """Shifted-window transformer block (Liu et al., ICCV 2021, section 3.2). [B, H, W, C] -> [B, H, W, C]."""

    def __init__(self, dim: int, heads: int, window: int, shift: int, drop_path: float) -> None:
        super().__init__()
        self.window, self.shift = window, shift
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, num_heads=heads, window_size=window)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, hidden_features=4 * dim)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self._attend(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def _attend(self, x: Tensor) -> Tensor:
        _, height, width, channels = x.shape
        window, shift = self.window, self.shift
        x = F.pad(x, (0, 0, 0, -width % window, 0, -height % window))
        padded_height, padded_width = x.shape[1:3]
        mask = None
        if shift:
            x = roll(x, shift)
            mask = shift_mask(padded_height, padded_width, window, shift, x)
        windows = window_partition(x, (window, window)).flatten(1, 2)  # [B * windows, window^2, C]
        windows = self.attn(windows, mask=mask).unflatten(1, (window, window))
        x = window_reverse(windows, (window, window), padded_height, padded_width)
        if shift:
            x = roll(x, -shift)
        return x[:, :height, :width]


def roll(x: Tensor, shift: int) -> Tensor:
    """Roll a map [B, H, W, C] up and left by `shift` pixels (down and right if negative). torch.roll exports to more nodes."""
    x = torch.cat([x[:, shift:], x[:, :shift]], dim=1)
    return torch.cat([x[:, :, shift:], x[:, :, :shift]], dim=2)


def shift_mask(height: int, width: int, window: int, shift: int, like: Tensor) -> Tensor:
    """[windows, window^2, window^2] of `like`'s dtype and device: 0 between pixels of one region of the rolled map, else -100.

    height, width: of the padded map, in pixels. Regions are what the roll's wrap-around cuts the map into.
    """

    def regions(size: int) -> Tensor:
        position = torch.arange(size, device=like.device)
        return (position >= size - window).long() + (position >= size - shift).long()

    region = 3 * regions(height)[:, None] + regions(width)  # [H, W]
    windows = window_partition(region[None, :, :, None], (window, window)).flatten(1)  # [windows, window^2]
    apart = windows[:, None, :] != windows[:, :, None]
    return apart.to(like.dtype) * MASKED


class SwinLevel(nn.Module):
    """Patch merging (all levels but the first) and the level's blocks, every second one shifted by half a window."""

    def __init__(
        self, in_dim: int, dim: int, depth: int, heads: int, window: int, drop_paths: list[float], merge: bool
    ) -> None:
        super().__init__()
        self.downsample = PatchMerging(in_dim, dim) if merge else nn.Identity()
        self.blocks = nn.ModuleList(
            SwinBlock(dim, heads, window, shift=window // 2 if i % 2 else 0, drop_path=drop_paths[i])
            for i in range(depth)
        )
        self.recompute = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x)
        for block in self.blocks:
            x = run(block, x, recompute=self.recompute)
        return x


class SwinEncoder(nn.Module):
    """Four feature levels of an image: [B, 3, H, W] -> [B, H/4, W/4, C], [B, H/8, W/8, 2C], ..., [B, H/32, W/32, 8C].

    H and W must be multiples of 4. embed_dim: C. drop_path: the largest stochastic-depth rate, reached at the last block.
    """

    def __init__(
        self,
        embed_dim: int,
        depths: tuple[int, ...],
        num_heads: tuple[int, ...],
        window_size: int,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        dims = [embed_dim << level for level in range(len(depths))]
        self.patch_embed = PatchEmbed(
            None, patch_size=4, embed_dim=embed_dim, norm_layer=nn.LayerNorm, flatten=False, output_fmt="NHWC"
        )
        rates = iter(np.linspace(0, drop_path, sum(depths)).tolist())
        self.layers = nn.ModuleList(
            SwinLevel(
                dims[max(level - 1, 0)],
                dims[level],
                depth,
                num_heads[level],
                window_size,
                [next(rates) for _ in range(depth)],
                merge=level > 0,
            )
            for level, depth in enumerate(depths)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for dim in dims)
        self.apply(_init)

    def forward(self, image: Tensor) -> list[Tensor]:
        x = self.patch_embed(image)
        levels = []
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = layer(x)
            levels.append(norm(x))
        return levels


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
