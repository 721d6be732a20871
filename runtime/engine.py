"""ONNX to TensorRT engine: parse with the plugins, prove that they are in the network, build, write with a sidecar."""

import os
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx

from mtmamba.calib.calibration import read_calibration
from mtmamba.calib.plan import PRECISIONS, QUANTISED
from mtmamba.errors import MtmError
from mtmamba.files import atomic_path, sha256
from mtmamba.runtime import gpu, onnx_model
from mtmamba.runtime.build_progress import OnProgress, make_monitor
from mtmamba.runtime.engine_options import (
    EngineOptions,
    add_profile,
    check_batch,
    check_interface,
    check_options,
    configure,
    timing_cache,
    use_device,
    with_interface,
)
from mtmamba.runtime.onnx_model import OnnxModel
from mtmamba.runtime.plugin import NAMESPACE, PluginLibrary
from mtmamba.runtime.sidecar import Sidecar, short_path, sidecar_path
from mtmamba.runtime.trt import TensorRT, quoted

OLDEST_CAPABILITY = {"bf16": (8, 0), "fp8": (8, 9)}
"""Precision -> the first compute capability that has it."""


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """precision: one of `PRECISIONS`. calibration: mtm-calibrate's file for this model; int8 and fp8 need one.
    workspace_mib: scratch memory layers may use, None for TensorRT's own limit.
    targets: GPU architectures such as "sm_89" to build for without a GPU (TensorRT for RTX); () for the GPU here.
    engine: what else is asked of it."""

    precision: str = "fp32"
    calibration: Path | None = None
    workspace_mib: int | None = None
    targets: tuple[str, ...] = ()
    engine: EngineOptions = EngineOptions()

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise MtmError(f"unknown precision {self.precision!r}; known: {', '.join(PRECISIONS)}")
        if self.precision in QUANTISED and self.calibration is None:
            raise MtmError(
                f"{self.precision} needs a calibration of this model, found none; run mtm-calibrate IMAGES and give its "
                "file with --calibration"
            )


@dataclass(frozen=True, kw_only=True)
class BuiltEngine:
    """What `build_engine` wrote. layers: of the network as parsed; plugin_layers: those of our plugins among them."""

    engine: Path
    sidecar_path: Path
    sidecar: Sidecar
    layers: int
    plugin_layers: int
    seconds: float


def compute_capabilities_for(trt: TensorRT, targets: tuple[str, ...], device: int = 0) -> tuple[str, ...]:
    """The compute capabilities ("8.9") the engine will be built for: of `targets`, or of the GPU of index `device`.

    Raises MtmError for a target or a GPU that this TensorRT does not know, and without a GPU where no target is given.
    """
    if targets:
        if not trt.targets:
            raise MtmError(
                f"--target needs TensorRT for RTX, found {trt.flavour} {trt.version}, which builds for the GPU it runs "
                "on; leave --target away, or choose --flavour tensorrt-rtx"
            )
        for target in targets:
            if target not in trt.targets:
                raise MtmError(
                    f"unknown --target {target!r}; {trt.flavour} {trt.version} knows {', '.join(trt.targets)}"
                )
        return tuple(f"{target[3:-1]}.{target[-1]}" for target in dict.fromkeys(targets))
    found = gpu.compute_capabilities()
    if device < len(found):
        here = found[device]
        if trt.targets and f"sm_{here.replace('.', '')}" not in trt.targets:
            raise MtmError(
                f"{trt.flavour} {trt.version} runs on {', '.join(trt.targets)}, and the GPU here is of compute capability "
                f"{here}; install TensorRT (pip install 'mtmamba[gpu]'), or build for another GPU with --target"
            )
        return (here,)
    if found:
        raise MtmError(f"--device {device}: expected an index below {len(found)}, the number of GPUs here")
    if trt.targets:
        raise MtmError(
            "no GPU here to build for; name the GPU architecture the engine is for with --target "
            f"({', '.join(trt.targets)})"
        )
    raise MtmError(
        f"no GPU here, and {trt.flavour} {trt.version} builds only on the GPU the engine is for; build there, or "
        "install TensorRT for RTX (pip install 'mtmamba[rtx]') and use --flavour tensorrt-rtx --target"
    )


def build_engine(
    trt: TensorRT,
    model: OnnxModel,
    output: Path,
    options: BuildOptions,
    plugins: PluginLibrary | None,
    on_progress: OnProgress | None = None,
) -> BuiltEngine:
    """Build `model` into `output` and its sidecar, both written whole or not at all.

    plugins: loaded into `trt`; None where the model has none of our operators. An interrupt (KeyboardInterrupt) stops
    TensorRT at its next step. Raises MtmError where parsing or building fails, and where our operators did not become
    plugin layers.
    """
    started = time.monotonic()
    capabilities = compute_capabilities_for(trt, options.targets, options.engine.device)
    check_options(trt, options.engine, options.targets)
    check_interface(model.path, model.metadata, options.precision)
    check_batch(model.path, model.metadata, options.engine)
    _check_plugins(model, plugins)
    _check_capabilities(options.precision, capabilities)
    with atomic_path(output) as engine, atomic_path(sidecar_path(output)) as side:
        proto, plan = _in_precision(model, options)
        proto, metadata = with_interface(proto, model.metadata, options.engine)
        use_device(options.engine, options.targets)
        builder = trt.module.Builder(trt.logger)
        network = builder.create_network(_network_flags(trt.module))
        with onnx_model.without_bodies(proto, plugins.ops if plugins else frozenset()):
            parser = _parse(trt, network, proto, model.path)
        plugin_layers = _check_plugin_layers(trt, network, sum(model.op_counts.values()))
        config = _make_config(trt, builder, options)
        configure(trt, config, options.engine, plugins)
        add_profile(builder, config, metadata, options.engine)
        with timing_cache(trt, config, options.engine):
            engine.write_bytes(_build(trt, builder, network, config, options, on_progress or _ignore))
        del parser  # the network's weights live in it
        made = _make_sidecar(trt, model, output, options, plugins, capabilities, engine, plan)
        made = replace(made, metadata=metadata)
        side.write_text(made.to_json(), encoding="utf-8")
    return BuiltEngine(
        engine=output,
        sidecar_path=sidecar_path(output),
        sidecar=made,
        layers=network.num_layers,
        plugin_layers=plugin_layers,
        seconds=time.monotonic() - started,
    )


def _ignore(fraction: float, phase: str) -> None: ...


def _check_plugins(model: OnnxModel, plugins: PluginLibrary | None) -> None:
    missing = sorted(set(model.op_counts) - (plugins.ops if plugins else frozenset()))
    if missing:
        where = f"{plugins.path}, which has {', '.join(sorted(plugins.ops))}" if plugins else "no plugin library"
        raise MtmError(
            f"{model.path} needs plugins for {', '.join(missing)}, found {where}; use the library of this version of "
            "mtmamba (leave --plugin away to have it built)"
        )


def _check_capabilities(precision: str, capabilities: tuple[str, ...]) -> None:
    oldest = OLDEST_CAPABILITY.get(precision, (0, 0))
    lacking = [name for name in capabilities if tuple(map(int, name.split("."))) < oldest]
    if lacking:
        raise MtmError(
            f"{precision} needs a GPU of compute capability {oldest[0]}.{oldest[1]} or later, found {', '.join(lacking)}; "
            f"choose another target, or {'--int8' if precision == 'fp8' else '--fp16'}"
        )


def _in_precision(model: OnnxModel, options: BuildOptions) -> tuple[onnx.ModelProto, dict[str, Any]]:
    if options.precision == "fp32":
        return model.proto, {}
    from mtmamba.export.precision import to_precision

    calibration = read_calibration(options.calibration, model.path) if options.calibration else None
    return to_precision(model.proto, options.precision, calibration)


def _network_flags(module: Any) -> int:
    """Strongly typed: TensorRT 10 has to be asked, 11 and RTX know nothing else."""
    flag = getattr(module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _parse(trt: TensorRT, network: Any, proto: onnx.ModelProto, path: Path) -> Any:
    """Parse into `network`; the parser, which has to outlive it."""
    trt.prepare_parser()
    parser = trt.module.OnnxParser(network, trt.logger)
    with trt.messages.quoting() as errors:
        if onnx_model.weight_bytes(proto) < onnx_model.INLINE_LIMIT:
            parsed = parser.parse(proto.SerializeToString())
        else:
            parsed = _parse_large(parser, proto)
    if not parsed:
        reasons = [_parser_error(parser.get_error(index)) for index in range(parser.num_errors)]
        said = [line for line in errors if line.startswith("SelectiveScan")]  # the plugin's own words, if any
        raise MtmError(f"{path}: TensorRT {trt.version} cannot parse it: {quoted(reasons + said)}")
    return parser


def _parse_large(parser: Any, proto: onnx.ModelProto) -> bool:
    """Past 2 GiB a model fits no single message: weights go to a file of their own for as long as parsing takes."""
    try:
        with tempfile.TemporaryDirectory(prefix="mtmamba-") as folder:
            path = Path(folder) / "model.onnx"
            onnx.save_model(proto, str(path), save_as_external_data=True, location="weights.bin", size_threshold=1024)
            parsed = bool(parser.parse_from_file(str(path)))
            onnx.load_external_data_for_model(proto, folder)  # saving took the weights out of `proto`
            return parsed
    except OSError as error:
        raise MtmError(
            f"{tempfile.gettempdir()}: no room for a copy of the model's weights ({error.strerror}); set TMPDIR to a "
            "folder with more"
        ) from error


def _parser_error(error: Any) -> str:
    name = error.node_name() or f"number {error.node()}"
    return f"{error.desc()} (node {name}, {error.node_operator()})"


def _check_plugin_layers(trt: TensorRT, network: Any, expected: int) -> int:
    """Count our plugins' layers; MtmError unless there is one for every node of our operators."""
    found = sum(_is_our_plugin(trt.module, network.get_layer(index)) for index in range(network.num_layers))
    if found != expected:
        raise MtmError(
            f"expected {expected} plugin layers in the network, found {found}: TensorRT {trt.version} imported the "
            "ONNX function body instead of the plugin; the engine would be right and very slow, so none was built. "
            "Report this with your TensorRT version"
        )
    return found


def _is_our_plugin(module: Any, layer: Any) -> bool:
    if layer.type != module.LayerType.PLUGIN_V3:
        return False
    layer.__class__ = module.IPluginV3Layer  # the bindings hand out the base class; this is their documented way down
    core = layer.plugin.get_capability_interface(module.PluginCapabilityType.CORE)
    return str(core.plugin_namespace) == NAMESPACE


def _make_config(trt: TensorRT, builder: Any, options: BuildOptions) -> Any:
    config = builder.create_builder_config()
    if options.workspace_mib is not None:
        config.set_memory_pool_limit(trt.module.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
    targets = tuple(dict.fromkeys(options.targets))
    if targets:
        config.num_compute_capabilities = len(targets)
        for index, target in enumerate(targets):
            config.set_compute_capability(getattr(trt.module.ComputeCapability, f"SM{target[3:]}"), index)
    return config


def _build(
    trt: TensorRT, builder: Any, network: Any, config: Any, options: BuildOptions, on_progress: OnProgress
) -> Any:
    """The serialised engine (a buffer). TensorRT works in a thread, so that an interrupt reaches this one."""
    cancel = threading.Event()
    monitor = make_monitor(trt.module, on_progress, cancel)
    config.progress_monitor = monitor
    build: Callable[[], Any] = lambda: builder.build_serialized_network(network, config)  # noqa: E731
    here = (options.engine, options.targets)  # each thread of CUDA's has its own current GPU
    with trt.messages.quoting() as errors, ThreadPoolExecutor(1, "mtm-build", use_device, here) as pool:
        future = pool.submit(build)
        try:
            engine = future.result()
        except BaseException:
            cancel.set()
            raise
    if engine is None:
        raise MtmError(f"TensorRT {trt.version} could not build the engine: {quoted(errors)}")
    return engine


def _make_sidecar(
    trt: TensorRT,
    model: OnnxModel,
    output: Path,
    options: BuildOptions,
    plugins: PluginLibrary | None,
    capabilities: tuple[str, ...],
    engine: Path,
    plan: dict[str, Any],
) -> Sidecar:
    arguments = ["--flavour", trt.flavour]
    if options.targets:
        arguments += ["--target", ",".join(options.targets)]
    if options.workspace_mib is not None:
        arguments += ["--workspace", str(options.workspace_mib)]
    if options.calibration is not None:
        arguments += ["--calibration", short_path(options.calibration)]
    return Sidecar(
        flavour=trt.flavour,
        tensorrt_version=trt.version,
        compute_capabilities=capabilities,
        plugin_hash=plugins.hash if plugins and model.op_counts else "",
        plugin_ops=tuple(sorted(model.op_counts)),
        onnx_path=os.path.relpath(model.path.absolute(), output.absolute().parent),
        onnx_sha256=sha256(model.path),
        engine_sha256=sha256(engine),
        engine_bytes=engine.stat().st_size,
        precision=options.precision,
        metadata=model.metadata,
        precision_plan=plan,
        options=(*arguments, *options.engine.arguments()),
        embedded_plugin=options.engine.embed_plugin and bool(model.op_counts),
        version_compatible=options.engine.version_compatible,
    )
