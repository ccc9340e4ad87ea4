// What convolutions by products of matrices share: panels of 32 pixels, and what becomes of the products.
#pragma once
#include "normalisation.h"
#include <cstdlib>
#include <memory>
#include <new>

namespace {

constexpr long SIDE = 32;  // pixels of a panel; matrices are padded to multiples of it

inline long padded(long count) { return (count + SIDE - 1) / SIDE * SIDE; }

// Numbers that begin where a line of the cache does: rows of 64 bytes in two lines each take twice as long.
template <class T>
class Aligned {
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  std::unique_ptr<T, Free> memory;

 public:
  long size;
  explicit Aligned(long count, bool cleared = true)
      : memory((T*)std::aligned_alloc(64, (count * sizeof(T) / 64 + 1) * 64)), size(count) {
    if (!memory) throw std::bad_alloc();
    if (cleared) std::fill(begin(), end(), T{});
  }
  T* begin() const { return memory.get(); }
  T* end() const { return begin() + size; }
  T& operator[](long i) const { return begin()[i]; }
};

constexpr long AHEAD = 4 * SIDE;  // pixels that are asked for before they are needed

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
};

// 32 rows of numbers that a thread keeps in its cache; columns beyond the channels, and rows beyond the pixels, are 0.
template <class T>
struct Rows {
  long width;
  Aligned<T> numbers;
  explicit Rows(long channels, long panels = 1) : width(padded(channels)), numbers(panels * SIDE * width) {}
  T* at(long row, long column) const { return &numbers[row * width + column]; }
  void clear(long first, long last) const { std::fill(at(first, 0), at(last, 0), T{}); }
};

// How a type's matrices are multiplied: see tiles.h and float_products.h.
template <class T>
struct Products;

// Stores a product as a panel of y, and adds up what was stored.
template <class T>
inline void keep(const Rows<float>& product, const float* bias, long first, long count, const SplitTensor<T>& y,
                 long outputs,
                 Sums& sums) {
  const long width = product.width;
  for (long c = 0; c < outputs; c += V) {
    vf more = bias ? load(bias + c) : vf{};
    StoreAndSum<T> done{y.at(first, c), y.step(c)};
    const float* value = product.at(0, c);
    for (long r = 0; r < count; ++r) done(r, load(value + r * width) + more);
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
