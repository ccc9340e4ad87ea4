// Convolutions of any size on any machine.
#pragma once
#include "finish.h"

namespace native {

// How many vectors of 16 output channels are computed side by side from channel c on; so are their weights arranged:
// [height, width, in / 4, 16 vectors, 4] for channels c ... c + 16 vectors.
inline long vectors_from(const Step& s, long c) {
  long left = (s.out.channels - c + V - 1) / V;
  return left >= 4 ? 4 : left >= 2 ? 2 : 1;
}

// The first pixel of the first window.
inline const uint8_t* first_window(const Step& s, const Image& image) {
  return image.arena + s.in.at - s.above * s.in.row - s.before * s.in.pixel;
}

// Where the window of output pixel (y, x) reads its `tap`; `in` is the first window's first pixel.
inline const uint8_t* window_byte(const Step& s, const uint8_t* in, long y, long x, long tap) {
  return in + (y * s.stride + tap / s.width * s.dilation) * s.in.row +
         (x * s.stride + tap % s.width * s.dilation) * s.in.pixel;
}

// Rows `rows` and vector n of the N beginning with channel c.
inline void dense_plainly(const Step& s, const Image& image, Range rows, long c, long n, long N) {
  long groups = (s.in.channels + 3) / 4;
  const uint8_t* in = first_window(s, image);
  for (long y = rows.first; y < rows.last; ++y)
    for (long x = 0; x < s.out.width; ++x) {
      vi sum = {};
      const int8_t* weight = s.weight + (c * s.height * s.width * groups + n * V) * 4;
      for (long tap = 0; tap < s.height * s.width; ++tap) {
        const uint8_t* pixel = window_byte(s, in, y, x, tap);
        for (long k = 0; k < groups * 4; k += 4, weight += 4 * V * N) {
          vi four;
          std::memcpy(&four, weight, sizeof four);
          sum += (four << 24 >> 24) * int(pixel[k]) + (four << 16 >> 24) * int(pixel[k + 1]);
          sum += (four << 8 >> 24) * int(pixel[k + 2]) + (four >> 24) * int(pixel[k + 3]);
        }
      }
      finish(s, image, sum, y, x, c + n * V);
    }
}

// Rows `rows` and channels c ... c + 16 of a depthwise convolution; weights are [height, width, channels].
inline void depthwise_plainly(const Step& s, const Image& image, Range rows, long c) {
  const uint8_t* in = first_window(s, image) + c;
  long channels = (s.in.channels + V - 1) / V * V;
  for (long y = rows.first; y < rows.last; ++y)
    for (long x = 0; x < s.out.width; ++x) {
      vi sum = {};
      for (long tap = 0; tap < s.height * s.width; ++tap) {
        const uint8_t* pixel = window_byte(s, in, y, x, tap);
        sum += widened(pixel) * widened(s.weight + tap * channels + c);
      }
      finish(s, image, sum, y, x, c);
    }
}

}  // namespace native
