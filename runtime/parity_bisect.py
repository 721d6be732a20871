"""What `mtm-parity --bisect` does: bisection by the tolerances of mtm-parity, written into the model's calibration file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from mtmamba.calib.calibration import Calibration, read_calibration
from mtmamba.calib.plan import PRECISIONS, QUANTISED
from mtmamba.console import progress, say
from mtmamba.files import check_output, only_candidate, sha256
from mtmamba.runtime.bisect import bisect
from mtmamba.runtime.calibrate_cli import batches
from mtmamba.runtime.emulation import Array
from mtmamba.runtime.onnx_model import OnnxModel, load_onnx
from mtmamba.runtime.parity import compare_predictions, random_frames
from mtmamba.runtime.parity_tolerance import FIGURE_OF, Override, tolerances
from mtmamba.runtime.preprocess import preprocess
from mtmamba.runtime.run_cli import choose_tasks
from mtmamba.runtime.sources import open_source


def find_nodes(
    onnx: Path | None,
    precision: str,
    calibration: Path,
    *,
    source: Path | None,
    images: int,
    seed: int,
    tasks: str | None,
    overrides: Sequence[Override],
) -> dict[str, Any]:
    """Find the nodes of `onnx` that must not go to `precision` for its tasks to stay within the tolerances, on `images`
    images of `source` (None: random ones), and write them into `calibration`. Returns what `--json` prints. Raises
    click.UsageError for a precision there is nothing to find in."""
    if precision not in PRECISIONS[1:]:
        raise click.UsageError(f"--bisect is for {', '.join(PRECISIONS[1:])}; found --precision {precision}")
    if onnx is None:
        onnx = only_candidate(("*.onnx",), "ONNX model", "--model", "mtm-export --ckpt CHECKPOINT")
        onnx = onnx.relative_to(Path.cwd())
        say(f"model: {onnx.name}")
    check_output(calibration, suffix=".json", inputs=(onnx,))
    model = load_onnx(onnx)
    chosen = choose_tasks(model.metadata, tasks)
    limits = tolerances(precision, chosen, tuple(overrides))
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
            _inputs(model, source, images, seed),
            lambda reference, candidate: compare_predictions(chosen, reference, candidate, limits).passed,
            calibration=before,
            on_progress=lambda what, trials, left: bar.update(
                line, description=f"{left} {what} left", completed=trials, note=f"{trials} trials"
            ),
        )
    found.into(before).write(calibration)
    higher = "16 bits" if precision in QUANTISED else "FP32"
    if found.nodes:
        say(f"{len(found.nodes)} nodes must stay in {higher}, in {', '.join(found.blocks)} ({found.trials} trials)")
    else:
        say(f"the predictions hold in {precision}: no node must stay in {higher}")
    say(f"next: mtm-build-engine {onnx} --{precision} --calibration {calibration}")
    return {
        "calibration": str(calibration),
        "onnx": str(onnx),
        "precision": precision,
        "tolerances": {
            task.name: {figure: getattr(limits[task.name], figure) for figure in ("difference", FIGURE_OF[task.kind])}
            for task in chosen
        },
        "nodes": list(found.nodes),
        "blocks": list(found.blocks),
        "trials": found.trials,
    }


def _inputs(model: OnnxModel, source: Path | None, images: int, seed: int) -> list[Array]:
    """Batches [B, 3, H, W], normalised."""
    if source is not None:
        return list(batches(model, [open_source(source)], images))
    size, batch = model.metadata.input_size, model.metadata.batch
    count = -(-images // batch) * batch
    frames = [preprocess(frame.image, model.metadata) for frame in random_frames(size, count, seed)]
    return [np.stack(frames[start : start + batch]) for start in range(0, count, batch)]
