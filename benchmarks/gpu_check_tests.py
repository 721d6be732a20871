"""`pytest -m gpu` where packages of other tests are missing: files that cannot be imported for that are left out, and named.

python benchmarks/gpu_check_tests.py [pytest's arguments]

A part of this project that is not found is no such package: its tests fail. gpu_check.sh puts all of them on the path.
"""

import re
import subprocess
import sys

OWN = "mtmamba"
COMMAND = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]


def without_packages(arguments: list[str]) -> dict[str, str]:
    """Test file -> the package it lacks."""
    done = subprocess.run([*COMMAND, "--collect-only", *arguments], capture_output=True, text=True, check=False)
    _, *parts = re.split(r"^_+ ERROR collecting (\S+) _+$", done.stdout, flags=re.MULTILINE)
    errors = zip(parts[::2], parts[1::2], strict=True)
    missing = {
        path: re.search(r"^E +ModuleNotFoundError: No module named '([^']+)'", said, re.MULTILINE)
        for path, said in errors
    }
    return {path: match[1] for path, match in missing.items() if match and match[1].split(".")[0] != OWN}


def main() -> int:
    arguments = sys.argv[1:]
    left_out = without_packages(arguments)
    for path, package in left_out.items():
        print(f"left out: {path} needs {package}", flush=True)
    ignored = [f"--ignore={path}" for path in left_out]
    return subprocess.run([*COMMAND, *ignored, *arguments], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
