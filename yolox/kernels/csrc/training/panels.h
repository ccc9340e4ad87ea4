// What convolutions by products of matrices share: panels of 32 pixels, and what becomes of the products.
#pragma once
#include "normalisation.h"

namespace {

constexpr long SIDE = 32;  // pixels of a panel; matrices are padded to multiples of it

inline long padded(long count) { return (count + SIDE - 1) / SIDE * SIDE; }

constexpr long AHEAD = 2 * SIDE;  // pixels that are asked for before they are needed

inline long panels_of(long pixels) { return padded(pixels) / SIDE; }

// A tensor whose channels lie in one or two places, each perhaps some of the channels of a wider tensor: `stride`
// numbers from pixel to pixel, the first `split` channels in the first place. Unless all is side by side, vectors must
// not cross pixels or places: the numbers of channels are multiples of V.
template <class T>
struct SplitTensor {
  T* first;
  long first_stride;
  T* second;
  long second_stride, split;
  long step(long channel) const { return channel < split ? first_stride : second_stride; }
  T* at(long pixel, long channel) const {
    return channel < split ? first + pixel * first_stride + channel : second + pixel * second_stride + channel - split;
  }
  Pixels<T> pixels(long pixel, long channel) const { return {at(pixel, channel), step(channel)}; }
};

// 32 rows of numbers that a thread keeps in its cache; columns beyond the channels, and rows beyond the pixels, are 0.
template <class T>
struct Rows {
  long width;
  Aligned<T> numbers;
  explicit Rows(long channels, long panels = 1) : width(padded(channels)), numbers(panels * SIDE * width) {}
  T* at(long row, long column) const { return &numbers[row * width + column]; }
  Pixels<T> pixels(long row, long column) const { return {at(row, column), width}; }
  void clear(long first, long last) const { std::fill(at(first, 0), at(last, 0), T{}); }
};

// 32 pixels by 32 channels lie together: with wide rows the same channels of all pixels would be in few places of the
// cache.
class Blocks {
  Aligned<float> numbers;

 public:
  explicit Blocks(long channels) : numbers(SIDE * padded(channels), false) {}
  Pixels<float> pixels(long channel) const {
    return {&numbers[channel / SIDE * SIDE * SIDE + channel % SIDE], SIDE};
  }
};

// How a type's matrices are multiplied: see tiles.h and float_products.h.
template <class T>
struct Products;

// Stores 32 columns of a product, or as many as there are, as those of y, and adds up what was stored.
template <class T>
inline void keep(const float* product, const float* bias, long first, long count, const SplitTensor<T>& y, long column,
                 long outputs, Sums& sums) {
  for (long c = column; c < std::min(column + SIDE, outputs); c += V) {
    const vf more = bias ? load(bias + c) : vf{};
    StoreAndSum<T> done{y.pixels(first, c)};
    const float* value = product + (c - column);
    by_rows(count, [&](long row, auto number) {
      constexpr long R = number.value;
      EACH done(row + r, load(value + (row + r) * SIDE) + more, r % LANES);
    });
    done.end(sums, c);
  }
}

// Adds up the gradients of weights of all threads, each padded to whole tiles.
inline void add_up(const Aligned<float>& threads, long num_threads, long outputs, long inputs, float* dweight) {
  const long wide = padded(inputs), size = padded(outputs) * wide;
#pragma omp parallel for
  for (long n = 0; n < outputs; ++n) {
    float* row = dweight + n * inputs;
    std::fill(row, row + inputs, 0);
    for (long t = 0; t < num_threads; ++t)
      for (long k = 0; k < inputs; ++k) row[k] += threads[t * size + n * wide + k];
  }
}

}  // namespace
