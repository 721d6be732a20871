"""The nodes that must stay in a higher precision, found by bisection and written into the model's calibration file."""

from pathlib import Path
from typing import Any

import click

from mtmamba.calib.calibration import DEFAULT_NAME, Calibration, read_calibration
from mtmamba.calib.plan import PRECISIONS
from mtmamba.console import command, progress, say
from mtmamba.files import check_output, only_candidate, sha256
from mtmamba.runtime.agreement import TOLERANCES, Tolerance, compared
from mtmamba.runtime.bisect import bisect
from mtmamba.runtime.calibrate_cli import batches
from mtmamba.runtime.onnx_model import load_onnx
from mtmamba.runtime.sources import open_source


@command(epilog="Example: python -m mtmamba.runtime.bisect_cli images/ --onnx best.onnx --precision fp16")
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--onnx", type=click.Path(path_type=Path), help="The exported model.  [default: the one *.onnx here]")
@click.option("--precision", type=click.Choice(PRECISIONS[1:]), default="fp16", help="Of the engine to be.")
@click.option("--count", type=click.IntRange(1), default=8, help="How many to judge by.")
@click.option("--agreement", type=click.FloatRange(0, 100), help="Percent of equal labels.  [default: by precision]")
@click.option("--depth", type=click.FloatRange(0), help="Relative depth error, percent.  [default: by precision]")
@click.option("--angle", type=click.FloatRange(0), help="Angle between normals, degrees.  [default: by precision]")
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    default=Path(DEFAULT_NAME),
    help="File to write the nodes into; int8 and fp8 need mtm-calibrate's.",
)
def main(
    images: tuple[Path, ...],
    onnx: Path | None,
    precision: str,
    count: int,
    agreement: float | None,
    depth: float | None,
    angle: float | None,
    calibration: Path,
) -> dict[str, Any]:
    """Find the smallest set of nodes that must not go to a low precision for the predictions on IMAGES to hold.

    The precision is emulated on the CPU: no GPU is needed. mtm-build-engine --calibration takes the file.
    """
    if onnx is None:
        onnx = only_candidate(("*.onnx",), "ONNX model", "--onnx", "mtm-export --ckpt CHECKPOINT")
        say(f"using {onnx.name}")
    check_output(calibration, suffix=".json", inputs=(onnx,))
    model = load_onnx(onnx)
    tasks, default = model.metadata.tasks, TOLERANCES[precision]
    given = {"agreement": agreement, "depth": depth, "angle": angle}
    tolerance = Tolerance(**{k: getattr(default, k) if value is None else value for k, value in given.items()})
    before = (
        read_calibration(calibration, onnx)
        if calibration.exists()
        else Calibration(onnx=onnx.name, onnx_sha256=sha256(onnx))
    )
    with progress() as bar:
        line = bar.add_task("whole model", total=None, note="")
        found = bisect(
            model.proto,
            precision,
            list(batches(model, [open_source(path) for path in images], count)),
            lambda reference, candidate: not compared(tasks, reference, candidate).failures(tolerance),
            calibration=before,
            on_progress=lambda what, trials, left: bar.update(
                line, description=f"{left} {what} left", completed=trials, note=f"{trials} trials"
            ),
        )
    found.into(before).write(calibration)
    higher = "FP32" if precision in ("fp16", "bf16") else "16 bits"
    if found.nodes:
        say(f"{len(found.nodes)} nodes must stay in {higher}, in {', '.join(found.blocks)} ({found.trials} trials)")
    else:
        say(f"the predictions hold in {precision}: no node must stay in {higher}")
    say(f"next: mtm-build-engine {onnx} --{precision} --calibration {calibration}")
    return {
        "calibration": str(calibration),
        "onnx": str(onnx),
        "precision": precision,
        "tolerance": tolerance.__dict__,
        "nodes": list(found.nodes),
        "blocks": list(found.blocks),
        "trials": found.trials,
    }


if __name__ == "__main__":
    main()
