"""Compiles mamba_ssm's CUDA extension from its source package for this machine's GPU, and calls it once.

    python benchmarks/gpu_check_mamba.py FOLDER

FOLDER: the unpacked source package. Its own flags are used, but for the list of architectures. The extension goes to
build/gpu-check/mamba; with that and FOLDER on PYTHONPATH, `import mamba_ssm` finds both parts.
"""

import subprocess
import sys
from pathlib import Path

from gpu_check_steps import MAMBA

HALF = ("HALF_OPERATORS", "HALF_CONVERSIONS", "BFLOAT16_OPERATORS", "BFLOAT16_CONVERSIONS", "BFLOAT162_OPERATORS")
FLAGS = ["-O3", "-std=c++17", "--expt-relaxed-constexpr", "--expt-extended-lambda", "--use_fast_math"]
FLAGS += [f"-U__CUDA_NO_{name}__" for name in (*HALF, "BFLOAT162_CONVERSIONS")]
TRY = """
import torch
from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
u = torch.randn(1, 8, 64, device="cuda")
B = torch.randn(1, 1, 16, 64, device="cuda")
print(selective_scan_fn(u, u, -torch.ones(8, 16, device="cuda"), B, B, delta_softplus=True).sum().item())
"""


def main() -> int:
    from torch.utils.cpp_extension import load

    sources = Path(sys.argv[1]) / "csrc" / "selective_scan"
    MAMBA.mkdir(parents=True, exist_ok=True)
    load(
        name="selective_scan_cuda",
        sources=[str(path) for pattern in ("*.cpp", "*.cu") for path in sorted(sources.glob(pattern))],
        extra_cflags=["-O3", "-std=c++17"],
        extra_cuda_cflags=FLAGS,
        extra_include_paths=[str(sources)],
        build_directory=str(MAMBA),
    )
    return subprocess.run([sys.executable, "-c", TRY], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
