"""Everything that only a GPU can prove, step by step; started by gpu_check.sh, which says how.

Writes two files into --out ($OUT, else build/gpu-check/out): gpu_check.log, what every step said, and gpu_check.json:

    date, commit                        when, and of what ("-dirty": with local changes); $MTMAMBA_COMMIT if set, for a copy
    gpu, driver, cuda, versions         of the machine; gpu is null without one
    tensorrt                            flavour and version of what --tensorrt brought, or why there is none
    steps     [{name, status, seconds, command, why}]
              status: "ok", "failed", "timeout" or "not run"; why: of all but the first
    results   {step: what that step measured}: see accuracy.py, scan_gpu.py, gpu_check_counters.py, gpu_check_model.py and
              gpu_check_train.py

Exit status: 0 every step ran and passed; 1 a step failed or ran out of time; 2 a bad option; 3 nothing failed, but some steps
were not run.
"""

import argparse
import json
import os
import platform
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

from gpu_check_steps import MAMBA, RESULTS, ROOT, WORK, Machine, Step, make_steps

PACKAGES = (
    "torch",
    "triton",
    "timm",
    "onnx",
    "onnxruntime",
    "numpy",
    "cuda-bindings",
    "mamba-ssm",
    "tensorrt",
    "tensorrt-rtx-cu13",
)
HEADER = "NvInferRuntime.h"
LOG_TAIL = 400  # characters of a failed step's output that go into the JSON
LOG_LOCK = threading.Lock()
FOLDERS = re.compile(r"(?:(?<![\w.:/])|(?<=-[IL]))/(?:[\w.+@~-]+/)+")  # of absolute paths, but for URLs


@dataclass(kw_only=True)
class Outcome:
    name: str
    status: str
    seconds: float = 0.0
    command: str = ""
    why: str = ""


def main() -> int:
    arguments = parse()
    set_environment(arguments)
    machine = look(arguments)
    steps = make_steps(machine)
    known = [step.name for step in steps]
    chosen = arguments.steps.split(",") if arguments.steps else known
    if unknown := [name for name in chosen if name not in known]:
        print(f"unknown --steps {', '.join(unknown)}; known: {', '.join(known)}", file=sys.stderr)
        return 2
    steps = [step for step in steps if step.name in chosen]
    if arguments.list:
        for step in steps:
            why = step.missing()
            print(f"{step.name:20}{step.limit_s:5} s  {step.summary}" + (f"  [not run: {why}]" if why else ""))
        return 0
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    RESULTS.mkdir(parents=True, exist_ok=True)
    outcomes: list[Outcome] = []
    with (out / "gpu_check.log").open("w", encoding="utf-8") as log:
        for outcome in run_all(steps, log):
            outcomes.append(outcome)
            write(out / "gpu_check.json", machine, outcomes, steps)  # after every step: a killed run loses none
    return exit_status(outcomes)


def run_all(steps: list[Step], log: TextIO) -> Iterator[Outcome]:
    """In the order they end."""
    with ThreadPoolExecutor(len(steps)) as pool:
        for group in groups(steps):
            for done in as_completed([pool.submit(run, step, log) for step in group]):
                yield done.result()


def groups(steps: list[Step]) -> list[list[Step]]:
    """What runs side by side; one group after another."""
    found: list[list[Step]] = []
    for step in steps:
        if found and not step.alone and not found[-1][-1].alone:
            found[-1].append(step)
        else:
            found.append([step])
    return found


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="gpu_check.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    out = Path(os.environ["OUT"]) if os.environ.get("OUT") else WORK / "out"
    parser.add_argument(
        "--out", type=Path, default=out, help="where the two files go (default: $OUT, build/gpu-check/out)"
    )
    parser.add_argument(
        "--headers", type=Path, help=f"the folder of TensorRT's {HEADER} (default: searched as CMake does)"
    )
    parser.add_argument(
        "--tensorrt", type=Path, help="a folder with the unpacked Python packages of TensorRT or TensorRT for RTX"
    )
    parser.add_argument("--mamba", type=Path, help="the folder of mamba_ssm's unpacked source package, to compare with")
    parser.add_argument("--steps", help="comma-separated; default: all")
    parser.add_argument("--list", action="store_true", help="what would be run, and what not and why; runs nothing")
    arguments = parser.parse_args()
    for folder in (arguments.headers, arguments.tensorrt, arguments.mamba):
        if folder and not folder.is_dir():
            parser.error(f"{folder}: no such folder")
    if arguments.headers and not (arguments.headers / HEADER).is_file():
        parser.error(f"{arguments.headers}: expected {HEADER} in it, found none")
    return arguments


def set_environment(arguments: argparse.Namespace) -> None:
    """This process's, which every step inherits."""
    if arguments.headers:
        root = WORK / "tensorrt"
        root.mkdir(parents=True, exist_ok=True)
        link = root / "include"
        link.unlink(missing_ok=True)
        link.symlink_to(arguments.headers.resolve(), target_is_directory=True)
        os.environ["TENSORRT_ROOT"] = str(root)
    if arguments.tensorrt:
        folder = arguments.tensorrt.resolve()
        libraries = sorted({str(path.parent) for path in folder.rglob("lib*.so*")})
        prepend("PYTHONPATH", [str(folder)])
        prepend("LD_LIBRARY_PATH", libraries)
        sys.path.insert(0, str(folder))
    if arguments.mamba:
        prepend("PYTHONPATH", [str(arguments.mamba.resolve()), str(MAMBA)])  # its Python part; its extension
    os.environ |= {"MTMAMBA_CACHE": str(WORK / "cache"), "OMP_WAIT_POLICY": "PASSIVE", "PYTHONUNBUFFERED": "1"}


def prepend(name: str, folders: list[str]) -> None:
    os.environ[name] = os.pathsep.join([*folders, *filter(None, [os.environ.get(name)])])


def look(arguments: argparse.Namespace) -> Machine:
    from mtmamba.errors import MtmError
    from mtmamba.runtime import gpu
    from mtmamba.runtime.toolchain import headers_dir

    found = gpu.find_gpus()
    capability = "".join(map(str, found[0].compute_capability)) if found else ""
    if capability:
        os.environ["CUDAARCHS"] = capability  # what mtmamba.runtime builds, too, is for this GPU alone
    headers = headers_missing = ""
    try:
        headers = str(headers_dir())
    except MtmError as error:
        headers_missing = str(error)
    tensorrt, tensorrt_missing = ask_tensorrt()
    return Machine(
        gpu=found[0].name if found else None,
        capability=capability,
        driver=gpu.driver_release() or "",
        headers=headers,
        headers_missing=headers_missing,
        tensorrt=tensorrt,
        tensorrt_missing=tensorrt_missing,
        mamba=str(arguments.mamba.resolve()) if arguments.mamba else "",
        versions={"python": platform.python_version()} | {n: v for n in PACKAGES if (v := version(n))},
    )


def ask_tensorrt() -> tuple[str, str]:
    """(flavour and version, "") or ("", why there is none); in a process of its own, since loading may end it."""
    code = "from mtmamba.runtime.trt import resolve; t = resolve(None); print(t.flavour, t.version)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return done.stdout.strip(), ""
    said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
    return "", f"no TensorRT ({said[-1].split(': ', 1)[-1]})"


def version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def run(step: Step, log: TextIO) -> Outcome:
    command = " ".join(step.command)
    if why := step.missing():
        tell(log, f"\n===== {step.name}: {command}\nnot run: {why}\n")
        print(f"{step.name:20}not run: {why}", flush=True)
        return Outcome(name=step.name, status="not run", command=command, why=why)
    if step.result:
        step.result.unlink(missing_ok=True)
    own = Path(log.name).with_suffix(f".{step.name}")  # a killed run leaves it behind
    started = time.monotonic()
    with own.open("wb") as file:
        process = subprocess.Popen(
            step.command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status = "ok" if process.wait(timeout=step.limit_s) == 0 else "failed"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            status = "timeout"
    no_json = status == "ok" and step.result is not None and result_of(step) is None
    status = "failed" if no_json else status
    seconds = round(time.monotonic() - started, 1)
    output = own.read_text(encoding="utf-8", errors="replace")
    own.unlink()
    tell(log, f"\n===== {step.name}: {command}\n{output}")
    said = re.sub(r"\s+", " ", portable(output)[-LOG_TAIL:]).strip()
    failed = f"expected JSON in {step.result.name}: {said}" if no_json else f"exit status {process.returncode}: {said}"
    why = {"ok": "", "failed": failed}.get(status, f"took longer than {step.limit_s} s")
    print(f"{step.name:20}{status} in {seconds} s{'; ' + why if why else ''}", flush=True)
    return Outcome(name=step.name, status=status, seconds=seconds, command=command, why=why)


def tell(log: TextIO, text: str) -> None:
    """In one piece: others write there too."""
    with LOG_LOCK:
        log.write(text)
        log.flush()


def portable(text: str) -> str:
    """Without this machine's folders: the JSON is kept. Paths in the repository start there, others are names alone."""
    return FOLDERS.sub("", text.replace(sys.executable, "python3").replace(f"{ROOT}/", ""))


def result_of(step: Step) -> Any:
    """What it wrote; None where that is nothing, or no JSON."""
    try:
        return json.loads(step.result.read_text()) if step.result else None
    except (OSError, ValueError):
        return None


def write(path: Path, machine: Machine, outcomes: list[Outcome], steps: list[Step]) -> None:
    results = {step.name: result for step in steps if (result := result_of(step)) is not None}
    everything = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "gpu": machine.gpu,
        "driver": machine.driver,
        "cuda": cuda(),
        "tensorrt": machine.tensorrt or machine.tensorrt_missing,
        "versions": machine.versions,
        "steps": [asdict(outcome) for outcome in outcomes],
        "results": {o.name: results[o.name] for o in outcomes if o.status != "not run" and o.name in results},
    }
    temporary = path.with_suffix(".tmp")
    temporary.write_text(portable(json.dumps(everything, indent=1, ensure_ascii=False)) + "\n", encoding="utf-8")
    temporary.replace(path)


def said(*command: str) -> str:
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def commit() -> str:
    if given := os.environ.get("MTMAMBA_COMMIT"):
        return given
    head = said("git", "rev-parse", "HEAD")
    return head + ("-dirty" if head and said("git", "status", "--porcelain") else "")


def cuda() -> str:
    match = re.search(r"release ([\d.]+)", said("nvcc", "--version"))
    return match[1] if match else ""


def exit_status(outcomes: list[Outcome]) -> int:
    states = {outcome.status for outcome in outcomes}
    if states & {"failed", "timeout"}:
        return 1
    return 3 if "not run" in states else 0


if __name__ == "__main__":
    sys.exit(main())
