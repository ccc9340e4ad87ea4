// Maxima over square windows of an odd side at stride 1, forwards and backwards, on channels_last memory. Where several
// pixels of a window are largest, the first of them counts, row by row, as PyTorch has it.
#include "normalisation.h"
#include "program.h"
#include <limits>

namespace {

struct Window {
  long count, channels, height, width, side;
};

// Of some channels of an image: the largest value found so far, and the number of its pixel in the window.
struct Largest {
  vf value;
  vi place;
  void look_at(vf v, vi where) {
    const vi better = (v > value) | (v != v);
    value = better ? v : value;
    place = better ? where : place;
  }
};

constexpr float NONE = -std::numeric_limits<float>::infinity();

// Calls use(image, channel) for V channels of an image each.
template <class F>
void each_part(const Window& w, F use) {
  const long parts = w.channels / V;
  Range mine = my_share(w.count * parts);
  for (long i = mine.first; i < mine.last; ++i) use(i / parts, i % parts * V);
}

template <class T>
void forward(const T* x, T* y, uint8_t* places, const Window& w) {
  const long half = w.side / 2;
  on_all_threads([&] {
    Aligned<vf> values(w.height * w.width);
    Aligned<vi> columns(w.height * w.width);
    each_part(w, [&](long image, long channel) {
      const long begin = image * w.height * w.width * w.channels + channel;
      for (long row = 0; row < w.height; ++row)
        for (long col = 0; col < w.width; ++col) {
          Largest best{vf{} + NONE, vi{} + int32_t(std::max(half - col, 0L))};
          for (long k = std::max(half - col, 0L); k < std::min(w.side, w.width + half - col); ++k)
            best.look_at(load(x + begin + (row * w.width + col + k - half) * w.channels), vi{} + int32_t(k));
          values[row * w.width + col] = best.value, columns[row * w.width + col] = best.place;
        }
      for (long row = 0; row < w.height; ++row)
        for (long col = 0; col < w.width; ++col) {
          const long first = std::max(half - row, 0L);
          Largest best{vf{} + NONE, columns[(row + first - half) * w.width + col] + int32_t(first * w.side)};
          for (long k = first; k < std::min(w.side, w.height + half - row); ++k) {
            const long at = (row + k - half) * w.width + col;
            best.look_at(values[at], columns[at] + int32_t(k * w.side));
          }
          const long at = begin + (row * w.width + col) * w.channels;
          store(y + at, best.value);
          for (long lane = 0; lane < V; ++lane) places[at + lane] = uint8_t(best.place[lane]);
        }
    });
  });
}

template <class T>
void backward(const T* dy, const uint8_t* places, T* dx, const Window& w) {
  const long half = w.side / 2;
  long distance[256];  // in pixels, from the middle of the window
  for (long place = 0; place < w.side * w.side; ++place)
    distance[place] = (place / w.side - half) * w.width + place % w.side - half;
  on_all_threads([&] {
    Aligned<float> sums(w.height * w.width * V);
    each_part(w, [&](long image, long channel) {
      std::fill(sums.begin(), sums.end(), 0.0f);
      const long begin = image * w.height * w.width * w.channels + channel;
      for (long row = 0; row < w.height; ++row)
        for (long col = 0; col < w.width; ++col) {
          const long pixel = row * w.width + col, at = begin + pixel * w.channels;
          float gradient[V];
          store(gradient, load(dy + at));
          for (long lane = 0; lane < V; ++lane) {
            sums[(pixel + distance[places[at + lane]]) * V + lane] += gradient[lane];
          }
        }
      for (long pixel = 0; pixel < w.height * w.width; ++pixel)
        store(dx + begin + pixel * w.channels, load(&sums[pixel * V]));
    });
  });
}

}  // namespace

LAYOUT(Window, Window, AT(Window, count), AT(Window, channels), AT(Window, height), AT(Window, width), AT(Window, side))

#define EXPORT(NAME, T)                                                                                    \
  extern "C" int max_pool_forward_##NAME(const T* x, T* y, uint8_t* places, Window w) {                    \
    return enough_memory([=] { forward(x, y, places, w); });                                               \
  }                                                                                                        \
  extern "C" int max_pool_backward_##NAME(const T* dy, const uint8_t* places, T* dx, Window w) {           \
    return enough_memory([=] { backward(dy, places, dx, w); });                                            \
  }                                                                                                        \
  INVOKED(max_pool_forward_##NAME)                                                                         \
  INVOKED(max_pool_backward_##NAME)
EXPORT(float32, float)
EXPORT(bfloat16, bf16)
