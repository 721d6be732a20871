"""Largest errors of the operators' implementations over the cases of tests/cases.py, as plugins/ops.yaml records them.

    python benchmarks/accuracy.py [--only vectorised,cpu-kernel,onnx-body,plugin] [--json OUT.json]

An error is the distance from the float64 loop as a fraction of max(1, |y|max); "normal" and "hostile" are the two kinds of
inputs that plugins/ops.yaml has tolerances for. `plugin` needs a GPU; what cannot run here says why. Exit status 1 if any
error is past its tolerance.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import numpy as np
import torch
from cases import CASES, DTYPES, MAP, SCAN, TYPES, Case, type_of

from mtmamba.errors import MtmError
from mtmamba.native import CPU_SWITCH
from mtmamba.ops import selective_scan, selective_scan_2d

Run = Callable[[Case, str], Any]


def with_torch(switch: str) -> Run:
    def run(case: Case, kind: str) -> Any:
        os.environ[CPU_SWITCH] = switch
        tensors = [
            torch.from_numpy(value).to(getattr(torch, type_of(case.op, name, kind)))
            for name, value in case.arrays(kind).items()
        ]
        y = selective_scan_2d(*tensors) if case.op == MAP else selective_scan(*tensors, case.softplus)
        return y.double().numpy()

    return run


def with_onnx(case: Case, kind: str) -> Any:
    from onnx_node import session_of

    feeds = {name: value.astype(DTYPES[type_of(case.op, name, kind)]) for name, value in case.arrays(kind).items()}
    return session_of(case.op, feeds, **case.attributes).run(None, feeds)[0]


def plugin() -> Run:
    from mtmamba.runtime.gpu import find_gpus
    from mtmamba.runtime.harness import Harness

    if not find_gpus():
        raise MtmError("no NVIDIA GPU")
    harness = Harness()

    def run(case: Case, kind: str) -> Any:
        feeds = {name: value.astype(DTYPES[type_of(case.op, name, kind)]) for name, value in case.arrays(kind).items()}
        created = harness.plugin(case.op, {n: value.shape for n, value in feeds.items()}, kind, **case.attributes)
        y = created.run(feeds)
        created.close()
        return y

    return run


IMPLEMENTATIONS: dict[str, tuple[Callable[[], Run], tuple[str, ...]]] = {
    "vectorised": (lambda: with_torch("0"), ("float64", *TYPES)),
    "cpu-kernel": (lambda: with_torch("1"), TYPES),
    "onnx-body": (lambda: with_onnx, ("float32", "float16")),
    "plugin": (plugin, TYPES),
}


def largest_errors(run: Run, op: str, kind: str) -> dict[str, dict[str, Any]]:
    """ "normal" and "hostile" -> error, the case that has it, the tolerance."""
    worst: dict[str, dict[str, Any]] = {}
    for case in CASES:
        if case.op != op:
            continue
        try:
            error = case.error(run(case, kind), kind)
        except AssertionError:  # the wrong shape, or not finite where it should be
            error = float(np.inf)
        inputs = "hostile" if case.fill else "normal"
        if error >= worst.get(inputs, {"error": -1.0})["error"]:
            worst[inputs] = {"error": error, "case": str(case), "tolerance": case.tolerance(kind)}
    return worst


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(IMPLEMENTATIONS), help="comma-separated implementations")
    parser.add_argument("--json", type=Path, help="write the results there too")
    arguments = parser.parse_args()
    rows, failed = [], False
    for name in arguments.only.split(","):
        if name not in IMPLEMENTATIONS:
            parser.error(f"no implementation {name!r}; known: {', '.join(IMPLEMENTATIONS)}")
        make, kinds = IMPLEMENTATIONS[name]
        try:
            run = make()
        except (MtmError, ImportError) as error:
            print(f"{name}: not run: {error}")
            rows.append({"implementation": name, "not_run": str(error)})
            continue
        for op in (SCAN, MAP):
            for kind in kinds:
                found = largest_errors(run, op, kind)
                rows.append({"implementation": name, "op": op, "type": kind, **found})
                failed |= any(one["error"] > one["tolerance"] for one in found.values())
                text = ", ".join(f"{which} {one['error']:.1e} ({one['case']})" for which, one in found.items())
                print(f"{name:12}{op:17}{kind:10}{text}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps({"results": rows}, indent=1) + "\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
