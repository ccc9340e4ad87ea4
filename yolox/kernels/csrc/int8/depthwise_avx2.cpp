// Convolutions of each channel on its own, with AVX2.
#include "avx2.h"
#include "portable.h"
#ifdef NATIVE_AVX2

namespace native {

// P pixels of 32 / P channels, `pixel` bytes from one to the next.
template <int P> INLINE inline __m256i pixels_at(const uint8_t* p, long pixel) {
  if (P == 1 || pixel == 16) return _mm256_loadu_si256((const __m256i*)p);
  return _mm256_loadu2_m128i((const __m128i*)(p + pixel), (const __m128i*)p);
}

namespace {

// S by S. Of the products of a window two are added at a time, the last one to none. Bytes become 16 bits before, so
// that there is no overflow, whatever the weights.
template <int P, int S, class Ch> struct Kernel {
  static constexpr int TAPS = S * S, PAIRS = (TAPS + 1) / 2;

  Ch channels;
  __m256i weight[PAIRS][4];

  Kernel(const Step& s, long c) {
    channels.template take_unpacked<P>(s, c);
    long all = (s.in.channels + V - 1) / V * V;
    int16_t* to = (int16_t*)weight;
    for (long pair = 0; pair < PAIRS; ++pair)
      for (long q = 0; q < 4; ++q)
        for (long i = 0; i < 16; ++i) {
          long tap = 2 * pair + i % 2, from = c + (i / 8 * 16 + q * 4 + i % 8 / 2) % (32 / P);
          *to++ = tap < TAPS && from < all ? s.weight[tap * all + from] : 0;
        }
  }

  INLINE void sums(const uint8_t* in, long row, long to_column, long to_pixel, __m256i* sum) const {
    const __m256i none = _mm256_setzero_si256();
    auto tap = [&](int i) INLINE { return pixels_at<P>(in + i / S * row + i % S * to_column, to_pixel); };
    auto plus = [&](int q, __m256i two, __m256i w) INLINE {
      sum[q] = _mm256_add_epi32(sum[q], _mm256_madd_epi16(two, w));
    };
    sum[0] = sum[1] = sum[2] = sum[3] = none;
    unrolled<PAIRS>([&](auto p) INLINE {
      __m256i a = tap(2 * p), b = 2 * p + 1 < TAPS ? tap(2 * p + 1) : none;
      __m256i low = _mm256_unpacklo_epi8(a, b), high = _mm256_unpackhi_epi8(a, b);
      plus(0, _mm256_unpacklo_epi8(low, none), weight[p][0]);
      plus(1, _mm256_unpackhi_epi8(low, none), weight[p][1]);
      plus(2, _mm256_unpacklo_epi8(high, none), weight[p][2]);
      plus(3, _mm256_unpackhi_epi8(high, none), weight[p][3]);
    });
  }
};

}  // namespace

template <int P, int S, class Tables, class Ch>
static void block(const Step& s, const Image& image, const Tables& tables, Range rows, long c) {
  const Kernel<P, S, Ch> kernel(s, c);
  const uint8_t* in = first_window(s, image) + c;
  const long to_pixel = s.stride * s.in.pixel;
  for (long y = rows.first; y < rows.last; ++y) {
    const uint8_t* from = in + y * s.stride * s.in.row;
    uint8_t* to = image.out + s.out.at + y * s.out.row + c;
    for (long x = 0; x < s.out.width; x += 2 * P) {
      __m256i sum[8], bytes[2];
      unrolled<2>([&](auto i) INLINE {
        const uint8_t* first = from + (x + i * P) * to_pixel;
        kernel.sums(first, s.dilation * s.in.row, s.dilation * s.in.pixel, to_pixel, sum + 4 * i);
      });
      tables.template bytes<2>(sum, kernel.channels, bytes);
      for (long i = 0; i < 2 && x + i * P < s.out.width; ++i)
        put_pixels<P>(to + (x + i * P) * s.out.pixel, s.out.pixel, bytes[i], s.out.room - c, s.out.width - x - i * P);
    }
  }
}

template <int S, class Tables, class Ch> static void blocks(const Step& s, const Image& image, Range rows) {
  Tables tables;
  tables.take(s);
  long c = 0;
  for (; s.out.channels - c > 16; c += 32) block<1, S, Tables, Ch>(s, image, tables, rows, c);
  if (c < s.out.channels) block<2, S, Tables, Ch>(s, image, tables, rows, c);
}

template <int S> static bool quickly(const Step& s, const Image& image, Range rows) {
  if (s.height != S || s.width != S || !(s.linear || s.activation_table)) return false;
  s.linear ? blocks<S, Linear, LinearChannels>(s, image, rows) : blocks<S, Cubics, Channels>(s, image, rows);
  return true;
}

void depthwise(const Step& s, const Image& image, Range rows) {
  if (quickly<3>(s, image, rows) || quickly<5>(s, image, rows) || quickly<1>(s, image, rows)) return;
  for (long c = 0; c < s.out.channels; c += V) depthwise_plainly(s, image, rows, c);
}

}  // namespace native
#endif
