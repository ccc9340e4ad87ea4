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
      coefficient[i] = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)curve.cubic[i]));
    limit = _mm256_set1_epi16(int16_t((64 << curve.bits) - 1));
    widen = _mm_cvtsi64_si128(9 - curve.bits);
    shift = _mm_cvtsi64_si128(curve.shift);
  }

  INLINE __m256i argument(__m256i sum, const Channels& ch, int i) const {
    return _mm256_cvtps_epi32(_mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), ch.multiplier[i], ch.offset[i]));
  }

  // Of one pixel, not yet narrowed to bytes.
  INLINE __m256i words(__m256i a, __m256i b, const Channels& ch) const {
    __m256i z = _mm256_packs_epi32(argument(a, ch, 0), argument(b, ch, 1));
    __m256i size = _mm256_sll_epi16(_mm256_min_epu16(_mm256_abs_epi16(z), limit), widen);
    // 15 bits: three choose the piece, whose two bytes are looked up, twelve are the place in it
    __m256i piece = _mm256_mullo_epi16(_mm256_srli_epi16(size, 12), _mm256_set1_epi16(0x0202));
    piece = _mm256_add_epi16(piece, _mm256_set1_epi16(0x0100));
    __m256i place = _mm256_and_si256(size, _mm256_set1_epi16(0x0fff)), fine = _mm256_slli_epi16(place, 3);
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

inline vi in_order(__m256i a, __m256i b) {
  return joined(_mm256_permute2x128_si256(a, b, 0x20), _mm256_permute2x128_si256(a, b, 0x31));
}

}  // namespace native
#endif
