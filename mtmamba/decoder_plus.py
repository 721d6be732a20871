"""What MTMamba++ (TPAMI 2025) has in place of MTMamba's cross-task block and heads. The rest is shared: its skip fusion, a 1x1
convolution, is the linear layer of `mtmamba.decoder`.

B batch, T tasks, C channels of the stage, D = expand * C inner channels, H W map; maps are [B, T, H, W, C].
"""

from torch import Tensor, nn

from mtmamba.decoder import STMBlock, concat_tasks
from mtmamba.stacked import StackedLinear, stacked_linear_channels_first

HEAD_CHANNELS = 96


class SharedCTMBlock(STMBlock):
    """Cross-task block of the semantic-aware kind (S-CTM, MTMamba++ section 3.5): each task's STM block scans its own
    feature, with step, B and C read off one feature that all tasks share. [B, T, H, W, C] -> the same.

    shared = conv3x3(conv1x1(LN(concat of the tasks))) with C channels; task t sees it through in_proj_cross [T, D, C].
    """

    def __init__(self, tasks: int, dim: int, inner_dim: int, d_state: int, drop_path: float) -> None:
        super().__init__(tasks, dim, inner_dim, d_state, drop_path)
        self.norm_shared = nn.LayerNorm(tasks * dim)
        self.conv_shared = nn.Sequential(nn.Conv2d(tasks * dim, dim, 1), nn.Conv2d(dim, dim, 3, padding=1))
        self.in_proj_cross = StackedLinear(tasks, dim, inner_dim)

    def forward(self, x: Tensor) -> Tensor:
        shared = self.conv_shared(self.norm_shared(concat_tasks(x)).permute(0, 3, 1, 2))  # [B, C, H, W]
        shared = shared.permute(0, 2, 3, 1).unsqueeze(1)  # [B, 1, H, W, C]
        return self.mix(x, stacked_linear_channels_first(shared, self.in_proj_cross.weight))


class ConvHead(nn.Module):
    """One task's head: 3x3 convolution, batch norm, ReLU, 1x1 convolution, at the finest level's resolution.

    [B, 1, H, W, C] -> [B, channels, H, W].
    """

    stride = 4  # input pixels to one of the prediction's

    def __init__(self, dim: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, HEAD_CHANNELS, 3, padding=1)
        self.norm = nn.BatchNorm2d(HEAD_CHANNELS)
        self.act = nn.ReLU()
        self.project = nn.Conv2d(HEAD_CHANNELS, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(self.act(self.norm(self.conv(x.squeeze(1).permute(0, 3, 1, 2)))))
