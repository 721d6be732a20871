"""Speed and memory of the PyTorch model: tasks stacked or one by one, compiled or not, activations kept or computed again,
and the full-size model through ONNX Runtime. Each writes its part of one JSON file.

    python benchmarks/model.py stacked compile memory      # minutes
    python benchmarks/model.py full-size                    # needs 14 GiB of free memory

Times are wall-clock over whole forward passes; processes of their own measure peak memory.
"""

import argparse
import datetime
import gc
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mtmamba import MTMamba, preset
from mtmamba.decoder import CTMBlock, DecoderStage, concat_tasks
from mtmamba.ss2d import SS2D
from mtmamba.stacked import StackedLinear, stacked_linear_channels_first

RESULT = Path(__file__).parent / "model.json"
GIB = 1 << 30


class TaskByTask(nn.Module):
    """The same MTMamba with the same weights, one decoder after another for each task, as the published code runs it: on the
    model's device, in its type. In training its decoders' weights are its own."""

    def __init__(self, model: MTMamba) -> None:
        super().__init__()
        self.model = model
        tasks = range(len(model.config.tasks))
        self.stages = nn.ModuleList(nn.ModuleList(_stm_part(model, s, t) for t in tasks) for s in range(3))
        self.blocks = nn.ModuleList(nn.ModuleList(_own_part(model, s, t) for t in tasks) for s in range(3))
        self.shared = nn.ModuleList(_shared_scan(model, s) for s in range(3))

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        levels = self.model.encoder(image)
        xs = [levels[3].unsqueeze(1)] * len(self.model.config.tasks)
        for s, skip in enumerate(levels[2::-1]):
            xs = [stage(x, skip) for stage, x in zip(self.stages[s], xs, strict=True)]
            ctm = self.model.stages[s].get_submodule("ctm")
            n = ctm.norm_shared(concat_tasks(torch.cat(xs, 1))).unsqueeze(1)
            shared = self.shared[s](stacked_linear_channels_first(n, ctm.in_proj_shared.weight))
            xs = [_cross(block, x, shared) for block, x in zip(self.blocks[s], xs, strict=True)]
        return {name: head(x) for (name, head), x in zip(self.model.heads.items(), xs, strict=True)}


def _cross(block: CTMBlock, x: Tensor, shared: Tensor) -> Tensor:
    n = block.norm(x)
    own = block.ss2d(stacked_linear_channels_first(n, block.in_proj.weight))
    return x + block.drop_path(block.out_proj(own + torch.sigmoid(block.gate(n)) * (shared - own)))


def _slice(source: nn.Module, single: nn.Module, task: int) -> None:
    """Fill `single`, a module of one task, with the task's part of the stacked `source`."""
    state = source.state_dict()
    parts = {name: state[name].reshape(-1, *tensor.shape)[task] for name, tensor in single.state_dict().items()}
    single.load_state_dict(parts)
    single.to(next(iter(parts.values())))


def _sizes(model: MTMamba, stage: int) -> tuple[int, int, int]:
    dim = model.config.level_channels[2 - stage]
    return dim, model.config.expand * dim, model.config.d_state


def _stm_part(model: MTMamba, stage: int, task: int) -> nn.Module:
    rates = [block.drop_path.rate for block in model.stages[stage].stm]
    single = DecoderStage(1, *_sizes(model, stage), rates, nn.Identity()).eval()
    _slice(model.stages[stage], single, task)
    return single


def _own_part(model: MTMamba, stage: int, task: int) -> CTMBlock:
    ctm = model.stages[stage].get_submodule("ctm")
    dim, inner_dim, d_state = _sizes(model, stage)
    single = CTMBlock(1, dim, inner_dim, d_state, ctm.drop_path.rate, mode="own").eval()
    single.gate = StackedLinear(1, dim, inner_dim)
    _slice(ctm, single, task)
    return single


def _shared_scan(model: MTMamba, stage: int) -> SS2D:
    single = SS2D(1, *_sizes(model, stage)).eval()
    _slice(model.stages[stage].get_submodule("ctm.ss2d"), single, -1)
    return single


def timed(functions: dict[str, Callable[[], Any]], repeats: int) -> dict[str, dict[str, float]]:
    """Milliseconds of each, in turns, so that a busy moment of the machine falls on all of them."""
    for function in functions.values():
        function()
    samples: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            samples[name].append((time.perf_counter() - start) * 1e3)
    return {
        name: {"p50_ms": round(statistics.median(times), 1), "min_ms": round(min(times), 1), "repeats": repeats}
        for name, times in samples.items()
    }


def kernel_nodes(model: nn.Module, image: Tensor) -> int:
    """Operators that one forward pass launches."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        model(image)
    return sum(event.cpu_parent is None for event in profile.events())


def stacked(repeats: int) -> dict[str, Any]:
    """The task-stacked decoder against the same weights run task by task; the answers are compared first."""
    results = {}
    for encoder, size in (("nano", (64, 96)), ("nano", (192, 256)), ("swin-tiny", (128, 160))):
        model = _model(encoder)
        loop = TaskByTask(model)
        image = torch.randn(1, 3, *size)
        with torch.no_grad():
            ours, theirs = model(image), loop(image)
            difference = max(float((ours[task] - theirs[task]).abs().max()) for task in ours)
            assert difference < 1e-4, difference
            results[f"{encoder} {size[0]}x{size[1]}"] = {
                **timed({"stacked": partial(model, image), "task_by_task": partial(loop, image)}, repeats),
                "operators": {"stacked": kernel_nodes(model, image), "task_by_task": kernel_nodes(loop, image)},
                "largest_difference": difference,
            }
    return results


def compiled(repeats: int) -> dict[str, Any]:
    """torch.compile (inductor) on the CPU, the scan an operator it calls; time to compile included apart."""
    model = _model("nano")
    fast = torch.compile(model)
    image = torch.randn(1, 3, 192, 256)
    with torch.no_grad():
        start = time.perf_counter()
        theirs = fast(image)
        seconds = time.perf_counter() - start
        ours = model(image)
        difference = max(float((ours[task] - theirs[task]).abs().max()) for task in ours)
        assert difference < 1e-3, difference
        times = timed({"eager": partial(model, image), "compiled": partial(fast, image)}, repeats)
    return {"nano 192x256": {**times, "compile_s": round(seconds, 1), "largest_difference": difference}}


def memory(repeats: int) -> dict[str, Any]:
    """A training step (forward, backward) with and without activation checkpointing, each in a process of its own."""
    return {
        f"{encoder} {size}, batch {batch}": {
            mode: _child("step", mode, encoder, size, str(batch), str(repeats)) for mode in ("kept", "recomputed")
        }
        for encoder, size, batch in (("nano", "192x256", 4), ("swin-tiny", "128x160", 2))
    }


def _step(mode: str, encoder: str, size: str, batch: str, repeats: str) -> dict[str, Any]:
    height, width = map(int, size.split("x"))
    torch.manual_seed(0)
    model = _model(encoder).train()
    model.activation_checkpointing(mode == "recomputed")
    image = torch.randn(int(batch), 3, height, width)
    before = _current_bytes()
    times = []
    for _ in range(int(repeats)):
        start = time.perf_counter()
        sum(output.square().mean() for output in model(image).values()).backward()
        times.append(time.perf_counter() - start)
        model.zero_grad()
        gc.collect()
    peak = _peak_bytes() - before
    kept: dict[int, int] = {}  # address -> bytes of what autograd keeps, each storage once

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = model(image)
    return {
        "tasks": len(outputs),
        "kept_for_backward_mib": round(sum(kept.values()) / 2**20),
        "peak_above_model_mib": round(peak / 2**20),
        "step_s": round(statistics.median(times), 2),
    }


def full_size(_repeats: int) -> dict[str, Any]:
    """Swin-L, NYUDv2, 448x576: export, then one frame through ONNX Runtime on the CPU, each in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "full.onnx")
        return {"export": _child("export", path), "onnxruntime_cpu": _child("frame", path)}


def _export(path: str) -> dict[str, Any]:
    import onnx

    from mtmamba.export.torch_to_onnx import export_model

    model = _model("swin-large")
    start = time.perf_counter()
    proto = export_model(model)
    seconds = time.perf_counter() - start
    peak = _peak_bytes()
    onnx.save(proto, path)
    size = Path(path).stat().st_size
    return {
        "s": round(seconds, 1),
        "peak_gib": round(peak / GIB, 2),
        "nodes": len(proto.graph.node),
        "file_mib": size >> 20,
    }


def _frame(path: str) -> dict[str, Any]:
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    start = time.perf_counter()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    loaded = time.perf_counter()
    image = np.random.default_rng(0).standard_normal((1, 3, 448, 576), dtype=np.float32)
    outputs = session.run(None, {session.get_inputs()[0].name: image})
    done = time.perf_counter()
    assert all(np.isfinite(output).all() for output in outputs)
    shapes = [list(output.shape) for output in outputs]
    peak = round(_peak_bytes() / GIB, 2)
    return {"load_s": round(loaded - start, 1), "frame_s": round(done - loaded, 1), "peak_gib": peak, "outputs": shapes}


def _model(encoder: str) -> MTMamba:
    torch.manual_seed(0)
    return MTMamba(preset("nyudv2", encoder)).eval()


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _current_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _child(*arguments: str) -> dict[str, Any]:
    answer = subprocess.run(
        [sys.executable, __file__, "--child", *arguments], check=True, capture_output=True, text=True
    )
    return json.loads(answer.stdout.splitlines()[-1])


CHILDREN: dict[str, Callable[..., dict[str, Any]]] = {"step": _step, "export": _export, "frame": _frame}
SECTIONS: dict[str, Callable[[int], dict[str, Any]]] = {
    "stacked": stacked,
    "compile": compiled,
    "memory": memory,
    "full-size": full_size,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="+", choices=list(SECTIONS))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    for section in options.sections:
        results = json.loads(options.output.read_text()) if options.output.exists() else {}
        load = os.getloadavg()[0]
        results[section] = {
            "date": datetime.date.today().isoformat(),
            "cores": len(os.sched_getaffinity(0)),
            "load_before": round(load, 1),
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
            "results": SECTIONS[section](options.repeats),
        }
        options.output.write_text(json.dumps(results, indent=2) + "\n")
        print(json.dumps({section: results[section]}, indent=2))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(CHILDREN[sys.argv[2]](*sys.argv[3:])))
    else:
        main()
