"""`torch.ops.mtmamba.selective_scan`: the selective scan as a torch operator with autograd.

Tensors up to float32 go to the C++ library on the CPU (`cpu_kernel`) and to the CUDA library on a GPU (`cuda_kernel`);
everything else takes the vectorised PyTorch path below.

B batch, D channels, L tokens, N states, G groups, R = D / G channels a group; inside, tokens lead: [L, B, G, R, N].

Tokens are taken in blocks, so that memory is bounded whatever L is. Within a block the recurrence h_t = a_t h_{t-1} + b_t
runs over several chunks of tokens side by side when one token alone is too little work for a vector unit: every chunk starts
from zero, then the true states at the chunks' ends are carried through and added. States and steps are float32 (float64 for
float64 tensors) whatever the tensors' dtype. The backward pass is the same recurrence, run from the last token to the first.
"""

from collections.abc import Iterator
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from mtmamba.ops import cpu_kernel, cuda_kernel

BLOCK_ELEMENTS = 1 << 18  # elements [L, B, D, N] of a token block: its few tensors stay in a CPU's cache
STEP_ELEMENTS = 1 << 14  # fewer elements than this in one step are dominated by the cost of calling an operator


@torch.library.custom_op("mtmamba::selective_scan", mutates_args=())
def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    delta_bias: Tensor,
    delta_softplus: bool = True,
) -> Tensor:
    """Selective scan (Gu & Dao, "Mamba", section 3.2), the semantics of `selective_scan_reference`.

    u, delta [B, D, L]; A [D, N]; B, C [B, G, N, L], channel c using group c // (D / G); D, delta_bias [D].
    Dtypes: float16, bfloat16, float32 or float64; A, D and delta_bias may be float32 beside lower ones.
    Returns y [B, D, L] of u's dtype. Raises ValueError where the shapes do not fit. Differentiable in every tensor.
    """
    _check(u, delta, A, B, C, D, delta_bias)
    for kernel in (cpu_kernel, cuda_kernel):
        if kernel.takes(A.shape[1], u, delta, A, B, C, D, delta_bias):
            return kernel.scan(u, delta, A, B, C, D, delta_bias, delta_softplus)
    scan = _Inputs(u, delta, A, B, C, D, delta_bias, delta_softplus)
    h = scan.zero_state()
    y = torch.empty_like(scan.u)  # [L, B, G, R]
    for block in scan.blocks():
        a, b = scan.coefficients(block)
        states = _linear_scan(a, b, h)
        h = states[-1]
        torch.matmul(states, scan.C[block].unsqueeze(-1), out=y[block].unsqueeze(-1))
    y += scan.u * scan.D
    return y.flatten(2).permute(1, 2, 0).to(u.dtype, memory_format=torch.contiguous_format)


@selective_scan.register_fake
def _(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    delta_bias: Tensor,
    delta_softplus: bool = True,
) -> Tensor:
    return torch.empty_like(u, memory_format=torch.contiguous_format)


@torch.library.custom_op("mtmamba::selective_scan_backward", mutates_args=())
def selective_scan_backward(
    grad_y: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    delta_bias: Tensor,
    delta_softplus: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `selective_scan` with respect to its seven tensors, each of its tensor's shape and dtype.

    With g_t = dy_t C_t + a_{t+1} g_{t+1} the gradient of state h_t, the others follow token by token. States are computed
    again block by block from the states at the blocks' starts.
    """
    if grad_y.shape != u.shape:
        raise ValueError(f"expected grad_y of u's shape {tuple(u.shape)}; found {tuple(grad_y.shape)}")
    for kernel in (cpu_kernel, cuda_kernel):
        if kernel.takes(A.shape[1], grad_y, u, delta, A, B, C, D, delta_bias):
            grads = kernel.scan_backward(grad_y, u, delta, A, B, C, D, delta_bias, delta_softplus)
            return cast(tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], grads)
    scan = _Inputs(u, delta, A, B, C, D, delta_bias, delta_softplus)
    gy = scan.tokens_first(grad_y)  # [L, B, G, R]
    starts = [scan.zero_state()]
    blocks = list(scan.blocks())
    for block in blocks[:-1]:
        starts.append(_linear_scan(*scan.coefficients(block), starts[-1])[-1])

    grad_u, grad_step = torch.empty_like(scan.u), torch.empty_like(scan.u)
    grad_A, grad_B, grad_C = torch.zeros_like(scan.A), torch.empty_like(scan.B), torch.empty_like(scan.C)
    carry = torch.zeros_like(starts[0])  # a_{t+1} g_{t+1} from the block behind
    for block, start in zip(reversed(blocks), reversed(starts), strict=True):
        a, b = scan.coefficients(block)
        states = _linear_scan(a.clone(), b, start)
        grad_C[block] = torch.einsum("lbgrn,lbgr->lbgn", states, gy[block])
        before = torch.cat([start[None], states[:-1]])
        source = gy[block].unsqueeze(-1) * scan.C[block].unsqueeze(-2)
        after = torch.cat([torch.ones_like(a[:1]), a[1:].flip(0)])  # decay into a token from the one behind it
        g = _linear_scan(after, source.flip(0), carry).flip(0)
        carry = a[0] * g[0]
        g_B = torch.matmul(g, scan.B[block].unsqueeze(-1)).squeeze(-1)
        grad_B[block] = torch.einsum("lbgrn,lbgr->lbgn", g, scan.step[block] * scan.u[block])
        grad_u[block] = g_B * scan.step[block]
        grad_exponent = g.mul_(before).mul_(a)  # of step * A
        grad_step[block] = (grad_exponent * scan.A).sum(-1) + g_B * scan.u[block]
        grad_A += torch.einsum("lbgrn,lbgr->grn", grad_exponent, scan.step[block])

    grad_u += gy * scan.D
    grad_D = (gy * scan.u).sum((0, 1)).flatten()
    if delta_softplus:
        grad_step *= torch.sigmoid(scan.raw_step)
    channels_first = (1, 2, 0)
    return (
        _like(grad_u.flatten(2).permute(channels_first), u),
        _like(grad_step.flatten(2).permute(channels_first), delta),
        _like(grad_A.flatten(0, 1), A),
        _like(grad_B.permute(1, 2, 3, 0), B),
        _like(grad_C.permute(1, 2, 3, 0), C),
        _like(grad_D, D),
        _like(grad_step.sum((0, 1)).flatten(), delta_bias),
    )


@selective_scan_backward.register_fake
def _(
    grad_y: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    delta_bias: Tensor,
    delta_softplus: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    u_, delta_, A_, B_, C_, D_, bias_ = (
        torch.empty_like(x, memory_format=torch.contiguous_format) for x in (u, delta, A, B, C, D, delta_bias)
    )
    return u_, delta_, A_, B_, C_, D_, bias_


def _save(ctx, inputs: tuple, output: Tensor) -> None:  # type: ignore[no-untyped-def]
    *tensors, ctx.delta_softplus = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, grad_y: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[no-untyped-def]
    return (*selective_scan_backward(grad_y, *ctx.saved_tensors, ctx.delta_softplus), None)


selective_scan.register_autograd(_backward, setup_context=_save)


class _Inputs:
    """The op's tensors in the dtype of the state, tokens first: u, step [L, B, G, R], B, C [L, B, G, N], A [G, R, N]."""

    def __init__(
        self, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor, softplus: bool
    ) -> None:
        self.dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
        groups, states = B.shape[1], A.shape[1]
        self.groups = groups
        self.A = A.to(self.dtype).reshape(groups, -1, states)
        self.D = D.to(self.dtype).reshape(groups, -1)
        self.u = self.tokens_first(u)
        self.B = B.permute(3, 0, 1, 2).to(self.dtype, memory_format=torch.contiguous_format)
        self.C = C.permute(3, 0, 1, 2).to(self.dtype, memory_format=torch.contiguous_format)
        self.raw_step = self.tokens_first(delta) + delta_bias.to(self.dtype).reshape(groups, -1)
        self.step = F.softplus(self.raw_step) if softplus else self.raw_step

    def tokens_first(self, x: Tensor) -> Tensor:
        """[B, D, L] -> [L, B, G, R]"""
        x = x.permute(2, 0, 1).to(self.dtype, memory_format=torch.contiguous_format)
        return x.reshape(*x.shape[:2], self.groups, -1)

    def zero_state(self) -> Tensor:
        """[B, G, R, N]"""
        return self.A.new_zeros((self.u.shape[1], *self.A.shape))

    def blocks(self) -> Iterator[slice]:
        length = self.u.shape[0]
        tokens = max(1, BLOCK_ELEMENTS // max(1, self.u[0].numel() * self.A.shape[-1]))
        for start in range(0, length, tokens):
            yield slice(start, min(start + tokens, length))

    def coefficients(self, block: slice) -> tuple[Tensor, Tensor]:
        """a = exp(step A) and b = step u B, each [tokens, B, G, R, N] and fresh."""
        step = self.step[block]
        a = torch.mul(step.unsqueeze(-1), self.A).exp_()
        b = (step * self.u[block]).unsqueeze(-1) * self.B[block].unsqueeze(-2)
        return a, b


def _linear_scan(a: Tensor, b: Tensor, start: Tensor) -> Tensor:
    """States h_t = a_t h_{t-1} + b_t for a, b [tokens, *state], from h = `start` [*state]. Overwrites a and b."""
    tokens = a.shape[0]
    chunks = min(tokens // 8, STEP_ELEMENTS // max(1, start.numel()))
    if chunks < 2:
        return _sequential(a, b, start)
    length = tokens // chunks
    whole = chunks * length
    a_chunks, b_chunks = a[:whole].unflatten(0, (chunks, length)), b[:whole].unflatten(0, (chunks, length))
    for t in range(1, length):
        torch.addcmul(b_chunks[:, t], a_chunks[:, t], b_chunks[:, t - 1], out=b_chunks[:, t])
        a_chunks[:, t].mul_(a_chunks[:, t - 1])  # decay from the chunk's start to t
    ends = [start]  # states the chunks start from
    for chunk in range(chunks):
        ends.append(torch.addcmul(b_chunks[chunk, -1], a_chunks[chunk, -1], ends[-1]))
    b_chunks.addcmul_(a_chunks, torch.stack(ends[:-1]).unsqueeze(1))
    if whole < tokens:
        _sequential(a[whole:], b[whole:], ends[-1])
    return b


def _sequential(a: Tensor, b: Tensor, start: Tensor) -> Tensor:
    b[0].addcmul_(a[0], start)
    for t in range(1, a.shape[0]):
        b[t].addcmul_(a[t], b[t - 1])
    return b


def _like(x: Tensor, like: Tensor) -> Tensor:
    return x.to(like.dtype, memory_format=torch.contiguous_format)


def _check(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor) -> None:
    if u.ndim != 3 or A.ndim != 2 or B.ndim != 4:
        raise ValueError(f"expected u [B, D, L], A [D, N], B [B, G, N, L]; found {_shapes(u=u, A=A, B=B)}")
    batch, channels, length = u.shape
    groups, states = B.shape[1], A.shape[1]
    expected = {
        "delta": (batch, channels, length),
        "A": (channels, states),
        "B": (batch, groups, states, length),
        "C": (batch, groups, states, length),
        "D": (channels,),
        "delta_bias": (channels,),
    }
    found = {"delta": delta, "A": A, "B": B, "C": C, "D": D, "delta_bias": delta_bias}
    for name, shape in expected.items():
        if tuple(found[name].shape) != shape:
            raise ValueError(f"expected {name} {shape} beside u {tuple(u.shape)}; found {tuple(found[name].shape)}")
    if groups == 0 or channels % groups:
        raise ValueError(f"expected the {channels} channels to be a multiple of the groups, found {groups} groups")


def _shapes(**tensors: Tensor) -> str:
    return ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
