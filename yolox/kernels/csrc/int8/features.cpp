// Steps between features that are not convolutions.
#include "avx512.h"

namespace native {

// Fills the `padding` pixels around a feature with the bytes `zero` of one pixel; rows count from the border's first.
void border(const Step& s, const Image& image, Range rows) {
  const Feature& f = s.out;
  const uint8_t* zero = (const uint8_t*)s.weight;
  uint8_t* pixels = image.out + f.at;
  auto fill = [&](long y, long first, long last) {
    for (long x = first; x < last; ++x) std::memcpy(pixels + y * f.row + x * f.pixel, zero, f.pixel);
  };
  for (long y = rows.first - s.padding; y < rows.last - s.padding; ++y) {
    if (y < 0 || y >= f.height) {
      fill(y, -s.padding, f.width + s.padding);
    } else {
      fill(y, -s.padding, 0);
      fill(y, f.width, f.width + s.padding);
    }
  }
}

// The largest bytes of a window, as many channels as T has.
template <class T> INLINE inline T largest(const Feature& in, const uint8_t* from, long down, long across) {
  T best = {};
  for (long k = 0; k < down; ++k)
    for (long i = 0; i < across; ++i) {
      T v;
      std::memcpy(&v, from + k * in.row + i * in.pixel, sizeof v);
      best = best > v ? best : v;
    }
  return best;
}

// The part of the window of output row or column `i` that is inside.
inline Range inside(long i, long stride, long before, long size, long length) {
  long first = i * stride - before;
  return {std::max(first, 0L), std::min(first + size, length)};
}

// Calls work(from, to, down, across) for each output pixel: the part of its window that is inside begins at `from` and
// has `down` rows of `across` pixels; the output pixel begins at `to`.
template <class F> INLINE inline void each_window(const Step& s, const Image& image, Range rows, F work) {
  const Feature &in = s.in, &out = s.out;
  for (long y = rows.first; y < rows.last; ++y) {
    const Range down = inside(y, s.stride, s.above, s.height, in.height);
    for (long x = 0; x < out.width; ++x) {
      const Range across = inside(x, s.stride, s.before, s.width, in.width);
      work(image.arena + in.at + down.first * in.row + across.first * in.pixel,
           image.out + out.at + y * out.row + x * out.pixel, down.last - down.first, across.last - across.first);
    }
  }
}

void pool(const Step& s, const Image& image, Range rows) {
  const Feature& in = s.in;
  each_window(s, image, rows, [&](const uint8_t* from, uint8_t* to, long down, long across) INLINE {
    long c = 0;
#ifdef __AVX512F__
    typedef uint8_t line __attribute__((vector_size(64)));
    for (; in.channels - c >= 64; c += 64) {
      const line best = largest<line>(in, from + c, down, across);
      std::memcpy(to + c, &best, sizeof best);
    }
#endif
    for (; c < in.channels; c += V) put(to + c, largest<vb>(in, from + c, down, across), s.out.room - c);
  });
}

// What the bytes outside would add is nothing: their real value is zero, and the zeros of those inside are taken out.
void average(const Step& s, const Image& image, Range rows) {
  const Feature& in = s.in;
  each_window(s, image, rows, [&](const uint8_t* from, uint8_t* to, long down, long across) INLINE {
    const long pixels = down * across;
    const float share = 1.0f / float(s.choice ? s.height * s.width : pixels), count = float(pixels);
    for (long c = 0; c < in.channels; c += V) {
      vi sum = {};
      for (long k = 0; k < down; ++k)
        for (long i = 0; i < across; ++i) sum += widened(from + k * in.row + i * in.pixel + c);
      vf mean = (floats(sum) - load(s.other_multiplier + c) * count) * share;
      put(to + c, rounded(mean * load(s.multiplier + c) + load(s.offset + c)), s.out.room - c);
    }
  });
}

void upsample(const Step& s, const Image& image, Range rows) {
  const Feature &in = s.in, &out = s.out;
  for (long y = rows.first; y < rows.last; ++y)
    for (long x = 0; x < in.width; ++x) {
      const uint8_t* from = image.arena + in.at + y / s.size * in.row + x * in.pixel;
      uint8_t* to = image.out + out.at + y * out.row + x * s.size * out.pixel;
      for (long k = 0; k < s.size; ++k) std::memcpy(to + k * out.pixel, from, in.channels);
    }
}

#ifdef NATIVE_AVX512

// P pixels of 64 / P channels from c on at a time.
template <int P> static void add_block(const Step& s, const Image& image, Range rows, long c) {
  const Feature& out = s.out;
  Linear finish;
  finish.take_unpacked<P>(s, c);
  __m512 other[4];
  unrolled<4>([&](auto q) INLINE { other[q] = (__m512)unpacked<P>(s.other_multiplier + c, 4 * q); });
  const __m512i none = _mm512_setzero_si512();
  auto floats = [&](__m512i bytes, int q) INLINE {
    __m512i words = q < 2 ? _mm512_unpacklo_epi8(bytes, none) : _mm512_unpackhi_epi8(bytes, none);
    return _mm512_cvtepi32_ps(q % 2 ? _mm512_unpackhi_epi16(words, none) : _mm512_unpacklo_epi16(words, none));
  };
  for (long y = rows.first; y < rows.last; ++y) {
    const uint8_t* left = image.arena + s.in.at + y * s.in.row + c;
    const uint8_t* right = image.arena + s.other.at + y * s.other.row + c;
    uint8_t* to = image.out + out.at + y * out.row + c;
    for (long x = 0; x < out.width; x += P) {
      const __m512i a = pixels_at<P>(left + x * s.in.pixel, s.in.pixel);
      const __m512i b = pixels_at<P>(right + x * s.other.pixel, s.other.pixel);
      __m512i sum[4];
      unrolled<4>([&](auto q) INLINE {
        const __m512 from_left = _mm512_fmadd_ps(floats(a, q), finish.multiplier[q], finish.offset[q]);
        sum[q] = _mm512_cvtps_epi32(_mm512_fmadd_ps(floats(b, q), other[q], from_left));
      });
      const __m512i bytes = Linear::packed(sum[0], sum[1], sum[2], sum[3]);
      put_pixels<P>(to + x * out.pixel, out.pixel, bytes, out.room - c, out.width - x);
    }
  }
}

void add(const Step& s, const Image& image, Range rows) {
  long c = 0;
  for (; s.out.channels - c > 32; c += 64) add_block<1>(s, image, rows, c);
  for (; s.out.channels - c > 16; c += 32) add_block<2>(s, image, rows, c);
  if (c < s.out.channels) add_block<4>(s, image, rows, c);
}

#else

// The zeros of both operands are part of `offset`.
void add(const Step& s, const Image& image, Range rows) {
  const Feature& out = s.out;
  for (long y = rows.first; y < rows.last; ++y)
    for (long x = 0; x < out.width; ++x) {
      const uint8_t* left = image.arena + s.in.at + y * s.in.row + x * s.in.pixel;
      const uint8_t* right = image.arena + s.other.at + y * s.other.row + x * s.other.pixel;
      uint8_t* to = image.out + out.at + y * out.row + x * out.pixel;
      for (long c = 0; c < out.channels; c += V) {
        vf sum = floats(widened(left + c)) * load(s.multiplier + c) + load(s.offset + c);
        sum += floats(widened(right + c)) * load(s.other_multiplier + c);
        put(to + c, rounded(sum), out.room - c);
      }
    }
}

#endif

// Of two features, or of one and a pixel whose distances to the next ones are zero.
void multiply(const Step& s, const Image& image, Range rows) {
  const Feature& out = s.out;
  for (long y = rows.first; y < rows.last; ++y)
    for (long c = 0; c < out.channels; c += V) {
      const vf left_zero = load(s.other_multiplier + c), right_zero = load(s.inverse + c);
      const vf multiplier = load(s.multiplier + c), zero = load(s.zero + c);
      const uint8_t* left = image.arena + s.in.at + y * s.in.row + c;
      const uint8_t* right = image.arena + s.other.at + y * s.other.row + c;
      uint8_t* to = image.out + out.at + y * out.row + c;
      for (long x = 0; x < out.width; ++x, left += s.in.pixel, right += s.other.pixel, to += out.pixel) {
        vf product = (floats(widened(left)) - left_zero) * ((floats(widened(right)) - right_zero) * multiplier);
        put(to, rounded(product + zero), out.room - c);
      }
    }
}

// `order` holds two rows for each row, then two columns for each column; `multiplier` the share of the second ones.
void resize(const Step& s, const Image& image, Range rows) {
  const Feature &in = s.in, &out = s.out;
  const int32_t *row = s.order, *column = s.order + 2 * out.height;
  const float *row_share = s.multiplier, *column_share = s.multiplier + out.height;
  for (long y = rows.first; y < rows.last; ++y) {
    const uint8_t* upper = image.arena + in.at + row[y] * in.row;
    const uint8_t* lower = image.arena + in.at + row[out.height + y] * in.row;
    const float down = row_share[y];
    for (long x = 0; x < out.width; ++x) {
      const long left = column[x] * in.pixel, right = column[out.width + x] * in.pixel;
      const float across = column_share[x];
      uint8_t* to = image.out + out.at + y * out.row + x * out.pixel;
      for (long c = 0; c < in.channels; c += V) {
        auto mixed = [&](long at) {
          vf a = floats(widened(upper + at + c)), b = floats(widened(lower + at + c));
          return a + (b - a) * down;
        };
        vf a = mixed(left), b = mixed(right);
        put(to + c, rounded(a + (b - a) * across), out.room - c);
      }
    }
  }
}

}  // namespace native
