// GELU, x times the normal distribution, and its derivative.
//
// float: both minus a half are odd, and are x times a polynomial of x^2 on [-5.2, 5.2] and [-5.6, 5.6] (minimax, fitted in
// float64); beyond they are constant to within float's rounding. Errors: 5e-7 at most, 1e-7 for |x| < 2. No division, no
// exponential. double: the library's erf and exp.
#pragma once

#include <math.h>

#include "cpu/convnext/lanes.h"

#ifdef __AVX512F__
#include <immintrin.h>

#include "cpu/convnext/gelu_tables.h"
#endif

namespace jepa_fast {
namespace {

constexpr float distribution_limit = 5.2f;
constexpr float distribution[14] = {
    1.359499817e-01f,  -6.774361583e-02f, 5.002557739e-02f,  -3.993203298e-02f, 3.197457088e-02f,
    -2.469874923e-02f, 1.803479740e-02f,  -1.261845265e-02f, 8.375636583e-03f,  -4.547915379e-03f,
    1.992659776e-03f,  -1.460437805e-03f, 1.194132990e-03f,  -3.923312442e-04f};
constexpr float derivative_limit = 5.6f;
constexpr float derivative[16] = {
    1.264165830e-01f, -6.428290453e-02f, 5.181611018e-02f,  -5.094722783e-02f, 5.650107694e-02f, -6.518485726e-02f,
    7.320127872e-02f, -7.216554364e-02f, 6.003820400e-02f,  -5.588345650e-02f, 5.753096643e-02f, -3.216038082e-02f,
    1.844901966e-03f, -6.905367784e-03f, 1.623519580e-02f,  -6.768852912e-03f};

// Vectors that are computed side by side: one step of a polynomial waits for the last, and a processor looks only so far
// ahead for others.
constexpr int gelu_vectors = 4;

// x = 0.5 + x p(x^2), x brought to [-limit, limit]; the polynomial is in 2 x^2 / limit^2 - 1.
template <typename V, int Vectors, int Count>
JEPA_FAST_INLINE void odd_about_half(V (&x)[Vectors], float limit, const float (&coefficients)[Count]) {
  const V bound = spread<V>(limit);
  V place[Vectors], sum[Vectors];
  JEPA_FAST_UNROLL
  for (int v = 0; v < Vectors; ++v) {
    const V low = x[v] < -bound ? -bound : x[v];
    x[v] = low > bound ? bound : low;
    place[v] = x[v] * (x[v] * (2 / (limit * limit))) - 1.0f;
    sum[v] = spread<V>(coefficients[Count - 1]);
  }
  JEPA_FAST_UNROLL
  for (int i = Count - 2; i >= 0; --i) {
    JEPA_FAST_UNROLL
    for (int v = 0; v < Vectors; ++v) sum[v] = sum[v] * place[v] + coefficients[i];
  }
  JEPA_FAST_UNROLL
  for (int v = 0; v < Vectors; ++v) x[v] = x[v] * sum[v] + 0.5f;
}

template <typename V, int Vectors>
JEPA_FAST_INLINE void gelu(V (&x)[Vectors], float) {
  V value[Vectors];
  for (int v = 0; v < Vectors; ++v) value[v] = x[v];
  odd_about_half(value, distribution_limit, distribution);
  for (int v = 0; v < Vectors; ++v) x[v] *= value[v];
}

template <typename V, int Vectors>
JEPA_FAST_INLINE void gelu_derivative(V (&x)[Vectors], float) {
  odd_about_half(x, derivative_limit, derivative);
}

#ifdef __AVX512F__
// The polynomial of Degree about the nearest of 32 points from 0 to `limit`, of |x| brought to it. A permutation looks the
// coefficients up by the low five bits of its index, which rounding to an integer by a large addend leaves there.
template <int Degree>
JEPA_FAST_INLINE __m512 look_up(__m512 size, float limit, const float (&table)[Degree + 1][32]) {
  const __m512 large = _mm512_set1_ps(12582912.0f);  // 1.5 * 2^23
  const __m512 bound = _mm512_set1_ps(limit);
  const __m512 clamped = size < bound ? size : bound;
  const __m512 shifted = _mm512_fmadd_ps(clamped, _mm512_set1_ps(31 / limit), large);
  const __m512i index = _mm512_castps_si512(shifted);
  const __m512 place =
      _mm512_fnmadd_ps(_mm512_sub_ps(shifted, large), _mm512_set1_ps(limit / 31), clamped);
  __m512 sum = _mm512_permutex2var_ps(_mm512_load_ps(table[Degree]), index, _mm512_load_ps(table[Degree] + 16));
  JEPA_FAST_UNROLL
  for (int i = Degree - 1; i >= 0; --i) {
    const __m512 next = _mm512_permutex2var_ps(_mm512_load_ps(table[i]), index, _mm512_load_ps(table[i] + 16));
    sum = _mm512_fmadd_ps(sum, place, next);
  }
  return sum;
}

template <int Vectors>
JEPA_FAST_INLINE void gelu(__m512 (&x)[Vectors], float) {
  JEPA_FAST_UNROLL
  for (int v = 0; v < Vectors; ++v) {
    const __m512 size = _mm512_abs_ps(x[v]);
    x[v] = _mm512_fmadd_ps(
        size, look_up<3>(size, distribution_limit, distribution_table), _mm512_mul_ps(x[v], _mm512_set1_ps(0.5f)));
  }
}

template <int Vectors>
JEPA_FAST_INLINE void gelu_derivative(__m512 (&x)[Vectors], float) {
  JEPA_FAST_UNROLL
  for (int v = 0; v < Vectors; ++v) {
    const __m512 sign = _mm512_and_ps(x[v], _mm512_set1_ps(-0.0f));
    const __m512 half = look_up<4>(_mm512_abs_ps(x[v]), derivative_limit, derivative_table);
    x[v] = _mm512_add_ps(_mm512_xor_ps(half, sign), _mm512_set1_ps(0.5f));
  }
}
#endif

template <typename V, int Vectors>
JEPA_FAST_INLINE void gelu(V (&x)[Vectors], double) {
  for (int v = 0; v < Vectors; ++v) {
    for (unsigned i = 0; i < sizeof(V) / sizeof(double); ++i) x[v][i] *= 0.5 * erfc(-M_SQRT1_2 * x[v][i]);
  }
}

template <typename V, int Vectors>
JEPA_FAST_INLINE void gelu_derivative(V (&x)[Vectors], double) {
  constexpr double density = 0.5 * M_2_SQRTPI * M_SQRT1_2;
  for (int v = 0; v < Vectors; ++v) {
    for (unsigned i = 0; i < sizeof(V) / sizeof(double); ++i) {
      const double at = x[v][i];
      x[v][i] = 0.5 * erfc(-M_SQRT1_2 * at) + at * density * exp(-0.5 * at * at);
    }
  }
}

}  // namespace
}  // namespace jepa_fast
