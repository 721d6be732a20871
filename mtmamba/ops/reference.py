"""The truth: sequential float64 loops in NumPy, slow and plain.

B batch, D channels, L tokens, N states, G groups; K = 4 directions, H W the map, R the low rank of the step.
"""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def softplus(x: Array) -> Array:
    """log(1 + exp(x)) without overflow."""
    return np.logaddexp(0.0, x)


def selective_scan_reference(
    u: Array, delta: Array, A: Array, B: Array, C: Array, D: Array, delta_bias: Array, delta_softplus: bool = True
) -> Array:
    """Selective scan, one token after another (Gu & Dao, "Mamba", section 3.2, Algorithm 2, zero-order hold on A).

    d = softplus(delta + delta_bias);  h_t = exp(d_t A) h_{t-1} + d_t B_t u_t;  y_t = C_t . h_t + D u_t.

    u, delta [B, D, L]; A [D, N]; B, C [B, G, N, L], channel c using group c // (D / G); D, delta_bias [D].
    Any real dtype is taken and computed in float64. Returns y [B, D, L] float64.
    """
    u, delta, A, B, C, D, delta_bias = (np.asarray(x, np.float64) for x in (u, delta, A, B, C, D, delta_bias))
    step = delta + delta_bias[:, None]
    if delta_softplus:
        step = softplus(step)
    repeat = u.shape[1] // B.shape[1]
    B, C = np.repeat(B, repeat, axis=1), np.repeat(C, repeat, axis=1)
    h = np.zeros((*u.shape[:2], A.shape[1]))
    y = np.full_like(u, np.nan)
    for t in range(u.shape[2]):
        h = np.exp(step[:, :, t, None] * A) * h + (step[:, :, t] * u[:, :, t])[..., None] * B[..., t]
        y[:, :, t] = (h * C[..., t]).sum(-1)
    return y + u * D[:, None]


def selective_scan_2d_reference(x: Array, x_dbl: Array, dt_weight: Array, dt_bias: Array, A: Array, D: Array) -> Array:
    """SS2D's core: four selective scans over a map (rows, columns, both reversed), summed (MTMamba section 3.3).

    x [B, G, D, H, W]; x_dbl [B, G, K, R+2N, H, W]: low-rank step, B and C of every direction at the pixel, in raster
    order; dt_weight [G, K, D, R]; dt_bias, D [G, K, D]; A [G, K, D, N]. Returns y [B, G, H, W, D] float64.
    """
    x, x_dbl, dt_weight, dt_bias, A, D = (np.asarray(v, np.float64) for v in (x, x_dbl, dt_weight, dt_bias, A, D))
    batch, groups, channels, height, width = x.shape
    rank, states = dt_weight.shape[-1], A.shape[-1]
    raster = np.arange(height * width)
    columns = raster.reshape(height, width).T.reshape(-1)
    flat, flat_dbl = x.reshape(batch, groups, channels, -1), x_dbl.reshape(*x_dbl.shape[:4], -1)
    y = np.zeros_like(flat)
    for k, order in enumerate((raster, columns, raster[::-1], columns[::-1])):
        for g in range(groups):
            dbl = flat_dbl[:, g, k][..., order]
            step = np.einsum("dr,brl->bdl", dt_weight[g, k], dbl[:, :rank])
            B, C = dbl[:, None, rank : rank + states], dbl[:, None, rank + states :]
            y[:, g][..., order] += selective_scan_reference(
                flat[:, g][..., order], step, A[g, k], B, C, D[g, k], dt_bias[g, k]
            )
    return y.reshape(x.shape).transpose(0, 1, 3, 4, 2)
