"""`mtm-export`: a checkpoint in, a checked ONNX file out."""

import shlex
import time
from pathlib import Path
from typing import Any

import click

from mtmamba.console import ImageSize, command, progress, say
from mtmamba.errors import MtmError
from mtmamba.files import check_output, existing_file, only_candidate

MAX_SIDE = 16384
CHECKPOINTS = ("*.pth", "*.pt", "*.pth.tar")


class BatchRange(click.ParamType[tuple[int, int]]):
    """N or MIN-MAX -> (fewest, most) images."""

    name = "N|MIN-MAX"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        ends = [int(end) if end.isdecimal() else 0 for end in str(value).split("-")]
        if len(ends) > 2 or ends[0] < 1 or ends[-1] < ends[0]:
            self.fail(
                f"expected a number of images of at least 1 or a range of them, such as 8 or 1-8, found {value!r}",
                param,
                ctx,
            )
        return ends[0], ends[-1]


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
@click.option("--batch", type=BatchRange(), default="1", help="Images a run; 1-8: any number of them in that range.")
@click.option("--opset", type=click.IntRange(18, 23), default=20, help="ONNX opset.")
@click.option("--check-images", type=click.IntRange(1), default=2, help="Random images to compare with PyTorch.")
@click.option("--picture-io", is_flag=True, help="uint8 pictures in, labels, probabilities, depth and normals out.")
def main(
    ckpt: Path | None,
    output: Path | None,
    size: tuple[int, int] | None,
    batch: tuple[int, int],
    opset: int,
    check_images: int,
    picture_io: bool,
) -> dict[str, Any]:
    """Export an MTMamba checkpoint to ONNX, and check the file against PyTorch before it is written.

    The file runs in any ONNX runtime: the selective scan is in it as a function of standard operators, which TensorRT
    replaces by the plugin. Its metadata carries tasks, sizes, normalisation and versions.
    """
    _require_packages()
    from mtmamba.export.checkpoint_to_onnx import STEPS, export_checkpoint

    if ckpt is None:
        ckpt = only_candidate(CHECKPOINTS, "checkpoint", "--ckpt", "mtm-train")
        say(f"checkpoint: {ckpt.name}")
    existing_file(ckpt, "checkpoint")
    output = output or Path(ckpt.name.removesuffix(".tar")).with_suffix(".picture.onnx" if picture_io else ".onnx")
    check_output(output, suffix=".onnx", inputs=(ckpt,))
    started = time.perf_counter()
    with progress() as bar:
        task = bar.add_task(STEPS[0], total=len(STEPS), note="")
        made = export_checkpoint(
            ckpt,
            output,
            input_size=size,
            batch=batch,
            opset=opset,
            check_images=check_images,
            picture_io=picture_io,
            on_step=lambda step: bar.update(task, completed=step, description=STEPS[step]),
        )
        bar.update(task, completed=len(STEPS), description="done")
    height, width = made.input_size
    seconds = time.perf_counter() - started
    least, most = batch
    images = f"{most}" if least == most else f"{least}-{most}"
    say(
        f"{output}: {height}x{width}, batch {images}, opset {opset}, {made.nodes} nodes ({made.scan_nodes} scans), "
        f"{output.stat().st_size / 2**20:.1f} MiB, {seconds:.0f} s"
    )
    for d in made.differences:
        say(f"  {d.task:<12} max difference from PyTorch {d.max_abs:.1e} (allowed {d.tolerance:.1e})")
    precision = [] if picture_io else ["--fp16"]
    say(
        f"next: {shlex.join(['mtm-build-engine', str(output), *precision])} (on a machine without a GPU add --target sm_89)"
    )
    return {
        "onnx": str(output),
        "checkpoint": str(ckpt),
        "input_size": [height, width],
        "batch": most,
        "min_batch": least,
        "opset": opset,
        "io": "picture" if picture_io else "raw",
        "nodes": made.nodes,
        "scan_nodes": made.scan_nodes,
        "bytes": output.stat().st_size,
        "seconds": round(seconds, 1),
        "differences": [d.to_dict() for d in made.differences],
    }


def _require_packages() -> None:
    from importlib.util import find_spec

    missing = [name for name in ("torch", "timm", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise MtmError(
            f"mtm-export needs {', '.join(missing)}, which are not installed; run: pip install 'mtmamba[model,cpu]'"
        )


if __name__ == "__main__":
    main()
