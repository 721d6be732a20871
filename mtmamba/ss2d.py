"""SS2D, the two-dimensional selective scan layer (VMamba section 4.2; MTMamba section 3.3), task-stacked.

B batch, G groups (the stacked tasks; in the cross-task block also the map that they share), D inner channels, H W map,
K = 4 directions, N states, R rank of the step.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtmamba.ops.selective_scan_2d import DIRECTIONS, selective_scan_2d
from mtmamba.stacked import StackedLayerNorm

SCAN_PARAMETERS = ("dt_weight", "dt_bias", "A_log", "D")
STEP_RANGE = (1e-3, 1e-1)  # the step softplus(dt_bias) starts log-uniform in this range (Mamba section 3.6)


class SS2D(nn.Module):
    """Depthwise 3x3 convolution, SiLU, four selective scans, LayerNorm, for each group: [B, G, D, H, W] -> [B, G, H, W, D].

    model_dim: C, which sets the rank R = ceil(C / 16); inner_dim: D; d_state: N. forward's `cross`, of x's shape, is what the
    low-rank step, B and C are projected from instead of the convolved x (MTMamba++'s cross SSM, TPAMI 2025 section 3.4).

    half(), bfloat16() and to(dtype) leave SCAN_PARAMETERS in float32: the scan takes them so, and a decay is exp(step A).
    """

    def __init__(self, groups: int, model_dim: int, inner_dim: int, d_state: int) -> None:
        super().__init__()
        G, K, D, N = groups, DIRECTIONS, inner_dim, d_state
        R = math.ceil(model_dim / 16)
        self.conv_weight = nn.Parameter(torch.empty(G * D, 1, 3, 3).uniform_(-1 / 3, 1 / 3))
        self.conv_bias = nn.Parameter(torch.empty(G * D).uniform_(-1 / 3, 1 / 3))
        self.x_proj = nn.Parameter(torch.empty(G, K, R + 2 * N, D).uniform_(-(D**-0.5), D**-0.5))
        self.dt_weight = nn.Parameter(torch.empty(G, K, D, R).uniform_(-(R**-0.5), R**-0.5))
        low, high = (math.log(bound) for bound in STEP_RANGE)
        step = torch.empty(G, K, D).uniform_(low, high).exp()
        self.dt_bias = nn.Parameter(step + torch.log(-torch.expm1(-step)))  # softplus(dt_bias) = step
        self.A_log = nn.Parameter(torch.arange(1.0, N + 1).log().expand(G, K, D, N).clone())
        self.D = nn.Parameter(torch.ones(G, K, D))
        self.norm = StackedLayerNorm(G, D)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "SS2D":
        before = {name: getattr(self, name).data for name in SCAN_PARAMETERS}
        super()._apply(fn, recurse)
        for name, full in before.items():
            parameter = getattr(self, name)
            if full.dtype == torch.float32 and parameter.dtype in (torch.float16, torch.bfloat16):
                parameter.data = full.to(parameter.device)
        return self

    def forward(self, x: Tensor, cross: Tensor | None = None) -> Tensor:
        groups, channels = x.shape[1:3]
        x = F.conv2d(x.flatten(1, 2), self.conv_weight, self.conv_bias, padding=1, groups=groups * channels)
        x = F.silu(x).unflatten(1, (groups, channels))
        source = x if cross is None else cross
        x_dbl = torch.matmul(self.x_proj.flatten(1, 2), source.flatten(3))  # [B, G, K (R+2N), L]
        x_dbl = x_dbl.unflatten(2, (DIRECTIONS, -1)).unflatten(4, x.shape[3:])
        A = -torch.exp(self.A_log)
        return self.norm(selective_scan_2d(x, x_dbl, self.dt_weight, self.dt_bias, A, self.D))
