"""Samples per second: rendering `synthetic`, and decoding and augmenting each dataset on files made for it.

    python benchmarks/data.py [--only synthetic,nyudv2] [--sizes 96x128,192x256,448x576] [--workers 0,1,2] [--seconds 8]
                              [--json benchmarks/data.json]

Every figure is a PyTorch DataLoader's rate over `--seconds` after a first batch, batches of 8, augmentation on as in
training; 0 workers is the main process alone. The default worker counts are 0, 1, 2 and the cores there are. Files are
rendered pictures of the datasets' real sizes in a temporary folder (so they come from the page cache: a slow disk comes
on top). How many images a training step takes a second is `mtm-train`'s own report.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from datetime import datetime, timezone
from itertools import islice
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when PyTorch is imported

import cv2
import numpy as np
import scipy.io
import torch
from PIL import Image
from torch.utils.data import DataLoader

from mtmamba.data import open_dataset
from mtmamba.data.classes import CITYSCAPES_IDS, CONTEXT_NORMALS
from mtmamba.data.dataset import DenseDataset
from mtmamba.data.render import Rendering
from mtmamba.data.sampler import EndlessSampler
from mtmamba.data.synthetic import render_sample

BATCH = 8
FILES = 8  # items of a made dataset
Array = np.ndarray[Any, Any]


def save(path: Path, values: Array) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def save_list(path: Path, names: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(names))


def as_bytes(normals: Array) -> Array:
    return np.asarray(np.rint((normals + 1) * 127.5).astype(np.uint8))


def make_nyudv2(root: Path, rooms: list[Rendering]) -> None:
    for index, room in enumerate(rooms):
        save(root / f"images/{index}.png", room.image)
        save(root / f"segmentation/{index}.png", room.semseg + np.uint8(1))
        save(root / f"normals/{index}.png", as_bytes(room.normals))
        save(root / f"edge/{index}.png", (255 * room.edge).astype(np.uint8))
        (root / "depth").mkdir(exist_ok=True)
        np.save(root / f"depth/{index}.npy", room.depth)
    save_list(root / "gt_sets/train.txt", [str(index) for index in range(len(rooms))])


def make_pascal(root: Path, rooms: list[Rendering]) -> None:
    parts = ("head", "torso", "luarm", "llarm", "luleg", "llleg")
    for folder in ("human_parts", "pascal-context/trainval"):
        (root / folder).mkdir(parents=True)
    for index, room in enumerate(rooms):
        save(root / f"JPEGImages/{index}.jpg", room.image)
        save(root / f"semseg/VOC12/{index}.png", room.semseg % 21)
        save(root / f"sal_distill/{index}.png", 255 * room.sal)
        save(root / f"normals_distill/{index}.png", as_bytes(room.normals))
        context = np.array(list(CONTEXT_NORMALS.values()), np.uint16)[room.objects % len(CONTEXT_NORMALS)]
        scipy.io.savemat(root / f"pascal-context/trainval/{index}.mat", {"LabelMap": context}, do_compression=True)
        masks = np.empty((1, len(parts)), dtype=[("part_name", object), ("mask", object)])
        for number, part in enumerate(parts):
            masks[0, number] = (part, (room.parts == number + 1).astype(np.uint8))
        thing = {"class": "person", "class_ind": 15, "mask": (room.parts > 0).astype(np.uint8), "parts": masks}
        anno = {"anno": {"imname": str(index), "objects": thing}}
        scipy.io.savemat(root / f"human_parts/{index}.mat", anno, do_compression=True)
    save_list(root / "ImageSets/Context/train.txt", [str(index) for index in range(len(rooms))])


def make_cityscapes(root: Path, rooms: list[Rendering]) -> None:
    for index, room in enumerate(rooms):
        stem = f"train/aachen/aachen_{index:06d}_000019"
        save(root / f"leftImg8bit/{stem}_leftImg8bit.png", room.image)
        ids = np.array(CITYSCAPES_IDS, np.uint8)[room.semseg % len(CITYSCAPES_IDS)]
        save(root / f"gtFine/{stem}_gtFine_labelIds.png", ids)
        save(root / f"disparity/{stem}_disparity.png", (1 + 256 * 50 / room.depth).astype(np.uint16))


MADE: dict[str, tuple[tuple[int, int], Callable[[Path, list[Rendering]], None]]] = {  # size of its pictures, maker
    "nyudv2": ((425, 560), make_nyudv2),
    "pascal-context": ((375, 500), make_pascal),
    "cityscapes": ((1024, 2048), make_cityscapes),
}


def rate(dataset: DenseDataset, workers: int, seconds: float) -> float:
    """Samples per second of a loader, without its start."""
    more: dict[str, Any] = {"prefetch_factor": 2} if workers else {}
    loader = DataLoader(
        dataset, batch_size=BATCH, sampler=EndlessSampler(len(dataset), seed=0), num_workers=workers, **more
    )
    batches = iter(loader)
    # What workers have prepared ahead of the clock is taken before it starts.
    list(islice(batches, 1 + 2 * workers))
    start, count = time.perf_counter(), 0
    while (spent := time.perf_counter() - start) < seconds or not count:
        next(batches)
        count += BATCH
    return count / spent


def synthetic(sizes: list[tuple[int, int]], workers: list[int], seconds: float) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for size in sizes:
        dataset = open_dataset("synthetic", split="train", size=size, augment=True)
        result[f"{size[0]}x{size[1]}"] = rates(dataset, workers, seconds)
    return result


def from_files(name: str, workers: list[int], seconds: float) -> dict[str, Any]:
    size, make = MADE[name]
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), [render_sample(0, index, size) for index in range(FILES)])
        dataset = open_dataset(name, Path(folder), "train", augment=True)
        return {f"{dataset.size[0]}x{dataset.size[1]}": rates(dataset, workers, seconds)}


def rates(dataset: DenseDataset, workers: list[int], seconds: float) -> dict[str, float]:
    return {str(count): round(rate(dataset, count, seconds), 2) for count in workers}


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def sizes_of(text: str) -> list[tuple[int, int]]:
    return [(int(height), int(width)) for height, width in (part.split("x") for part in text.split(","))]


def main() -> None:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(["synthetic", *MADE]))
    parser.add_argument("--sizes", type=sizes_of, default=sizes_of("96x128,192x256,448x576"), help="of synthetic")
    parser.add_argument("--workers", type=numbers, default=sorted({0, 1, 2, cores}))
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)  # here, for the workers too: called in a forked worker it waits for threads that are not there
    record: dict[str, Any] = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": platform.processor() or platform.machine(),
        "cores": cores,
        "load_before": os.getloadavg(),
        "batch": BATCH,
        "seconds": options.seconds,
        "samples_per_second": {},
    }
    for name in options.only.split(","):
        measured = (
            synthetic(options.sizes, options.workers, options.seconds)
            if name == "synthetic"
            else from_files(name, options.workers, options.seconds)
        )
        record["samples_per_second"][name] = measured
        for size, by_workers in measured.items():
            shown = ", ".join(f"{count} workers {value:.1f}/s" for count, value in by_workers.items())
            print(f"{name:<15} {size:>9}  {shown}", flush=True)
    record["load_after"] = os.getloadavg()
    if options.json:
        options.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
