"""Activation checkpointing: drop a block's activations in the forward pass and compute them again in the backward one
(Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016)."""

from collections.abc import Callable

from torch import Tensor
from torch.utils.checkpoint import checkpoint


def run(block: Callable[[Tensor], Tensor], x: Tensor, *, recompute: bool) -> Tensor:
    """block(x); with `recompute`, only x is kept for the backward pass. Same numbers: random draws are repeated."""
    return checkpoint(block, x, use_reentrant=False) if recompute else block(x)
