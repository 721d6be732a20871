"""The gradient of every parameter is the slope of the float64 model whose scan is the sequential loop; steps repeat exactly."""

import dataclasses

import numpy as np
import pytest
import torch

from mtmamba import MTMamba, preset
from mtmamba import ss2d as ss2d_module
from mtmamba.ops import selective_scan_2d_reference, selective_scan_reference

# Of the central difference, in a direction of norm 1; a smaller one where a ReLU turns within a larger.
STEPS = (1e-5, 1e-6, 1e-7)
TOLERANCE = 5e-6  # of the gradient's norm; measured: 4e-7
SMALL = {"embed_dim": 4, "depths": (1, 2, 1, 1), "num_heads": (1, 1, 2, 2), "window_size": 3, "d_state": 3}


def loop_scan_2d(x, x_dbl, dt_weight, dt_bias, A, D):
    """`selective_scan_2d_reference` with all groups and directions in one sequential loop, for speed."""
    x, x_dbl, dt_weight, dt_bias, A, D = (v.detach().numpy() for v in (x, x_dbl, dt_weight, dt_bias, A, D))
    batch, groups, channels, height, width = x.shape
    rank, states = dt_weight.shape[-1], A.shape[-1]
    rows = np.arange(height * width)
    columns = rows.reshape(height, width).T.reshape(-1)
    orders = np.stack([rows, columns, rows[::-1], columns[::-1]])  # [K, L]
    u = x.reshape(batch, groups, 1, channels, -1).repeat(4, axis=2)
    u = np.take_along_axis(u, orders[None, None, :, None], axis=-1)
    dbl = np.take_along_axis(x_dbl.reshape(*x_dbl.shape[:4], -1), orders[None, None, :, None], axis=-1)
    low, B, C = np.split(dbl.reshape(batch, groups * 4, -1, rows.size), [rank, rank + states], axis=2)
    step = np.einsum("gdr,bgrl->bgdl", dt_weight.reshape(-1, channels, rank), low)
    y = selective_scan_reference(
        u.reshape(batch, -1, rows.size),
        step.reshape(batch, -1, rows.size),
        A.reshape(-1, states),
        B,
        C,
        D.reshape(-1),
        dt_bias.reshape(-1),
    )
    back = np.argsort(orders, axis=-1)[None, None, :, None]
    y = np.take_along_axis(y.reshape(u.shape), back, axis=-1).sum(2)
    return torch.from_numpy(y.reshape(x.shape).transpose(0, 1, 3, 4, 2).copy())


def test_the_fast_loop_is_the_reference():
    rng = np.random.default_rng(0)
    G, D, N, R, H, W = 2, 3, 4, 2, 3, 5
    shapes = ((2, G, D, H, W), (2, G, 4, R + 2 * N, H, W), (G, 4, D, R), (G, 4, D), (G, 4, D, N), (G, 4, D))
    arrays = [rng.standard_normal(shape) for shape in shapes]
    arrays[4] = -np.exp(arrays[4])
    expected = selective_scan_2d_reference(*arrays)
    np.testing.assert_allclose(loop_scan_2d(*map(torch.from_numpy, arrays)), expected, rtol=1e-12, atol=1e-12)


def small_model(variant):
    """Every weight at random and the scan's steps near 1, so that no gradient is zero or lost in rounding."""
    torch.manual_seed(0)
    config = dataclasses.replace(preset("nyudv2", "nano", ("depth", "normals"), variant), **SMALL)
    model = MTMamba(config).double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter += 0.1 * torch.randn_like(parameter)
            if name.endswith("dt_bias"):
                parameter.copy_(torch.randn_like(parameter))
    return model


def objective(model, image, targets):
    return sum((targets[task] * output).sum() for task, output in model(image).items())


@pytest.mark.parametrize("variant", ["mtmamba", "mtmamba++"])
def test_every_gradient_is_the_slope_of_the_loop(variant, monkeypatch):
    model = small_model(variant)
    image = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        targets = {task: torch.randn_like(output) for task, output in model(image).items()}
    objective(model, image, targets).backward()

    monkeypatch.setattr(ss2d_module, "selective_scan_2d", loop_scan_2d)
    generator = torch.Generator().manual_seed(1)
    off = {}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            direction /= direction.norm()
            expected, start = (parameter.grad * direction).sum(), parameter.clone()
            for step in STEPS:
                parameter.copy_(start + step * direction)
                high = objective(model, image, targets)
                parameter.copy_(start - step * direction)
                slope = (high - objective(model, image, targets)) / (2 * step)
                error = abs(slope - expected) / parameter.grad.norm()
                if error < TOLERANCE:
                    break
            else:
                off[name] = float(error)
            parameter.copy_(start)
    assert off == {}


@pytest.mark.parametrize("variant", ["mtmamba", "mtmamba++"])
def test_a_training_step_repeats_exactly(variant):
    def trained():
        torch.manual_seed(7)
        config = dataclasses.replace(
            preset("nyudv2", "nano", ("depth", "edge"), variant), drop_path_encoder=0.3, drop_path_decoder=0.3
        )
        model = MTMamba(config).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        for _ in range(2):
            loss = sum(output.square().mean() for output in model(torch.randn(2, 3, 32, 64)).values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return model.state_dict()

    first, second = trained(), trained()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
