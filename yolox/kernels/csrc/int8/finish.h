// From integer sums to activated floats or bytes, 16 channels at a time, on any machine.
#pragma once
#include "steps.h"

namespace native {

typedef uint8_t vb __attribute__((vector_size(16)));
typedef int8_t vs __attribute__((vector_size(16)));

#ifdef __AVX2__
inline vi joined(__m256i a, __m256i b) {
  vi both;
  std::memcpy(&both, &a, sizeof a);
  std::memcpy((char*)&both + sizeof a, &b, sizeof b);
  return both;
}
#endif

inline vi widened(const uint8_t* p) {
  vb v;
  std::memcpy(&v, p, sizeof v);
#ifdef __AVX512F__
  return (vi)_mm512_cvtepu8_epi32((__m128i)v);
#elif defined(__AVX2__)
  return joined(_mm256_cvtepu8_epi32((__m128i)v), _mm256_cvtepu8_epi32(_mm_bsrli_si128((__m128i)v, 8)));
#else
  return __builtin_convertvector(v, vi);
#endif
}

inline vi widened(const int8_t* p) {
  vs v;
  std::memcpy(&v, p, sizeof v);
#ifdef __AVX512F__
  return (vi)_mm512_cvtepi8_epi32((__m128i)v);
#else
  return __builtin_convertvector(v, vi);
#endif
}

inline vf floats(vi v) { return __builtin_convertvector(v, vf); }

inline vf gelu(vf z) {
  alignas(64) float v[V];
  store(v, z);
  for (float& one : v) one *= 0.5f * std::erfc(one * -0.70710678f);
  return load(v);
}

__attribute__((noinline)) inline vf other_activation(vf z, int64_t choice, float alpha) {
  switch (choice) {
    case RELU: return larger(z, vf{});
    case LEAKY_RELU: return larger(z, vf{}) + smaller(z, vf{}) * alpha;
    case CLIP: return smaller(larger(z, vf{}), vf{} + alpha);
    case HARD_SWISH: return z * smaller(larger(z * (1.0f / 6.0f) + 0.5f, vf{}), vf{} + 1.0f);
    case TANH: return 2.0f * sigmoid<float>(2.0f * z) - 1.0f;
    case GELU: return gelu(z);
    default: return z;
  }
}

// The detector's activations stand in the loops that call this; with all of them, `finish` became a function of its own
// and YOLOX a sixth slower.
INLINE inline vf activated(vf z, const Step& s) {
  if (s.choice == SILU) return z * sigmoid<bf16>(z);
  if (s.choice == SIGMOID) return sigmoid<bf16>(z);
  return s.choice == NONE ? z : other_activation(z, s.choice, float(s.alpha));
}

#ifdef __AVX2__
inline vb rounded(__m256 a, __m256 b) {
  __m256i words = _mm256_packs_epi32(_mm256_cvtps_epi32(a), _mm256_cvtps_epi32(b));
  words = _mm256_permute4x64_epi64(words, 0xd8);
  return (vb)_mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
}
#endif

// To the nearest byte, ties to even.
inline vb rounded(vf v) {
#ifdef __AVX512F__
  return (vb)_mm512_cvtusepi32_epi8(_mm512_max_epi32(_mm512_cvtps_epi32((__m512)v), _mm512_setzero_si512()));
#elif defined(__AVX2__)
  __m256 half[2];
  std::memcpy(half, &v, sizeof v);
  return rounded(half[0], half[1]);
#elif defined(__ARM_NEON)
  float32x4_t four[4];
  std::memcpy(four, &v, sizeof v);
  auto words = [&](int i) {  // with saturation
    return vcombine_s16(vqmovn_s32(vcvtnq_s32_f32(four[i])), vqmovn_s32(vcvtnq_s32_f32(four[i + 1])));
  };
  return (vb)vcombine_u8(vqmovun_s16(words(0)), vqmovun_s16(words(2)));
#else
  v = v < 0.0f ? vf{} : v;
  v = v > 255.0f ? vf{} + 255.0f : v;
  const vf magic = vf{} + 12582912.0f;
  return __builtin_convertvector((vi)(v + magic) & 255, vb);
#endif
}

inline void put(uint8_t* p, vb v, long count) {
  if (count >= V) std::memcpy(p, &v, V);
#ifdef __AVX512F__
  else _mm_mask_storeu_epi8(p, __mmask16((1 << count) - 1), (__m128i)v);
#else
  else std::memcpy(p, &v, count);
#endif
}

inline void put(float* p, vf v, long count) {
  if (count >= V) std::memcpy(p, &v, sizeof v);
#ifdef __AVX512F__  // memcpy of a few would be called
  else _mm512_mask_storeu_ps(p, __mmask16((1 << count) - 1), (__m512)v);
#else
  else std::memcpy(p, &v, count * sizeof(float));
#endif
}

// Vectors of the integers of a SiLU table, one in each 32 bits; the products are rounded as `vpmulhrsw` does.
inline vi rounded_product(vi a, vi b) { return (a * b + 16384) >> 15; }

inline vi narrowed(vi v) {  // to 16 bits, with saturation
  v = v < -32768 ? vi{} - 32768 : v;
  return v > 32767 ? vi{} + 32767 : v;
}

inline vb from_table(const ActivationTable& table, vi sum, long c) {
  vf at = floats(sum) * load(table.multiplier + c) + load(table.offset + c);
  at = at > -32768.0f ? at : vf{} - 32768.0f;  // so written, NaN is in range afterwards
  at = at < 32767.0f ? at : vf{} + 32767.0f;
  vi result;
  for (int i = 0; i < V; ++i) {
    int z = int(std::nearbyint(at[i])), size = std::min(std::abs(z), (64 << int(table.bits)) - 1);
    int piece = size >> table.bits;
    result[i] = std::max(z, 0) - table.start[piece] - ((size * table.rise[piece] + 16384) >> 15);
  }
  typedef int16_t v16 __attribute__((vector_size(32)));
  v16 factor, zero;
  std::memcpy(&factor, table.factor + c, sizeof factor);
  std::memcpy(&zero, table.zero + c, sizeof zero);
  result = rounded_product(narrowed(result), __builtin_convertvector(factor, vi));
  result = narrowed(result + __builtin_convertvector(zero, vi)) >> table.shift;
  result = result < 0 ? vi{} : result;
  result = result > 255 ? vi{} + 255 : result;
  return __builtin_convertvector(result, vb);
}

// Finishes channels c ... c + 16 of output pixel (y, x).
INLINE inline void finish(const Step& s, const Image& image, vi sum, long y, long x, long c) {
  if (s.activation_table) {
    uint8_t* to = image.out + s.out.at + y * s.out.row + x * s.out.pixel + c;
    return put(to, from_table(*s.activation_table, sum, c), s.out.room - c);
  }
  vf z = floats(sum) * load(s.multiplier + c) + load(s.offset + c);
  if (s.linear) return put(image.out + s.out.at + y * s.out.row + x * s.out.pixel + c, rounded(z), s.out.room - c);
  z = activated(z, s);
  if (s.to_matrix) {
    long row = s.first_row + y * s.out.width + x;
    put(image.result + row * s.result.columns + s.first_column + c, z, s.out.channels - c);
  } else {
    vb bytes = rounded(z * load(s.inverse + c) + load(s.zero + c));
    put(image.out + s.out.at + y * s.out.row + x * s.out.pixel + c, bytes, s.out.room - c);
  }
}

}  // namespace native
