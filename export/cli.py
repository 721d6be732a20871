"""`mtm-export`: a checkpoint in, a checked ONNX file out."""

import shlex
import time
from pathlib import Path
from typing import Any

import click
import onnx

from mtmamba.console import ImageSize, command, progress, say
from mtmamba.errors import MtmError
from mtmamba.files import atomic_path, check_output, existing_file, only_candidate, sha256

MAX_SIDE = 16384
CHECKPOINTS = ("*.pth", "*.pt", "*.pth.tar")


@command(epilog="Example: mtm-export --ckpt best.pth --size 448x576")
@click.option(
    "--ckpt", type=click.Path(path_type=Path), help="Checkpoint, ours or a published one.  [default: the only one here]"
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="ONNX file to write.  [default: the checkpoint's name, here]",
)
@click.option(
    "--size", type=ImageSize(at_most=MAX_SIDE), help="Input height and width in pixels.  [default: the checkpoint's]"
)
@click.option("--batch", type=click.IntRange(1), default=1, help="Images a run.")
@click.option("--opset", type=click.IntRange(18, 23), default=20, help="ONNX opset.")
@click.option("--check-images", type=click.IntRange(1), default=2, help="Random images to compare with PyTorch.")
def main(
    ckpt: Path | None,
    output: Path | None,
    size: tuple[int, int] | None,
    batch: int,
    opset: int,
    check_images: int,
) -> dict[str, Any]:
    """Export an MTMamba checkpoint to ONNX, and check the file against PyTorch before it is written.

    The file runs in any ONNX runtime: the selective scan is in it as a function of standard operators, which TensorRT
    replaces by the plugin. Its metadata carries tasks, sizes, normalisation and versions.
    """
    _require_packages()
    from mtmamba.checkpoint import load_checkpoint
    from mtmamba.export.contract import count_nodes
    from mtmamba.export.torch_to_onnx import export_model
    from mtmamba.export.verify import compare, require_equal

    if ckpt is None:
        ckpt = only_candidate(CHECKPOINTS, "checkpoint", "--ckpt", "mtm-train")
        say(f"checkpoint: {ckpt.name}")
    existing_file(ckpt, "checkpoint")
    output = output or Path(ckpt.name.removesuffix(".tar")).with_suffix(".onnx")
    check_output(output, suffix=".onnx", inputs=(ckpt,))
    started = time.perf_counter()
    with progress() as bar:
        step = bar.add_task("reading the checkpoint", total=4, note="")
        model = load_checkpoint(ckpt)
        bar.update(step, advance=1, description="exporting")
        proto = export_model(model, input_size=size, batch=batch, opset=opset, checkpoint_sha256=sha256(ckpt))
        bar.update(step, advance=1, description="checking against PyTorch")
        with atomic_path(output) as temporary:
            onnx.save(proto, temporary)
            differences = compare(model, temporary, images=check_images)
            require_equal(differences)
            bar.update(step, advance=1, description="writing")
        bar.update(step, advance=1, description="done")
    height, width = size or model.config.input_size
    seconds = time.perf_counter() - started
    scans = count_nodes(proto)
    say(
        f"{output}: {height}x{width}, batch {batch}, opset {opset}, {len(proto.graph.node)} nodes ({scans} scans), "
        f"{output.stat().st_size / 2**20:.1f} MiB, {seconds:.0f} s"
    )
    for d in differences:
        say(f"  {d.task:<12} max difference from PyTorch {d.max_abs:.1e} (allowed {d.tolerance:.1e})")
    say(
        f"next: {shlex.join(['mtm-build-engine', str(output), '--fp16'])} (on a machine without a GPU add --target sm_89)"
    )
    return {
        "onnx": str(output),
        "checkpoint": str(ckpt),
        "input_size": [height, width],
        "batch": batch,
        "opset": opset,
        "nodes": len(proto.graph.node),
        "scan_nodes": scans,
        "bytes": output.stat().st_size,
        "seconds": round(seconds, 1),
        "differences": [d.to_dict() for d in differences],
    }


def _require_packages() -> None:
    from importlib.util import find_spec

    missing = [name for name in ("torch", "timm", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise MtmError(
            f"mtm-export needs {', '.join(missing)}, which are not installed; run: pip install 'mtmamba[model,cpu]'"
        )
