// Batch normalisation followed by an activation, forwards and backwards, over rows of channels (N, H and W are rows).
// Forwards reads x twice and writes y; nothing but x is kept, and backwards computes the rest again while it reads x.
// Each direction is two passes over memory, because the sums over all pixels of the first are needed in the second;
// each pass is a function of its own, so that several processes can add up their sums in between.
#include "normalisation.h"
#include "program.h"

namespace {

constexpr long BLOCK = 64;  // rows summed in float32 before they are added to a sum in float64

// Several pixels are taken as one row of `width` slots, so that every vector is full whatever the number of channels.
struct Slots {
  long width, rows, done;
  Slots(long pixels, long channels) {
    long group = 1;
    while (group * channels % (U * V)) ++group;
    width = group * channels;
    rows = pixels / group;
    done = rows * width;  // the few numbers after it are treated one by one
  }
  std::vector<float> repeat(const std::vector<float>& values) const {
    std::vector<float> out(width);
    for (long i = 0; i < width; ++i) out[i] = values[i % values.size()];
    return out;
  }
};

// Where the vectors of each row of slots are, of a tensor with `stride` numbers from pixel to pixel: unless all is side
// by side, the number of channels is a multiple of V.
template <class T>
struct Vectors {
  std::vector<T*> start;
  long step;  // from row to row
  Vectors(T* first, long stride, long channels, const Slots& s)
      : start(s.width / V), step(s.width / channels * stride) {
    for (long k = 0; k < s.width / V; ++k) start[k] = first + k * V / channels * stride + k * V % channels;
  }
  struct Map {  // the same by address, to be copied into registers
    T* const* start;
    long step;
    T* at(long row, long slot) const { return start[slot / V] + row * step; }
  };
  Map map() const { return {start.data(), step}; }
};

// Adds up two values that `terms` gives for each row and slot; returns both sums of each thread and slot.
template <class F>
std::vector<double> two_sums(const Slots& slots, long threads, F shared_terms) {
  std::vector<double> sums(2 * threads * slots.width);
  on_all_threads([&] {
    const Slots s = slots;  // copies of this thread's own stay in registers, whatever is stored in between
    F terms = shared_terms;
    Range mine = my_share(s.rows);
    double *first = &sums[2 * omp_get_thread_num() * s.width], *second = first + s.width;
    for (long block = mine.first; block < mine.last; block += BLOCK)
      for (long j = 0; j < s.width; j += U * V) {
        vf one[U] = {}, two[U] = {};
        for (long i = block; i < std::min(mine.last, block + BLOCK); ++i)
          UNROLL terms(i, j + u * V, one[u], two[u]);
        for (long l = 0; l < U * V; ++l) first[j + l] += one[l / V][l % V], second[j + l] += two[l / V][l % V];
      }
  });
  return sums;
}

// The sums of each channel out of those of each thread and slot.
inline void add_up(const std::vector<double>& sums, const Slots& s, long threads, long channels, double* first,
                   double* second) {
  std::fill(first, first + channels, 0);
  std::fill(second, second + channels, 0);
  for (long t = 0; t < threads; ++t)
    for (long j = 0; j < s.width; ++j) {
      first[j % channels] += sums[2 * t * s.width + j];
      second[j % channels] += sums[(2 * t + 1) * s.width + j];
    }
}

// Sums of x and of its squares, by way of differences to a first guess of the mean: a mean far from 0 costs no digits.
template <class T>
void statistics(const T* x, long pixels, long channels, double* sums) {
  Slots s(pixels, channels);
  long threads = omp_get_max_threads(), sample = std::min(pixels, BLOCK);
  std::vector<float> guess(channels);
  for (long i = 0; i < sample; ++i)  // spread over all pixels
    for (long c = 0; c < channels; ++c) guess[c] += get(x + pixels * i / sample * channels + c) / sample;
  std::vector<float> centre = s.repeat(guess);
  const float* middle = centre.data();
  long width = s.width;
  std::vector<double> found = two_sums(s, threads, [=](long row, long slot, vf& sum, vf& squares) {
    vf d = load(x + row * width + slot) - load(middle + slot);
    sum += d;
    squares += d * d;
  });
  double *first = sums, *second = sums + channels, n = s.done / channels;
  add_up(found, s, threads, channels, first, second);
  for (long c = 0; c < channels; ++c) {
    second[c] += guess[c] * (2 * first[c] + n * guess[c]);
    first[c] += n * guess[c];
  }
  for (long i = s.done; i < pixels * channels; ++i) {
    double value = get(x + i);
    first[i % channels] += value;
    second[i % channels] += value * value;
  }
}

struct Running {  // statistics that move with each batch, and the number of batches
  float *mean, *var;
  long long* batches;
  double momentum;
};

// Mean and 1 / deviation, and the running statistics, from the sums of `statistics` over `count` pixels.
void moments(const double* sums, double count, double eps, long channels, Norm norm, Running running) {
  for (long c = 0; c < channels; ++c) {
    double mean = sums[c] / count, var = std::max(0.0, sums[channels + c] / count - mean * mean);
    norm.mean[c] = mean;
    norm.rstd[c] = 1 / std::sqrt(var + eps);
    running.mean[c] += running.momentum * (mean - running.mean[c]);
    running.var[c] += running.momentum * (var * count / (count - 1) - running.var[c]);
  }
  ++*running.batches;
}

template <class T>
struct Residual {  // values to be added to the activated ones, themselves activated first if they have a normalisation
  const T* x;
  Norm norm;
};

template <class T>
void forward(const T* x, T* y, long pixels, long channels, Norm norm, Residual<T> added) {
  Slots s(pixels, channels);
  Affine affine(norm, channels);
  Deferred deferred(added.norm, channels);
  std::vector<float> scales = s.repeat(affine.scale), offsets = s.repeat(affine.offset), more_scales, more_offsets;
  if (deferred.any) more_scales = s.repeat(deferred.affine.scale), more_offsets = s.repeat(deferred.affine.offset);
  auto single = [&](long i) {  // what is added to number i
    vf more = vf{} + (added.x ? get(added.x + i) : 0.0f);
    if (deferred.any)
      with_activation<T>(added.norm.activation, [&](auto f) {
        more = activated(f, more * deferred.affine.scale[i % channels] + deferred.affine.offset[i % channels]);
      });
    return more[0];
  };
  auto each = [&](auto shared, auto more) {
    on_all_threads([&] {
      const auto f = shared;
      const float *scale = scales.data(), *offset = offsets.data();
      const long width = s.width;
      Range mine = my_share(s.rows);
      for (long i = mine.first; i < mine.last; ++i)
        for (long j = 0; j < width; j += V) {
          const long at = i * width + j;
          store(y + at, activated(f, load(x + at) * load(scale + j) + load(offset + j)) + more(at, j));
        }
    });
    for (long i = s.done; i < pixels * channels; ++i)
      put(y + i, activated(shared, vf{} + (get(x + i) * affine.scale[i % channels] + affine.offset[i % channels]))[0] +
                     single(i));
  };
  with_activation<T>(norm.activation, [&](auto f) {
    if (!added.x) {
      each(f, [](long, long) { return vf{}; });
    } else if (!deferred.any) {
      each(f, [=](long i, long) { return load(added.x + i); });
    } else {
      const float *scale = more_scales.data(), *offset = more_offsets.data();
      with_activation<T>(added.norm.activation, [=](auto g) {
        each(f, [=](long i, long j) { return activated(g, load(added.x + i) * load(scale + j) + load(offset + j)); });
      });
    }
  });
}

template <class T>
struct Gradient {  // of the activated values, and what the input was
  const T* dy;
  long stride;  // numbers from pixel to pixel of dy
  const T* x;
  long pixels, channels;
  template <class F>
  float single(long i, const Affine& affine, F f) const {
    long c = i % channels;
    vf z = vf{} + (get(x + i) * affine.scale[c] + affine.offset[c]);
    return get(dy + i / channels * stride + c) * slope_of(f, z)[0];
  }
};

// First pass: the gradient dz before the activation into `dx`, its sum and that of dz * (x - mean) into `sums`.
template <class T, class F>
void gradient_sums(Gradient<T> g, T* dx, Norm norm, double* sums, F f) {
  long channels = g.channels, threads = omp_get_max_threads();
  Slots s(g.pixels, channels);
  Vectors<const T> dy(g.dy, g.stride, channels, s);
  Affine affine(norm, channels);
  std::vector<float> means = s.repeat(std::vector<float>(norm.mean, norm.mean + channels));
  std::vector<float> scales = s.repeat(affine.scale), offsets = s.repeat(affine.offset);
  const float *mean = means.data(), *scale = scales.data(), *offset = offsets.data();
  const T* x = g.x;
  const auto from = dy.map();
  const long width = s.width;
  std::vector<double> found = two_sums(s, threads, [=](long row, long slot, vf& sum, vf& product) {
    vf value = load(x + row * width + slot);
    vf dz = load(from.at(row, slot)) * slope_of(f, value * load(scale + slot) + load(offset + slot));
    store(dx + row * width + slot, dz);  // for the second pass, which so needs neither dy nor a sigmoid
    sum += dz;
    product += dz * (value - load(mean + slot));
  });
  add_up(found, s, threads, channels, sums, sums + channels);
  for (long i = s.done; i < g.pixels * channels; ++i) {
    float dz = g.single(i, affine, f);
    put(dx + i, dz);
    sums[i % channels] += dz;
    sums[channels + i % channels] += dz * (get(g.x + i) - norm.mean[i % channels]);
  }
}

// Second pass, from dz in `dx`.
template <class T>
void backward(const T* x, T* dx, long pixels, long channels, Norm norm, const double* sums, double count) {
  Slots s(pixels, channels);
  Centred centred(norm, sums, count, channels);
  std::vector<float> scales = s.repeat(centred.scale), slopes = s.repeat(centred.slope);
  std::vector<float> constants = s.repeat(centred.constant);
  on_all_threads([&] {
    const float *scale = scales.data(), *slope = slopes.data(), *constant = constants.data();
    const long width = s.width;
    Range mine = my_share(s.rows);
    for (long i = mine.first; i < mine.last; ++i)
      for (long j = 0; j < width; j += V) {
        long at = i * width + j;
        store(dx + at, load(scale + j) * load(dx + at) + (load(x + at) * load(slope + j) + load(constant + j)));
      }
  });
  for (long i = s.done; i < pixels * channels; ++i) {
    long c = i % channels;
    put(dx + i, centred.scale[c] * get(dx + i) + (get(x + i) * centred.slope[c] + centred.constant[c]));
  }
}

}  // namespace

LAYOUT(Activation, Activation, AT(Activation, silu), AT(Activation, below), AT(Activation, most))
LAYOUT(Norm, Norm, AT(Norm, weight), AT(Norm, bias), AT(Norm, mean), AT(Norm, rstd), AT(Norm, activation))
LAYOUT(Running, Running, AT(Running, mean), AT(Running, var), AT(Running, batches),
       AT(Running, momentum))
LAYOUT(Residual, Residual<float>, AT(Residual<float>, x), AT(Residual<float>, norm))
LAYOUT(Gradient, Gradient<float>, AT(Gradient<float>, dy), AT(Gradient<float>, stride), AT(Gradient<float>, x),
       AT(Gradient<float>, pixels), AT(Gradient<float>, channels))

extern "C" int norm_act_moments(const double* sums, double count, double eps, long channels, Norm norm,
                                Running running) {
  return enough_memory([=] { moments(sums, count, eps, channels, norm, running); });
}

INVOKED(norm_act_moments)

// Gradients of weight and bias, from the sums of `gradient_sums`.
extern "C" int norm_act_parameter_gradients(const double* sums, long channels, Norm norm, float* weight, float* bias) {
  for (long c = 0; c < channels; ++c) weight[c] = sums[channels + c] * norm.rstd[c], bias[c] = sums[c];
  return 1;
}
INVOKED(norm_act_parameter_gradients)

#define EXPORT(NAME, T)                                                                                         \
  extern "C" int norm_act_statistics_##NAME(const T* x, long pixels, long channels, double* sums) {             \
    return enough_memory([=] { statistics(x, pixels, channels, sums); });                                       \
  }                                                                                                             \
  extern "C" int norm_act_forward_##NAME(const T* x, T* y, long pixels, long channels, Norm norm,               \
                                         Residual<T> added) {                                                   \
    return enough_memory([=] { forward(x, y, pixels, channels, norm, added); });                                \
  }                                                                                                             \
  extern "C" int norm_act_gradient_sums_##NAME(Gradient<T> g, T* dx, Norm norm, double* sums) {                 \
    return enough_memory(                                                                                       \
        [=] { with_activation<T>(norm.activation, [=](auto f) { gradient_sums(g, dx, norm, sums, f); }); });    \
  }                                                                                                             \
  extern "C" int norm_act_backward_##NAME(const T* x, T* dx, long pixels, long channels, Norm norm,             \
                                          const double* sums, double count) {                                   \
    return enough_memory([=] { backward(x, dx, pixels, channels, norm, sums, count); });                        \
  }                                                                                                             \
  INVOKED(norm_act_statistics_##NAME)                                                                           \
  INVOKED(norm_act_forward_##NAME)                                                                              \
  INVOKED(norm_act_gradient_sums_##NAME)                                                                        \
  INVOKED(norm_act_backward_##NAME)
EXPORT(float32, float)
EXPORT(bfloat16, bf16)
