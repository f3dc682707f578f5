#!/usr/bin/env bash
# Everything that only a GPU can show: scripts/gpu_check.py says what and in which order.
#
#   scripts/gpu_check.sh [--quick] [--part 1|2] [--seconds N] [--rehearse] OUTDIR
#
# Works offline, on the packages of the Python it finds (PYTHON, or python3): torch with CUDA, triton, numpy, pytest,
# pytest-benchmark, pytest-timeout, hypothesis, setuptools, cmake, ninja, and nvcc. What is missing beside them, tyro with
# docstring-parser and typeguard most likely, is taken from the wheels in the folder WHEELS; what still is missing makes
# red what needs it, and nothing else.
set -euo pipefail
shopt -s nullglob

root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
export PYTHONPATH="$root:$site${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
if [[ -n ${WHEELS:-} ]]; then
  "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --target "$site" \
    "$WHEELS"/*.whl || echo "gpu_check: WHEELS=$WHEELS: its wheels do not install" >&2
fi
"$python" "$root/scripts/gpu_check.py" "$@"
