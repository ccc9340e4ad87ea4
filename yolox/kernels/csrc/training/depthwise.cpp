// Depthwise 3x3 convolution with padding 1 and stride 1 or 2, forwards and backwards, on channels_last memory; if
// asked, with what stands around it in a network: the normalisation and activation its input still has to go through,
// and of the normalisation after it the sums, forwards, and the second pass, backwards. All that happens row by row, in
// the cache.
#include "normalisation.h"
#include "program.h"

namespace {

constexpr int K = 3;
constexpr long AHEAD = 2048;  // so many numbers are asked for before they are needed

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

// Of V channels after the other: calls done(column, value) for each output, of what `open` returns, and at last
// done.end.
template <int S, class T, class F>
inline void row_forward(const T* const* rows, long width, long out_width, long channels, const float* weight,
                        Sums& sums, F open) {
  for (long c = 0; c < channels; c += V) {
    const T* at[K] = {rows[0] + c, rows[1] + c, rows[2] + c};
    vf w[K][K];
    for (int k = 0; k < K * K; ++k) w[k / K][k % K] = load(weight + k * channels + c);
    auto done = open(c);
    each_tile<S>(width, out_width, [&](long first, auto edge) {
      vf sum[U] = {};
      each_tap<S, edge.value>(at, first, width, channels,
                              [&](int kh, int kw, int u, vf value) { sum[u] += value * w[kh][kw]; });
      UNROLL if (!edge.value || first + u < out_width) done(first + u, sum[u], u % LANES);
    });
    done.end(sums, c);
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
template <class T, class F>
inline void row_gradient_of_stride_2(const T* const* dy, const int* kernel_row, int count, long width, long out_width,
                                     long channels, const float* weight, Sums& sums, F open) {
  for (long c = 0; c < channels; c += V) {
    vf w[2][K] = {}, here[2] = {};
    for (int r = 0; r < count; ++r) {
      for (int kw = 0; kw < K; ++kw) w[r][kw] = load(weight + (kernel_row[r] * K + kw) * channels + c);
      here[r] = load(dy[r] + c);
    }
    auto done = open(c);
    for (long column = 0; column < out_width; ++column) {
      vf even = {}, odd = {};
      for (int r = 0; r < count; ++r) {
        vf next = column + 1 < out_width ? load(dy[r] + (column + 1) * channels + c) : vf{};
        even += here[r] * w[r][1];
        odd += here[r] * w[r][2] + next * w[r][0];
        here[r] = next;
      }
      done(2 * column, even, 0);
      if (2 * column + 1 < width) done(2 * column + 1, odd, 1);
    }
    done.end(sums, c);
  }
}

struct Images {
  long count, channels, height, width, stride;
};

// KeptRows that are made when they are asked for, and kept until three others came after them. A thread has its own.
template <class T>
class KeptRows {
  static constexpr long KEPT = 4;
  Aligned<T> memory;
  Aligned<float> slopes;
  long step, held[KEPT];

 public:
  KeptRows(long numbers, bool with_slopes)
      : memory(KEPT * numbers, false), slopes(with_slopes ? KEPT * numbers : 0, false), step(numbers) {
    std::fill(held, held + KEPT, -1);
  }
  // make(to, slope) writes the row, and its slopes if there are any.
  template <class F>
  const T* at(long row, F make) {
    const long slot = row % KEPT;
    T* to = &memory[slot * step];
    if (held[slot] != row) make(to, !slopes.size ? nullptr : &slopes[slot * step]);
    held[slot] = row;
    return to;
  }
  const float* slope(long row) const { return &slopes[row % KEPT * step]; }
};

// The input as the convolution sees it.
template <class T>
class Input {
  const T* x;
  const Deferred& deferred;
  long channels, step;
  KeptRows<T> rows;

 public:
  Input(const T* values, const Deferred& what, const Images& d, bool with_slopes)
      : x(values), deferred(what), channels(d.channels), step(d.width * d.channels),
        rows(what.any ? step : 0, with_slopes && what.any) {}
  const T* operator()(long row) {
    const T* from = x + row * step;
    if (!deferred.any) return from;
    return rows.at(row, [&](T* to, float* slope) {
      activate<T>({from, channels}, step / channels, channels, AHEAD / channels, deferred.affine, {to, channels},
                  [=](long c) { return Pixels<float>{slope ? slope + c : slope, channels}; });
    });
  }
  const T* plain(long row) const { return x + row * step; }
  const float* slope(long row) { return (*this)(row), rows.slope(row); }
};

// The gradient of the output, from the one before the activation where a normalisation follows.
template <class T>
class OutputGradient {
  const T *dz, *y;
  const Centred& centred;
  long channels, step;
  KeptRows<T> rows;

 public:
  OutputGradient(const T* gradient, const T* output, const Centred& norm, long num, long numbers)
      : dz(gradient), y(output), centred(norm), channels(num), step(numbers), rows(y ? numbers : 0, false) {}
  const T* operator()(long row) {
    const long at = row * step;
    if (!y) return dz + at;
    return rows.at(row, [&](T* to, float*) {
      centre<T>({dz + at, channels}, {y + at, channels}, step / channels, channels, AHEAD / channels, centred,
                {to, channels});
    });
  }
};

// The kernel's three rows around `row` of an image that begins at `first`; rows outside are zeros.
template <class T>
struct Window {
  const T* rows[K];
  template <class F>
  Window(F& row_at, long first, long row, long height, const std::vector<T>& zeros) {
    for (long k = 0; k < K; ++k) {
      bool inside = row - 1 + k >= 0 && row - 1 + k < height;
      rows[k] = inside ? row_at(first + row - 1 + k) : zeros.data();
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

// `sums`, if any, become those of y and of its squares.
template <int S, class T>
void forward(const T* x, const Deferred& deferred, T* y, const Images& d, const float* weight, double* sums) {
  long out_height = (d.height - 1) / S + 1, out_width = (d.width - 1) / S + 1;
  std::vector<float> w = by_tap(weight, d.channels, false);
  std::vector<T> zeros(d.width * d.channels);
  std::vector<Sums> found(omp_get_max_threads(), Sums(d.channels));
  on_all_threads([&] {
    Input<T> input(x, deferred, d, false);
    Sums& own = found[omp_get_thread_num()];
    Range mine = my_share(d.count * out_height);
    for (long r = mine.first; r < mine.last; ++r) {
      Window<T> window(input, r / out_height * d.height, r % out_height * S, d.height, zeros);
      T* out = y + r * out_width * d.channels;
      auto row = [&](auto open) { row_forward<S>(window.rows, d.width, out_width, d.channels, w.data(), own, open); };
      if (sums) {
        row([=](long c) { return StoreAndSum<T>{{out + c, d.channels}}; });
      } else {
        row([=](long c) { return Store<T>{{out + c, d.channels}}; });
      }
    }
  });
  if (sums) add_up(found, d.channels, sums);
}

template <class T>
struct Output {  // its gradient (before the activation where a normalisation follows), and itself where one does
  const T *dz, *y;
  Centred centred;
};

// `dx` becomes the gradient of the input, or where something is deferred the one before that activation, whose sums go
// to `sums`: its own, and of its product with the input minus the mean. It may be null.
template <int S, class T>
void backward(const Output<T>& after, const T* x, const Deferred& deferred, T* dx, const Images& d, const float* weight,
              float* dweight, double* sums) {
  long out_height = (d.height - 1) / S + 1, out_width = (d.width - 1) / S + 1;
  long step = d.width * d.channels, out_step = out_width * d.channels, taps = K * K * d.channels;
  std::vector<float> w = by_tap(weight, d.channels, S == 1), partial(omp_get_max_threads() * taps);
  std::vector<T> zeros(step);
  std::vector<Sums> found(omp_get_max_threads(), Sums(d.channels));
  on_all_threads([&] {
    Input<T> input(x, deferred, d, true);
    OutputGradient<T> gradient(after.dz, after.y, after.centred, d.channels, out_step);
    const long me = omp_get_thread_num();
    Sums& own = found[me];
    Range mine = my_share(d.count * out_height);
    for (long r = mine.first; r < mine.last; ++r) {
      const long n = r / out_height, row = r % out_height, first = n * d.height + row * S;
      Window<T> around(input, n * d.height, row * S, d.height, zeros);
      row_weight_gradient<S>(around.rows, gradient(r), d.width, out_width, d.channels, &partial[me * taps]);
      if (!dx) continue;
      Window<T> window(gradient, n * out_height, row, out_height, zeros);
      auto each = [&](long number, auto make) {  // a row of dx
        T* out = dx + number * step;
        const long channels = d.channels;
        if (!deferred.any) return make([=](long c) { return Store<T>{{out + c, channels}}; });
        const T* value = input.plain(number);
        const float *slope = input.slope(number), *mean = deferred.mean;
        make([=](long c) {
          return ThroughActivation<T>{
              {out + c, channels}, {value + c, channels}, {slope + c, channels}, load(mean + c)};
        });
      };
      if constexpr (S == 1) {
        each(first, [&](auto open) { row_forward<1>(window.rows, d.width, d.width, d.channels, w.data(), own, open); });
      } else {
        const int middle[] = {1}, sides[] = {2, 0};
        auto part = [&](const int* kernel_rows, int count) {
          return [&, kernel_rows, count](auto open) {
            row_gradient_of_stride_2(window.rows + 1, kernel_rows, count, d.width, out_width, d.channels, w.data(), own,
                                     open);
          };
        };
        each(first, part(middle, 1));
        if (row * S + 1 < d.height) each(first + 1, part(sides, 2));
      }
    }
  });
  if (deferred.any) add_up(found, d.channels, sums);
  for (long c = 0; c < d.channels; ++c)
    for (int k = 0; k < K * K; ++k) {
      dweight[c * K * K + k] = 0;
      for (size_t at = 0; at < partial.size(); at += taps) dweight[c * K * K + k] += partial[at + k * d.channels + c];
    }
}

}  // namespace

LAYOUT(Images, Images, AT(Images, count), AT(Images, channels), AT(Images, height), AT(Images, width),
       AT(Images, stride))

#define EXPORT(NAME, T)                                                                                               \
  extern "C" int depthwise_forward_##NAME(const T* x, Norm before, T* y, Images d, const float* weight,               \
                                          double* sums) {                                                             \
    return enough_memory([=] {                                                                                        \
      Deferred deferred(before, d.channels);                                                                          \
      (d.stride == 1 ? forward<1, T> : forward<2, T>)(x, deferred, y, d, weight, sums);                               \
    });                                                                                                               \
  }                                                                                                                   \
  /* `y`, `norm`, `norm_sums` and `count` belong to the normalisation that follows, or `y` is null. */                \
  extern "C" int depthwise_backward_##NAME(const T* dz, const T* y, Norm norm, const double* norm_sums, double count, \
                                           const T* x, Norm before, T* dx, Images d, const float* weight,             \
                                           float* dweight, double* sums) {                                            \
    return enough_memory([=] {                                                                                        \
      Deferred deferred(before, d.channels);                                                                          \
      Output<T> after{dz, y, Centred(norm, norm_sums, count, y ? d.channels : 0)};                                    \
      (d.stride == 1 ? backward<1, T> : backward<2, T>)(after, x, deferred, dx, d, weight, dweight, sums);            \
    });                                                                                                               \
  }                                                                                                                   \
  INVOKED(depthwise_forward_##NAME)                                                                                   \
  INVOKED(depthwise_backward_##NAME)
EXPORT(float32, float)
EXPORT(bfloat16, bf16)
