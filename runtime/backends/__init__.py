"""Backends: one way to run a model, whatever file it is in. `open_backend` picks by the file and by what is present.

Importing this package imports no runtime; each backend's own file does, when it is chosen.
"""

from importlib.util import find_spec
from pathlib import Path

from mtmamba.errors import MtmError
from mtmamba.files import existing_file, only_candidate
from mtmamba.runtime import gpu
from mtmamba.runtime.backends.base import Backend

__all__ = ["BACKENDS", "Backend", "default_model", "default_reference", "open_backend"]

BACKENDS: dict[str, tuple[str, ...]] = {
    "tensorrt": (".engine",),
    "onnxruntime": (".onnx",),
    "torch": (".pth", ".pt", ".tar"),
}
"""Backend -> suffixes of the files it reads, the most deployable kind first."""

MADE_BY = {"tensorrt": "mtm-build-engine", "onnxruntime": "mtm-export", "torch": "mtm-train"}


def default_model(backend: str | None = None, folder: Path | None = None, *, made: bool = False) -> tuple[Path, str]:
    """The model in `folder` (default: the working folder) of the most deployable kind that can run here.

    Engines come before ONNX files, these before checkpoints. Without a GPU an engine is passed over where another kind
    is there. Returns the file and a note for the user ("" or why an engine was passed over).
    made: where `backend` finds no file of its own, one that it can be made from will do.
    Raises MtmError where the chosen kind has several files, where there is none of any kind, or where `backend` is
    tensorrt and there is no GPU.
    """
    folder = folder or Path.cwd()
    if backend == "tensorrt":
        gpu.require_gpu()
    if backend is not None and made:
        kinds = list(BACKENDS)[list(BACKENDS).index(backend) :]
        backend = next((kind for kind in kinds if _candidates(kind, folder)), backend)
    if backend is not None:
        return only_candidate(_patterns(backend), f"{backend} model", "--model", MADE_BY[backend], folder), ""
    present = [name for name in BACKENDS if any(_candidates(name, folder))]
    note = ""
    if present[:1] == ["tensorrt"] and len(present) > 1 and not gpu.find_gpus():
        note = f"no NVIDIA GPU here: passing over {', '.join(path.name for path in _candidates('tensorrt', folder))}"
        present = present[1:]
    patterns = _patterns(present[0]) if present else tuple(p for name in BACKENDS for p in _patterns(name))
    return only_candidate(patterns, "model", "--model", "mtm-export or mtm-build-engine", folder), note


def default_reference(folder: Path | None = None) -> Path:
    """The model in `folder` (default: the working folder) that the others were made from: the checkpoint where there
    is one and PyTorch to read it, else the ONNX file.

    Raises MtmError where there are several, or none.
    """
    folder = folder or Path.cwd()
    kind = "torch" if _candidates("torch", folder) and find_spec("torch") else "onnxruntime"
    return only_candidate(_patterns(kind), "reference", "--reference", MADE_BY[kind], folder)


def open_backend(
    model: Path, backend: str | None = None, input_size: tuple[int, int] | None = None, device: int = 0
) -> Backend:
    """Open `model` with `backend`, or with the backend its suffix calls for: .engine -> tensorrt, .onnx -> onnxruntime
    (CUDA where ONNX Runtime has it, else the CPU), .pth, .pt, .tar -> torch.

    input_size: (height, width) to run a checkpoint at; the other kinds have theirs built in and take no notice. device:
    the index of the GPU, where it runs on one.
    Raises MtmError for a missing or unreadable file, a pairing that cannot be, a package that is not installed, or
    no GPU for an engine (before anything is loaded).
    """
    model = Path(model)
    if backend is not None and backend not in BACKENDS:
        raise MtmError(f"unknown backend {backend!r}; known: {', '.join(BACKENDS)}")
    existing_file(model, "model")
    if device or (backend or backend_of(model)) == "tensorrt":
        gpu.require_gpu(device)
    fits = backend_of(model)
    if backend is not None and backend != fits:
        raise MtmError(
            f"{model}: backend {backend} reads {' '.join(BACKENDS[backend])} files, found {model.suffix}; use "
            f"--backend {fits}, or make the file with {MADE_BY[backend]} and name it with --model"
        )
    return _open(model, fits, input_size, device)


def backend_of(model: Path) -> str:
    """The backend that reads this kind of file; MtmError names the kinds that are read."""
    for name, suffixes in BACKENDS.items():
        if model.suffix.lower() in suffixes:
            return name
    kinds = ", ".join(f"{' '.join(suffixes)} ({name})" for name, suffixes in BACKENDS.items())
    raise MtmError(
        f"{model}: expected a model file, one of {kinds}, found suffix {model.suffix!r}; name one with --model"
    )


def _open(model: Path, backend: str, input_size: tuple[int, int] | None, device: int) -> Backend:
    if backend == "tensorrt":
        from mtmamba.runtime.backends.tensorrt_backend import TensorRTBackend

        return TensorRTBackend(model, device)
    if backend == "onnxruntime":
        from mtmamba.runtime.backends.onnx_backend import OnnxBackend

        return OnnxBackend(model, device)
    from mtmamba.runtime.backends.torch_backend import TorchBackend

    return TorchBackend(model, input_size, device)


def _patterns(backend: str) -> tuple[str, ...]:
    return tuple("*.pth.tar" if suffix == ".tar" else f"*{suffix}" for suffix in BACKENDS[backend])


def _candidates(backend: str, folder: Path) -> list[Path]:
    found = {path for pattern in _patterns(backend) for path in folder.glob(pattern) if not path.name.startswith(".")}
    return sorted(found)
