// Vectors of the width that a build's instruction set has, as GCC and Clang both know them.
//
// This folder is compiled once per instruction set (kernels.cpp). Everything is in an anonymous namespace and nothing of
// the standard library's templates is used: the linker keeps one copy of a shared inline function, and it might be the one
// with instructions that the processor lacks.
#pragma once

#include <cstdint>
#include <type_traits>

#define JEPA_FAST_INLINE inline __attribute__((always_inline))

// Trip counts are constants: results stay in registers only if such a loop is unrolled as a whole.
#ifdef __clang__
#define JEPA_FAST_UNROLL _Pragma("clang loop unroll(full)")
#else
#define JEPA_FAST_UNROLL _Pragma("GCC unroll 64")
#endif

namespace jepa_fast {
namespace {

#if defined(__AVX512F__)
constexpr int vector_bytes = 64;
constexpr int vector_registers = 32;
#elif defined(__AVX2__)
constexpr int vector_bytes = 32;
constexpr int vector_registers = 16;
#elif defined(__aarch64__)
constexpr int vector_bytes = 16;
constexpr int vector_registers = 32;
#else
constexpr int vector_bytes = 16;
constexpr int vector_registers = 16;
#endif

template <typename T, int Width>
struct Lanes {
  typedef T type __attribute__((vector_size(Width * sizeof(T))));
};

template <typename T>
JEPA_FAST_INLINE T least(T a, T b) {
  return a < b ? a : b;
}

template <typename T>
JEPA_FAST_INLINE T most(T a, T b) {
  return a < b ? b : a;
}

// Rows start anywhere: memory is only as aligned as its elements.
template <typename V, typename T>
JEPA_FAST_INLINE V load(const T* from) {
  V value;
  __builtin_memcpy(&value, from, sizeof(V));
  return value;
}

template <typename V, typename T>
JEPA_FAST_INLINE void store(T* to, V value) {
  __builtin_memcpy(to, &value, sizeof(V));
}

template <typename V, typename T>
JEPA_FAST_INLINE V spread(T value) {
  return V{} + value;
}

template <int... Index>
struct Order {};

// Lane i of the result is lane i ^ Step.
template <int Step, typename V, int... Index>
JEPA_FAST_INLINE V exchange(V value, Order<Index...>) {
#if defined(__clang__) || __GNUC__ >= 12
  return __builtin_shufflevector(value, value, (Index ^ Step)...);
#else
  using Integer = std::conditional_t<sizeof(value[0]) == 8, int64_t, int32_t>;
  typedef Integer Indices __attribute__((vector_size(sizeof(V))));
  return __builtin_shuffle(value, Indices{(Index ^ Step)...});
#endif
}

template <int Count, int... Index>
struct Counted : Counted<Count - 1, Count - 1, Index...> {};
template <int... Index>
struct Counted<0, Index...> {
  using type = Order<Index...>;
};

// The sum of all lanes, in every lane.
template <int Width, typename V>
JEPA_FAST_INLINE V sum_lanes(V value) {
  using All = typename Counted<Width>::type;
  if constexpr (Width >= 16) value += exchange<8>(value, All{});
  if constexpr (Width >= 8) value += exchange<4>(value, All{});
  if constexpr (Width >= 4) value += exchange<2>(value, All{});
  if constexpr (Width >= 2) value += exchange<1>(value, All{});
  return value;
}

}  // namespace
}  // namespace jepa_fast
