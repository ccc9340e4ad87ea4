// What convolutions by products of matrices share: panels of 32 pixels, and what becomes of the products.
#pragma once
#include "normalisation.h"
#include "tiles.h"

#ifdef __AVX512BF16__
namespace {

// 32 rows of numbers that a thread keeps in its cache; columns beyond the channels, and rows beyond the pixels, are 0.
template <class T>
struct Rows {
  long width;
  Aligned<T> numbers;
  explicit Rows(long channels, long panels = 1) : width(padded(channels)), numbers(panels * SIDE * width) {}
  T* at(long row, long column) const { return &numbers[row * width + column]; }
  void clear(long first, long last) const { std::fill(at(first, 0), at(last, 0), T{}); }
};

inline Left left_of(const Rows<bf16>& rows, long panel) {
  return {rows.at(panel * SIDE, 0), rows.at(panel * SIDE + 16, 0), rows.width, SIDE};
}

// Stores a product as a panel of y, and adds up what was stored.
inline void keep(const Rows<float>& product, const float* bias, long first, long count, const Places<bf16>& y,
                 long outputs, Sums& sums) {
  for (long c = 0; c < outputs; c += V) {
    vf sum = {}, squares = {}, more = bias ? load(bias + c) : vf{};
    bf16* to = y.at(first, c);
    const long step = y.step(c);
    for (long r = 0; r < count; ++r) {
      vf value = stored(to + r * step, load(product.at(r, c)) + more);
      sum += value;
      squares += value * value;
    }
    sums.add(c, sum, squares);
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
#endif
