"""The MTMamba model (ECCV 2024): Swin encoder, task-stacked Mamba decoder, one head a task."""

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from mtmamba.config import ModelConfig
from mtmamba.decoder import DecoderStage, Head
from mtmamba.swin import SwinEncoder

STRIDE = 32  # of the coarsest encoder level
BLOCKS_PER_STAGE = 3


class MTMamba(nn.Module):
    """One image in, every task's raw prediction out.

    forward(image [B, 3, H, W]) -> {task: [B, channels, s*H, s*W]} with s = config.output_scale. The image is RGB in 0..1,
    minus the ImageNet mean, over its standard deviation. H and W are any size: they are padded with zeros at the bottom
    and right to a multiple of 32 inside, and the predictions are cropped back.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        tasks = len(config.tasks)
        self.encoder = SwinEncoder(
            config.embed_dim, config.depths, config.num_heads, config.window_size, config.drop_path_encoder
        )
        dims = config.level_channels[2::-1]  # stages 0, 1, 2 answer at levels 2, 1, 0
        rates = np.linspace(config.drop_path_decoder, 0, BLOCKS_PER_STAGE * len(dims)).tolist()
        self.stages = nn.ModuleList(
            DecoderStage(tasks, dim, config.expand * dim, config.d_state, rates[3 * s : 3 * s + 3])
            for s, dim in enumerate(dims)
        )
        self.heads = nn.ModuleDict({task.name: Head(config.embed_dim, task.channels) for task in config.task_list})

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        height, width = image.shape[2:]
        image = F.pad(image, (0, -width % STRIDE, 0, -height % STRIDE))
        levels = self.encoder(image)
        x = levels[3].unsqueeze(1)  # every task starts from the same features
        for stage, skip in zip(self.stages, levels[2::-1], strict=True):
            x = stage(x, skip)
        return {
            name: self._to_output_size(head(x[:, t : t + 1]), height, width)
            for t, (name, head) in enumerate(self.heads.items())
        }

    def _to_output_size(self, prediction: Tensor, height: int, width: int) -> Tensor:
        scale = self.config.output_scale
        if scale != 1:
            size = [side * scale for side in prediction.shape[2:]]
            prediction = F.interpolate(prediction, size=size, mode="bilinear", align_corners=False)
        return prediction[:, :, : height * scale, : width * scale]
