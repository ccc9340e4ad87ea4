// Convolutions that sum over all channels: tiles of pixels by channels whose sums stay in registers to their end.
#include "fast.h"
#include "portable.h"

namespace native {

#ifdef NATIVE_FAST

// Where a tile reads and writes.
struct Tile {
  const uint8_t* in;      // the window of the first pixel
  long in_pixel, in_row;  // from pixel to pixel of the output; from row to row of the window
  uint8_t* out;
  long pixels;            // that are wanted; more are computed
  long y, x;
};

// M pixels by N vectors of 16 channels, from channel c on.
template <int M, int N>
inline void tile(const Step& s, const Image& image, const Curves* curves, const Tile& t, long c) {
  const long groups = (s.in.channels + 3) / 4, vector = s.size * s.size * groups * 64;
  const int8_t* weight = s.weight + c / 16 * vector;
  __m512i sum[M * N];
#pragma GCC unroll 24
  for (int i = 0; i < M * N; ++i) sum[i] = _mm512_setzero_si512();
  for (long ky = 0; ky < s.size; ++ky)
    for (long kx = 0; kx < s.size; ++kx) {
      const uint8_t* in = t.in + ky * t.in_row + kx * s.in.pixel;
      for (long k = 0; k < groups; ++k, in += 4, weight += 64) {
        __m512i w[N];
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) w[n] = _mm512_loadu_si512(weight + n * vector);
#pragma GCC unroll 24
        for (int m = 0; m < M; ++m) {
          int32_t four;
          std::memcpy(&four, in + m * t.in_pixel, sizeof four);
          __m512i bytes = _mm512_set1_epi32(four);
#pragma GCC unroll 4
          for (int n = 0; n < N; ++n) sum[m * N + n] = _mm512_dpbusd_epi32(sum[m * N + n], bytes, w[n]);
        }
      }
    }
  if (curves) {
    constexpr int P = 4 / N;  // pixels in four vectors of sums
#pragma GCC unroll 8
    for (int m = 0; m < M; m += P) {
      const __m512i* four = sum + m * N;
      __m512i bytes = curves->ordered_bytes(four[0], four[1], four[2], four[3]);
      if (m < t.pixels)
        put_pixels<P>(t.out + m * s.out.pixel, s.out.pixel, bytes, s.out.room - c, t.pixels - m);
    }
  } else {
    for (int m = 0; m < M && m < t.pixels; ++m)
      for (int n = 0; n < N; ++n) finish(s, image, (vi)sum[m * N + n], t.y, t.x + m, c + n * 16);
  }
}

template <int N> inline void tile_of(int m, const Step& s, const Image& image, const Curves* curves, const Tile& t, long c) {
  constexpr int P = 4 / N;
  switch (m / P) {
    case 1: return tile<1 * P, N>(s, image, curves, t, c);
    case 2: return tile<2 * P, N>(s, image, curves, t, c);
    case 3: return tile<3 * P, N>(s, image, curves, t, c);
    case 4: return tile<4 * P, N>(s, image, curves, t, c);
    case 5: return tile<5 * P, N>(s, image, curves, t, c);
    default: return tile<6 * P, N>(s, image, curves, t, c);
  }
}

// N vectors of channels of some rows.
template <int N> static void block(const Step& s, const Image& image, Range rows, long c) {
  constexpr long P = 4 / N, most = 6 * P;
  Curves* curves = nullptr;
  alignas(64) char memory[sizeof(Curves)];
  if (s.curve) {
    curves = new (memory) Curves(*s.curve);
    curves->take_ordered<N>(*s.curve, c);
  }
  const uint8_t* in = image.arena + s.in.at - s.padding * (s.in.row + s.in.pixel);
  const long in_pixel = s.stride * s.in.pixel, width = s.out.width;
  for (long y = rows.first; y < rows.last; ++y)
    for (long x = 0, left = (width + most - 1) / most; x < width; --left) {
      long m = ((width - x + left - 1) / left + P - 1) / P * P;  // tiles of about the same size
      Tile t{in + y * s.stride * s.in.row + x * in_pixel, in_pixel, s.in.row,
             image.arena + s.out.at + y * s.out.row + x * s.out.pixel + c, std::min(m, width - x), y, x};
      tile_of<N>(int(m), s, image, curves, t, c);
      x += m;
    }
}

void dense(const Step& s, const Image& image, Team team) {
  Range rows = team.share(s.out.height);
  long c = 0;
  for (; s.out.channels - c > 48; c += 64) block<4>(s, image, rows, c);
  for (; s.out.channels - c > 16; c += 32) block<2>(s, image, rows, c);
  if (c < s.out.channels) block<1>(s, image, rows, c);
}

#else

void dense(const Step& s, const Image& image, Team team) {
  Range rows = team.share(s.out.height);
  for (long c = 0; c < s.out.channels; c += V) dense_plainly(s, image, rows, c);
}

#endif

}  // namespace native
