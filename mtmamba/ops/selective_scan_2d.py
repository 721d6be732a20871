"""`torch.ops.mtmamba.selective_scan_2d`: SS2D's whole core as one torch operator with autograd.

B batch, G groups (stacked tasks), D channels, H W map, L = H*W, K = 4 directions, N states, R rank of the step.
Tensors up to float32 go to the C++ library on the CPU (`cpu_kernel`) and to the CUDA library on a GPU (`cuda_kernel`).
Otherwise it is built on `selective_scan` with one of its groups for every group and direction here.
"""

from typing import cast

import torch
from torch import Tensor

from mtmamba.ops import cpu_kernel, cuda_kernel
from mtmamba.ops.selective_scan import selective_scan, selective_scan_backward

DIRECTIONS = 4
"""K: rows, columns, rows reversed, columns reversed."""


@torch.library.custom_op("mtmamba::selective_scan_2d", mutates_args=())
def selective_scan_2d(x: Tensor, x_dbl: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor) -> Tensor:
    """Scan a map in four directions and sum (VMamba section 4.2, MTMamba section 3.3); see `selective_scan_2d_reference`.

    x [B, G, D, H, W]; x_dbl [B, G, K, R+2N, H, W]: low-rank step, B and C of every direction at the pixel, in raster
    order; dt_weight [G, K, D, R]; dt_bias, D [G, K, D]; A [G, K, D, N]. dt_weight, dt_bias, A and D may be float32 beside
    lower dtypes of the others. Returns y [B, G, H, W, D] of x's dtype. Raises ValueError where the shapes do not fit.
    Differentiable in every tensor.
    """
    _check(x, x_dbl, dt_weight, dt_bias, A, D)
    for kernel in (cpu_kernel, cuda_kernel):
        if kernel.takes(A.shape[-1], x, x_dbl, dt_weight, dt_bias, A, D):
            return kernel.scan_2d(x, x_dbl, dt_weight, dt_bias, A, D)
    wide = torch.promote_types(x.dtype, torch.float32)  # steps and sums over the directions, too, are float32
    y = selective_scan(*_scan_inputs(x.to(wide), x_dbl.to(wide), dt_weight, dt_bias, A, D))
    return _merge(y, x).permute(0, 1, 3, 4, 2).contiguous().to(x.dtype)


@selective_scan_2d.register_fake
def _(x: Tensor, x_dbl: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor) -> Tensor:
    batch, groups, channels, height, width = x.shape
    return x.new_empty((batch, groups, height, width, channels))


@torch.library.custom_op("mtmamba::selective_scan_2d_backward", mutates_args=())
def selective_scan_2d_backward(
    grad_y: Tensor, x: Tensor, x_dbl: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `selective_scan_2d` with respect to its six tensors, each of its tensor's shape and dtype."""
    if grad_y.shape != (*x.shape[:2], *x.shape[3:], x.shape[2]):
        raise ValueError(f"expected grad_y [B, G, H, W, D] beside x {tuple(x.shape)}; found {tuple(grad_y.shape)}")
    for kernel in (cpu_kernel, cuda_kernel):
        if kernel.takes(A.shape[-1], grad_y, x, x_dbl, dt_weight, dt_bias, A, D):
            grads = kernel.scan_2d_backward(grad_y, x, x_dbl, dt_weight, dt_bias, A, D)
            return cast(tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], grads)
    inputs = _scan_inputs(x, x_dbl, dt_weight, dt_bias, A, D)
    grad_map = grad_y.permute(0, 1, 4, 2, 3).unsqueeze(2).expand(-1, -1, DIRECTIONS, -1, -1, -1)
    grad_u, grad_delta, grad_A, grad_B, grad_C, grad_D, grad_bias = selective_scan_backward(
        scan_orders(grad_map).flatten(1, 3), *inputs, True
    )
    grad_delta = grad_delta.unflatten(1, dt_weight.shape[:3])  # [B, G, K, D, L]
    low = scan_orders(x_dbl[:, :, :, : dt_weight.shape[-1]])
    weight = dt_weight.to(x.dtype)
    grad_low = torch.matmul(weight.transpose(-1, -2), grad_delta)
    grad_weight = torch.einsum("bgkdl,bgkrl->gkdr", grad_delta, low)
    groups = x.shape[1]
    split = [grad.unflatten(1, (groups, DIRECTIONS)) for grad in (grad_B, grad_C)]
    grad_dbl = map_orders(torch.cat([grad_low, *split], dim=3), x.shape[-2:])
    return (
        _merge(grad_u, x),
        grad_dbl,
        grad_weight.to(dt_weight.dtype),
        grad_bias.reshape(dt_bias.shape),
        grad_A.reshape(A.shape),
        grad_D.reshape(D.shape),
    )


@selective_scan_2d_backward.register_fake
def _(
    grad_y: Tensor, x: Tensor, x_dbl: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    x_, dbl_, weight_, bias_, A_, D_ = (
        torch.empty_like(v, memory_format=torch.contiguous_format) for v in (x, x_dbl, dt_weight, dt_bias, A, D)
    )
    return x_, dbl_, weight_, bias_, A_, D_


def _save(ctx, inputs: tuple, output: Tensor) -> None:  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad_y: Tensor) -> tuple[Tensor, ...]:  # type: ignore[no-untyped-def]
    return selective_scan_2d_backward(grad_y, *ctx.saved_tensors)


selective_scan_2d.register_autograd(_backward, setup_context=_save)


def scan_orders(x: Tensor) -> Tensor:
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


def map_orders(tokens: Tensor, size: tuple[int, ...]) -> Tensor:
    """[B, G, K, C, L] -> [B, G, K, C, H, W]: the inverse of `scan_orders`; size: (H, W)."""
    height, width = size
    rows, columns, rows_back, columns_back = tokens.unbind(2)
    return torch.stack(
        [
            rows.unflatten(-1, (height, width)),
            columns.unflatten(-1, (width, height)).transpose(-1, -2),
            rows_back.flip(-1).unflatten(-1, (height, width)),
            columns_back.flip(-1).unflatten(-1, (width, height)).transpose(-1, -2),
        ],
        dim=2,
    )


def _scan_inputs(
    x: Tensor, x_dbl: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The tensors of the one-dimensional scan: u, delta [B, GKD, L], A, B, C [B, GK, N, L], D, delta_bias."""
    rank, states = dt_weight.shape[-1], A.shape[-1]
    low, B, C = scan_orders(x_dbl).split([rank, states, states], dim=3)
    delta = torch.matmul(dt_weight.to(x.dtype), low)
    u = scan_orders(x.unsqueeze(2).expand(-1, -1, DIRECTIONS, -1, -1, -1))
    return (
        u.flatten(1, 3),
        delta.flatten(1, 3),
        A.flatten(0, 2),
        B.flatten(1, 2),
        C.flatten(1, 2),
        D.flatten(),
        dt_bias.flatten(),
    )


def _merge(tokens: Tensor, like: Tensor) -> Tensor:
    """[B, GKD, L] -> the sum over the directions on the map, [B, G, D, H, W], `like` x."""
    _, groups, channels, height, width = like.shape
    maps = map_orders(tokens.unflatten(1, (groups, DIRECTIONS, channels)), (height, width))
    return maps.sum(2)


def _check(x: Tensor, x_dbl: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor) -> None:
    if x.ndim != 5 or dt_weight.ndim != 4 or A.ndim != 4:
        raise ValueError(
            "expected x [B, G, D, H, W], dt_weight [G, K, D, R], A [G, K, D, N]; found "
            f"x {tuple(x.shape)}, dt_weight {tuple(dt_weight.shape)}, A {tuple(A.shape)}"
        )
    batch, groups, channels, height, width = x.shape
    rank, states = dt_weight.shape[-1], A.shape[-1]
    expected = {
        "x_dbl": (x_dbl, (batch, groups, DIRECTIONS, rank + 2 * states, height, width)),
        "dt_weight": (dt_weight, (groups, DIRECTIONS, channels, rank)),
        "dt_bias": (dt_bias, (groups, DIRECTIONS, channels)),
        "A": (A, (groups, DIRECTIONS, channels, states)),
        "D": (D, (groups, DIRECTIONS, channels)),
    }
    for name, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(f"expected {name} {shape} beside x {tuple(x.shape)}; found {tuple(tensor.shape)}")
