"""The model, MTMamba (ECCV 2024) or MTMamba++ (TPAMI 2025): Swin encoder, task-stacked Mamba decoder, one head a task."""

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from mtmamba.config import ModelConfig
from mtmamba.decoder import CTMBlock, DecoderStage, Head
from mtmamba.decoder_plus import ConvHead, SharedCTMBlock
from mtmamba.swin import SwinEncoder, SwinLevel

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
        self.stages = nn.ModuleList()
        for s, dim in enumerate(dims):
            *stm_rates, ctm_rate = rates[BLOCKS_PER_STAGE * s : BLOCKS_PER_STAGE * (s + 1)]
            ctm = _cross_task_block(config, dim, ctm_rate)
            self.stages.append(DecoderStage(tasks, dim, config.expand * dim, config.d_state, stm_rates, ctm))
        head: type[Head | ConvHead] = Head if config.variant == "mtmamba" else ConvHead
        self.head_stride = head.stride
        self.heads = nn.ModuleDict({task.name: head(config.embed_dim, task.channels) for task in config.task_list})

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

    def activation_checkpointing(self, enabled: bool = True) -> None:
        """Train with less memory, for about one more forward pass a step: the activations inside encoder blocks, decoder
        blocks and MTMamba's heads (the largest maps) are computed again in the backward pass. Gradients stay the same."""
        for module in self.modules():
            if isinstance(module, SwinLevel | DecoderStage | Head):
                module.recompute = enabled

    def _to_output_size(self, prediction: Tensor, height: int, width: int) -> Tensor:
        scale = self.config.output_scale
        if scale * self.head_stride != 1:
            size = [side * scale * self.head_stride for side in prediction.shape[2:]]
            prediction = F.interpolate(prediction, size=size, mode="bilinear", align_corners=False)
        return prediction[:, :, : height * scale, : width * scale]


def _cross_task_block(config: ModelConfig, dim: int, drop_path: float) -> nn.Module:
    """The third block of the stage with `dim` channels: [B, T, H, W, C] -> the same."""
    sizes = (len(config.tasks), dim, config.expand * dim, config.d_state, drop_path)
    if config.cross_task == "none":
        return nn.Identity()
    return SharedCTMBlock(*sizes) if config.variant == "mtmamba++" else CTMBlock(*sizes, mode=config.cross_task)
