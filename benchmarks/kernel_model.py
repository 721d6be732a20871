"""Predicts what SelectiveScan2D costs on a GPU from sizes and from instruction counts: the tables of docs/kernels.md.

    python benchmarks/kernel_model.py [--json]
    python benchmarks/kernel_model.py --sass build/plugins/.../selective_scan_2d/launch.cu.o [--cuobjdump PATH]

The counts are those of the compiled kernel (fp16, sm_90); --sass reads them again from an object file. Nothing here is a
measurement of time.
"""

import argparse
import json
import re
import subprocess
from dataclasses import asdict, dataclass

# H200: multiprocessors, schedulers and special-function results a clock in each, clock, memory.
SMS, SCHEDULERS, EXPS_A_CLOCK, CLOCK_HZ, MEMORY_BYTES_A_S = 132, 4, 16, 1.98e9, 4.8e12
THREADS, TOKENS, STATES, DIRECTIONS, FEATURE_PITCH = 128, 16, 16, 4, 256  # as in plugins/kernels
ENOUGH_BLOCKS = 384
MUFU_A_TOKEN = 2  # of softplus; then one a state and token, and one a state and segment


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Instructions a thread issues: for a state of a segment, folding on one earlier warp's segments, a row of the low
    rank, a vector staged, a pixel's address; and once a tile at most (what mostly does not run, included: remainders of
    the staging loops, loading the weights)."""

    state: int
    fold: int
    row: float
    vector: float
    pixel: int
    tile: int


# By channels of a block. selectiveScan2DKernel<__half, ...>, nvcc 13.0, sm_90.
COUNTS = {
    32: Counts(state=116, fold=7, row=22.25, vector=14.5, pixel=42, tile=962),
    16: Counts(state=119, fold=9, row=22.25, vector=14.5, pixel=42, tile=965),
    8: Counts(state=124, fold=13, row=22.25, vector=14.5, pixel=42, tile=967),
}


@dataclass(frozen=True, kw_only=True)
class Size:
    """groups G (images of the launch), channels D, height, width, rank R."""

    name: str
    groups: int
    channels: int
    height: int
    width: int
    rank: int


def stages(name: str, tasks: int, height: int, width: int) -> list[Size]:
    """The task-stacked and the shared call of each decoder stage with Swin-L; height, width of the image."""
    return [
        Size(
            name=f"{name} {stage}, G={groups}",
            groups=groups,
            channels=channels,
            rank=rank,
            height=height // step,
            width=width // step,
        )
        for stage, (channels, rank, step) in enumerate(((1536, 48, 16), (768, 24, 8), (384, 12, 4)), start=1)
        for groups in (tasks, 1)
    ]


SIZES = [*stages("NYUDv2", 4, 448, 576), *stages("PASCAL-Context", 5, 512, 512), *stages("Cityscapes", 2, 512, 1024)]


def plan(size: Size) -> tuple[int, int]:
    """(channels of a block, parts): mapPlan of plugins/kernels/selective_scan_2d.cuh."""
    for channels, parts in ((32, 1), (16, 1), (8, 1), (8, 2)):
        if size.groups * -(-size.channels // channels) * parts >= ENOUGH_BLOCKS:
            return channels, parts
    return 8, 4


def predict(size: Size, element: int = 2) -> dict[str, float | str]:
    """Times in ms, bytes in MB; `element`: bytes of a tensor's element."""
    channels, parts = plan(size)
    counts, length = COUNTS[channels], size.height * size.width
    tile, features = THREADS // channels * TOKENS, size.rank + 2 * STATES
    blocks = size.groups * -(-size.channels // channels) * parts
    tiles = -(-length // tile) * DIRECTIONS // parts  # of a block
    vectors = features * tile * element / 16 / THREADS
    folds = (THREADS // 32 - 1) / 2
    once = counts.row * size.rank + counts.vector * vectors + counts.pixel * -(-tile // THREADS) + counts.tile
    slots = (counts.state + folds * counts.fold) * STATES + once
    special = (TOKENS + 1) * STATES + MUFU_A_TOKEN * TOKENS
    rounds = -(-blocks // SMS)  # blocks that the busiest multiprocessor runs, each with one warp a scheduler
    issue_ms = rounds * tiles * slots / CLOCK_HZ * 1e3
    special_ms = rounds * tiles * special * (32 * SCHEDULERS / EXPS_A_CLOCK) / CLOCK_HZ * 1e3
    updates = size.groups * size.channels * length * DIRECTIONS * STATES
    floor_ms = updates / (SMS * EXPS_A_CLOCK * CLOCK_HZ) * 1e3
    outputs = size.groups * size.channels * length
    pitch = -(-length // FEATURE_PITCH) * FEATURE_PITCH
    order = 2 * outputs * element + size.groups * DIRECTIONS * features * (length + pitch) * element
    sums = outputs * 4 * ((DIRECTIONS - parts) * 2 + parts) - (outputs * (4 - element) if parts == 1 else 0)
    merge = 0 if parts == 1 else outputs * (4 * parts + element)
    staged = blocks // parts * DIRECTIONS * features * pitch * element
    around_ms = (order + merge) / MEMORY_BYTES_A_S * 1e3
    scan_ms = max(issue_ms, special_ms, (sums + outputs * element) / MEMORY_BYTES_A_S * 1e3)
    return {
        "size": size.name,
        "plan": f"{channels} x {parts}",
        "blocks": blocks,
        "exps_G": updates / 1e9,
        "floor_ms": floor_ms,
        "slots_an_update": slots / (TOKENS * STATES),
        "special_ms": special_ms,
        "issue_ms": issue_ms,
        "order_MB": order / 1e6,
        "sums_MB": sums / 1e6,
        "merge_MB": merge / 1e6,
        "staged_MB": staged / 1e6,
        "around_ms": around_ms,
        "total_ms": scan_ms + around_ms,
        "of_floor": (scan_ms + around_ms) / floor_ms,
    }


def loops(function: str) -> tuple[list[tuple[int, int, list[str]]], list[int]]:
    """(first, last address, instructions) of every loop of a disassembled function, and all its addresses."""
    code = [(int(m[1], 16), m[2]) for m in re.finditer(r"/\*([0-9a-f]{4,5})\*/\s+(.*?);", function)]
    found = []
    for address, text in code:
        target = re.search(r"BRA(?:\.\w+)* .*?(0x[0-9a-f]+)", text)
        if target and int(target[1], 16) < address:
            first = int(target[1], 16)
            found.append((first, address, [t for a, t in code if first <= a <= address]))
    return found, [address for address, _ in code]


def read_counts(function: str) -> Counts:
    """What COUNTS holds, from the loops: the states' is the shortest with a barrier, the tile's the longest but one."""
    found, addresses = loops(function)
    by_length = sorted(found, key=lambda loop: len(loop[2]))

    def has(loop: tuple[int, int, list[str]], *names: str) -> bool:
        return all(any(name in text for text in loop[2]) for name in names)

    def around(loop: tuple[int, int, list[str]]) -> tuple[int, int, list[str]]:
        return min((x for x in found if x[0] < loop[0] and loop[1] < x[1]), key=lambda x: x[1] - x[0])

    def between(first: int, last: int) -> int:
        return sum(first < address <= last for address in addresses)

    state = next(loop for loop in by_length if has(loop, "BAR.SYNC", "MUFU.EX2"))  # two states
    fold = next(loop for loop in by_length if state[0] <= loop[0] and loop[1] < state[1])
    row = next(
        loop for loop in by_length if sum("FFMA" in text for text in loop[2]) == 4 * TOKENS and not has(loop, "BAR")
    )
    pixel = next(loop for loop in by_length if has(loop, "MUFU.RCP") and not has(loop, "BAR"))
    tile = by_length[-2]
    stage = [
        x for x in by_length if has(x, "LDG.E.128", "STS.128") and not has(x, "BAR") and tile[0] <= x[0] <= tile[1]
    ]
    leaves = [
        x for x in found if tile[0] <= x[0] < x[1] <= tile[1] and not any(x[0] <= y[0] and y[1] < x[1] for y in found)
    ]
    chunk = around(state)
    inner = sum(len(x[2]) for x in leaves if not chunk[0] <= x[0] or x[1] < state[0])
    stores = between(chunk[1], tile[1])  # as y's type and as float32, whole and not: less than a third runs
    idle = between(state[1], chunk[1]) + between(row[1], around(row)[1]) + stores - stores // 3
    return Counts(
        state=len(state[2]) // 2 - len(fold[2]),
        fold=len(fold[2]),
        row=len(row[2]) / 4,
        vector=len(stage[0][2]) / 4,
        pixel=len(pixel[2]),
        tile=len(tile[2]) - len(state[2]) - inner - idle,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--sass", metavar="OBJECT", help="read the instruction counts of this object file")
    parser.add_argument("--cuobjdump", default="cuobjdump")
    args = parser.parse_args()
    if args.sass:
        command = [args.cuobjdump, "-sass", "-arch", "sm_90", args.sass]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        for function in text.split("Function : ")[1:]:
            name = re.match(r"\w*selectiveScan2DKernelI6__halfLi(\d+)E", function)
            if name:
                print(f"{name[1]:>3} channels: {asdict(read_counts(function))}")
        return
    rows = [predict(size) for size in SIZES]
    if args.json:
        print(json.dumps(rows, indent=1))
        return
    print("| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
    for row in rows:
        cells = [
            f"{x:.3g}" if isinstance(x, float) and x < 1000 else f"{x:.0f}" if isinstance(x, float) else str(x)
            for x in row.values()
        ]
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
