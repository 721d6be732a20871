"""What each precision costs in each block and task: a JSON file and a picture."""

import json
import math
from pathlib import Path
from typing import Any

import click

from mtmamba.calib.calibration import read_calibration
from mtmamba.calib.plan import PRECISIONS, QUANTISED
from mtmamba.console import command, progress, say
from mtmamba.errors import MtmError
from mtmamba.files import atomic_path, check_output, only_candidate
from mtmamba.metrics import plain
from mtmamba.runtime.calibrate_cli import batches
from mtmamba.runtime.onnx_model import load_onnx
from mtmamba.runtime.sensitivity import draw, sensitivity, worst
from mtmamba.runtime.sources import open_source


@command(epilog="Example: mtm-sensitivity images/ --onnx best.onnx --precision fp16")
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--onnx", type=click.Path(path_type=Path), help="The exported model.  [default: the one *.onnx here]")
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    type=click.Choice(PRECISIONS[1:]),
    help="May be repeated.  [default: all]",
)
@click.option("--count", type=click.IntRange(1), default=4, help="How many to judge by.")
@click.option("--calibration", type=click.Path(path_type=Path), help="What mtm-calibrate wrote; int8 and fp8 need it.")
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path),
    default=Path("sensitivity.json"),
    help="JSON to write; the picture is the same with .png.",
)
def main(
    images: tuple[Path, ...],
    onnx: Path | None,
    precisions: tuple[str, ...],
    count: int,
    calibration: Path | None,
    output: Path,
) -> dict[str, Any]:
    """Put each block alone into each precision and say what that does to every task, against FP32. Needs no GPU."""
    if onnx is None:
        onnx = only_candidate(("*.onnx",), "ONNX model", "--onnx", "mtm-export --ckpt CHECKPOINT")
        say(f"using {onnx.name}")
    check_output(output, suffix=".json", inputs=(onnx, *([calibration] if calibration else [])))
    precisions = precisions or tuple(p for p in PRECISIONS[1:] if calibration or p not in QUANTISED)
    if calibration is None and any(p in QUANTISED for p in precisions):
        raise MtmError("int8 and fp8 need a calibration, found none; run mtm-calibrate and give --calibration")
    model = load_onnx(onnx)
    ranges = read_calibration(calibration, onnx) if calibration else None
    with progress() as bar:
        line = bar.add_task("precision", total=None, note="")
        found = sensitivity(
            model.proto,
            model.metadata.tasks,
            list(batches(model, [open_source(path) for path in images], count)),
            precisions,
            calibration=ranges,
            on_progress=lambda done, total, what: bar.update(line, completed=done, total=total, note=what),
        )
    costs = {precision: {block: plain(tasks) for block, tasks in blocks.items()} for precision, blocks in found.items()}
    result = {"onnx": str(onnx), "images": count, "costs": costs}
    picture = output.with_suffix(".png")
    draw(found, model.metadata.tasks, picture)
    with atomic_path(output) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for precision, blocks in found.items():
        block, rms = worst(blocks)
        lost = f"RMS {rms:.2g} % of a task's prediction" if math.isfinite(rms) else "NaN or infinite values"
        say(f"{precision}: most is lost in {block} ({lost})")
    say(f"wrote {output} and {picture}")
    return {**result, "picture": str(picture)}


if __name__ == "__main__":
    main()
