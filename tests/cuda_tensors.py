"""Random tensors of both operators, as PyTorch gives them to the CUDA kernels; sizes by the letters of plugins/ops.yaml."""

import torch


def scan_tensors(batch=2, channels=6, groups=2, states=16, length=70):
    g = torch.Generator().manual_seed(0)
    shapes = [(batch, channels, length)] * 2 + [(channels, states)] + [(batch, groups, states, length)] * 2
    tensors = [torch.randn(shape, generator=g) for shape in [*shapes, (channels,), (channels,)]]
    tensors[2] = -tensors[2].exp()
    return tensors


def map_tensors(B=1, G=2, D=5, H=7, W=6, R=3, N=16):
    g = torch.Generator().manual_seed(0)
    shapes = [(B, G, D, H, W), (B, G, 4, R + 2 * N, H, W), (G, 4, D, R), (G, 4, D), (G, 4, D, N), (G, 4, D)]
    tensors = [torch.randn(shape, generator=g) for shape in shapes]
    tensors[4] = -tensors[4].exp()
    return tensors
