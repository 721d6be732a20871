"""What the CUDA library computes for PyTorch, on a GPU: against float64, under torch's machinery, on several streams.

Run it where there is one: pytest -m gpu tests/mtmamba/test_cuda_kernel_gpu.py
"""

import pytest
import torch
from cuda_tensors import map_tensors, scan_tensors

from mtmamba import native, recompute
from mtmamba.native import CUDA_SWITCH
from mtmamba.ops import cuda_kernel, selective_scan, selective_scan_2d
from mtmamba.ops.selective_scan_2d import selective_scan_2d_backward

pytestmark = pytest.mark.gpu

TOLERANCES = {torch.float32: (2e-6, 1e-5), torch.float16: (2e-3, 2e-3), torch.bfloat16: (8e-3, 1.6e-2)}
"""Of the output (plugins/ops.yaml) and of the gradients."""


@pytest.fixture
def gpu():
    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
    if native.find_nvcc() is None:
        pytest.skip("nvcc was not found: the library cannot be built")
    device = torch.device("cuda", torch.cuda.current_device())
    assert cuda_kernel._library(device) is not None
    return device


def on(device, tensors, dtype=torch.float32, low=()):
    """Leaves on `device`, those whose index is in `low` of `dtype`."""
    moved = [x.to(device, dtype if i in low else torch.float32) for i, x in enumerate(tensors)]
    return [x.detach().requires_grad_() for x in moved]


def forward_and_gradients(op, tensors, grad_y):
    y = op(*tensors)
    return [y.detach(), *torch.autograd.grad(y, tensors, grad_y)]


def assert_close_to_float64(op, tensors, dtype):
    """Forward and backward on the GPU against the vectorised path in float64 on the CPU, from the same rounded inputs."""
    exact = [x.detach().cpu().double().requires_grad_() for x in tensors]
    grad_y = torch.randn(op(*exact).shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    expected = forward_and_gradients(op, exact, grad_y.double())
    found = forward_and_gradients(op, tensors, grad_y.to(tensors[0].device))
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        error = (a.cpu().double() - b).abs().max() / b.abs().max().clamp(min=1.0)
        assert error <= TOLERANCES[dtype][i > 0], i


SCANS = [
    {},
    *({"length": length} for length in (1, 31, 32, 33, 1008)),
    *({"states": states} for states in (1, 4, 5, 17, 64)),
    {"channels": 300, "groups": 1},
    {"channels": 20, "groups": 20},
]
MAPS = [
    {},
    *({"H": H, "W": W} for H, W in ((1, 1), (1, 33), (32, 1), (28, 36))),
    *({"N": N} for N in (1, 4, 17, 64)),
    *({"R": R} for R in (1, 17, 48)),
    {"D": 200, "G": 1, "B": 2},
]


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("change", SCANS, ids=str)
def test_scan_on_gpu(gpu, change, dtype):
    assert_close_to_float64(selective_scan, on(gpu, scan_tensors(**change), dtype, (0, 1, 3, 4)), dtype)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("change", MAPS, ids=str)
def test_map_on_gpu(gpu, change, dtype):
    assert_close_to_float64(selective_scan_2d, on(gpu, map_tensors(**change), dtype, (0, 1)), dtype)


@pytest.mark.parametrize("index, value", [(3, -50.0), (3, 50.0), (4, -1e-4), (4, -1e3), (0, 1e4)])
def test_hostile_map_on_gpu(gpu, index, value):
    tensors = map_tensors(H=18, W=16)
    tensors[index] = torch.full_like(tensors[index], value)
    assert_close_to_float64(selective_scan_2d, on(gpu, tensors), torch.float16)


def test_gradient_is_the_slope_of_the_forward_kernel(gpu):
    """Finite differences of the forward kernel itself along the gradient, where the slope is the gradient's length."""
    tensors = on(gpu, map_tensors())
    weight = torch.randn(1, 2, 7, 6, 5, generator=torch.Generator().manual_seed(1)).to(gpu)
    grads = torch.autograd.grad(selective_scan_2d(*tensors), tensors, weight)
    length = torch.cat([grad.flatten() for grad in grads]).norm()

    def loss(step):
        moved = (x.detach() + step * grad / length for x, grad in zip(tensors, grads, strict=True))
        return (selective_scan_2d(*moved) * weight).double().sum()

    assert ((loss(0.01) - loss(-0.01)) / 0.02 - length).abs() <= 1e-2 * length


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype feature")
def test_neither_waits_nor_varies(gpu):
    tensors = on(gpu, map_tensors(D=200))
    grad_y = torch.ones(1, 2, 7, 6, 200, device=gpu)
    first = forward_and_gradients(selective_scan_2d, tensors, grad_y)
    try:
        torch.cuda.set_sync_debug_mode("error")
        others = [forward_and_gradients(selective_scan_2d, tensors, grad_y) for _ in range(3)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(a, b) for other in others for a, b in zip(first, other, strict=True))


def test_strides_on_gpu(gpu):
    tensors = on(gpu, map_tensors())
    turned = tensors[0].detach().transpose(-1, -2).contiguous().transpose(-1, -2).requires_grad_()
    grad_y = torch.randn(1, 2, 5, 7, 6, device=gpu).permute(0, 1, 3, 4, 2)
    plain = forward_and_gradients(selective_scan_2d, tensors, grad_y.contiguous())
    strided = forward_and_gradients(selective_scan_2d, [turned, *tensors[1:]], grad_y)
    assert all(torch.equal(a, b) for a, b in zip(plain, strided, strict=True))


def test_two_streams_give_the_bits_of_one(gpu):
    tensors = on(gpu, map_tensors(D=64, H=20, W=20))
    grad_y = torch.randn(1, 2, 20, 20, 64, device=gpu)
    alone = forward_and_gradients(selective_scan_2d, tensors, grad_y)
    streams = [torch.cuda.Stream(gpu) for _ in range(2)]
    results = []
    for _ in range(5):
        for stream in streams:
            stream.wait_stream(torch.cuda.current_stream(gpu))
            with torch.cuda.stream(stream):
                results.append(forward_and_gradients(selective_scan_2d, tensors, grad_y))
    torch.cuda.synchronize(gpu)
    assert all(torch.equal(a, b) for result in results for a, b in zip(alone, result, strict=True))


def test_second_device(gpu):
    if torch.cuda.device_count() < 2:
        pytest.skip("only one GPU")
    other = torch.device("cuda", (gpu.index + 1) % torch.cuda.device_count())
    assert_close_to_float64(selective_scan_2d, on(other, map_tensors()), torch.float32)
    assert torch.cuda.current_device() == gpu.index


def test_cuda_graph(gpu):
    tensors = on(gpu, map_tensors())
    grad_y = torch.randn(1, 2, 7, 6, 5, device=gpu)

    def step():
        return selective_scan_2d(*tensors), selective_scan_2d_backward(grad_y, *tensors)

    with torch.no_grad():
        stream = torch.cuda.Stream(gpu)
        stream.wait_stream(torch.cuda.current_stream(gpu))
        with torch.cuda.stream(stream):
            step()
        torch.cuda.current_stream(gpu).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y, grads = step()
        tensors[0].copy_(torch.randn_like(tensors[0]))
        graph.replay()
        expected_y, expected_grads = step()
    assert torch.equal(y, expected_y)
    assert all(torch.equal(a, b) for a, b in zip(grads, expected_grads, strict=True))


class Scan(torch.nn.Module):
    """A layer with the scan in it: x [B, G, D, H, W]."""

    def __init__(self, D=5, R=3, N=16, G=2):
        super().__init__()
        self.project = torch.nn.Linear(D, 4 * (R + 2 * N))
        _, _, *parameters = map_tensors(D=D, R=R, N=N, G=G)
        self.scan = torch.nn.ParameterList([torch.nn.Parameter(p) for p in parameters])

    def forward(self, x):
        features = self.project(x.movedim(2, -1)).movedim(-1, 2).unflatten(2, (4, -1))
        scan = self.scan  # one by one: torch.compile 2.11 cannot unpack a list of parameters
        return selective_scan_2d(x.to(features.dtype), features, scan[0], scan[1], scan[2], scan[3])


def layer_gradients(run, layer, x):
    layer.zero_grad()
    y = run(x)
    y.float().square().mean().backward()
    return [y.detach(), *(p.grad.clone() for p in layer.parameters())]


@pytest.mark.filterwarnings("ignore:TensorFloat32")  # inductor's advice
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated")  # inductor's own call, in PyTorch 2.11
def test_compiled(gpu):
    torch.manual_seed(0)
    layer, x = Scan().to(gpu), torch.randn(1, 2, 5, 7, 6, device=gpu)
    eager = layer_gradients(layer, layer, x)
    compiled = layer_gradients(torch.compile(layer, fullgraph=True), layer, x)
    for a, b in zip(eager, compiled, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast(gpu, dtype):
    torch.manual_seed(0)
    layer, x = Scan().to(gpu), torch.randn(1, 2, 5, 7, 6, device=gpu)
    full = layer_gradients(layer, layer, x)
    with torch.autocast("cuda", dtype):
        low = layer_gradients(layer, layer, x)
    assert low[0].dtype == dtype and all(a.dtype == torch.float32 for a in low[1:])
    for a, b in zip(low, full, strict=True):
        assert (a.float() - b).abs().max() <= 0.05 * b.abs().max()


def test_activation_checkpointing(gpu):
    torch.manual_seed(0)
    layer, x = Scan().to(gpu), torch.randn(1, 2, 5, 7, 6, device=gpu)
    plain = layer_gradients(layer, layer, x)
    again = layer_gradients(lambda x: recompute.run(layer, x, recompute=True), layer, x)
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


def test_real_size_against_the_vectorised_path(gpu, monkeypatch):
    tensors = on(gpu, map_tensors(G=1, D=96, H=112, W=144, R=6))
    grad_y = torch.randn(1, 1, 112, 144, 96, device=gpu)
    found = forward_and_gradients(selective_scan_2d, tensors, grad_y)
    monkeypatch.setenv(CUDA_SWITCH, "0")
    expected = forward_and_gradients(selective_scan_2d, tensors, grad_y)
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() <= 1e-4 * b.abs().max()


def test_against_mamba_ssm(gpu):
    interface = pytest.importorskip("mamba_ssm.ops.selective_scan_interface", reason="mamba_ssm is not installed")
    tensors = on(gpu, scan_tensors(channels=32, groups=2, length=200))
    grad_y = torch.randn(tensors[0].shape, device=gpu)
    ours = forward_and_gradients(selective_scan, tensors, grad_y)

    def theirs(u, delta, A, B, C, D, bias):
        return interface.selective_scan_fn(u, delta, A, B, C, D, delta_bias=bias, delta_softplus=True)

    for a, b in zip(ours, forward_and_gradients(theirs, tensors, grad_y), strict=True):
        assert (a - b).abs().max() <= 1e-4 * b.abs().max()
