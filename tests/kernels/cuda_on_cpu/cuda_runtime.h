// Enough of CUDA to run a kernel's source on a CPU: one block after the other, each thread a fiber that runs until it has
// to wait for the others of its block or warp.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#define __global__ static
#define __device__
#define __shared__ static
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct float2 {
  float x, y;
};
using cudaStream_t = void*;
using cudaError_t = int;
constexpr int cudaSuccess = 0;
constexpr int cudaErrorInvalidValue = 1;

inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float __uint_as_float(uint32_t bits) { return std::bit_cast<float>(bits); }
inline uint32_t __float_as_uint(float value) { return std::bit_cast<uint32_t>(value); }
using std::min;

inline dim3 threadIdx(0), blockIdx(0), blockDim(0), gridDim(0);

namespace emulation {

struct Barrier {
  int arrived = 0;
  int generation = 0;
};

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  dim3 index{0};
  int number = 0;
  bool done = false;
};

inline std::vector<Fiber> fibers;
inline Fiber* current = nullptr;
inline ucontext_t scheduler;
inline std::function<void()> body;
inline Barrier block_barrier;
inline std::vector<Barrier> warp_barriers;
inline uint32_t lane_values[32][32][16];  // [warp][lane][word]: what lanes show each other

inline void yield() { swapcontext(&current->context, &scheduler); }

inline int alive(int first, int last) {
  return static_cast<int>(
      std::count_if(fibers.begin() + first, fibers.begin() + last, [](const Fiber& fiber) { return !fiber.done; }));
}

inline void wait(Barrier& barrier, int first, int last) {
  const int generation = barrier.generation;
  ++barrier.arrived;
  while (barrier.generation == generation) {
    // Threads that have returned are not waited for.
    if (barrier.arrived >= alive(first, last)) {
      barrier.arrived = 0;
      ++barrier.generation;
    } else {
      yield();
    }
  }
}

inline int warp() { return current->number / 32; }
inline int lane() { return current->number % 32; }

inline void sync_warp() {
  const int first = warp() * 32;
  wait(warp_barriers[static_cast<size_t>(warp())], first, std::min(first + 32, static_cast<int>(fibers.size())));
}

inline void run_fiber() {
  body();
  current->done = true;
  swapcontext(&current->context, &scheduler);
}

inline void run_block(dim3 block) {
  constexpr size_t stack_bytes = 64 * 1024;
  const size_t count = size_t{block.x} * block.y * block.z;
  fibers.resize(count);
  block_barrier = {};
  warp_barriers.assign((count + 31) / 32, {});
  for (size_t i = 0; i < count; ++i) {
    Fiber& fiber = fibers[i];
    if (!fiber.stack) fiber.stack.reset(new char[stack_bytes]);
    fiber.number = static_cast<int>(i);
    fiber.index = dim3(i % block.x, i / block.x % block.y, i / (block.x * block.y));
    fiber.done = false;
    getcontext(&fiber.context);
    fiber.context.uc_stack = {fiber.stack.get(), 0, stack_bytes};
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, run_fiber, 0);
  }
  while (alive(0, static_cast<int>(count)) > 0) {
    for (Fiber& fiber : fibers) {
      if (fiber.done) continue;
      current = &fiber;
      threadIdx = fiber.index;
      swapcontext(&scheduler, &fiber.context);
    }
  }
}

inline void launch(dim3 grid, dim3 block, std::function<void()> kernel) {
  body = std::move(kernel);
  gridDim = grid;
  blockDim = block;
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        blockIdx = dim3(x, y, z);
        run_block(block);
      }
    }
  }
}

}  // namespace emulation

inline void __syncthreads() {
  emulation::wait(emulation::block_barrier, 0, static_cast<int>(emulation::fibers.size()));
}

inline double __shfl_down_sync(unsigned, double value, int distance) {
  auto& shown = emulation::lane_values[emulation::warp()];
  const int lane = emulation::lane();
  reinterpret_cast<double&>(shown[lane][0]) = value;
  emulation::sync_warp();
  const double other = reinterpret_cast<double&>(shown[std::min(lane + distance, 31)][0]);
  emulation::sync_warp();
  return lane + distance < 32 ? other : value;
}
