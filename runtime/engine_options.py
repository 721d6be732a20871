"""What is asked of an engine beside its precision: its ends, what it carries with it, the GPU it is for. And the timings
TensorRT takes while it builds, kept for the next build."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from mtmamba.cache import cache_dir
from mtmamba.errors import MtmError
from mtmamba.export.metadata import read_metadata
from mtmamba.export.picture_io import with_picture_io
from mtmamba.files import atomic_path
from mtmamba.metadata import INPUT_NAME, ModelMetadata
from mtmamba.runtime import gpu
from mtmamba.runtime.cuda import select_device
from mtmamba.runtime.plugin import PluginLibrary
from mtmamba.runtime.trt import TensorRT


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """picture_io: uint8 pictures in, predictions out (`mtmamba.export.picture_io`). embed_plugin: the plugin library goes
    into the engine. version_compatible: later TensorRT versions of the same major load it. device: the GPU's index.
    opt_batch: the number of images a run that it is tuned for, where the model leaves it free; None: the most."""

    picture_io: bool = False
    embed_plugin: bool = False
    version_compatible: bool = False
    device: int = 0
    opt_batch: int | None = None

    def arguments(self) -> list[str]:
        """As they are typed."""
        flags = {
            "--picture-io": self.picture_io,
            "--embed-plugin": self.embed_plugin,
            "--version-compatible": self.version_compatible,
        }
        typed = [flag for flag, chosen in flags.items() if chosen]
        typed += ["--device", str(self.device)] if self.device else []
        return typed + ([] if self.opt_batch is None else ["--opt-batch", str(self.opt_batch)])


def check_interface(path: Path, metadata: ModelMetadata, precision: str) -> None:
    """Raise MtmError for a model whose ends were exported as pictures and that is to be rewritten in another precision."""
    if metadata.io == "picture" and precision != "fp32":
        raise MtmError(
            f"{path}: expected an export with raw ends to build in {precision}, found one with picture I/O; export it "
            f"without --picture-io, and type mtm-build-engine --{precision} --picture-io"
        )


def check_batch(path: Path, metadata: ModelMetadata, options: EngineOptions) -> None:
    """Raise MtmError for an engine to be tuned for a batch that it will not take."""
    batch = options.opt_batch
    if batch is not None and not metadata.smallest_batch <= batch <= metadata.batch:
        raise MtmError(
            f"--opt-batch {batch}: expected what {path} was exported for, {metadata.batch_text} images a run; choose such a "
            "number, or export again with another mtm-export --batch"
        )


def add_profile(builder: Any, config: Any, metadata: ModelMetadata, options: EngineOptions) -> None:
    """Where the batch is free: say what it may be, and what it is tuned for. metadata: of the model as it is built."""
    if metadata.min_batch is None:
        return
    profile = builder.create_optimization_profile()
    batches = (metadata.min_batch, options.opt_batch or metadata.batch, metadata.batch)
    profile.set_shape(INPUT_NAME, *((batch, *metadata.input_shape[1:]) for batch in batches))
    config.add_optimization_profile(profile)


def with_interface(
    proto: onnx.ModelProto, metadata: ModelMetadata, options: EngineOptions
) -> tuple[onnx.ModelProto, ModelMetadata]:
    """The model with the ends that are asked for, and its metadata. One that has them already stays as it is."""
    if not options.picture_io or metadata.io == "picture":
        return proto, metadata
    changed = with_picture_io(proto)
    return changed, read_metadata(changed, "the model")


def check_options(trt: TensorRT, options: EngineOptions, targets: tuple[str, ...]) -> None:
    """Raise MtmError for what this TensorRT cannot do, before anything is built."""
    if options.version_compatible and not _has_version_compatible(trt):
        raise MtmError(
            f"--version-compatible: expected the full TensorRT, whose engines can carry a lean runtime, found {trt.flavour} "
            f"{trt.version}, which has none; leave it away and build again after every update of TensorRT"
        )
    if options.embed_plugin and not hasattr(trt.module.IBuilderConfig, "plugins_to_serialize"):
        raise MtmError(
            f"--embed-plugin: expected a TensorRT that serialises plugin libraries, found {trt.flavour} {trt.version}, which "
            "does not; leave it away, and the library is built or found where the engine runs"
        )
    if options.device and targets:
        raise MtmError(
            f"--device {options.device} is for a build on a GPU of this machine, found --target {','.join(targets)} too, "
            "which needs none; leave one of them away"
        )


def _has_version_compatible(trt: TensorRT) -> bool:
    """TensorRT for RTX knows the flag and then asks for a lean runtime that its package does not have."""
    return trt.flavour == "tensorrt" and hasattr(trt.module.BuilderFlag, "VERSION_COMPATIBLE")


def use_device(options: EngineOptions, targets: tuple[str, ...]) -> None:
    """Choose the GPU that this thread builds on. Nothing to do where none is needed, or the first is meant."""
    if options.device and not targets:
        select_device(options.device)


def configure(trt: TensorRT, config: Any, options: EngineOptions, plugins: PluginLibrary | None) -> None:
    """Set the builder's configuration."""
    if options.version_compatible:
        config.set_flag(trt.module.BuilderFlag.VERSION_COMPATIBLE)
    if options.embed_plugin and plugins is not None:
        config.plugins_to_serialize = [str(plugins.path)]


@contextmanager
def timing_cache(trt: TensorRT, config: Any, options: EngineOptions) -> Iterator[None]:
    """Within the block TensorRT uses the timings of earlier builds; after it the new ones are kept too, a file for each
    TensorRT version and GPU model. (TensorRT for RTX times nothing while building: its functions for it do nothing.)"""
    if trt.flavour != "tensorrt":
        yield
        return
    path = timing_cache_path(trt, gpu.require_gpu(options.device))
    known = path.read_bytes() if path.is_file() else b""
    cache = _attach(config, known)
    if cache is None:  # damaged, or of another driver
        cache = _attach(config, b"")
    yield
    if cache is not None:
        with atomic_path(path) as temporary:
            temporary.write_bytes(bytes(cache.serialize()))


def timing_cache_path(trt: TensorRT, device: gpu.Gpu) -> Path:
    """The file for builds on such a GPU."""
    name = re.sub(r"[^A-Za-z0-9.]+", "-", f"{trt.flavour} {trt.version} {device.name}")
    return cache_dir("timings") / f"{name}.bin"


def _attach(config: Any, data: bytes) -> Any:
    cache = config.create_timing_cache(data)
    return cache if cache is not None and config.set_timing_cache(cache, False) else None
