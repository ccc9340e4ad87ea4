// Vectors of numbers that compute in float32 and lie in memory as float32 or bfloat16, and how threads share rows.
// GCC's vector types become AVX-512, AVX2 or NEON instructions, whichever the machine has. It keeps vectors larger than
// the machine's in memory, so they have 8 numbers without AVX-512, unless VECTORS_OF_16 is defined (for memory
// layouts).
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>
#include <omp.h>
#ifdef __AVX2__
#include <immintrin.h>
#endif
#ifdef __ARM_NEON
#include <arm_neon.h>
#endif

namespace {

#if defined(__AVX512F__) || defined(VECTORS_OF_16)
constexpr long V = 16;  // numbers in a vector
#else
constexpr long V = 8;
#endif
constexpr long U = 4;   // vectors or outputs worked on side by side
#define UNROLL _Pragma("GCC unroll 4") for (long u = 0; u < U; ++u)
#define EACH _Pragma("GCC unroll 4") for (long r = 0; r < R; ++r)
#define INLINE __attribute__((always_inline))

typedef float vf __attribute__((vector_size(V * 4)));
typedef int32_t vi __attribute__((vector_size(V * 4)));
typedef uint32_t vu __attribute__((vector_size(V * 4)));
typedef uint16_t vh __attribute__((vector_size(V * 2)));

struct bf16 {
  uint16_t bits;
};

inline vf load(const float* p) {
  vf v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline vf load(const bf16* p) {
#ifdef __AVX512F__  // GCC widens a converted vector in two halves: six instructions instead of two
  return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16);
#else
  vh half;
  std::memcpy(&half, p, sizeof half);
  return (vf)(__builtin_convertvector(half, vu) << 16);
#endif
}

inline void store(float* p, vf v) { std::memcpy(p, &v, sizeof v); }

inline void store(bf16* p, vf v) {  // to the nearest, ties to even
#ifdef __AVX512BF16__
  __m256bh half = _mm512_cvtneps_pbh((__m512)v);
#else
  vu bits = (vu)v;
  vh half = __builtin_convertvector((bits + 0x7fff + ((bits >> 16) & 1)) >> 16, vh);
#endif
  std::memcpy(p, &half, sizeof half);
}

// Stores numbers and returns what will be read there.
inline vf stored(float* p, vf v) {
  store(p, v);
  return v;
}

inline vf stored(bf16* p, vf v) {
#ifdef __AVX512BF16__
  __m256i half = (__m256i)_mm512_cvtneps_pbh((__m512)v);
  _mm256_storeu_si256((__m256i*)p, half);
  return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16);
#else
  store(p, v);
  return load(p);
#endif
}

#if defined(__AVX2__) && !defined(__AVX512F__)
// GCC takes vectors that are larger than the machine's number by number where they are compared.
template <class F>
inline vf by_eights(F f, vf a, vf b) {
  __m256 left[V / 8], right[V / 8];
  std::memcpy(left, &a, sizeof a);
  std::memcpy(right, &b, sizeof b);
  for (long i = 0; i < V / 8; ++i) left[i] = f(left[i], right[i]);
  std::memcpy(&a, left, sizeof a);
  return a;
}

// Of a number and NaN they return the second.
inline vf larger(vf a, vf b) { return by_eights([](__m256 x, __m256 y) { return _mm256_max_ps(x, y); }, a, b); }
inline vf smaller(vf a, vf b) { return by_eights([](__m256 x, __m256 y) { return _mm256_min_ps(x, y); }, a, b); }

inline vf inverse(vf v) {  // half the time of a division: an estimate of 12 bits and a step of Newton's method
  vf guess = by_eights([](__m256 x, __m256) { return _mm256_rcp_ps(x); }, v, v);
  return guess * (2.0f - v * guess);
}
#else
inline vf larger(vf a, vf b) { return a > b ? a : b; }
inline vf smaller(vf a, vf b) { return a < b ? a : b; }
inline vf inverse(vf v) { return 1.0f / v; }
#endif

inline float get(const float* p) { return *p; }

inline float get(const bf16* p) {
  uint32_t bits = uint32_t(p->bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline void put(float* p, float value) { *p = value; }

inline void put(bf16* p, float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  p->bits = uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// 1 / (1 + exp(-z)) with the relative error of float32, or one of 1e-4 where T is bfloat16, which rounds at 4e-3.
// The power of two is split into its whole part, an exponent, and a fraction in 0...1, a Chebyshev polynomial.
// Of R vectors each step is taken before the next one: one after the other they would wait for their own results.
template <class T, long R>
INLINE inline void sigmoids(const vf (&z)[R], vf (&result)[R]) {
  constexpr bool exact = sizeof(T) == 4;
  vf power[R], fraction[R], p[R];
  EACH power[r] = z[r] * -1.44269504f;
#ifdef __AVX512DQ__
  EACH fraction[r] = (vf)_mm512_reduce_ps((__m512)power[r], 1);
#else
  const vf magic = vf{} + 12582912.0f;
  vf whole[R];
  EACH power[r] = smaller(vf{} + 125.0f, larger(vf{} - 125.0f, power[r]));  // NaN stays; the inverse is no denormal
  EACH whole[r] = (power[r] - 0.5f) + magic;  // the sum has no bits left for a fraction
  EACH fraction[r] = power[r] - (whole[r] - magic);
#endif
  if constexpr (exact) {
    EACH p[r] = fraction[r] * 2.169060904e-4f + 1.244308155e-3f;
    EACH p[r] = p[r] * fraction[r] + 9.678472549e-3f;
    EACH p[r] = p[r] * fraction[r] + 5.548353472e-2f;
    EACH p[r] = p[r] * fraction[r] + 2.402297985e-1f;
    EACH p[r] = p[r] * fraction[r] + 6.931469871e-1f;
    EACH p[r] = p[r] * fraction[r] + 1.0f;
  } else {
    EACH p[r] = fraction[r] * 0.0779071638f + 0.226233194f;
    EACH p[r] = p[r] * fraction[r] + 0.695777096f;
    EACH p[r] = p[r] * fraction[r] + 0.999927827f;
  }
#ifdef __AVX512DQ__
  EACH p[r] = 1.0f + (vf)_mm512_scalef_ps((__m512)p[r], (__m512)power[r]);
  EACH result[r] = (vf)_mm512_rcp14_ps((__m512)p[r]);
  if constexpr (exact) EACH result[r] = p[r] > 1e30f ? result[r] : result[r] * (2.0f - p[r] * result[r]);
#else
  EACH result[r] = inverse(1.0f + (vf)((vi)p[r] + ((vi)whole[r] << 23)));
#endif
}

template <class T>
inline vf sigmoid(vf z) {
  vf all[1] = {z}, result[1];
  sigmoids<T>(all, result);
  return result[0];
}

struct Range {
  long first, last;
};

inline Range my_share(long count) {
  long threads = omp_get_num_threads(), me = omp_get_thread_num();
  return {count * me / threads, count * (me + 1) / threads};
}

}  // namespace
