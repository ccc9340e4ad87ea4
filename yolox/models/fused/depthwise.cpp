// Depthwise 3x3 convolution with padding 1 and stride 1 or 2, forwards and backwards, on channels_last memory.
#include "vectors.h"

namespace {

constexpr int K = 3;

// Calls use(kh, kw, u, value) for every input value that output u of U neighbours needs; values outside the row are 0.
template <int S, bool EDGE, class T, class F>
inline void each_tap(const T* const* rows, long first, long width, long channels, F use) {
#pragma GCC unroll 3
  for (int kh = 0; kh < K; ++kh)
#pragma GCC unroll 16
    for (int j = 0; j < (U - 1) * S + K; ++j) {
      long column = first * S - 1 + j;
      vf value = {};
      if (!EDGE || (column >= 0 && column < width)) value = load(rows[kh] + column * channels);
#pragma GCC unroll 4
      for (int u = 0; u < U; ++u)
        if (j - u * S >= 0 && j - u * S < K) use(kh, j - u * S, u, value);
    }
}

template <int S, class F> inline void each_tile(long width, long out_width, F tile) {
  for (long first = 0; first < out_width; first += U) {
    bool edge = first == 0 || first + U > out_width || (first + U - 1) * S + 1 >= width;
    if (edge) tile(first, std::true_type{}); else tile(first, std::false_type{});
  }
}

template <int S, class T>
inline void row_forward(const T* const* rows, T* out, long width, long out_width, long channels, const float* weight) {
  for (long c = 0; c < channels; c += V) {
    const T* at[K] = {rows[0] + c, rows[1] + c, rows[2] + c};
    vf w[K][K];
    for (int k = 0; k < K * K; ++k) w[k / K][k % K] = load(weight + k * channels + c);
    each_tile<S>(width, out_width, [&](long first, auto edge) {
      vf sum[U] = {};
      each_tap<S, edge.value>(at, first, width, channels,
                              [&](int kh, int kw, int u, vf value) { sum[u] += value * w[kh][kw]; });
      UNROLL if (!edge.value || first + u < out_width) store(out + (first + u) * channels + c, sum[u]);
    });
  }
}

// Adds to `dweight`.
template <int S, class T>
inline void row_weight_gradient(const T* const* rows, const T* dy, long width, long out_width, long channels,
                                float* dweight) {
  for (long c = 0; c < channels; c += V) {
    const T* at[K] = {rows[0] + c, rows[1] + c, rows[2] + c};
    vf sum[K][K] = {};
    each_tile<S>(width, out_width, [&](long first, auto edge) {
      vf gradient[U] = {};
      UNROLL if (!edge.value || first + u < out_width) gradient[u] = load(dy + (first + u) * channels + c);
      each_tap<S, edge.value>(at, first, width, channels,
                              [&](int kh, int kw, int u, vf value) { sum[kh][kw] += value * gradient[u]; });
    });
    for (int k = 0; k < K * K; ++k) {
      float* total = dweight + k * channels + c;
      store(total, load(total) + sum[k / K][k % K]);
    }
  }
}

// One row of dx at stride 2, from the `count` rows of dy that reach it, each through a row of the kernel. A column of
// dx with an even number is under the middle of the kernel, one with an odd number under its two sides.
template <class T>
inline void row_gradient_of_stride_2(const T* const* dy, const int* kernel_row, int count, T* dx, long width,
                                     long out_width, long channels, const float* weight) {
  for (long c = 0; c < channels; c += V) {
    vf w[2][K] = {}, here[2] = {};
    for (int r = 0; r < count; ++r) {
      for (int kw = 0; kw < K; ++kw) w[r][kw] = load(weight + (kernel_row[r] * K + kw) * channels + c);
      here[r] = load(dy[r] + c);
    }
    for (long column = 0; column < out_width; ++column) {
      vf even = {}, odd = {};
      for (int r = 0; r < count; ++r) {
        vf next = column + 1 < out_width ? load(dy[r] + (column + 1) * channels + c) : vf{};
        even += here[r] * w[r][1];
        odd += here[r] * w[r][2] + next * w[r][0];
        here[r] = next;
      }
      store(dx + 2 * column * channels + c, even);
      if (2 * column + 1 < width) store(dx + (2 * column + 1) * channels + c, odd);
    }
  }
}

struct Images {
  long count, channels, height, width, stride;
};

// The kernel's three rows around `row` of an image; rows outside are zeros.
template <class T>
struct Window {
  const T* rows[K];
  Window(const T* image, long row, long height, long step, const std::vector<T>& zeros) {
    for (long k = 0; k < K; ++k) {
      bool inside = row - 1 + k >= 0 && row - 1 + k < height;
      rows[k] = inside ? image + (row - 1 + k) * step : zeros.data();
    }
  }
};

// From [C, 3, 3] to [3, 3, C].
std::vector<float> by_tap(const float* weight, long channels, bool flipped) {
  std::vector<float> out(K * K * channels);
  for (long c = 0; c < channels; ++c)
    for (int k = 0; k < K * K; ++k) out[(flipped ? K * K - 1 - k : k) * channels + c] = weight[c * K * K + k];
  return out;
}

template <int S, class T>
void forward(const T* x, T* y, const Images& d, const float* weight) {
  long out_height = (d.height - 1) / S + 1, out_width = (d.width - 1) / S + 1, step = d.width * d.channels;
  std::vector<float> w = by_tap(weight, d.channels, false);
  std::vector<T> zeros(step);
#pragma omp parallel for schedule(static)
  for (long r = 0; r < d.count * out_height; ++r) {
    Window<T> window(x + r / out_height * d.height * step, r % out_height * S, d.height, step, zeros);
    row_forward<S>(window.rows, y + r * out_width * d.channels, d.width, out_width, d.channels, w.data());
  }
}

// `dx` may be null.
template <int S, class T>
void backward(const T* dy, const T* x, T* dx, const Images& d, const float* weight, float* dweight) {
  long out_height = (d.height - 1) / S + 1, out_width = (d.width - 1) / S + 1;
  long step = d.width * d.channels, out_step = out_width * d.channels, taps = K * K * d.channels;
  std::vector<float> w = by_tap(weight, d.channels, S == 1), partial(omp_get_max_threads() * taps);
  std::vector<T> zeros(step);
#pragma omp parallel for schedule(static)
  for (long r = 0; r < d.count * out_height; ++r) {
    long n = r / out_height, row = r % out_height;
    const T* gradient = dy + n * out_height * out_step;
    Window<T> input(x + n * d.height * step, row * S, d.height, step, zeros);
    row_weight_gradient<S>(input.rows, gradient + row * out_step, d.width, out_width, d.channels,
                           &partial[omp_get_thread_num() * taps]);
    if (!dx) continue;
    T* out = dx + (n * d.height + row * S) * step;
    Window<T> window(gradient, row, out_height, out_step, zeros);
    if constexpr (S == 1) {
      row_forward<1>(window.rows, out, d.width, d.width, d.channels, w.data());
    } else {
      const int middle[] = {1}, sides[] = {2, 0};
      row_gradient_of_stride_2(window.rows + 1, middle, 1, out, d.width, out_width, d.channels, w.data());
      if (row * S + 1 < d.height)
        row_gradient_of_stride_2(window.rows + 1, sides, 2, out + step, d.width, out_width, d.channels, w.data());
    }
  }
  for (long c = 0; c < d.channels; ++c)
    for (int k = 0; k < K * K; ++k) {
      dweight[c * K * K + k] = 0;
      for (size_t at = 0; at < partial.size(); at += taps) dweight[c * K * K + k] += partial[at + k * d.channels + c];
    }
}

}  // namespace

#define EXPORT(NAME, T)                                                                                             \
  extern "C" void depthwise_forward_##NAME(const T* x, T* y, Images d, const float* weight) {                       \
    d.stride == 1 ? forward<1>(x, y, d, weight) : forward<2>(x, y, d, weight);                                      \
  }                                                                                                                 \
  extern "C" void depthwise_backward_##NAME(const T* dy, const T* x, T* dx, Images d, const float* weight,          \
                                            float* dweight) {                                                       \
    d.stride == 1 ? backward<1>(dy, x, dx, d, weight, dweight) : backward<2>(dy, x, dx, d, weight, dweight);        \
  }
EXPORT(float32, float)
EXPORT(bfloat16, bf16)
