// Steps between features that are not convolutions.
#include "finish.h"

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

inline vb larger(vb a, vb b) { return a > b ? a : b; }

inline vb bytes_at(const uint8_t* p) {
  vb v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

// Rows and columns beyond the border are replaced by the last ones, which are in the window anyway.
void pool(const Step& s, const Image& image, Range rows) {
  const Feature &in = s.in, &out = s.out;
  long half = s.size / 2;
  std::vector<vb> column(in.width);
  for (long y = rows.first; y < rows.last; ++y)
    for (long c = 0; c < in.channels; c += V) {
      for (long x = 0; x < in.width; ++x) {
        vb best = {};
        for (long k = std::max(y - half, 0L); k <= std::min(y + half, long(in.height) - 1); ++k)
          best = larger(best, bytes_at(image.arena + in.at + k * in.row + x * in.pixel + c));
        column[x] = best;
      }
      for (long x = 0; x < in.width; ++x) {
        vb best = {};
        for (long k = std::max(x - half, 0L); k <= std::min(x + half, long(in.width) - 1); ++k)
          best = larger(best, column[k]);
        put(image.out + out.at + y * out.row + x * out.pixel + c, best, out.room - c);
      }
    }
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

}  // namespace native
