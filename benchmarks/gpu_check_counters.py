"""The scan kernels of NYUDv2's stages (Swin-L, float16, batch 1) under Nsight Compute: one call of each size.

    python benchmarks/gpu_check_counters.py [--sizes nyudv2] [--json OUT.json]

Writes [{size, kernel, metrics}]; `metrics` are Nsight Compute's own names and units. Clocks are left alone.
"""

import argparse
import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

METRICS = (
    "gpu__time_duration.sum",
    "sm__cycles_elapsed.max",
    "sm__inst_executed.sum",
    "sm__inst_issued.avg.pct_of_peak_sustained_active",
    "sm__warps_active.avg.pct_of_peak_sustained_active",
    "sm__inst_executed_pipe_xu.avg.pct_of_peak_sustained_active",
    "sm__inst_executed_pipe_fma.avg.pct_of_peak_sustained_active",
    "sm__inst_executed_pipe_alu.avg.pct_of_peak_sustained_active",
    "sm__pipe_tensor_op_hmma_cycles_active.avg.pct_of_peak_sustained_active",
    "sm__inst_executed_pipe_lsu.avg.pct_of_peak_sustained_active",
    "l1tex__data_pipe_lsu_wavefronts_mem_shared.sum.pct_of_peak_sustained_elapsed",
    "l1tex__data_bank_conflicts_pipe_lsu_mem_shared.sum",
    "l1tex__throughput.avg.pct_of_peak_sustained_elapsed",
    "lts__t_bytes.sum",
    "lts__throughput.avg.pct_of_peak_sustained_elapsed",
    "dram__bytes.sum",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    *(
        f"smsp__average_warps_issue_stalled_{reason}_per_issue_active.ratio"
        for reason in (
            "barrier",
            "dispatch_stall",
            "long_scoreboard",
            "math_pipe_throttle",
            "mio_throttle",
            "no_instruction",
            "not_selected",
            "selected",
            "short_scoreboard",
            "wait",
            "lg_throttle",
        )
    ),
)
CHILD = "--one-call"


def one_call(prefix: str) -> None:
    import scan_gpu
    import torch

    from mtmamba.runtime.harness import Harness

    with Harness() as harness:
        for size in scan_gpu.sizes((1,)):
            if size.name.startswith(prefix):
                tensors = scan_gpu.make_tensors(size, torch.float16, "cuda")
                scan_gpu.with_plugin(harness, tensors)()
                torch.cuda.synchronize()
                print(f"SIZE {size.name}", flush=True)


def names_of(prefix: str) -> list[str]:
    import scan_gpu

    return [size.name for size in scan_gpu.sizes((1,)) if size.name.startswith(prefix)]


def rows(text: str, names: list[str]) -> list[dict[str, Any]]:
    """Of ncu's CSV, one launch of the scan kernel a size, in order."""
    table = text[text.index('"ID"') :]
    launches: dict[str, dict[str, Any]] = {}
    for line in csv.DictReader(io.StringIO(table)):
        launch = launches.setdefault(line["ID"], {"kernel": line["Kernel Name"], "metrics": {}})
        launch["metrics"][f"{line['Metric Name']} [{line['Metric Unit']}]"] = float(
            line["Metric Value"].replace(",", "")
        )
    return [{"size": name, **launch} for name, launch in zip(names, launches.values(), strict=True)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="nyudv2", help="a prefix of scan.py's names")
    parser.add_argument("--json", type=Path)
    parser.add_argument(CHILD, action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one_call:
        one_call(arguments.sizes)
        return 0
    command = ["ncu", "--clock-control", "none", "--csv", "--print-units", "base", "--metrics", ",".join(METRICS)]
    command += ["--kernel-name", "regex:mapScanKernel", sys.executable, __file__, CHILD]
    done = subprocess.run([*command, "--sizes", arguments.sizes], capture_output=True, text=True, check=False)
    if done.returncode != 0 or '"ID"' not in done.stdout:
        print(done.stdout[-2000:], done.stderr[-2000:], sep="\n", file=sys.stderr)
        return 1
    found = rows(done.stdout, names_of(arguments.sizes))
    for row in found:
        print(json.dumps(row, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
