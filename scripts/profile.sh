#!/usr/bin/env bash
# Where a training step's time goes, as text: scripts/profile.sh [flags of jepa_fast.train]
#
# With nsys: records five steps with their ranges, and prints tables of ranges, kernels, copies and calls.
# Without: says so, and takes torch's own profiler, which writes a Chrome trace, the spans and the ten dearest operators.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-.venv/bin/python}
run=${OUT:-runs/profile-$(date +%Y%m%d-%H%M%S)}
first=20
last=25
train=("$python" -m jepa_fast.train --out "$run" --steps $((last + 1)) --profile-window "$first" "$last" "$@")

if ! command -v nsys >/dev/null; then
    echo "profile: nsys is not installed (it comes with the CUDA toolkit and with Nsight Systems): torch's profiler instead"
    "${train[@]}" --profile torch
    cat "$run/profile/spans.txt" "$run/profile/operators.txt"
    exit
fi

mkdir -p "$run-nsys"
nsys profile --capture-range=cudaProfilerApi --capture-range-end=stop --trace=cuda,nvtx,osrt \
    --output "$run-nsys/report" "${train[@]}" --profile nsys
nsys stats --report nvtx_sum,nvtx_gpu_proj_sum,cuda_gpu_kern_sum,cuda_gpu_mem_time_sum,cuda_api_sum \
    --format column "$run-nsys/report.nsys-rep" | tee "$run-nsys/tables.txt"
echo "profile: tables in $run-nsys/tables.txt, timeline in $run-nsys/report.nsys-rep"
