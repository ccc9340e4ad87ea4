// Sums of 16 channels in two vectors of 32-bit integers, and the curves of smooth activations, with AVX2.
//
// The first vector has channels 0 ... 3 and 8 ... 11, the second 4 ... 7 and 12 ... 15: narrowed together they are in order.
#pragma once
#include "finish.h"
#ifdef NATIVE_AVX2

namespace native {

// What is needed of the 16 channels from c on.
struct Channels {
  __m256 multiplier[2], offset[2];
  __m256i factor, zero;

  void take(const Curve& curve, long c) {
    for (int i = 0; i < 2; ++i) {
      multiplier[i] = halves(curve.multiplier + c + 4 * i);
      offset[i] = halves(curve.offset + c + 4 * i);
    }
    factor = _mm256_loadu_si256((const __m256i*)(curve.factor + c));
    zero = _mm256_loadu_si256((const __m256i*)(curve.zero + c));
  }

  static __m256 halves(const float* p) { return _mm256_loadu2_m128(p + 8, p); }
};

// The dent by cubic polynomials: a table of 8 numbers of 16 bits fits into one shuffle of bytes, 64 lines would not.
struct Cubics {
  __m256i coefficient[4], limit;
  __m128i widen, shift;

  void take(const Curve& curve) {
    for (int i = 0; i < 4; ++i)
      coefficient[i] = _mm256_broadcastsi128_si256(rotated(_mm_loadu_si128((const __m128i*)curve.cubic[i])));
    limit = _mm256_set1_epi16(int16_t((64 << curve.bits) - 1));
    widen = _mm_cvtsi64_si128(9 - curve.bits);
    shift = _mm_cvtsi64_si128(curve.shift);
  }

  static __m128i rotated(__m128i v) { return _mm_alignr_epi8(v, v, 15); }

  INLINE __m256i argument(__m256i sum, const Channels& ch, int i) const {
    return _mm256_cvtps_epi32(_mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), ch.multiplier[i], ch.offset[i]));
  }

  // Of one pixel, not yet narrowed to bytes.
  INLINE __m256i words(__m256i a, __m256i b, const Channels& ch) const {
    __m256i z = _mm256_packs_epi32(argument(a, ch, 0), argument(b, ch, 1));
    __m256i size = _mm256_sll_epi16(_mm256_min_epu16(_mm256_abs_epi16(z), limit), widen);
    // 15 bits: three choose the piece p, twelve are the place in it. The product is 0x0202 (p + 1) - 1; the lowest four
    // bits of its bytes, all that counts, are 2 p + 1 and 2 p + 2, where the rotated tables have the two bytes of piece p.
    const __m256i low = _mm256_set1_epi16(0x0fff);
    __m256i piece = _mm256_mulhi_epu16(_mm256_or_si256(size, low), _mm256_set1_epi16(0x2020));
    __m256i place = _mm256_and_si256(size, low), fine = _mm256_slli_epi16(place, 3);
    auto of_piece = [&](int i) INLINE { return _mm256_shuffle_epi8(coefficient[i], piece); };
    __m256i dent = _mm256_add_epi16(_mm256_mulhrs_epi16(fine, of_piece(3)), of_piece(2));
    dent = _mm256_add_epi16(_mm256_mulhrs_epi16(fine, dent), of_piece(1));
    dent = _mm256_add_epi16(_mm256_mulhrs_epi16(place, dent), of_piece(0));  // the others count in eighths
    __m256i y = _mm256_sub_epi16(_mm256_max_epi16(z, _mm256_setzero_si256()), dent);
    return _mm256_sra_epi16(_mm256_adds_epi16(_mm256_mulhrs_epi16(y, ch.factor), ch.zero), shift);
  }

  // Of two pixels, one after the other.
  INLINE __m256i bytes(const __m256i* sum, const Channels& ch) const {
    __m256i both = _mm256_packus_epi16(words(sum[0], sum[1], ch), words(sum[2], sum[3], ch));
    return _mm256_permute4x64_epi64(both, 0xd8);
  }
};

// Stores 16 bytes, or as many as there is room for, of one or two pixels.
inline void put_pixels(uint8_t* p, long pixel, __m256i v, long room, long pixels) {
  if (pixel == 16 && room >= 16 && pixels > 1) return _mm256_storeu_si256((__m256i*)p, v);
  put(p, (vb)_mm256_castsi256_si128(v), room);
  if (pixels > 1) put(p + pixel, (vb)_mm256_extracti128_si256(v, 1), room);
}

// Eight numbers, as GCC keeps the 16 of `finish` in memory. The sigmoid is the one of vectors.h for bfloat16.
inline __m256 sigmoid(__m256 z) {
  const __m256 one = _mm256_set1_ps(1.0f), limit = _mm256_set1_ps(126.0f);
  __m256 power = _mm256_mul_ps(z, _mm256_set1_ps(-1.44269504f));
  power = _mm256_min_ps(_mm256_max_ps(power, _mm256_sub_ps(_mm256_setzero_ps(), limit)), limit);
  __m256 whole = _mm256_floor_ps(power), fraction = _mm256_sub_ps(power, whole);
  __m256 p = _mm256_fmadd_ps(fraction, _mm256_set1_ps(0.0779071638f), _mm256_set1_ps(0.226233194f));
  p = _mm256_fmadd_ps(p, fraction, _mm256_set1_ps(0.695777096f));
  p = _mm256_fmadd_ps(p, fraction, _mm256_set1_ps(0.999927827f));
  __m256i scaled = _mm256_add_epi32((__m256i)p, _mm256_slli_epi32(_mm256_cvtps_epi32(whole), 23));
  return _mm256_div_ps(one, _mm256_add_ps(one, (__m256)scaled));
}

inline __m256 activated(__m256 z, int64_t activation) {
  switch (activation) {
    case RELU: return _mm256_max_ps(z, _mm256_setzero_ps());
    case LEAKY_RELU: return _mm256_max_ps(z, _mm256_mul_ps(z, _mm256_set1_ps(0.1f)));
    case SILU: return _mm256_mul_ps(z, sigmoid(z));
    case SIGMOID: return sigmoid(z);
    default: return z;
  }
}

inline __m256 eight(const float* p) { return _mm256_loadu_ps(p); }

inline void put(float* p, __m256 v, long count) {
  if (count >= 8) _mm256_storeu_ps(p, v);
  else if (count > 0) std::memcpy(p, &v, count * sizeof(float));
}

// As the function of this name for any machine does.
inline void finish(const Step& s, const Image& image, const __m256i* sum, long y, long x, long c) {
  __m256 half[2];
  for (long i = 0; i < 2; ++i) {
    __m256i one = i == 0 ? _mm256_permute2x128_si256(sum[0], sum[1], 0x20)  // in order
                         : _mm256_permute2x128_si256(sum[0], sum[1], 0x31);
    long from = c + 8 * i;
    half[i] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(one), eight(s.multiplier + from), eight(s.offset + from));
    half[i] = activated(half[i], s.choice);
  }
  if (s.to_matrix) {
    long row = s.first_row + y * s.out.width + x;
    float* to = floats(s.result, image) + row * s.result.columns + s.first_column + c;
    put(to, half[0], s.out.channels - c);
    put(to + 8, half[1], s.out.channels - c - 8);
  } else {
    for (long i = 0; i < 2; ++i)
      half[i] = _mm256_fmadd_ps(half[i], eight(s.inverse + c + 8 * i), eight(s.zero + c + 8 * i));
    put(image.arena + s.out.at + y * s.out.row + x * s.out.pixel + c, rounded(half[0], half[1]), s.out.room - c);
  }
}

}  // namespace native
#endif
