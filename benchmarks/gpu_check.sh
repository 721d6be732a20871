#!/usr/bin/env bash
# Everything that only a GPU can prove, in one call: builds the plugins for the GPU here, runs the kernels under compute-sanitizer,
# `pytest -m gpu`, and the benchmarks. Works offline and without installing anything: the package is used from this checkout.
#
#   benchmarks/gpu_check.sh --headers FOLDER [--tensorrt FOLDER] [--mamba FOLDER] [--out FOLDER] [--steps build,cpp,...]
#   benchmarks/gpu_check.sh --list
#
# All options, what is written and the exit status: benchmarks/gpu_check.sh --help, and gpu_check.py beside this.
# PYTHON names another interpreter than python3, of 3.11 or newer; README.md beside this lists the packages it has.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# The installed layout, where export/ is mtmamba.export and so on, made of links.
package="$root/build/gpu-check/package"
mkdir -p "$package/mtmamba"
for path in "$root"/mtmamba/*; do
  case ${path##*/} in
  __pycache__ | export | calib | runtime | plugins) ;;
  *) ln -sfn "$path" "$package/mtmamba/${path##*/}" ;;
  esac
done
for folder in export calib runtime plugins; do
  ln -sfn "$root/$folder" "$package/mtmamba/$folder"
done
# What importlib.metadata answers for an installed package.
version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$root/pyproject.toml")
mkdir -p "$package/mtmamba-$version.dist-info"
printf 'Metadata-Version: 2.1\nName: mtmamba\nVersion: %s\n' "$version" >"$package/mtmamba-$version.dist-info/METADATA"
# The folder that Python is started in is kept off its path (Python 3.11): mtmamba/ here lacks what lies beside it.
export PYTHONSAFEPATH=1 PYTHONPATH="$package:$root/benchmarks${PYTHONPATH:+:$PYTHONPATH}"
cd "$root"
exec "${PYTHON:-python3}" "$root/benchmarks/gpu_check.py" "$@"
