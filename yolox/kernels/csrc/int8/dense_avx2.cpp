// Convolutions that sum over all channels, with AVX2: tiles of pixels by 16 channels whose sums stay in registers.
#include "avx2.h"
#ifdef NATIVE_AVX2

namespace native {

namespace {

// 16 channels of the output: what is multiplied, in order. `at` are the bytes from the window's first to the four that
// `weight` is for.
template <class Ch> struct Block {
  const int8_t* weight;
  const int32_t* at;
  long count, c;
  Ch channels;
};

// In place of the tables where sums are finished 16 after another.
struct NoChannels {
  void take_ordered(const Step&, long) {}
};
struct OneByOne {
  void take(const Step&) {}
};

// Where a tile reads and writes.
struct Tile {
  const uint8_t* in;
  uint8_t* out;
  long pixels;  // that are wanted; more are computed
  long y, x;
};

}  // namespace

// Two products that are added in 16 bits do not overflow, as the weights were split where they would: see packing.py.
// The last instruction is written out, as the compiler would copy sums from register to register around it.
INLINE inline __m256i plus_products(__m256i sum, __m256i bytes, __m256i weights) {
#ifdef __AVXVNNI__
  asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(bytes), "x"(weights));
#else
  __m256i fours = _mm256_madd_epi16(_mm256_maddubs_epi16(bytes, weights), _mm256_set1_epi16(1));
  asm("vpaddd %1, %0, %0" : "+x"(sum) : "x"(fours));
#endif
  return sum;
}

// M pixels by 16 channels.
template <int M, class Tables, class Ch>
static inline void tile(const Step& s, const Image& image, const Tables& tables, const Block<Ch>& b, const Tile& t) {
  const long in_pixel = s.stride * s.in.pixel;
  const int8_t* weight = b.weight;
  __m256i sum[2 * M];
  unrolled<2 * M>([&](auto i) INLINE { sum[i] = _mm256_setzero_si256(); });
  for (long k = 0; k < b.count; ++k, weight += 64) {
    const uint8_t* in = t.in + b.at[k];
    __m256i w[2] = {_mm256_load_si256((const __m256i*)weight), _mm256_load_si256((const __m256i*)weight + 1)};
    unrolled<M>([&](auto m) INLINE {
      int32_t four;
      std::memcpy(&four, in + m * in_pixel, sizeof four);
      __m256i bytes = _mm256_set1_epi32(four);
      unrolled<2>([&](auto n) INLINE { sum[2 * m + n] = plus_products(sum[2 * m + n], bytes, w[n]); });
    });
  }
  // From here on the sums are other values to the compiler, and `tables` is not yet in registers.
  unrolled<2 * M>([&](auto i) INLINE {
    __m256i one = sum[i];
    asm volatile("" : "+x"(one)::"memory");
    sum[i] = one;
  });
  if constexpr (!std::is_same<Tables, OneByOne>::value) {
    __m256i bytes[M / 2];
    tables.template bytes<M / 2>(sum, b.channels, bytes);
    unrolled<M / 2>([&](auto i) INLINE {
      __m256i ordered = _mm256_permute4x64_epi64(bytes[i], 0xd8);
      if (2 * i < t.pixels)
        put_pixels<2>(t.out + 2 * i * s.out.pixel, s.out.pixel, ordered, s.out.room - b.c, t.pixels - 2 * i);
    });
  } else {
    unrolled<M>([&](auto m) INLINE {
      if (m < t.pixels) finish(s, image, sum + 2 * m, t.y, t.x + m, b.c);
    });
  }
}

// All channels of row after row: the row that is read stays in the nearest cache.
template <class Tables, class Ch> static void rows_of(const Step& s, const Image& image, Range rows) {
  Tables tables;
  tables.take(s);
  const long blocks = (s.out.channels + V - 1) / V, in_pixel = s.stride * s.in.pixel;
  const int32_t *first = s.order, *at = s.order + blocks + 1;
  for (long y = rows.first; y < rows.last; ++y) {
    const uint8_t* in = image.arena + s.in.at + (y * s.stride - s.above) * s.in.row - s.before * s.in.pixel;
    uint8_t* out = image.out + s.out.at + y * s.out.row;
    for (long i = 0; i < blocks; ++i) {
      Block<Ch> b{s.weight + first[i] * 64, at + first[i], first[i + 1] - first[i], i * V, {}};
      b.channels.take_ordered(s, b.c);
      for (long x = 0; x < s.out.width; x += 4) {
        Tile t{in + x * in_pixel, out + x * s.out.pixel + b.c, s.out.width - x, y, x};
        if (t.pixels > 2) tile<4>(s, image, tables, b, t);
        else tile<2>(s, image, tables, b, t);
      }
    }
  }
}

void dense(const Step& s, const Image& image, Range rows) {
  if (s.linear) return rows_of<Linear, LinearChannels>(s, image, rows);
  s.activation_table ? rows_of<Cubics, Channels>(s, image, rows) : rows_of<OneByOne, NoChannels>(s, image, rows);
}

}  // namespace native
#endif
