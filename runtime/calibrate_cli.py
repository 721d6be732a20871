"""mtm-calibrate: a model's ranges over representative images, and which of its nodes stay FP32 in an FP16 engine."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np

from mtmamba.calib.calibration import DEFAULT_NAME, Calibration
from mtmamba.calib.histogram import METHODS
from mtmamba.console import Interrupted, command, progress, say
from mtmamba.export.graph import block_of
from mtmamba.files import check_output, only_candidate
from mtmamba.runtime.calibrate import DEFAULT_PERCENTILE, calibrate
from mtmamba.runtime.emulation import Array
from mtmamba.runtime.onnx_model import OnnxModel, load_onnx
from mtmamba.runtime.preprocess import preprocess
from mtmamba.runtime.sources import Source, open_source


@command(epilog="Example: mtm-calibrate images/ drive.mp4 --onnx best.onnx --count 256")
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--onnx", type=click.Path(path_type=Path), help="The exported model.  [default: the one *.onnx here]")
@click.option(
    "--method",
    type=click.Choice(METHODS),
    default="percentile",
    help="What INT8 clips to. FP8 and FP16 take the range.",
)
@click.option(
    "--percentile",
    type=click.FloatRange(50, 100, min_open=True),
    default=DEFAULT_PERCENTILE,
    help="Percent of magnitudes that --method percentile does not clip.",
)
@click.option("--count", type=click.IntRange(1), default=128, help="How many, spread evenly over the sources.")
@click.option("--restart", is_flag=True, help="Begin anew where an interrupted calibration would be taken up.")
@click.option("--output", "-o", type=click.Path(path_type=Path), default=Path(DEFAULT_NAME), help="File to write.")
def main(
    images: tuple[Path, ...],
    onnx: Path | None,
    method: str,
    percentile: float,
    count: int,
    restart: bool,
    output: Path,
) -> dict[str, Any]:
    """Measure a model's tensors over IMAGES: pictures, folders of pictures, videos.

    Representative images matter, labels do not. mtm-build-engine takes the file: with --fp16, nodes whose tensors come near
    FP16's limit stay FP32; --int8 and --fp8 take their scales from it. When interrupted, the same command goes on where it
    stopped.
    """
    if onnx is None:
        onnx = only_candidate(("*.onnx",), "ONNX model", "--onnx", "mtm-export --ckpt CHECKPOINT")
        say(f"using {onnx.name}")
    check_output(output, suffix=".json", inputs=(onnx,))
    model, sources = load_onnx(onnx), [open_source(path) for path in images]
    state = output.with_suffix(".state.npz")
    if restart:
        state.unlink(missing_ok=True)
    done = 0
    with progress(unit="images") as bar:
        total = min(count, sum(source.count or count for source in sources))
        line = bar.add_task(f"calibrating {onnx.name}", total=total, note="")

        def on_images(images_done: int) -> None:
            nonlocal done
            done = images_done
            bar.update(line, completed=min(done, total))

        try:
            made = calibrate(
                model,
                batches(model, sources, count),
                method=method,
                percentile=percentile,
                sources=[f"{source.path} ({source.count} of them)" for source in sources] + [f"{count} at most"],
                state=state,
                on_images=on_images,
            )
        except KeyboardInterrupt:
            if not done:
                raise
            say(f"interrupted after {done} images; the same command goes on from there ({state})")
            raise Interrupted({"interrupted": True, "images": done, "state": str(state)}) from None
    made.write(output)
    return _tell(output, made, model)


def batches(model: OnnxModel, sources: list[Source], count: int) -> Iterator[Array]:
    """`count` images of the sources, or all where there are fewer, spread evenly; in batches of the model's size (the
    last one, if too short for it, filled up with its own last image), normalised."""
    size, batch = model.metadata.batch, []
    for index, source in enumerate(sources):
        share = count * (index + 1) // len(sources) - count * index // len(sources)
        for image in _spread(source, share):
            batch.append(preprocess(image, model.metadata))
            if len(batch) == size:
                yield np.stack(batch)
                batch = []
    if batch:
        yield np.stack(batch + [batch[-1]] * (model.metadata.run_size(len(batch)) - len(batch)))


def _spread(source: Source, share: int) -> Iterator[Any]:
    """About `share` frames of the source, evenly spaced where its length is known, else the first ones."""
    wanted = None if source.count is None else set(np.linspace(0, source.count - 1, min(share, source.count)).round())
    taken = 0
    for frame in source.frames():
        if taken == share:
            return
        if wanted is None or frame.index in wanted:
            taken += 1
            yield frame.image


def _tell(output: Path, made: Calibration, model: OnnxModel) -> dict[str, Any]:
    kept = made.kept.get("fp16", {})
    blocks = sorted({block_of(node) for node in kept})
    say(f"{output}: {len(made.ranges)} tensors over {made.images} images, method {made.method}")
    if kept:
        say(f"  {len(kept)} nodes stay FP32 in an FP16 engine, in {', '.join(blocks)}")
    else:
        say("  nothing comes near FP16's limits")
    say(f"next: mtm-build-engine {model.path} --fp16 --calibration {output}  (or --int8, --fp8)")
    return {
        "calibration": str(output),
        "onnx": str(model.path),
        "images": made.images,
        "method": made.method,
        "tensors": len(made.ranges),
        "fp32_nodes": dict(kept),
        "fp32_blocks": blocks,
    }


if __name__ == "__main__":
    main()
