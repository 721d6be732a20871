"""The models that mtm-run makes for itself: exports and engines in the cache folder, each under a key of everything that
goes into it, so that nothing is made twice and nothing stale is used.

CACHE/models/KEY/ holds one model, its sidecar where it is an engine, key.json, the facts that the key is the hash of, and
sha256, the model's own checksum. CACHE/models/.NAME/ is one at work, or what is left of one that was killed.
"""

import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib import metadata as packages
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mtmamba.cache import cache_dir, work_dir
from mtmamba.errors import MtmError
from mtmamba.files import existing_file, sha256
from mtmamba.runtime import gpu
from mtmamba.runtime.engine import BuildOptions, build_engine
from mtmamba.runtime.engine_options import EngineOptions
from mtmamba.runtime.onnx_model import load_onnx
from mtmamba.runtime.plugin import load_plugins
from mtmamba.runtime.toolchain import find_toolchain
from mtmamba.runtime.trt import TensorRT, resolve

logger = logging.getLogger(__name__)

FOLDER = "models"
KEY_FILE = "key.json"
SUM_FILE = "sha256"
SOURCES = (
    "*.py",
    "ops/*.py",
    "calib/*.py",
    "export/*.py",
    "plugins/ops.yaml",
    "runtime/engine*.py",
    "runtime/onnx_model.py",
)
"""What of this package decides what an export and an engine are."""

OnStep = Callable[[str, float], None]
"""Called with what is being done, and the share of it that is done."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What is to be made. precision: of an engine, one that needs no calibration. picture_io: `export.picture_io`'s ends.
    device: the index of the GPU to build on. rebuild: make it again, whatever the cache has."""

    precision: str = "fp32"
    picture_io: bool = False
    device: int = 0
    rebuild: bool = False


def onnx_of(checkpoint: Path, recipe: Recipe, on_step: OnStep) -> Path:
    """The checkpoint's export, at the size it was trained for and batch 1. Raises MtmError where it cannot be made."""
    missing = [name for name in ("torch", "timm", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise MtmError(
            f"{existing_file(checkpoint, 'checkpoint')}: exporting it needs {', '.join(missing)}, which are not installed; "
            "run pip install 'mtmamba[model,cpu]', or export it elsewhere with mtm-export and name the .onnx file"
        )
    facts = {
        "made": "export",
        "checkpoint": sha256(existing_file(checkpoint, "checkpoint")),
        "io": "picture" if recipe.picture_io else "raw",
        "code": code_hash(),
        "versions": {name: packages.version(name) for name in ("torch", "timm", "onnx", "onnxscript")},
    }

    def make(target: Path) -> None:
        from mtmamba.export.checkpoint_to_onnx import STEPS, export_checkpoint

        def tell(step: int) -> None:
            on_step(f"{STEPS[step]} ({checkpoint.name})", step / len(STEPS))

        export_checkpoint(checkpoint, target, picture_io=recipe.picture_io, on_step=tell)

    return _cached(facts, f"{_stem(checkpoint)}.onnx", make, recipe.rebuild)


def engine_of(onnx: Path, recipe: Recipe, on_step: OnStep, trt: TensorRT | None = None) -> Path:
    """The engine of an exported model for a GPU here. Raises MtmError where it cannot be made."""
    device, trt = gpu.require_gpu(recipe.device), trt or resolve()
    facts = {
        "made": "engine",
        "onnx": sha256(existing_file(onnx, "model")),
        "precision": recipe.precision,
        "io": "picture" if recipe.picture_io else "raw",
        "flavour": trt.flavour,
        "tensorrt": trt.version,
        "gpu": device.name,
        "compute_capability": list(device.compute_capability),
        "plugins": find_toolchain().key(),
        "code": code_hash(),
    }

    def make(target: Path) -> None:
        on_step(f"reading {onnx.name}", 0.0)
        model = load_onnx(onnx)
        plugins = load_plugins(trt, on_step=_plugin_step(on_step)) if model.op_counts else None
        options = _options(trt, device, recipe)
        build_engine(trt, model, target, options, plugins, lambda done, phase: on_step(f"building {target.name}", done))

    io = ".picture" if recipe.picture_io else ""
    return _cached(facts, f"{onnx.stem}.{recipe.precision}{io}.engine", make, recipe.rebuild)


def _options(trt: TensorRT, device: gpu.Gpu, recipe: Recipe) -> BuildOptions:
    """TensorRT for RTX is told the architecture: it then leaves the GPU alone while it builds."""
    target = "sm_{}{}".format(*device.compute_capability)
    targets = (target,) if target in trt.targets else ()
    index = 0 if targets else device.index
    engine = EngineOptions(picture_io=recipe.picture_io, device=index)
    return BuildOptions(precision=recipe.precision, targets=targets, engine=engine)


def _plugin_step(on_step: OnStep) -> Callable[[int, int], None]:
    return lambda done, total: on_step("building the plugin library", done / max(total, 1))


def _cached(facts: dict[str, Any], name: str, make: Callable[[Path], None], rebuild: bool) -> Path:
    """The file `name` in the folder of these facts, made by `make(path)` if it is not there or damaged. Two processes may
    do so at once: each makes its own in a folder beside, which is renamed into place whole, and the first one's stays."""
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]
    models = cache_dir(FOLDER)
    folder = models / key
    if rebuild or not _is_whole(folder / name):
        with work_dir(models, prefix=f".{key}.") as work, _alone_in(work):  # the lock says that it is in use
            make(work / name)
            (work / KEY_FILE).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
            (work / SUM_FILE).write_text(sha256(work / name), encoding="utf-8")
            with _alone_in(models):
                if rebuild or not _is_whole(folder / name):  # else another was first; what it made is as good
                    _set_aside(folder)
                    work.rename(folder)
    if not (folder / name).is_file():
        raise MtmError(f"{folder}: expected the {name} just made in it, found none; delete that folder and try again")
    return folder / name


def _is_whole(model: Path) -> bool:
    """Whether the model is there as it was made. One without a checksum, of an older mtmamba, is taken as it is."""
    checksum = model.with_name(SUM_FILE)
    if not model.is_file():
        return False
    if checksum.is_file() and checksum.read_text(encoding="utf-8", errors="replace") != sha256(model):
        logger.warning("%s: it is not what was put there, so it is made again", model)
        return False
    return True


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Wait until no other process or thread is in here for this folder."""
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _set_aside(folder: Path) -> None:
    """Delete what is there, in a way that nobody sees a part of it."""
    with work_dir(folder.parent, prefix=".old.") as old, suppress(FileNotFoundError):
        folder.rename(old / folder.name)


def _stem(checkpoint: Path) -> str:
    return Path(checkpoint.name.removesuffix(".tar")).stem


@cache
def code_hash() -> str:
    """Hex hash over the sources that decide what an export and an engine are."""
    spec = find_spec("mtmamba")
    assert spec is not None and spec.submodule_search_locations
    root = Path(spec.submodule_search_locations[0])
    digest = hashlib.sha256()
    for path in sorted({path for pattern in SOURCES for path in root.glob(pattern)}):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:24]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One model in the cache. facts: what it was made from."""

    folder: Path
    name: str
    size: int
    facts: dict[str, Any]


def entries() -> Iterator[Entry]:
    """What the cache holds, by name. A folder that is no entry (another process is at work in it) is passed over."""
    for key in sorted(cache_dir(FOLDER).glob(f"[!.]*/{KEY_FILE}")):
        models = [path for path in key.parent.iterdir() if path.suffix in (".onnx", ".engine")]
        if models:
            size = sum(path.stat().st_size for path in key.parent.iterdir())
            facts = json.loads(key.read_text(encoding="utf-8"))
            yield Entry(folder=key.parent, name=models[0].name, size=size, facts=facts)


def clear() -> int:
    """Delete every model of the cache; how many there were."""
    found = list(entries())
    for entry in found:
        shutil.rmtree(entry.folder, ignore_errors=True)
    return len(found)


def clear_unfinished() -> int:
    """Delete what killed processes left half made; how many folders. One that a process is at work in stays."""
    models, deleted = cache_dir(FOLDER), 0
    with _alone_in(models):
        for folder in models.glob(".*"):
            if folder.is_dir() and not _is_in_use(folder):
                shutil.rmtree(folder, ignore_errors=True)
                deleted += 1
    return deleted


def _is_in_use(folder: Path) -> bool:
    try:
        lock = os.open(folder, os.O_RDONLY)
    except OSError:  # gone meanwhile, or another user's
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(lock)
    return False
