"""The torch operator against the float64 loop: shapes, tails, hostile values, dtypes, gradients."""

import importlib

import numpy as np
import pytest
import torch

from mtmamba.native import CPU_SWITCH, cpu_library
from mtmamba.ops import selective_scan, selective_scan_2d, selective_scan_2d_reference, selective_scan_reference

NAMES = ("u", "delta", "A", "B", "C", "D", "delta_bias")
BASE = {"batch": 1, "channels": 6, "groups": 2, "states": 4, "length": 37}
scan_module = importlib.import_module("mtmamba.ops.selective_scan")


@pytest.fixture(params=["vectorised", "cpu-kernel"], autouse=True)
def implementation(request, monkeypatch):
    """Every test runs on both; float64 tensors take the vectorised path either way."""
    monkeypatch.setenv(CPU_SWITCH, "0" if request.param == "vectorised" else "1")
    if request.param == "cpu-kernel" and cpu_library() is None:
        pytest.skip("the CPU library cannot be built here")
    return request.param


def make_inputs(batch, channels, groups, states, length, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "u": rng.normal(size=(batch, channels, length)),
        "delta": rng.normal(size=(batch, channels, length)),
        "A": -np.exp(rng.normal(size=(channels, states))),
        "B": rng.normal(size=(batch, groups, states, length)),
        "C": rng.normal(size=(batch, groups, states, length)),
        "D": rng.normal(size=channels),
        "delta_bias": rng.normal(size=channels),
    }


def run(inputs, dtype=torch.float32, softplus=True):
    return selective_scan(*(torch.from_numpy(inputs[name]).to(dtype) for name in NAMES), softplus)


def rounded(inputs, dtype):
    """The inputs as the operator sees them, in float64."""
    return {name: torch.from_numpy(value).to(dtype).double().numpy() for name, value in inputs.items()}


def assert_close(inputs, dtype=torch.float32, tolerance=2e-6, softplus=True):
    expected = selective_scan_reference(**rounded(inputs, dtype), delta_softplus=softplus)
    found = run(inputs, dtype, softplus).double().numpy()
    scale = max(1.0, np.abs(expected).max())
    assert np.isfinite(found).all()
    assert np.abs(found - expected).max() <= tolerance * scale


def test_one_step_by_hand():
    one = torch.ones(1, 1, 1)
    y = selective_scan(
        2 * one, 0.5 * one, -torch.ones(1, 1), 3 * one[None], 5 * one[None], torch.tensor([7.0]), torch.zeros(1), False
    )
    assert y.item() == pytest.approx(0.5 * 2 * 3 * 5 + 7 * 2)


def test_two_steps_by_hand():
    u, delta = torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[1.0, 3.0]]])
    ones = torch.ones(1, 1, 1, 2)
    y = selective_scan(u, delta, torch.tensor([[-0.5]]), ones, ones, torch.zeros(1), torch.zeros(1), False)
    assert y[0, 0].tolist() == pytest.approx([1.0, np.exp(-1.5) * 1.0 + 6.0])


@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 15, 16, 17, 255, 256, 257, 1008])
def test_lengths(length):
    assert_close(make_inputs(**{**BASE, "length": length}))


@pytest.mark.parametrize(
    "change",
    [
        {"batch": 3},
        {"groups": 1},
        {"channels": 20, "groups": 20},
        {"states": 1},
        {"states": 16},
        {"states": 64},
        {"channels": 128, "groups": 4, "states": 16, "length": 300},  # enough work a step for no chunks
    ],
    ids=str,
)
def test_shapes(change):
    assert_close(make_inputs(**{**BASE, **change}))


def test_without_softplus():
    inputs = make_inputs(**BASE)
    inputs["delta"] = np.abs(inputs["delta"])
    inputs["delta_bias"] = np.abs(inputs["delta_bias"])
    assert_close(inputs, softplus=False)


@pytest.mark.parametrize("block, step", [(1, 1), (64, 1 << 14), (1 << 20, 1 << 14), (1 << 20, 1)])
def test_any_blocking_gives_the_same(monkeypatch, block, step):
    monkeypatch.setenv(CPU_SWITCH, "0")  # blocks are the vectorised path's
    monkeypatch.setattr(scan_module, "BLOCK_ELEMENTS", block)
    monkeypatch.setattr(scan_module, "STEP_ELEMENTS", step)
    assert_close(make_inputs(**{**BASE, "length": 211}))


@pytest.mark.parametrize(
    "name, value", [("delta", -50.0), ("delta", 50.0), ("A", -1e-4), ("A", -1e3), ("u", 1e4), ("B", 1e4), ("C", 1e4)]
)
def test_hostile_values(name, value):
    inputs = make_inputs(**{**BASE, "length": 300})
    inputs[name] = np.full_like(inputs[name], value)
    assert_close(inputs, tolerance=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_input_stays_in_its_channel(bad):
    inputs = make_inputs(**BASE)
    clean = run(inputs)
    inputs["u"][0, 1, 10] = bad
    found = run(inputs)
    assert not torch.isfinite(found[0, 1, 10])
    others = [0, 2, 3, 4, 5]
    assert torch.equal(found[:, others], clean[:, others])
    assert torch.equal(found[0, 1, :10], clean[0, 1, :10])


@pytest.mark.parametrize("dtype, tolerance", [(torch.float16, 1e-3), (torch.bfloat16, 8e-3), (torch.float64, 1e-14)])
def test_dtypes(dtype, tolerance):
    inputs = make_inputs(**{**BASE, "length": 300})
    assert run(inputs, dtype).dtype == dtype
    assert_close(inputs, dtype, tolerance)


def test_strided_inputs():
    inputs = make_inputs(**BASE)
    tensors = [torch.from_numpy(inputs[name]).float() for name in NAMES]
    tensors[0] = tensors[0].transpose(1, 2).contiguous().transpose(1, 2)
    tensors[3] = tensors[3].repeat_interleave(2, dim=3)[..., ::2]
    assert torch.equal(selective_scan(*tensors), run(inputs))


@pytest.mark.parametrize("length", [1, 5, 19])
@pytest.mark.parametrize("softplus", [True, False])
def test_gradients_against_finite_differences(monkeypatch, length, softplus):
    monkeypatch.setattr(scan_module, "BLOCK_ELEMENTS", 160)  # several blocks, so that states cross their borders
    inputs = make_inputs(batch=2, channels=4, groups=2, states=3, length=length)
    for name in ("delta", "delta_bias"):
        inputs[name] = 0.3 * np.abs(inputs[name])
    tensors = [torch.from_numpy(inputs[name]).requires_grad_() for name in NAMES]
    assert torch.autograd.gradcheck(lambda *t: selective_scan(*t, softplus), tensors)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # from inside torch's own check
def test_operator_is_well_formed_for_torch_library():
    inputs = [torch.from_numpy(v).float().requires_grad_() for v in make_inputs(**BASE).values()]
    torch.library.opcheck(torch.ops.mtmamba.selective_scan.default, inputs)


def test_shape_mismatch_is_named():
    inputs = make_inputs(**BASE)
    inputs["C"] = inputs["C"][..., :-1]
    with pytest.raises(ValueError, match=r"expected C \(1, 2, 4, 37\)"):
        run(inputs)


def map_inputs(height, width, B=2, G=2, D=3, N=4, R=2):
    rng = np.random.default_rng(1)
    return {
        "x": rng.normal(size=(B, G, D, height, width)),
        "x_dbl": rng.normal(size=(B, G, 4, R + 2 * N, height, width)),
        "dt_weight": rng.normal(size=(G, 4, D, R)),
        "dt_bias": rng.normal(size=(G, 4, D)),
        "A": -np.exp(rng.normal(size=(G, 4, D, N))),
        "D": rng.normal(size=(G, 4, D)),
    }


@pytest.mark.parametrize("height, width", [(1, 1), (1, 7), (6, 1), (5, 7), (8, 16)])
def test_selective_scan_2d(height, width):
    arrays = map_inputs(height, width)
    found = selective_scan_2d(*map(torch.from_numpy, arrays.values()))
    np.testing.assert_allclose(found, selective_scan_2d_reference(**arrays), rtol=0, atol=1e-12)


@pytest.mark.parametrize("height, width", [(1, 1), (2, 3)])
def test_gradients_of_the_2d_scan(height, width):
    tensors = [torch.from_numpy(v).requires_grad_() for v in map_inputs(height, width, B=1, D=2, N=2, R=1).values()]
    assert torch.autograd.gradcheck(selective_scan_2d, tensors)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_2d_operator_is_well_formed_for_torch_library():
    tensors = [torch.from_numpy(v).float().requires_grad_() for v in map_inputs(3, 4).values()]
    torch.library.opcheck(torch.ops.mtmamba.selective_scan_2d.default, tensors)


def test_2d_shape_mismatch_is_named():
    tensors = dict(zip(map_inputs(3, 4), map(torch.from_numpy, map_inputs(3, 4).values()), strict=True))
    tensors["D"] = tensors["D"][:, :3]
    with pytest.raises(ValueError, match=r"expected D \(2, 4, 3\)"):
        selective_scan_2d(**tensors)
