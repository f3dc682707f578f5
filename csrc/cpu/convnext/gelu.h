// GELU, x times the normal distribution, and its derivative.
//
// float: both minus a half are odd, and are x times a polynomial of x^2 on [-5.2, 5.2] and [-5.6, 5.6] (minimax, fitted in
// float64); beyond they are constant to within float's rounding. Errors: 5e-7 at most, 1e-7 for |x| < 2. No division, no
// exponential; AVX-512 and AVX2 take tables. double: the library's erf and exp.
#pragma once

#include <math.h>

#include "cpu/convnext/lanes.h"

#ifdef __AVX2__
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

// By tables. A permutation looks the coefficients up by the low bits of its index, which rounding to an integer by a large
// addend leaves there. Permutations and multiply-adds run side by side, so that this takes two thirds of the polynomial's time.
#ifdef __AVX512F__
using TableVector = __m512;
constexpr int table_points = 32;
// The last point lies at the limit.
constexpr float table_steps = 31;

JEPA_FAST_INLINE __m512 magnitude(__m512 x) { return _mm512_abs_ps(x); }
JEPA_FAST_INLINE __m512 sign_of(__m512 x) { return _mm512_and_ps(x, _mm512_set1_ps(-0.0f)); }
JEPA_FAST_INLINE __m512 with_sign(__m512 x, __m512 sign) { return _mm512_xor_ps(x, sign); }

// A NaN stays one: it is the second operand. (_mm512_min_ps warns of a variable of its own.)
JEPA_FAST_INLINE __m512 least_of(__m512 bound, __m512 x) {
  return _mm512_maskz_min_ps(static_cast<__mmask16>(-1), bound, x);
}

JEPA_FAST_INLINE __m512 pick(const float (&row)[32], __m512 index) {
  return _mm512_permutex2var_ps(_mm512_load_ps(row), _mm512_castps_si512(index), _mm512_load_ps(row + 16));
}

#define JEPA_FAST_TABLES(name) name##_table
constexpr int distribution_degree = 3, derivative_degree = 4;
#elif defined(__AVX2__)
using TableVector = __m256;
constexpr int table_points = 8;
// The last point lies half a step short of the limit; what is clamped to that is rounded to it all the same.
constexpr float table_steps = 7.499999f;

JEPA_FAST_INLINE __m256 sign_of(__m256 x) { return _mm256_and_ps(x, _mm256_set1_ps(-0.0f)); }
JEPA_FAST_INLINE __m256 magnitude(__m256 x) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x); }
JEPA_FAST_INLINE __m256 with_sign(__m256 x, __m256 sign) { return _mm256_xor_ps(x, sign); }

JEPA_FAST_INLINE __m256 least_of(__m256 bound, __m256 x) { return _mm256_min_ps(bound, x); }

JEPA_FAST_INLINE __m256 pick(const float (&row)[8], __m256 index) {
  return _mm256_permutevar8x32_ps(_mm256_load_ps(row), _mm256_castps_si256(index));
}

#define JEPA_FAST_TABLES(name) name##_octet
constexpr int distribution_degree = 5, derivative_degree = 6;
#endif

#ifdef __AVX2__
// The polynomial of Degree about the nearest of the points, of |x| brought to the limit.
template <int Degree>
JEPA_FAST_INLINE TableVector look_up(TableVector size, float limit, const float (&table)[Degree + 1][table_points]) {
  const TableVector large = spread<TableVector>(12582912.0f);  // 1.5 * 2^23
  const TableVector clamped = least_of(spread<TableVector>(limit), size);
  const TableVector shifted = clamped * (table_steps / limit) + large;
  const TableVector place = clamped - (shifted - large) * (limit / table_steps);
  TableVector sum = pick(table[Degree], shifted);
  JEPA_FAST_UNROLL
  for (int i = Degree - 1; i >= 0; --i) sum = sum * place + pick(table[i], shifted);
  return sum;
}

template <int Vectors>
JEPA_FAST_INLINE void gelu(TableVector (&x)[Vectors], float) {
  JEPA_FAST_UNROLL
  for (int v = 0; v < Vectors; ++v) {
    const TableVector size = magnitude(x[v]);
    x[v] = size * look_up<distribution_degree>(size, distribution_limit, JEPA_FAST_TABLES(distribution)) + x[v] * 0.5f;
  }
}

template <int Vectors>
JEPA_FAST_INLINE void gelu_derivative(TableVector (&x)[Vectors], float) {
  JEPA_FAST_UNROLL
  for (int v = 0; v < Vectors; ++v) {
    const TableVector half = look_up<derivative_degree>(magnitude(x[v]), derivative_limit, JEPA_FAST_TABLES(derivative));
    x[v] = with_sign(half, sign_of(x[v])) + 0.5f;
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
