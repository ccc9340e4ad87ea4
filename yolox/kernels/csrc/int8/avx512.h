// The tables of smooth activations, 64 bytes at a time, with AVX-512.
#pragma once
#include "finish.h"
#ifdef NATIVE_AVX512

namespace native {

// P pixels of 64 / P channels, `pixel` bytes from one to the next.
template <int P> inline __m512i pixels_at(const uint8_t* p, long pixel) {
  if (P == 1 || pixel == 64 / P) return _mm512_loadu_si512(p);
  auto two = [&](long i) { return _mm256_loadu_si256((const __m256i*)(p + i * pixel)); };
  auto four = [&](long i) { return _mm_loadu_si128((const __m128i*)(p + i * pixel)); };
  if (P == 2) return _mm512_inserti64x4(_mm512_castsi256_si512(two(0)), two(1), 1);
  __m512i v = _mm512_inserti32x4(_mm512_castsi128_si512(four(0)), four(1), 1);
  return _mm512_inserti32x4(_mm512_inserti32x4(v, four(2), 2), four(3), 3);
}

// For P pixels of 64 / P channels: values in the order of unpacked sums (see below), from the `first` of a pixel on.
template <int P, class T> inline __m512i unpacked(const T* values, long first) {
  auto four = [&](int l) { return _mm_loadu_si128((const __m128i*)(values + l * 16 % (64 / P) + first)); };
  __m512i v = _mm512_inserti32x4(_mm512_castsi128_si512(four(0)), four(1), 1);
  return _mm512_inserti32x4(_mm512_inserti32x4(v, four(2), 2), four(3), 3);
}

// Four vectors of sums become 64 bytes. Sums are `ordered`, 16 neighbouring channels in each vector, or `unpacked`, as
// depthwise convolutions have them: lane l of vector q has those of bytes 16 l + 4 q ... 16 l + 4 q + 3.
struct ActivationTables {
  __m512i start[2], rise[2];
  __m512i factor[2], zero[2];
  __m512i limit;
  __m128i bits, shift;
  __m512 multiplier[4], offset[4];

  void take(const ActivationTable& table) {
    limit = _mm512_set1_epi16(int16_t((64 << table.bits) - 1));
    bits = _mm_cvtsi64_si128(table.bits);
    shift = _mm_cvtsi64_si128(table.shift);
    for (int i = 0; i < 2; ++i) {
      start[i] = _mm512_loadu_si512(table.start + 32 * i);
      rise[i] = _mm512_loadu_si512(table.rise + 32 * i);
    }
  }

  // For sums of which each N are one pixel's channels, the first being channel c.
  template <int N> void take_ordered(const Step& s, long c) {
    const ActivationTable& table = *s.activation_table;
    take(table);
    const __m512i pairs = _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11);
    for (int q = 0; q < 4; ++q) {
      multiplier[q] = _mm512_loadu_ps(table.multiplier + c + q % N * 16);
      offset[q] = _mm512_loadu_ps(table.offset + c + q % N * 16);
    }
    for (int i = 0; i < 2; ++i) {
      factor[i] = _mm512_permutex2var_epi64(sixteen(table.factor, c + 2 * i % N * 16), pairs,
                                            sixteen(table.factor, c + (2 * i + 1) % N * 16));
      zero[i] = _mm512_permutex2var_epi64(sixteen(table.zero, c + 2 * i % N * 16), pairs,
                                          sixteen(table.zero, c + (2 * i + 1) % N * 16));
    }
  }

  // For unpacked sums of P pixels with 64 / P channels each, the first being channel c.
  template <int P> void take_unpacked(const Step& s, long c) {
    const ActivationTable& table = *s.activation_table;
    take(table);
    for (int q = 0; q < 4; ++q) {
      multiplier[q] = (__m512)unpacked<P>(table.multiplier + c, 4 * q);
      offset[q] = (__m512)unpacked<P>(table.offset + c, 4 * q);
    }
    for (int h = 0; h < 2; ++h) {
      factor[h] = unpacked<P>(table.factor + c, 8 * h);
      zero[h] = unpacked<P>(table.zero + c, 8 * h);
    }
  }

  static __m512i sixteen(const int16_t* values, long at) {
    return _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i*)(values + at)));
  }

  __m512i argument(__m512i sum, int q) const {
    return _mm512_cvtps_epi32(_mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), multiplier[q], offset[q]));
  }

  __m512i half(__m512i a, __m512i b, int i) const {
    __m512i z = _mm512_packs_epi32(argument(a, 2 * i), argument(b, 2 * i + 1));
    __m512i size = _mm512_min_epu16(_mm512_abs_epi16(z), limit), piece = _mm512_srl_epi16(size, bits);
    __m512i y = _mm512_sub_epi16(_mm512_max_epi16(z, _mm512_setzero_si512()),
                                 _mm512_permutex2var_epi16(start[0], piece, start[1]));
    y = _mm512_sub_epi16(y, _mm512_mulhrs_epi16(size, _mm512_permutex2var_epi16(rise[0], piece, rise[1])));
    return _mm512_sra_epi16(_mm512_adds_epi16(_mm512_mulhrs_epi16(y, factor[i]), zero[i]), shift);
  }

  // In the order of the pixels' memory if the sums are unpacked.
  __m512i bytes(__m512i a, __m512i b, __m512i c, __m512i d) const {
    return _mm512_packus_epi16(half(a, b, 0), half(c, d, 1));
  }

  // 16 bytes of each of the sums, one after another.
  __m512i ordered_bytes(__m512i a, __m512i b, __m512i c, __m512i d) const {
    const __m512i lanes = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    return _mm512_permutexvar_epi32(lanes, bytes(a, b, c, d));
  }
};

// In place of `ActivationTables` where bytes are rounded from a factor times the sum plus an offset, and nothing else.
struct Linear {
  __m512 multiplier[4], offset[4];

  template <int N> void take_ordered(const Step& s, long c) {
    for (int q = 0; q < 4; ++q) {
      multiplier[q] = _mm512_loadu_ps(s.multiplier + c + q % N * 16);
      offset[q] = _mm512_loadu_ps(s.offset + c + q % N * 16);
    }
  }

  template <int P> void take_unpacked(const Step& s, long c) {
    for (int q = 0; q < 4; ++q) {
      multiplier[q] = (__m512)unpacked<P>(s.multiplier + c, 4 * q);
      offset[q] = (__m512)unpacked<P>(s.offset + c, 4 * q);
    }
  }

  __m512i rounded(__m512i sum, int q) const {
    return _mm512_cvtps_epi32(_mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), multiplier[q], offset[q]));
  }

  static __m512i packed(__m512i a, __m512i b, __m512i c, __m512i d) {  // with saturation
    return _mm512_packus_epi16(_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d));
  }

  __m512i bytes(__m512i a, __m512i b, __m512i c, __m512i d) const {
    return packed(rounded(a, 0), rounded(b, 1), rounded(c, 2), rounded(d, 3));
  }

  __m512i ordered_bytes(__m512i a, __m512i b, __m512i c, __m512i d) const {
    const __m512i lanes = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    return _mm512_permutexvar_epi32(lanes, bytes(a, b, c, d));
  }
};

// In place of the others where sums are finished one vector of 16 after another.
struct OneByOne {
  template <int N> void take_ordered(const Step&, long) {}
};

// Stores `count` bytes, at most 64.
inline void put(uint8_t* p, __m512i v, long count) {
  if (count >= 64) _mm512_storeu_si512(p, v);
  else if (count > 0) _mm512_mask_storeu_epi8(p, (__mmask64)_bzhi_u64(~0ull, count), v);
}

inline void put(uint8_t* p, __m256i v, long count) {
  if (count >= 32) _mm256_storeu_si256((__m256i*)p, v);
  else if (count > 0) _mm256_mask_storeu_epi8(p, (__mmask32)_bzhi_u32(~0u, count), v);
}

inline void put(uint8_t* p, __m128i v, long count) {
  if (count >= 16) _mm_storeu_si128((__m128i*)p, v);
  else if (count > 0) _mm_mask_storeu_epi8(p, (__mmask16)_bzhi_u32(~0u, count), v);
}

// Stores the bytes of P neighbouring pixels, `count` channels each, of which `pixels` are wanted.
template <int P> inline void put_pixels(uint8_t* p, long pixel, __m512i v, long count, long pixels) {
  if (P > 1 && pixels >= P && pixel == 64 / P && count >= pixel) return _mm512_storeu_si512(p, v);
  if constexpr (P == 1) {
    put(p, v, count);
  } else if constexpr (P == 2) {
    put(p, _mm512_castsi512_si256(v), count);
    if (pixels > 1) put(p + pixel, _mm512_extracti64x4_epi64(v, 1), count);
  } else {
    put(p, _mm512_castsi512_si128(v), count);
    if (pixels > 1) put(p + pixel, _mm512_extracti32x4_epi32(v, 1), count);
    if (pixels > 2) put(p + 2 * pixel, _mm512_extracti32x4_epi32(v, 2), count);
    if (pixels > 3) put(p + 3 * pixel, _mm512_extracti32x4_epi32(v, 3), count);
  }
}

}  // namespace native
#endif
