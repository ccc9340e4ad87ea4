// Convolutions of each channel on its own.
#include "avx512.h"
#include "portable.h"

namespace native {

#ifdef NATIVE_AVX512

namespace {

// The bytes of P pixels in ROWS rows, at most four, side by side in 32 bits: what one instruction multiplies and adds.
template <int P, int ROWS> struct Column {
  __m512i bytes[4];

  INLINE Column(const uint8_t* top, long row, long to_pixel) {
    auto at_row = [&](auto r) INLINE {
      return r < ROWS ? pixels_at<P>(top + r * row, to_pixel) : _mm512_setzero_si512();
    };
    __m512i a = at_row(std::integral_constant<int, 0>()), b = at_row(std::integral_constant<int, 1>());
    __m512i c = at_row(std::integral_constant<int, 2>()), d = at_row(std::integral_constant<int, 3>());
    __m512i low = _mm512_unpacklo_epi8(a, b), high = _mm512_unpackhi_epi8(a, b);
    __m512i low_c = _mm512_unpacklo_epi8(c, d), high_c = _mm512_unpackhi_epi8(c, d);
    bytes[0] = _mm512_unpacklo_epi16(low, low_c), bytes[1] = _mm512_unpackhi_epi16(low, low_c);
    bytes[2] = _mm512_unpacklo_epi16(high, high_c), bytes[3] = _mm512_unpackhi_epi16(high, high_c);
  }
};

// Of windows of S by S.
template <int P, int S, class Finish> struct Kernel {
  static constexpr int FOURS = (S + 3) / 4;
  static constexpr int rows_of(int four) { return std::min(S - 4 * four, 4); }

  Finish finish;
  __m512i weight[FOURS][S][4];

  Kernel(const Step& s, long c) {
    finish.template take_unpacked<P>(s, c);
    const long channels = (s.in.channels + V - 1) / V * V;
    unrolled<FOURS * S>([&](auto i) INLINE {
      constexpr int four = i / S, column = i % S;
      const uint8_t* from = (const uint8_t*)s.weight + (4 * four * S + column) * channels + c;
      std::memcpy(weight[four][column], Column<P, rows_of(four)>(from, S * channels, 0).bytes, sizeof weight[0][0]);
    });
  }

  struct Sums {
    __m512i of[4] = {_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512()};

    template <int ROWS> INLINE void add(const Column<P, ROWS>& column, const __m512i* weight) {
      unrolled<4>([&](auto q) INLINE { of[q] = _mm512_dpbusd_epi32(of[q], column.bytes[q], weight[q]); });
    }
  };

  INLINE __m512i finished(const Sums& sum) const { return finish.bytes(sum.of[0], sum.of[1], sum.of[2], sum.of[3]); }

  __m512i at(const uint8_t* top, long row, long to_column, long to_pixel) const {
    Sums sums;
    unrolled<FOURS * S>([&](auto i) INLINE {
      constexpr int four = i / S, column = i % S;
      const uint8_t* p = top + 4 * four * row + column * to_column;
      sums.add(Column<P, rows_of(four)>(p, row, to_pixel), weight[four][column]);
    });
    return finished(sums);
  }

  // Writes a row of outputs of 3 by 3 windows that are one pixel apart: a column is part of three of them. The P pixels
  // of a vector are as far apart as P can be in a row.
  void row_of_neighbours(const Step& s, const uint8_t* from, uint8_t* to, long room) const {
    const long apart = (s.out.width + P - 1) / P;
    Sums first, second;  // of the output that ends with the next column, and of the one after that
    for (long x = -2; x < apart; ++x, from += s.in.pixel) {
      const Column<P, 3> column(from, s.in.row, apart * s.in.pixel);
      Sums ends = first, begins;
      ends.add(column, weight[0][2]);
      first = second;
      first.add(column, weight[0][1]);
      begins.add(column, weight[0][0]);
      second = begins;
      if (x < 0) continue;
      const long pixels = (s.out.width - x + apart - 1) / apart;
      put_pixels<P>(to + x * s.out.pixel, apart * s.out.pixel, finished(ends), room, pixels);
    }
  }
};

}  // namespace

template <int P, int S, class Finish> static void block(const Step& s, const Image& image, Range rows, long c) {
  const Kernel<P, S, Finish> kernel(s, c);
  const uint8_t* in = first_window(s, image) + c;
  for (long y = rows.first; y < rows.last; ++y) {
    const uint8_t* from = in + y * s.stride * s.in.row;
    uint8_t* to = image.out + s.out.at + y * s.out.row + c;
    if (S == 3 && s.stride == 1 && s.dilation == 1) {
      kernel.row_of_neighbours(s, from, to, s.out.room - c);
      continue;
    }
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
