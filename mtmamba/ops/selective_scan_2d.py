"""SS2D's core: four selective scans over a map, summed. Built on `selective_scan` with one group a task and direction."""

import torch
from torch import Tensor

from mtmamba.ops.selective_scan import selective_scan

DIRECTIONS = 4
"""K: rows, columns, rows reversed, columns reversed."""


def selective_scan_2d(x: Tensor, x_dbl: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor) -> Tensor:
    """Scan a map in four directions and sum (VMamba section 4.2, MTMamba section 3.3); see `selective_scan_2d_reference`.

    x [B, G, D, H, W]; x_dbl [B, G, K, R+2N, H, W]: low-rank step, B and C of every direction at the pixel, in raster
    order; dt_weight [G, K, D, R]; dt_bias, D [G, K, D]; A [G, K, D, N]. Returns y [B, G, H, W, D] of x's dtype.
    """
    batch, groups, channels, height, width = x.shape
    rank, states = dt_weight.shape[-1], A.shape[-1]
    dbl = _scan_orders(x_dbl)  # [B, G, K, R+2N, L]
    low, B, C = dbl.split([rank, states, states], dim=3)
    delta = torch.matmul(dt_weight, low)  # [B, G, K, D, L]
    u = _scan_orders(x.unsqueeze(2).expand(-1, -1, DIRECTIONS, -1, -1, -1))
    y = selective_scan(
        u.flatten(1, 3),
        delta.flatten(1, 3),
        A.flatten(0, 2),
        B.flatten(1, 2),
        C.flatten(1, 2),
        D.flatten(),
        dt_bias.flatten(),
    )
    rows, columns, rows_back, columns_back = y.unflatten(1, (groups, DIRECTIONS, channels)).unbind(2)
    down = (columns + columns_back.flip(-1)).unflatten(-1, (width, height)).transpose(-1, -2)
    across = (rows + rows_back.flip(-1)).unflatten(-1, (height, width))
    return (across + down).permute(0, 1, 3, 4, 2)


def _scan_orders(x: Tensor) -> Tensor:
    """[B, G, K, C, H, W] -> [B, G, K, C, L]: direction k's tokens in its own order."""
    rows, columns, rows_back, columns_back = x.unbind(2)
    return torch.stack(
        [
            rows.flatten(-2),
            columns.transpose(-1, -2).flatten(-2),
            rows_back.flatten(-2).flip(-1),
            columns_back.transpose(-1, -2).flatten(-2).flip(-1),
        ],
        dim=2,
    )
