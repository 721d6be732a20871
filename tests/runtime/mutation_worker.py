"""Loads damaged files one after another, as the commands do, and prints what became of each: one JSON line before and
one after, so that whoever reads knows which file a crash belongs to. Not a test; `test_mutations` runs it.

usage: python mutation_worker.py KIND FILE...
"""

import json
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from mtmamba.errors import MtmError
from mtmamba.runtime import gpu, load
from mtmamba.runtime.onnx_model import load_onnx

MEMORY = 24 << 30  # bytes of address space: a damaged size must not take the machine's memory
PICTURE = np.random.default_rng(0).integers(0, 256, (20, 24, 3), np.uint8)
FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect")


class Forbidden(BaseException):
    """A damaged file made the process do what loading never does."""


def predict(path: Path) -> str:
    """mtm-run, mtm-parity and the Python interface: a session, and a picture through it."""
    with load(path) as model:
        found = model(PICTURE)
        for name, value in found.items():
            assert np.isfinite(value).all(), f"{name} is not finite"
    return "loaded"


def parse(path: Path) -> str:
    """mtm-build-engine, up to TensorRT."""
    load_onnx(path)
    return "loaded"


def deserialise(path: Path) -> str:
    """An engine up to TensorRT itself, which must see only the bytes it wrote."""
    try:
        load(path)
    except ReachedTensorRT as reached:
        assert reached.data == path.with_name("intact").read_bytes(), "TensorRT would have read damaged bytes"
    return "loaded"


class ReachedTensorRT(BaseException):
    def __init__(self, data: bytes) -> None:
        super().__init__()
        self.data = data


def play_a_gpu() -> None:
    from mtmamba.runtime.backends import tensorrt_backend
    from mtmamba.runtime.trt import Messages

    def deserialise(data: bytes) -> None:
        raise ReachedTensorRT(data)

    class CudaRuntime:
        cudaError_t = SimpleNamespace(cudaSuccess=0)  # noqa: N815

        def __getattr__(self, name: str) -> Callable[..., tuple[Any, ...]]:
            return lambda *arguments: (0, None)

    module = SimpleNamespace(Runtime=lambda logger: SimpleNamespace(deserialize_cuda_engine=deserialise))
    trt = SimpleNamespace(flavour="tensorrt", version="1.2.3", module=module, logger=None, messages=Messages())
    device = gpu.Gpu(index=0, name="test GPU", compute_capability=(8, 9), memory_mib=1024)
    gpu.find_gpus = lambda: [device]
    tensorrt_backend.resolve = lambda flavour: trt  # type: ignore[assignment, return-value]
    tensorrt_backend.import_cudart = CudaRuntime


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    if event in FORBIDDEN or (event == "open" and isinstance(arguments[2], int) and arguments[2] & 3 != os.O_RDONLY):
        raise Forbidden(f"{event} {arguments}")


def outcome(attempt: Callable[[Path], str], path: Path) -> str:
    try:
        return attempt(path)
    except MtmError as error:
        return f"refused: {error}"
    except (Exception, Forbidden) as error:
        return f"raised {type(error).__name__}: {error}"


def tell(line: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def main(kind: str, paths: list[Path]) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    attempts = {"checkpoint": (predict,), "onnx": (predict, parse), "engine": (deserialise,)}[kind]
    if kind == "engine":
        play_a_gpu()
    intact, *damaged = paths
    for attempt in attempts:  # also imports all there is to import, before the watch begins
        assert attempt(intact) == "loaded", outcome(attempt, intact)
    sys.addaudithook(watch)
    for path in damaged:
        tell({"file": path.name})
        tell({"outcomes": [outcome(attempt, path) for attempt in attempts]})


if __name__ == "__main__":
    main(sys.argv[1], [Path(argument) for argument in sys.argv[2:]])
