"""What each precision costs: agreement with FP32, emulated on the CPU, model by model. Writes JSON; needs no GPU.

    python benchmarks/precision.py nano=best.pth --images 32
    python benchmarks/precision.py swin-tiny --size 96x128      # a preset's name alone: random weights

Calibration images and test images are rendered rooms of different seeds. With random weights the 40 class scores of a pixel
lie much closer together than a trained model's: label agreement is then a lower bound, and the RMS difference the figure
to read.
"""

import argparse
import json
import platform
import tempfile
import time
from dataclasses import replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from mtmamba import MTMamba, load_checkpoint, preset
from mtmamba.calib.histogram import METHODS
from mtmamba.calib.plan import PRECISIONS
from mtmamba.data.synthetic import render_sample
from mtmamba.export.precision import to_precision
from mtmamba.export.torch_to_onnx import export_model
from mtmamba.runtime.bisect import run_all
from mtmamba.runtime.calibrate import calibrate
from mtmamba.runtime.emulation import Emulation
from mtmamba.runtime.onnx_model import OnnxModel, load_onnx
from mtmamba.runtime.parity import compare_predictions
from mtmamba.runtime.parity_tolerance import tolerances
from mtmamba.runtime.preprocess import preprocess

CALIBRATION_SEED, TEST_SEED = 1_000_001, 1_000_002
DATASET = "synthetic"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="NAME=CHECKPOINT, or a preset's NAME for random weights")
    parser.add_argument(
        "--images", type=int, default=16, help="test images (default: 16), and twice as many to calibrate"
    )
    parser.add_argument("--size", default="64x96", help="HEIGHTxWIDTH in pixels (default: 64x96)")
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, default=["percentile"], help="INT8 calibration methods"
    )
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    height, width = map(int, arguments.size.split("x"))
    results = {}
    for text in arguments.models:
        name, _, checkpoint = text.partition("=")
        results[name] = measure(name, checkpoint, (height, width), arguments.images, arguments.methods)
    written = {
        "date": date.today().isoformat(),
        "machine": platform.machine(),
        "versions": {name: version(name) for name in ("mtmamba", "torch", "onnx", "onnxruntime")},
        "size": [height, width],
        "models": results,
    }
    arguments.output.write_text(json.dumps(written, indent=1) + "\n")
    print(f"wrote {arguments.output}")


def measure(name: str, checkpoint: str, size: tuple[int, int], images: int, methods: list[str]) -> dict[str, Any]:
    torch.manual_seed(0)
    torch_model = (
        load_checkpoint(Path(checkpoint)) if checkpoint else MTMamba(replace(preset(DATASET, name), input_size=size))
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.onnx"
        onnx.save(export_model(torch_model, input_size=size), str(path))
        model = load_onnx(path)
        found = {}
        test = scenes(model, TEST_SEED, images)
        reference = run_all(Emulation(model.proto), test)
        for method in methods:
            calibration = calibrate(model, scenes(model, CALIBRATION_SEED, 2 * images), method=method)
            for precision in PRECISIONS[1:]:
                label = f"{precision} {method}" if precision == "int8" else precision
                if label in found:
                    continue
                started = time.perf_counter()
                low, report = to_precision(model.proto, precision, calibration)
                tasks = model.metadata.tasks
                predictions = run_all(Emulation(low), test)
                parity = compare_predictions(tasks, reference, predictions, tolerances(precision, tasks))
                found[label] = {
                    "tasks": {task.task.name: task.cost for task in parity.tasks},
                    "beyond_tolerance": parity.failures(),
                    "fp32_nodes": len(report["fp32_nodes"]),
                    "low_nodes": report["low_nodes"],
                    "casts": report["casts"],
                    "quantised_nodes": report["quantised_nodes"],
                }
                print(f"{name} {label}, {time.perf_counter() - started:.0f} s: {line(found[label]['tasks'])}")
    weights = "trained" if checkpoint else "random"
    return {"images": images, "weights": weights, "precisions": found}


def scenes(model: OnnxModel, seed: int, count: int) -> list[np.ndarray]:
    """Rendered rooms, [1, 3, H, W] each, as the model takes them."""
    size = model.metadata.input_size
    rendered = (render_sample(seed, index, size).image for index in range(count))
    return [preprocess(np.ascontiguousarray(image[:, :, ::-1]), model.metadata)[None] for image in rendered]


def line(tasks: dict[str, dict[str, float]]) -> str:
    return "; ".join(
        f"{task} " + ", ".join(f"{k} {v:.3g}" for k, v in figures.items()) for task, figures in tasks.items()
    )


if __name__ == "__main__":
    main()
