// Convolutions of each channel on its own, with AVX2.
#include "avx2.h"
#include "portable.h"
#ifdef NATIVE_AVX2

namespace native {

namespace {

constexpr int PAIRS = 5;  // of the nine products of a 3x3 window, the last one with none

// 16 channels. Bytes become 16 bits, so that two products are added without overflow, whatever the weights.
struct Kernel {
  Channels channels;
  __m256i weight[PAIRS][2];

  Kernel(const Step& s, long c) {
    channels.take(*s.curve, c);
    long all = (s.in.channels + V - 1) / V * V;
    for (int p = 0; p < PAIRS; ++p) {
      __m256i a = words(s.weight + 2 * p * all + c);
      __m256i b = 2 * p + 1 < 9 ? words(s.weight + (2 * p + 1) * all + c) : _mm256_setzero_si256();
      weight[p][0] = _mm256_unpacklo_epi16(a, b);
      weight[p][1] = _mm256_unpackhi_epi16(a, b);
    }
  }

  static __m256i words(const int8_t* p) { return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)p)); }
  static __m256i words(const uint8_t* p) { return _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)p)); }

  INLINE void sums(const uint8_t* in, long row, long pixel, __m256i* sum) const {
    sum[0] = sum[1] = _mm256_setzero_si256();
    unrolled<PAIRS>([&](auto p) INLINE {
      constexpr int one = 2 * p, two = 2 * p + 1;
      __m256i a = words(in + one / 3 * row + one % 3 * pixel);
      __m256i b = two < 9 ? words(in + two / 3 * row + two % 3 * pixel) : _mm256_setzero_si256();
      sum[0] = _mm256_add_epi32(sum[0], _mm256_madd_epi16(_mm256_unpacklo_epi16(a, b), weight[p][0]));
      sum[1] = _mm256_add_epi32(sum[1], _mm256_madd_epi16(_mm256_unpackhi_epi16(a, b), weight[p][1]));
    });
  }
};

}  // namespace

static void three_by_three(const Step& s, const Image& image, Range rows) {
  Cubics cubics;
  cubics.take(*s.curve);
  std::vector<Kernel> kernels;
  for (long c = 0; c < s.out.channels; c += V) kernels.emplace_back(s, c);
  const uint8_t* in = image.arena + s.in.at - s.padding * (s.in.row + s.in.pixel);
  for (long y = rows.first; y < rows.last; ++y)
    for (long c = 0; c < s.out.channels; c += V) {
      const Kernel& kernel = kernels[c / V];
      const uint8_t* from = in + y * s.stride * s.in.row + c;
      uint8_t* to = image.arena + s.out.at + y * s.out.row + c;
      for (long x = 0; x < s.out.width; x += 2) {
        __m256i sum[4];
        unrolled<2>([&](auto i) INLINE {
          kernel.sums(from + (x + i) * s.stride * s.in.pixel, s.in.row, s.in.pixel, sum + 2 * i);
        });
        __m256i bytes = cubics.bytes(sum, kernel.channels);
        put_pixels(to + x * s.out.pixel, s.out.pixel, bytes, s.out.room - c, s.out.width - x);
      }
    }
}

void depthwise(const Step& s, const Image& image, Team team) {
  Range rows = team.share(s.out.height);
  if (s.curve && s.size == 3) return three_by_three(s, image, rows);
  for (long c = 0; c < s.out.channels; c += V) depthwise_plainly(s, image, rows, c);
}

}  // namespace native
#endif
