// Convolutions of each channel on its own.
#include "avx512.h"
#include "portable.h"

namespace native {

#ifdef NATIVE_AVX512

// P pixels of 64 / P channels, `pixel` bytes from one to the next.
template <int P> inline __m512i pixels_at(const uint8_t* p, long pixel) {
  if (P == 1 || pixel == 64 / P) return _mm512_loadu_si512(p);
  auto two = [&](long i) { return _mm256_loadu_si256((const __m256i*)(p + i * pixel)); };
  auto four = [&](long i) { return _mm_loadu_si128((const __m128i*)(p + i * pixel)); };
  if (P == 2) return _mm512_inserti64x4(_mm512_castsi256_si512(two(0)), two(1), 1);
  __m512i v = _mm512_inserti32x4(_mm512_castsi128_si512(four(0)), four(1), 1);
  return _mm512_inserti32x4(_mm512_inserti32x4(v, four(2), 2), four(3), 3);
}

namespace {

// S by S: bytes of a column, of up to four rows, stand side by side in 32 bits and are multiplied at once.
template <int P, int S, class Finish> struct Kernel {
  static constexpr int FOURS = (S + 3) / 4;

  Finish finish;
  __m512i weight[FOURS][S][4];

  Kernel(const Step& s, long c) {
    finish.template take_unpacked<P>(s, c);
    long channels = (s.in.channels + V - 1) / V * V;
    int8_t* to = (int8_t*)weight;
    for (long four = 0; four < FOURS; ++four)
      for (long column = 0; column < S; ++column)
        for (long i = 0; i < 64; ++i)
          for (long row = four * 4; row < four * 4 + 4; ++row) {
            long from = c + (i % 16 / 4 * 16 + i / 16 * 4 + i % 4) % (64 / P);
            *to++ = row < S && from < channels ? s.weight[(row * S + column) * channels + from] : 0;
          }
  }

  __m512i at(const uint8_t* top, long row, long to_column, long to_pixel) const {
    const __m512i none = _mm512_setzero_si512();
    __m512i sum[4] = {none, none, none, none};
    unrolled<FOURS * S>([&](auto i) INLINE {
      constexpr int four = i / S, column = i % S;
      const uint8_t* p = top + 4 * four * row + column * to_column;
      auto at_row = [&](auto r) INLINE { return 4 * four + r < S ? pixels_at<P>(p + r * row, to_pixel) : none; };
      __m512i a = at_row(std::integral_constant<int, 0>()), b = at_row(std::integral_constant<int, 1>());
      __m512i c = at_row(std::integral_constant<int, 2>()), d = at_row(std::integral_constant<int, 3>());
      __m512i low = _mm512_unpacklo_epi8(a, b), high = _mm512_unpackhi_epi8(a, b);
      __m512i low_c = _mm512_unpacklo_epi8(c, d), high_c = _mm512_unpackhi_epi8(c, d);
      sum[0] = _mm512_dpbusd_epi32(sum[0], _mm512_unpacklo_epi16(low, low_c), weight[four][column][0]);
      sum[1] = _mm512_dpbusd_epi32(sum[1], _mm512_unpackhi_epi16(low, low_c), weight[four][column][1]);
      sum[2] = _mm512_dpbusd_epi32(sum[2], _mm512_unpacklo_epi16(high, high_c), weight[four][column][2]);
      sum[3] = _mm512_dpbusd_epi32(sum[3], _mm512_unpackhi_epi16(high, high_c), weight[four][column][3]);
    });
    return finish.bytes(sum[0], sum[1], sum[2], sum[3]);
  }
};

}  // namespace

template <int P, int S, class Finish> static void block(const Step& s, const Image& image, Range rows, long c) {
  const Kernel<P, S, Finish> kernel(s, c);
  const uint8_t* in = first_window(s, image) + c;
  for (long y = rows.first; y < rows.last; ++y) {
    const uint8_t* from = in + y * s.stride * s.in.row;
    uint8_t* to = image.out + s.out.at + y * s.out.row + c;
    for (long x = 0; x < s.out.width; x += P) {
      __m512i bytes = kernel.at(from + x * s.stride * s.in.pixel, s.dilation * s.in.row, s.dilation * s.in.pixel,
                                s.stride * s.in.pixel);
      put_pixels<P>(to + x * s.out.pixel, s.out.pixel, bytes, s.out.room - c, s.out.width - x);
    }
  }
}

template <int S, class Finish> static void blocks(const Step& s, const Image& image, Range rows) {
  long c = 0;
  for (; s.out.channels - c > 32; c += 64) block<1, S, Finish>(s, image, rows, c);
  for (; s.out.channels - c > 16; c += 32) block<2, S, Finish>(s, image, rows, c);
  if (c < s.out.channels) block<4, S, Finish>(s, image, rows, c);
}

template <int S> static bool quickly(const Step& s, const Image& image, Range rows) {
  if (s.height != S || s.width != S || !(s.linear || s.activation_table)) return false;
  s.linear ? blocks<S, Linear>(s, image, rows) : blocks<S, ActivationTables>(s, image, rows);
  return true;
}

#endif

#if !defined(NATIVE_AVX2) && !defined(NATIVE_NEON)

void depthwise(const Step& s, const Image& image, Range rows) {
#ifdef NATIVE_AVX512
  if (quickly<3>(s, image, rows) || quickly<5>(s, image, rows) || quickly<1>(s, image, rows)) return;
#endif
  for (long c = 0; c < s.out.channels; c += V) depthwise_plainly(s, image, rows, c);
}

#endif

}  // namespace native
