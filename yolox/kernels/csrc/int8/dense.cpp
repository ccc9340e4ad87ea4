// Convolutions that sum over all channels: tiles of pixels by channels whose sums stay in registers to their end.
#include "avx512.h"
#include "portable.h"

namespace native {

#ifdef NATIVE_AVX512

// Where a tile reads and writes.
struct Tile {
  const uint8_t* in;      // the window of the first pixel
  long in_pixel, in_row;  // from pixel to pixel of the output; from row to row of the window
  uint8_t* out;
  long pixels;            // that are wanted; more are computed
  long y, x;
};

// Sums of 64 channels that are finished while products are added to those of the next tile, so that neither kind of
// instruction waits for the other. Tiles of fewer channels have no registers left for it.
struct Pending {
  __m512i sum[24];
  uint8_t* out;
  long pixels = 0;

  template <class Finish> INLINE void finish(const Step& s, const Finish& finished, long i, long c) const {
    const __m512i* four = sum + 4 * i;
    put(out + i * s.out.pixel, finished.ordered_bytes(four[0], four[1], four[2], four[3]), s.out.room - c);
  }
};

template <int N, class Finish> constexpr bool waits = N == 4 && !std::is_same<Finish, OneByOne>::value;

// The instruction itself, as the compiler would copy sums from register to register around it.
INLINE inline __m512i plus_products(__m512i sum, __m512i bytes, __m512i weights) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(bytes), "v"(weights));
  return sum;
}

// Finishes the sums of a tile's pixels, N vectors each from channel c on, as floats of a matrix.
template <class F> INLINE inline void to_matrix(const Step& s, const Image& image, const vi* sum, long N, const Tile& t,
                                                long c, F activate) {
  const long pixel = s.first_row + t.y * s.out.width + t.x;
  for (long n = 0; n < N; ++n, c += V) {
    const vf multiplier = load(s.multiplier + c), offset = load(s.offset + c);
    float* to = image.result + pixel * s.result.columns + s.first_column + c;
    for (long m = 0; m < t.pixels; ++m, to += s.result.columns)
      put(to, activate(floats(sum[m * N + n]) * multiplier + offset), s.out.channels - c);
  }
}

static void finish_one_by_one(const Step& s, const Image& image, const vi* sum, long N, const Tile& t, long c) {
  const auto gate = [](vf z) { return sigmoid<bf16>(z); };  // most layers that end in a matrix
  if (s.to_matrix && s.choice == SIGMOID) return to_matrix(s, image, sum, N, t, c, gate);
  if (s.to_matrix) return to_matrix(s, image, sum, N, t, c, [&](vf z) { return activated(z, s); });
  for (long m = 0; m < t.pixels; ++m)
    for (long n = 0; n < N; ++n) finish(s, image, sum[m * N + n], t.y, t.x + m, c + n * V);
}

// M pixels by N vectors of 16 channels, from channel c on. `pending` are the sums of the tile before where they wait.
template <int M, int N, class Finish>
static inline void tile(const Step& s, const Image& image, const Finish& finished, const Tile& t, long c,
                        Pending& pending) {
  const long groups = (s.in.channels + 3) / 4, all = s.height * s.width * groups;
  const int8_t* weight = s.weight + c * all * 4;
  __m512i sum[M * N];
  unrolled<M * N>([&](auto i) INLINE { sum[i] = _mm512_setzero_si512(); });
  const uint8_t* in = t.in;
  const long to_pixel = s.dilation * s.in.pixel - groups * 4;
  const long to_row = s.dilation * (t.in_row - s.width * s.in.pixel);
  const long parts = waits<N, Finish> && pending.pixels ? pending.pixels : 1;
  long k = groups, column = s.width;
  for (long part = 0, left = 0; part < parts; ++part) {
    if constexpr (waits<N, Finish>)
      if (part < pending.pixels) pending.finish(s, finished, part, c);
    // one loop in place of three, as the compiler would move the sums about between those
    for (left += all; left >= parts; left -= parts) {
      __m512i w[N];
      unrolled<N>([&](auto n) INLINE { w[n] = _mm512_loadu_si512(weight + n * 64); });
      unrolled<M>([&](auto m) INLINE {
        int32_t four;
        std::memcpy(&four, in + m * t.in_pixel, sizeof four);
        __m512i bytes = _mm512_set1_epi32(four);
        unrolled<N>([&](auto n) INLINE { sum[m * N + n] = plus_products(sum[m * N + n], bytes, w[n]); });
      });
      in += 4;
      weight += 64 * N;
      if (--k == 0) {
        k = groups;
        in += to_pixel;
        if (--column == 0) {
          column = s.width;
          in += to_row;
        }
      }
    }
  }
  if constexpr (waits<N, Finish>) {
    unrolled<M * N>([&](auto i) INLINE { _mm512_store_si512(pending.sum + i, sum[i]); });
    pending.out = t.out, pending.pixels = t.pixels;
    asm volatile("" ::"r"(&pending) : "memory");
    return;
  }
  // From here on the sums are other values to the compiler, and `finished` is not yet in registers.
  unrolled<M * N>([&](auto i) INLINE {
    __m512i one = sum[i];
    asm volatile("" : "+v"(one)::"memory");
    sum[i] = one;
  });
  if constexpr (!std::is_same<Finish, OneByOne>::value) {
    constexpr int P = 4 / N;  // pixels in four vectors of sums
    __m512i bytes[M / P];     // all of them first: without branches in between the compiler mixes their instructions
    unrolled<M / P>([&](auto i) INLINE {
      bytes[i] = finished.ordered_bytes(sum[4 * i], sum[4 * i + 1], sum[4 * i + 2], sum[4 * i + 3]);
    });
    unrolled<M / P>([&](auto i) INLINE {
      if (i * P < t.pixels)
        put_pixels<P>(t.out + i * P * s.out.pixel, s.out.pixel, bytes[i], s.out.room - c, t.pixels - i * P);
    });
  } else {
    alignas(64) vi all[M * N];
    unrolled<M * N>([&](auto i) INLINE { all[i] = (vi)sum[i]; });
    finish_one_by_one(s, image, all, N, t, c);
  }
}

template <int N, class Finish>
static inline void tile_of(int m, const Step& s, const Image& image, const Finish& finished, const Tile& t, long c,
                           Pending& pending) {
  constexpr int P = 4 / N;
  switch (m / P) {
    case 1: return tile<1 * P, N, Finish>(s, image, finished, t, c, pending);
    case 2: return tile<2 * P, N, Finish>(s, image, finished, t, c, pending);
    case 3: return tile<3 * P, N, Finish>(s, image, finished, t, c, pending);
    case 4: return tile<4 * P, N, Finish>(s, image, finished, t, c, pending);
    case 5: return tile<5 * P, N, Finish>(s, image, finished, t, c, pending);
    default: return tile<6 * P, N, Finish>(s, image, finished, t, c, pending);
  }
}

// Whether the pixels of a row follow those of the row before in memory, and each is computed from one: fewer tiles
// remain that are not full, which counts where rows are short.
static bool is_one_row(const Step& s) {
  const bool pointwise = s.height == 1 && s.width == 1 && s.stride == 1 && s.in.width == s.out.width;
  return pointwise && s.in.row == s.out.width * s.in.pixel && (s.to_matrix || s.out.row == s.out.width * s.out.pixel);
}

// N vectors of channels of some rows.
template <int N, class Finish> static void block(const Step& s, const Image& image, Range rows, long c) {
  constexpr long P = 4 / N, most = 6 * P;
  Finish finished;
  finished.template take_ordered<N>(s, c);
  asm volatile("" ::"r"(&finished) : "memory");
  const uint8_t* in = first_window(s, image);
  const long in_pixel = s.stride * s.in.pixel;
  long width = s.out.width;
  Pending pending;
  if (is_one_row(s)) width *= rows.last - rows.first, rows.last = rows.first + 1;
  for (long y = rows.first; y < rows.last; ++y)
    for (long x = 0, left = (width + most - 1) / most; x < width; --left) {
      long m = ((width - x + left - 1) / left + P - 1) / P * P;  // tiles of about the same size
      Tile t{in + y * s.stride * s.in.row + x * in_pixel, in_pixel, s.in.row,
             image.out + s.out.at + y * s.out.row + x * s.out.pixel + c, std::min(m, width - x), y, x};
      tile_of<N, Finish>(int(m), s, image, finished, t, c, pending);
      x += m;
    }
  if constexpr (waits<N, Finish>)
    for (long i = 0; i < pending.pixels; ++i) pending.finish(s, finished, i, c);
}

template <class Finish> static void blocks(const Step& s, const Image& image, Range rows) {
  for (long c = 0, n; c < s.out.channels; c += n * V) {
    n = vectors_from(s, c);
    if (n == 4) block<4, Finish>(s, image, rows, c);
    if (n == 2) block<2, Finish>(s, image, rows, c);
    if (n == 1) block<1, Finish>(s, image, rows, c);
  }
}

void dense(const Step& s, const Image& image, Range rows) {
#ifdef NATIVE_TILES
  if (s.tiles) return dense_with_tiles(s, image, rows);
#endif
  if (s.linear) return blocks<Linear>(s, image, rows);
  s.activation_table ? blocks<ActivationTables>(s, image, rows) : blocks<OneByOne>(s, image, rows);
}

#elif !defined(NATIVE_AVX2) && !defined(NATIVE_NEON)

void dense(const Step& s, const Image& image, Range rows) {
#ifdef NATIVE_TILES
  if (s.tiles) return dense_with_tiles(s, image, rows);
#endif
  for (long c = 0, N; c < s.out.channels; c += N * V) {
    N = vectors_from(s, c);
    for (long n = 0; n < N; ++n) dense_plainly(s, image, rows, c, n, N);
  }
}

#endif

}  // namespace native
