#!/usr/bin/env bash
# Everything that only a GPU can show, in one call of at most nine minutes: build, tests, then figures.
#
#   scripts/gpu_check.sh OUTDIR
#
# Works offline, on the packages of the Python it finds (PYTHON, or python3): torch with CUDA, triton, numpy, pytest,
# pytest-benchmark, hypothesis, setuptools, cmake, ninja, and nvcc. What is missing beside them, tyro with
# docstring-parser and typeguard most likely, is taken from the wheels in the folder WHEELS.
#
# Nothing is timed unless every test passes; then come the benchmarks, a short training and, where it is installed,
# compute-sanitizer. Exit status: 0 all is well, 1 a test, a benchmark's own check, the training or the sanitizer
# failed, 2 the machine cannot run this.
#
# OUTDIR gets environment.json, tests.txt, benchmarks.json, table.txt, training.jsonl, sanitizer.txt and log.txt.
set -euo pipefail
shopt -s nullglob

if [[ $# -ne 1 ]]; then
  echo "usage: scripts/gpu_check.sh OUTDIR" >&2
  exit 2
fi
mkdir -p "$1"
out=$(cd "$1" && pwd)
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
last_second=$((SECONDS + 530))
: > "$out/log.txt"

say() { echo "gpu_check: $*" | tee -a "$out/log.txt"; }

cannot() {
  say "$*"
  exit 2
}

failed() {
  say "$*; no speed-up is shown"
  exit 1
}

# Seconds left, but at most $1.
seconds() {
  local left=$((last_second - SECONDS))
  echo $((left < $1 ? (left > 1 ? left : 1) : $1))
}

"$python" -c "import sys, torch; sys.exit(None if torch.cuda.is_available() else 'torch sees no CUDA device')" \
  2> "$work/error" || cannot "$(tail -n 1 "$work/error")"

export PYTHONPATH="$PWD:$work/site${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
if [[ -n ${WHEELS:-} ]]; then
  "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --target "$work/site" \
    "$WHEELS"/*.whl || cannot "WHEELS=$WHEELS: its wheels do not install"
fi
for module in triton pytest pytest_benchmark hypothesis cmake ninja setuptools tyro; do
  "$python" -c "import $module" 2> "$work/error" ||
    cannot "no $module: $(tail -n 1 "$work/error"); wheels are taken from the folder WHEELS"
done

"$python" - "$out/environment.json" << 'PYTHON'
import json, platform, subprocess, sys
import numpy, torch, triton
properties = torch.cuda.get_device_properties(0)
query = ["nvidia-smi", "--query-gpu=name,driver_version,clocks.max.sm,clocks.max.memory", "--format=csv,noheader"]
environment = {
    "device": properties.name, "capability": f"sm_{properties.major}{properties.minor}",
    "multiprocessors": properties.multi_processor_count, "memory_gb": round(properties.total_memory / 1e9, 1),
    "nvidia_smi": subprocess.run(query, capture_output=True, text=True).stdout.strip(),
    "python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda,
    "triton": triton.__version__, "numpy": numpy.__version__, "platform": platform.platform(),
    "commit": subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip() or None,
}
with open(sys.argv[1], "w") as file:
    json.dump(environment, file, indent=2)
print("gpu_check:", ", ".join(f"{key} {environment[key]}" for key in ("device", "torch", "triton", "python")))
PYTHON

# For this device alone: an install for others compiles all architectures.
capability=$("$python" -c "import torch; print('%d%d' % torch.cuda.get_device_capability())")
say "building for sm_$capability"
JEPA_FAST_CUDA=ON CMAKE_ARGS="-DCMAKE_CUDA_ARCHITECTURES=$capability ${CMAKE_ARGS:-}" \
  timeout "$(seconds 150)" "$python" setup.py --quiet build_ext --inplace >> "$out/log.txt" 2>&1 ||
  failed "the extension does not build, see log.txt"
say "built after $SECONDS s"

say "tests"
mapfile -t files < <(grep -rlE 'mark\.gpu|"cuda"' --include='test_*.py' tests | sort)
# Most of the time goes into compiling kernels, on the processor. Warnings of other versions of torch fail nothing here.
parallel=()
if "$python" -c "import xdist" 2> /dev/null; then parallel=(-n 4); fi
timeout "$(seconds 240)" "$python" -m pytest -q -m gpu -W default -p no:cacheprovider --durations=10 "${parallel[@]}" \
  "${files[@]}" > "$out/tests.txt" 2>&1 ||
  { tail -n 40 "$out/tests.txt"; failed "a test is red or out of time, see tests.txt"; }
tail -n 1 "$out/tests.txt"
tail -n 1 "$out/tests.txt" | grep -q passed || failed "no test ran"
say "tests green after $SECONDS s"

red=()
# What ran out of time is told and left out; anything else is red.
judge() {
  if (($2 == 124)); then
    say "$1: out of time, left out"
  else
    say "$1: exit status $2" && red+=("$1")
  fi
}

# One file at a time, our own first: what runs out of time takes no other's figures along.
for bench in bench/bench_{rollout,convnext_block,dwconv_norm,vicreg,window,hidden,step,loop}.py; do
  [[ -f $bench ]] || continue
  name=$(basename "$bench" .py)
  say "$name, at $SECONDS s"
  timeout "$(seconds 120)" "$python" -m pytest -q -W default -p no:cacheprovider --benchmark-max-time=0.2 --benchmark-warmup=on \
    --benchmark-warmup-iterations=10 --benchmark-json="$work/$name.json" "$bench" >> "$out/log.txt" 2>&1 ||
    judge "$name" $?
done

"$python" - "$out/benchmarks.json" "$work"/bench_*.json << 'PYTHON'
import json, pathlib, sys
records = [json.loads(text) for path in sys.argv[2:] if (text := pathlib.Path(path).read_text().strip())]
for record in records:
    for benchmark in record["benchmarks"]:
        # Every single time of thousands of rounds is more than anyone reads.
        benchmark["stats"].pop("data", None)
if records:
    merged = records[0] | {"benchmarks": [benchmark for record in records for benchmark in record["benchmarks"]]}
    pathlib.Path(sys.argv[1]).write_text(json.dumps(merged, indent=1))
PYTHON

say "training, at $SECONDS s"
train() {
  timeout "$(seconds 60)" "$python" -m jepa_fast.generate --out "$work/data" --trajectories 2048 &&
    timeout "$(seconds 60)" "$python" -m jepa_fast.train --data "$work/data" --out "$work/run" --steps 200 \
      --amp bf16 --device cuda --kernels triton
}
if train >> "$out/log.txt" 2>&1; then
  cp "$work/run/metrics.jsonl" "$out/training.jsonl"
  tail -n 1 "$out/training.jsonl"
else
  judge training $?
fi

if command -v compute-sanitizer > /dev/null; then
  for tool in memcheck racecheck initcheck; do
    say "$tool, at $SECONDS s"
    # Without torch's own pool every tensor is an allocation of its own, whose ends the tools then see.
    if PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout "$(seconds 60)" compute-sanitizer --tool "$tool" --error-exitcode 9 \
      --print-limit 20 "$python" -m pytest -q -m gpu -p no:cacheprovider -k small_shapes tests/kernels \
      >> "$out/sanitizer.txt" 2>&1; then
      say "$tool: clean"
    else
      judge "$tool" $?
    fi
  done
fi

if ((${#red[@]})); then
  failed "red: ${red[*]}"
fi
"$python" -m scripts.bench_table "$out/benchmarks.json" | tee "$out/table.txt"
say "done after $SECONDS s"
