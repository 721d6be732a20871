"""The torch operators against the float64 loop, in the cases of all implementations (cases.py); and their gradients."""

import importlib

import numpy as np
import pytest
import torch
from cases import CASES, DTYPES, MAP, SCAN, Case, check_isolation, inputs, strided, type_of

from mtmamba.native import CPU_SWITCH, cpu_library
from mtmamba.ops import selective_scan, selective_scan_2d

scan_module = importlib.import_module("mtmamba.ops.selective_scan")


@pytest.fixture(params=["vectorised", "cpu-kernel"], autouse=True)
def implementation(request, monkeypatch):
    """Every test runs on both; float64 tensors take the vectorised path either way."""
    monkeypatch.setenv(CPU_SWITCH, "0" if request.param == "vectorised" else "1")
    if request.param == "cpu-kernel" and cpu_library() is None:
        pytest.skip("the CPU library cannot be built here")
    return request.param


def tensors_of(op, kind="float32", **sizes):
    return {name: torch.from_numpy(value).to(getattr(torch, kind)) for name, value in inputs(op, **sizes).items()}


def run(case, kind):
    tensors = [
        torch.from_numpy(value).to(getattr(torch, type_of(case.op, name, kind)))
        for name, value in case.arrays(kind).items()
    ]
    y = selective_scan(*tensors, case.softplus) if case.op == SCAN else selective_scan_2d(*tensors)
    assert y.dtype == getattr(torch, kind)
    assert y.is_contiguous()
    return y.double().numpy()


@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.op} {case}")
def test_case(case, kind):
    case.check(run(case, kind), kind)


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


@pytest.mark.parametrize("block, step", [(1, 1), (64, 1 << 14), (1 << 20, 1 << 14), (1 << 20, 1)])
def test_any_blocking_gives_the_same(monkeypatch, block, step):
    monkeypatch.setenv(CPU_SWITCH, "0")  # blocks are the vectorised path's
    monkeypatch.setattr(scan_module, "BLOCK_ELEMENTS", block)
    monkeypatch.setattr(scan_module, "STEP_ELEMENTS", step)
    case = Case(op=SCAN, sizes={"L": 211})
    case.check(run(case, "float32"), "float32")


@pytest.mark.parametrize("op", [SCAN, MAP])
def test_non_finite_input_stays_in_its_channel(op):
    function = selective_scan if op == SCAN else selective_scan_2d
    check_isolation(op, lambda arrays: function(*(torch.from_numpy(value).float() for value in arrays.values())))


@pytest.mark.parametrize("op", [SCAN, MAP])
def test_strided_inputs(op):
    function = selective_scan if op == SCAN else selective_scan_2d
    case, tensors = Case(op=op), tensors_of(op)
    for name, tensor in tensors.items():
        for other in strided(tensor.numpy()):
            case.check(function(**tensors | {name: torch.from_numpy(other)}).numpy(), "float32")


@pytest.mark.parametrize("length", [1, 5, 19])
@pytest.mark.parametrize("softplus", [True, False])
def test_gradients_against_finite_differences(monkeypatch, length, softplus):
    monkeypatch.setattr(scan_module, "BLOCK_ELEMENTS", 160)  # several blocks, so that states cross their borders
    arrays = inputs(SCAN, B=2, D=4, G=2, N=3, L=length)
    for name in ("delta", "delta_bias"):
        arrays[name] = 0.3 * np.abs(arrays[name])
    tensors = [torch.from_numpy(value).requires_grad_() for value in arrays.values()]
    assert torch.autograd.gradcheck(lambda *t: selective_scan(*t, softplus), tensors)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # from inside torch's own check
def test_operator_is_well_formed_for_torch_library():
    tensors = [tensor.requires_grad_() for tensor in tensors_of(SCAN).values()]
    torch.library.opcheck(torch.ops.mtmamba.selective_scan.default, tensors)


def test_shape_mismatch_is_named():
    tensors = tensors_of(SCAN)
    tensors["C"] = tensors["C"][..., :-1]
    with pytest.raises(ValueError, match=r"expected C \(2, 2, 16, 37\)"):
        selective_scan(**tensors)


@pytest.mark.parametrize("height, width", [(1, 1), (2, 3)])
def test_gradients_of_the_2d_scan(height, width):
    arrays = inputs(MAP, H=height, W=width, D=2, N=2, R=1)
    tensors = [torch.from_numpy(value).requires_grad_() for value in arrays.values()]
    assert torch.autograd.gradcheck(selective_scan_2d, tensors)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_2d_operator_is_well_formed_for_torch_library():
    tensors = [tensor.requires_grad_() for tensor in tensors_of(MAP, H=3, W=4, D=3, N=4).values()]
    torch.library.opcheck(torch.ops.mtmamba.selective_scan_2d.default, tensors)


def test_2d_shape_mismatch_is_named():
    tensors = tensors_of(MAP)
    tensors["D"] = tensors["D"][:, :3]
    with pytest.raises(ValueError, match=r"expected D \(2, 4, 20\)"):
        selective_scan_2d(**tensors)
