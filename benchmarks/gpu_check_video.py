"""A video through mtm-run's pipeline with the model on the GPU: what is left of the model's speed on the way from file to file.

    python benchmarks/gpu_check_video.py [--encoders swin-tiny,swin-large] [--frames 400] [--json OUT.json]

NYUDv2 at 448x576, FP16, random weights; 1280 x 720 in, H.264 out. The TensorRT backend with PyTorch's kernels as one CUDA
graph in the engine's place (`torch_engine.py`), pictures in and predictions out, one frame a run. `fps`: frames a second
after the first ones; `engine_ms`: the graph alone, by events around it; `of_engine`: the share of the frames a second that the
graph alone would give; `of_slowest`: of those that the slowest stage's busy time allows. Two ways: `model` (decoded, prepared,
run, predictions fetched) and `video` (drawn and encoded too).
"""

import argparse
import json
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
import torch_engine
from pipeline import FIRST, make_clip

from mtmamba import MTMamba, preset
from mtmamba.metadata import ModelMetadata
from mtmamba.runtime.backends import open_backend, tensorrt_backend
from mtmamba.runtime.outputs import Outputs
from mtmamba.runtime.run import DRAWERS, run
from mtmamba.runtime.sources import open_source
from mtmamba.runtime.threads import cores, several

SIZE, SOURCE = (448, 576), (720, 1280)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoders", default="swin-tiny,swin-large")
    parser.add_argument("--frames", type=int, default=400)
    parser.add_argument("--json", type=Path, help="write the result there")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        clip = make_clip(Path(name) / "clip.mp4", arguments.frames, SOURCE)
        for encoder in arguments.encoders.split(","):
            rows += measure(encoder, clip)
    result = {
        "gpu": torch.cuda.get_device_name(), "cores": cores(), "drawing_threads": several(DRAWERS),
        "frames": arguments.frames, "source": SOURCE, "input": SIZE, "rows": rows,
    }  # fmt: skip
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    for row in rows:
        print(row)


def measure(encoder: str, clip: Path) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    config = preset("nyudv2", encoder)
    model = MTMamba(config).eval().cuda().half()
    metadata = ModelMetadata(config=config, input_size=SIZE, batch=1, versions={}, io="picture")
    stand_in = torch_engine.tensorrt_of(torch_engine.picture_io(model, metadata, torch.float16), metadata)
    tensorrt_backend.resolve = lambda flavour=None: stand_in  # type: ignore[assignment]
    path = torch_engine.write_engine(clip.with_name(f"{encoder}.engine"), metadata)
    rows = []
    with closing(open_backend(path)) as backend:
        for what in ("model", "video"):
            target = clip.with_name(f"{encoder}.mp4") if what == "video" else None
            ends = list[float]()
            result = run(
                open_source(clip), backend, Outputs(target=target, form="video"), tasks=backend.metadata.tasks,
                on_frame=lambda ends=ends: ends.append(time.perf_counter()),
            )  # fmt: skip
            fps = (len(ends) - FIRST) / (ends[-1] - ends[FIRST - 1])
            stages = {stage: round(ms, 2) for stage, ms in result.stages_ms_p50.items()}
            slowest_ms = max(result.engine_ms_p50, *result.stages_ms_p50.values())
            rows.append(
                {"encoder": encoder, "what": what, "fps": round(fps, 1), "engine_ms": round(result.engine_ms_p50, 2),
                 "of_engine": round(fps * result.engine_ms_p50 / 1e3, 3), "of_slowest": round(fps * slowest_ms / 1e3, 3),
                 "stages_ms_p50": stages}
            )  # fmt: skip
    return rows


if __name__ == "__main__":
    main()
