"""mtm-build-engine: an exported ONNX file to a TensorRT engine with its sidecar."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.progress import Progress, TaskID

from mtmamba.calib.calibration import read_calibration
from mtmamba.calib.plan import QUANTISED
from mtmamba.console import command, progress, say
from mtmamba.errors import MtmError
from mtmamba.files import check_output, only_candidate
from mtmamba.runtime.engine import BuildOptions, BuiltEngine, build_engine, compute_capabilities_for
from mtmamba.runtime.engine_options import EngineOptions, check_options
from mtmamba.runtime.onnx_model import load_onnx
from mtmamba.runtime.plugin import PluginLibrary, load_plugins
from mtmamba.runtime.trt import FLAVOURS, TensorRT, resolve

CALIBRATIONS = "*calibration.json"


@command(epilog="Example: mtm-build-engine best.onnx --fp16 --target sm_89")
@click.argument("onnx", required=False, type=click.Path(path_type=Path))
@click.option("--fp32", "precision", flag_value="fp32", default=True, help="Precision of the engine: all FP32.")
@click.option("--fp16", "precision", flag_value="fp16", help="FP16; what it would harm stays FP32.")
@click.option("--bf16", "precision", flag_value="bf16", help="bfloat16: FP32's range, fewer digits than FP16.")
@click.option("--int8", "precision", flag_value="int8", help="INT8 products and convolutions, else FP16.")
@click.option(
    "--fp8", "precision", flag_value="fp8", help="FP8 (E4M3) products and convolutions, else FP16; from sm_89 on."
)
@click.option(
    "--calibration",
    metavar="PATH",
    type=click.Path(path_type=Path),
    help=f"What mtm-calibrate wrote.  [default: the {CALIBRATIONS} of this model here]",
)
@click.option(
    "--flavour", type=click.Choice(FLAVOURS), help="Which TensorRT, where both are installed.  [default: the first]"
)
@click.option(
    "--workspace", metavar="MIB", type=click.IntRange(1, 1 << 24), help="Scratch memory layers may use, in MiB."
)
@click.option(
    "--target", metavar="SM,...", help="Build ahead of time, with no GPU, for these architectures (sm_89,sm_120)."
)
@click.option("--picture-io", is_flag=True, help="uint8 pictures in, labels, probabilities, depth and normals out.")
@click.option("--embed-plugin", is_flag=True, help="Put the plugin library into the engine, which needs no other then.")
@click.option("--version-compatible", is_flag=True, help="Later TensorRT versions of this major load it; a bit slower.")
@click.option(
    "--opt-batch",
    metavar="N",
    type=click.IntRange(1),
    help="Images a run to tune for, of an export with a range (mtm-export --batch 1-8).  [default: the most]",
)
@click.option("--device", metavar="N", type=click.IntRange(0), default=0, help="Which GPU to build on.")
@click.option(
    "--plugin", metavar="PATH", type=click.Path(path_type=Path), help="A built plugin library, in place of our own."
)
@click.option(
    "--output",
    "-o",
    metavar="PATH",
    type=click.Path(path_type=Path),
    help="The engine.  [default: NAME.PRECISION.engine]",
)
def main(
    onnx: Path | None,
    precision: str,
    calibration: Path | None,
    flavour: str | None,
    workspace: int | None,
    target: str | None,
    picture_io: bool,
    embed_plugin: bool,
    version_compatible: bool,
    opt_batch: int | None,
    device: int,
    plugin: Path | None,
    output: Path | None,
) -> dict[str, Any]:
    """Build a TensorRT engine from ONNX (default: the one *.onnx in this folder).

    The plugin library is built on first need and kept in ~/.cache/mtmamba. Every operator of ours in the file must
    become a plugin layer, or no engine is written. NAME.engine.json beside the engine says what it was made from.
    """
    if onnx is None:
        onnx = only_candidate(("*.onnx",), "ONNX model", "mtm-build-engine NAME.onnx", "mtm-export --ckpt CHECKPOINT")
        say(f"using {onnx.name}")
    trt = resolve(flavour)
    targets = tuple(part.strip().lower() for part in target.split(",") if part.strip()) if target else ()
    if target is not None and not targets:
        raise click.BadParameter("expected architectures such as sm_89,sm_120, found none", param_hint="--target")
    engine = EngineOptions(
        picture_io=picture_io,
        embed_plugin=embed_plugin,
        version_compatible=version_compatible,
        device=device,
        opt_batch=opt_batch,
    )
    calibration = _calibration(calibration, precision, onnx)
    options = BuildOptions(
        precision=precision, calibration=calibration, workspace_mib=workspace, targets=targets, engine=engine
    )
    output = output or Path(f"{onnx.stem}.{precision}{'.picture' if picture_io else ''}.engine")
    check_output(output, suffix=".engine", inputs=(onnx,))
    compute_capabilities_for(trt, targets, device)  # before the plugins are built for nothing
    check_options(trt, engine, targets)
    model = load_onnx(onnx)
    plugins = _load(trt, plugin) if model.op_counts or plugin else None
    with _bar(f"building {output.name}") as (bar, task):
        built = build_engine(
            trt,
            model,
            output,
            options,
            plugins,
            lambda fraction, phase: bar.update(task, completed=round(100 * fraction), note=phase),
        )
    _tell(trt, built)
    return _result(trt, model.path, built, plugins)


def _calibration(given: Path | None, precision: str, onnx: Path) -> Path | None:
    """The calibration to build with: the one given, else the one here. INT8 and FP8 cannot do without; the others pass
    over one of another model, and say so. Raises MtmError where it cannot be used."""
    if given is None and precision in QUANTISED:
        given = only_candidate((CALIBRATIONS,), "calibration", "--calibration", "mtm-calibrate IMAGES")
        say(f"using {given.name}")
    if given is not None or precision == "fp32":
        if given is not None:
            read_calibration(given, onnx)
        return given
    for path in sorted(Path.cwd().glob(CALIBRATIONS)):
        try:
            read_calibration(path, onnx)
        except MtmError as error:
            say(f"passing over {path.name}: {error}")
            continue
        say(f"using {path.name}")
        return path
    return None


@contextmanager
def _bar(title: str) -> Iterator[tuple[Progress, TaskID]]:
    with progress(unit="%") as bar:
        yield bar, bar.add_task(title, total=100, note="")


def _load(trt: TensorRT, library: Path | None) -> PluginLibrary:
    with progress() as bar:
        task: list[TaskID] = []

        def on_step(done: int, total: int) -> None:
            if not task:
                task.append(bar.add_task("compiling the TensorRT plugins (once)", total=total, note=""))
            bar.update(task[0], completed=done, total=total)

        return load_plugins(trt, library, on_step)


def _tell(trt: TensorRT, built: BuiltEngine) -> None:
    side = built.sidecar
    say(
        f"{built.engine}: {side.precision}, {side.engine_bytes / 2**20:.1f} MiB, for compute capability "
        f"{', '.join(side.compute_capabilities)}, built by {trt.flavour} {trt.version} in {built.seconds:.1f} s"
    )
    proof = "one for every operator of ours" if built.plugin_layers else "the model has no operator of ours"
    plan = side.precision_plan
    if plan:
        quantised = f"{plan['quantised_nodes']} nodes quantised, " if side.precision in QUANTISED else ""
        say(f"  {quantised}{len(plan['fp32_nodes'])} nodes stay FP32, {plan['casts']} casts; the sidecar says why")
    if side.metadata.min_batch is not None:
        say(f"  any batch of {side.metadata.batch_text}")
    say(f"  {built.layers} layers, {built.plugin_layers} of them mtmamba plugins: {proof}")
    if side.carries_code:
        say("  it carries code, which runs where it is loaded: set MTMAMBA_TRUST_ENGINES=1 there")
    say(f"  {built.sidecar_path} says what it was made from")


def _result(trt: TensorRT, onnx: Path, built: BuiltEngine, plugins: PluginLibrary | None) -> dict[str, Any]:
    side = built.sidecar
    return {
        "engine": str(built.engine),
        "sidecar": str(built.sidecar_path),
        "onnx": str(onnx),
        "bytes": side.engine_bytes,
        "precision": side.precision,
        "precision_plan": side.precision_plan,
        "io": side.metadata.io,
        "batch": side.metadata.batch,
        "min_batch": side.metadata.smallest_batch,
        "embedded_plugin": side.embedded_plugin,
        "version_compatible": side.version_compatible,
        "flavour": trt.flavour,
        "tensorrt_version": trt.version,
        "compute_capabilities": list(side.compute_capabilities),
        "layers": built.layers,
        "plugin_layers": built.plugin_layers,
        "plugin_library": str(plugins.path) if plugins else None,
        "plugin_hash": side.plugin_hash,
        "seconds": round(built.seconds, 3),
    }


if __name__ == "__main__":
    main()
