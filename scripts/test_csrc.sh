#!/usr/bin/env bash
# Build and run the torch-free tests of the compiled CPU ops (tests/csrc).
#
#   scripts/test_csrc.sh sanitize   every instruction set that runs here, with AddressSanitizer and UndefinedBehaviorSanitizer
#   scripts/test_csrc.sh arm64      for arm64, by aarch64-linux-gnu-g++ (package g++-aarch64-linux-gnu) and qemu-aarch64
#                                   (package qemu-user)
set -euo pipefail
cd "$(dirname "$0")/.."
kind=${1:?sanitize or arm64}
out=build/csrc/$kind
mkdir -p "$out"
flags=(-std=c++20 -Wall -Wextra -fno-math-errno -fno-trapping-math -Icsrc)
# instruction set, then how to compile for it
case $kind in
  sanitize)
    compiler=${CXX:-g++}
    flags+=(-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined)
    builds=("avx512 -march=x86-64-v4 -mprefer-vector-width=512" "avx2 -march=x86-64-v3" "baseline -march=x86-64")
    [[ $(uname -m) == aarch64 ]] && builds=("neon")
    run=()
    ;;
  arm64)
    compiler=aarch64-linux-gnu-g++
    flags+=(-O2)
    builds=("neon")
    run=(qemu-aarch64 -L /usr/aarch64-linux-gnu)
    for tool in "$compiler" qemu-aarch64; do
      command -v "$tool" > /dev/null || { echo "test_csrc: $tool is missing (packages g++-aarch64-linux-gnu, qemu-user)"; exit 1; }
    done
    ;;
  *)
    echo "test_csrc: got $kind, expected sanitize or arm64"
    exit 1
    ;;
esac
objects=()
for build in "${builds[@]}"; do
  read -r name options <<< "$build"
  # shellcheck disable=SC2086
  "$compiler" "${flags[@]}" $options -DJEPA_FAST_ISA="$name" -c csrc/cpu/convnext/kernels.cpp -o "$out/$name.o"
  objects+=("$out/$name.o")
done
for test in convnext_test rollout_test ops_test; do
  "$compiler" "${flags[@]}" csrc/cpu/convnext/{dispatch,paste,plan}.cpp csrc/cpu/{gated,scene}.cpp "tests/csrc/$test.cpp" "${objects[@]}" -o "$out/$test"
  for build in "${builds[@]}"; do
    JEPA_FAST_CPU_ISA=${build%% *} "${run[@]}" "$out/$test"
  done
done
