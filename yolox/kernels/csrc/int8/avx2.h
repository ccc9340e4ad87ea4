// The tables of smooth activations, and floats, with AVX2.
#pragma once
#include "finish.h"
#ifdef NATIVE_AVX2

namespace native {

// Four vectors of sums become 32 bytes, without leaving the halves of a vector. Sums are `ordered` if the first two
// vectors are one pixel's: channels 0 ... 3 and 8 ... 11, then 4 ... 7 and 12 ... 15. They are `unpacked`, as depthwise
// convolutions have them, if half h of vector q has those of bytes 16 h + 4 q ... 16 h + 4 q + 3.
struct Channels {
  __m256 multiplier[4], offset[4];
  __m256i factor[2], zero[2];

  // For the 16 channels from c on.
  void take_ordered(const Step& s, long c) {
    const ActivationTable& table = *s.activation_table;
    for (int q = 0; q < 4; ++q) {
      multiplier[q] = halves(table.multiplier + c + q % 2 * 4, 8);
      offset[q] = halves(table.offset + c + q % 2 * 4, 8);
    }
    for (int i = 0; i < 2; ++i) factor[i] = halves(table.factor + c, 8), zero[i] = halves(table.zero + c, 8);
  }

  // For P pixels with 32 / P channels each, the first being channel c.
  template <int P> void take_unpacked(const Step& s, long c) {
    const ActivationTable& table = *s.activation_table;
    const long other = P == 1 ? 16 : 0;
    for (int q = 0; q < 4; ++q) {
      multiplier[q] = halves(table.multiplier + c + 4 * q, other);
      offset[q] = halves(table.offset + c + 4 * q, other);
    }
    for (int i = 0; i < 2; ++i) {
      factor[i] = halves(table.factor + c + 8 * i, other);
      zero[i] = halves(table.zero + c + 8 * i, other);
    }
  }

  static __m256 halves(const float* p, long other) { return _mm256_loadu2_m128(p + other, p); }
  static __m256i halves(const int16_t* p, long other) {
    return _mm256_loadu2_m128i((const __m128i*)(p + other), (const __m128i*)p);
  }
};

// The dent by cubic polynomials: a table of 8 numbers of 16 bits fits into one shuffle of bytes, 64 lines would not.
struct Cubics {
  __m256i coefficient[4], limit;
  __m128i widen, shift;

  void take(const Step& s) {
    const ActivationTable& table = *s.activation_table;
    for (int i = 0; i < 4; ++i)
      coefficient[i] = _mm256_broadcastsi128_si256(rotated(_mm_loadu_si128((const __m128i*)table.cubic[i])));
    limit = _mm256_set1_epi16(int16_t((64 << table.bits) - 1));
    widen = _mm_cvtsi64_si128(9 - table.bits);
    shift = _mm_cvtsi64_si128(table.shift);
  }

  static __m128i rotated(__m128i v) { return _mm_alignr_epi8(v, v, 15); }

  INLINE __m256i argument(__m256i sum, const Channels& ch, int q) const {
    return _mm256_cvtps_epi32(_mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), ch.multiplier[q], ch.offset[q]));
  }

  // Of 2 N vectors of sums, not yet narrowed to bytes. They are computed side by side, as each is a long chain.
  template <int N> INLINE void words(const __m256i* sum, const Channels& ch, __m256i* y) const {
    const __m256i low = _mm256_set1_epi16(0x0fff);
    __m256i piece[N], place[N], fine[N], dent[N];
    auto each = [](auto f) INLINE { unrolled<N>(f); };
    auto of_piece = [&](int i, int n) INLINE { return _mm256_shuffle_epi8(coefficient[i], piece[n]); };
    each([&](auto n) INLINE {
      y[n] = _mm256_packs_epi32(argument(sum[2 * n], ch, n % 2 * 2), argument(sum[2 * n + 1], ch, n % 2 * 2 + 1));
      place[n] = _mm256_sll_epi16(_mm256_min_epu16(_mm256_abs_epi16(y[n]), limit), widen);
    });
    // 15 bits: three choose the piece p, twelve are the place in it. The product is 0x0202 (p + 1) - 1; the lowest
    // four bits of its bytes, all that counts, are 2 p + 1 and 2 p + 2, where the rotated tables have piece p's bytes.
    each([&](auto n) INLINE {
      piece[n] = _mm256_mulhi_epu16(_mm256_or_si256(place[n], low), _mm256_set1_epi16(0x2020));
      place[n] = _mm256_and_si256(place[n], low);
      fine[n] = _mm256_slli_epi16(place[n], 3);
    });
    each([&](auto n) INLINE { dent[n] = _mm256_mulhrs_epi16(fine[n], of_piece(3, n)); });
    each([&](auto n) INLINE { dent[n] = _mm256_mulhrs_epi16(fine[n], _mm256_add_epi16(dent[n], of_piece(2, n))); });
    // coefficients but the constant count in eighths
    each([&](auto n) INLINE { dent[n] = _mm256_mulhrs_epi16(place[n], _mm256_add_epi16(dent[n], of_piece(1, n))); });
    each([&](auto n) INLINE {
      y[n] = _mm256_max_epi16(y[n], _mm256_setzero_si256());
      y[n] = _mm256_sub_epi16(y[n], _mm256_add_epi16(dent[n], of_piece(0, n)));
      y[n] = _mm256_sra_epi16(_mm256_adds_epi16(_mm256_mulhrs_epi16(y[n], ch.factor[n % 2]), ch.zero[n % 2]), shift);
    });
  }

  // Of 4 N vectors of sums; in the order of the pixels' memory if they are unpacked.
  template <int N> INLINE void bytes(const __m256i* sum, const Channels& ch, __m256i* to) const {
    __m256i y[2 * N];
    words<2 * N>(sum, ch, y);
    unrolled<N>([&](auto n) INLINE { to[n] = _mm256_packus_epi16(y[2 * n], y[2 * n + 1]); });
  }
};

// In place of `Channels` and `Cubics` where bytes are rounded from a factor times the sum plus an offset.
struct LinearChannels {
  __m256 multiplier[4], offset[4];

  void take_ordered(const Step& s, long c) {
    for (int q = 0; q < 4; ++q) {
      multiplier[q] = Channels::halves(s.multiplier + c + q % 2 * 4, 8);
      offset[q] = Channels::halves(s.offset + c + q % 2 * 4, 8);
    }
  }

  template <int P> void take_unpacked(const Step& s, long c) {
    for (int q = 0; q < 4; ++q) {
      multiplier[q] = Channels::halves(s.multiplier + c + 4 * q, P == 1 ? 16 : 0);
      offset[q] = Channels::halves(s.offset + c + 4 * q, P == 1 ? 16 : 0);
    }
  }
};

struct Linear {
  void take(const Step&) {}

  template <int N> INLINE void bytes(const __m256i* sum, const LinearChannels& ch, __m256i* to) const {
    auto rounded = [&](int i) INLINE {
      return _mm256_cvtps_epi32(_mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[i]), ch.multiplier[i % 4], ch.offset[i % 4]));
    };
    unrolled<N>([&](auto n) INLINE {
      to[n] = _mm256_packus_epi16(_mm256_packs_epi32(rounded(4 * n), rounded(4 * n + 1)),
                                  _mm256_packs_epi32(rounded(4 * n + 2), rounded(4 * n + 3)));
    });
  }
};

// Stores the bytes of P neighbouring pixels, of which `pixels` are wanted: 32 / P of each, or what there is room for.
template <int P> inline void put_pixels(uint8_t* p, long pixel, __m256i v, long room, long pixels) {
  bool all = P == 1 ? room >= 32 : pixel == 16 && room >= 16 && pixels > 1;
  if (all) return _mm256_storeu_si256((__m256i*)p, v);
  put(p, (vb)_mm256_castsi256_si128(v), room);
  if (P == 1 && room > 16) put(p + 16, (vb)_mm256_extracti128_si256(v, 1), room - 16);
  if (P == 2 && pixels > 1) put(p + pixel, (vb)_mm256_extracti128_si256(v, 1), room);
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

inline __m256 activated(__m256 z, const Step& s) {
  const __m256 none = _mm256_setzero_ps(), alpha = _mm256_set1_ps(float(s.alpha));
  switch (s.choice) {
    case RELU: return _mm256_max_ps(z, none);
    case LEAKY_RELU: return _mm256_fmadd_ps(_mm256_min_ps(z, none), alpha, _mm256_max_ps(z, none));
    case CLIP: return _mm256_min_ps(_mm256_max_ps(z, none), alpha);
    case SILU: return _mm256_mul_ps(z, sigmoid(z));
    case SIGMOID: return sigmoid(z);
    case NONE: return z;
    default: break;
  }
  vf wide = {};  // the rest, which is rare, as on any machine
  std::memcpy(&wide, &z, sizeof z);
  wide = activated(wide, s);
  std::memcpy(&z, &wide, sizeof z);
  return z;
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
    if (!s.linear) half[i] = activated(half[i], s);
  }
  if (s.to_matrix) {
    long row = s.first_row + y * s.out.width + x;
    float* to = image.result + row * s.result.columns + s.first_column + c;
    put(to, half[0], s.out.channels - c);
    put(to + 8, half[1], s.out.channels - c - 8);
  } else {
    for (long i = 0; i < 2 && !s.linear; ++i)
      half[i] = _mm256_fmadd_ps(half[i], eight(s.inverse + c + 8 * i), eight(s.zero + c + 8 * i));
    put(image.out + s.out.at + y * s.out.row + x * s.out.pixel + c, rounded(half[0], half[1]), s.out.room - c);
  }
}

}  // namespace native
#endif
