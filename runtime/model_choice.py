"""Which file a command runs: the one that was named, the one in the working folder, or one made from it now.

Without --backend a checkpoint or an ONNX file becomes an engine where there is an NVIDIA GPU, TensorRT, and what building
the plugins takes; elsewhere each runs as it is.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from mtmamba.errors import MtmError
from mtmamba.files import existing_file
from mtmamba.runtime import gpu, toolchain, trt
from mtmamba.runtime.backends import BACKENDS, backend_of, default_model
from mtmamba.runtime.model_cache import OnStep, Recipe, engine_of, onnx_of


@dataclass(frozen=True, kw_only=True)
class Choice:
    """model: the file to open, with `backend`. source: what it was made from; the same file where nothing was made.
    automatic: nobody named the backend. note: for the user, "" where there is nothing to say."""

    model: Path
    source: Path
    backend: str
    automatic: bool = False
    note: str = ""

    @property
    def is_ready(self) -> bool:
        """Whether the backend reads the file as it is."""
        return backend_of(self.model) == self.backend


def choose(given: Path | None, backend: str | None) -> Choice:
    """What to run, before anything is made. Raises MtmError where there is no such file, or `backend` cannot run it."""
    note = ""
    if given is None:
        given, note = default_model(backend, made=True)
        found = f"model: {given.name} (the only {given.suffix} file here)"
        note = f"{note}\n{found}" if note else found
    if backend == "tensorrt":
        gpu.require_gpu()
    fits = backend_of(existing_file(given, "model"))
    wanted = backend or ("tensorrt" if fits != "tensorrt" and _can_build() else fits)
    order = list(BACKENDS)
    if order.index(fits) < order.index(wanted):
        raise MtmError(
            f"{given}: expected what --backend {wanted} reads or what that can be made from, found {given.suffix}; use "
            f"--backend {fits}, or name another file with --model"
        )
    return Choice(model=given, source=given, backend=wanted, automatic=backend is None, note=note)


def made(choice: Choice, recipe: Recipe, on_step: OnStep) -> Choice:
    """The choice with its model exported and built as far as its backend needs, from the cache or now. Raises MtmError
    where that fails, and where the recipe asks for something that this model cannot become."""
    if choice.is_ready and recipe != Recipe(device=recipe.device):
        raise MtmError(
            f"{choice.source}: --precision, --picture-io and --rebuild are for what is made from it, and {choice.backend} "
            "runs this file as it is; leave them away, or choose another --backend"
        )
    if choice.backend != "tensorrt" and recipe.precision != "fp32":
        raise MtmError(
            f"--precision {recipe.precision}: expected --backend tensorrt, which alone builds engines, found "
            f"{choice.backend}; leave it away"
        )
    try:
        return replace(choice, model=_made(choice, recipe, on_step))
    except MtmError as error:
        if not choice.automatic:
            raise
        as_it_is = f"--backend {backend_of(choice.source)}"
        raise MtmError(f"{error}; to run {choice.source.name} without an engine, use {as_it_is}") from error


def _made(choice: Choice, recipe: Recipe, on_step: OnStep) -> Path:
    fits, model = backend_of(choice.source), choice.source
    if fits == "torch" and choice.backend != "torch":
        raw = Recipe(rebuild=recipe.rebuild)  # an engine's ends are changed after its precision
        model = onnx_of(model, raw if choice.backend == "tensorrt" else recipe, on_step)
    if fits != "tensorrt" and choice.backend == "tensorrt":
        model = engine_of(model, recipe, on_step)
    return model


def _can_build() -> bool:
    if not gpu.find_gpus() or not trt.installed():
        return False
    try:
        toolchain.find_toolchain()
    except MtmError:  # no CUDA compiler: a plugin library cannot be made here
        return False
    return True
