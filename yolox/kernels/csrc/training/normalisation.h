// What the kernels around batch normalisation and SiLU share.
#pragma once
#include "../cores.h"
#include "vectors.h"
#include <atomic>
#include <cstddef>
#include <exception>
#include <sched.h>

// Size and offsets of a structure that Python builds, for bindings.py to compare with its own.
#define LAYOUT(NAME, TYPE, ...)                                      \
  extern "C" {                                                       \
  extern const long layout_##NAME[];                                 \
  const long layout_##NAME[] = {(long)sizeof(TYPE), __VA_ARGS__};    \
  }
#define AT(TYPE, FIELD) (long)offsetof(TYPE, FIELD)

namespace {

// Runs a kernel and returns whether there was memory enough: nothing may be thrown at the caller, which is not C++.
template <class F>
int enough_memory(F kernel) {
  try {
    kernel();
    return 1;
  } catch (const std::exception&) {
    return 0;
  }
}

// Calls body() on each thread, the others not on the core of the first one. Where memory runs out on one, that is told
// when all have ended: nothing may be thrown out of a parallel region.
template <class F>
void on_all_threads(F body) {
  std::atomic<bool> failed{false};
  const int caller = sched_getcpu();
#pragma omp parallel
  {
    if (omp_get_thread_num() > 0 && sched_getcpu() == caller) stay_off(caller);
    try {
      body();
    } catch (const std::exception&) {
      failed = true;
    }
  }
  if (failed) throw std::bad_alloc();
}

// What follows a normalisation: SiLU, or pieces of straight lines: z from 0 to `most`, `below` * z under 0, `most`
// beyond. The identity, ReLU, ReLU6 and LeakyReLU are of that kind.
struct Activation {
  long silu;
  float below, most;
};

struct Norm {  // of each channel: parameters, and what forwards hands to backwards; and the activation after it
  const float *weight, *bias;
  float *mean, *rstd;
  Activation activation;
};

struct Affine {  // normalisation with its parameters is x * scale + offset
  std::vector<float> scale, offset;
  Activation activation;
  Affine(const Norm& norm, long channels) : scale(channels), offset(channels), activation(norm.activation) {
    for (long c = 0; c < channels; ++c) {
      scale[c] = norm.weight[c] * norm.rstd[c];
      offset[c] = norm.bias[c] - norm.mean[c] * scale[c];
    }
  }
};

// The gradient of the input is scale * dz + slope * x + constant, of dz before the activation: without the parts that a
// shift or a stretch of all `count` pixels would cancel. `sums` are those of dz and of dz * (x - mean).
struct Centred {
  std::vector<float> scale, slope, constant;
  Centred(const Norm& norm, const double* sums, double count, long channels)
      : scale(Affine(norm, channels).scale), slope(channels), constant(channels) {
    for (long c = 0; c < channels; ++c) {
      slope[c] = -scale[c] * sums[channels + c] * norm.rstd[c] * norm.rstd[c] / count;
      constant[c] = -scale[c] * sums[c] / count - double(slope[c]) * norm.mean[c];
    }
  }
};

// What numbers still have to go through before they are what their reader wants: nothing where there is no weight.
struct Deferred {
  bool any;
  Affine affine;
  const float* mean;
  Deferred(const Norm& norm, long channels) : any(norm.weight), affine(norm, any ? channels : 0), mean(norm.mean) {}
};

inline vf silu_slope(vf z, vf sigmoid_of_z) { return sigmoid_of_z * (1.0f + z * (1.0f - sigmoid_of_z)); }

template <class T>
struct Silu {
  explicit Silu(const Activation&) {}
  vf operator()(vf z) const { return z * sigmoid<T>(z); }
  vf slope(vf z) const { return silu_slope(z, sigmoid<T>(z)); }
  vf operator()(vf z, vf* slope) const {
    vf s = sigmoid<T>(z);
    *slope = silu_slope(z, s);
    return z * s;
  }
};

struct Pieces {
  vf below, most;
  explicit Pieces(const Activation& activation) : below(vf{} + activation.below), most(vf{} + activation.most) {}
  vf operator()(vf z) const { return smaller(most, z > 0.0f ? z : below * z); }  // NaN stays
  vf slope(vf z) const { return z > 0.0f ? (z < most ? vf{} + 1.0f : vf{}) : below; }
  vf operator()(vf z, vf* gradient) const {
    *gradient = slope(z);
    return (*this)(z);
  }
};

// Calls use(f), where f(z) is the activation, and f.slope(z) its slope: a loop of its own for each kind.
template <class T, class F>
inline void with_activation(const Activation& activation, F use) {
  if (activation.silu) {
    use(Silu<T>(activation));
  } else {
    use(Pieces(activation));
  }
}

// Asks for numbers that will be read some microseconds later, while there are others to compute: the processor's own
// guesses end at each page.
template <class T>
inline void fetch(const T* from, long count) {
  for (long i = 0; i < count; i += long(64 / sizeof(T))) __builtin_prefetch(from + i, 0, 2);
}

// The channels of a pixel, normalised and activated; with `slope`, the activation's slope, too.
template <class T>
inline void activate(const T* from, long channels, const Affine& affine, T* to, float* slope) {
  const float *scale = affine.scale.data(), *offset = affine.offset.data();
  with_activation<T>(affine.activation, [=](auto f) {
    for (long c = 0; c < channels; c += V) {
      vf z = load(from + c) * load(scale + c) + load(offset + c), rise;
      if (slope) {
        store(to + c, f(z, &rise));
        store(slope + c, rise);
      } else {
        store(to + c, f(z));
      }
    }
  });
}

// The gradient of what was normalised, from that of a pixel before the activation; asks for those `ahead` numbers
// further on.
template <class T>
inline void centre(const T* dz, const T* value, long channels, long ahead, const Centred& centred, T* to) {
  const float *scale = centred.scale.data(), *slope = centred.slope.data(), *constant = centred.constant.data();
  fetch(dz + ahead, channels);
  fetch(value + ahead, channels);
  for (long c = 0; c < channels; c += V)
    store(to + c, load(scale + c) * load(dz + c) + (load(slope + c) * load(value + c) + load(constant + c)));
}

// Two sums of each channel, of one thread.
struct Sums {
  std::vector<double> first, second;
  explicit Sums(long channels) : first(channels), second(channels) {}
  void add(long c, vf one, vf two) {
    for (long l = 0; l < V; ++l) first[c + l] += one[l], second[c + l] += two[l];
  }
};

inline void add_up(const std::vector<Sums>& threads, long channels, double* sums) {
  std::fill(sums, sums + 2 * channels, 0);
  for (const Sums& one : threads)
    for (long c = 0; c < channels; ++c) sums[c] += one.first[c], sums[channels + c] += one.second[c];
}

// Where V channels of one pixel after the other go, `step` numbers apart: they are stored,
template <class T>
struct Store {
  T* to;
  long step;
  void operator()(long pixel, vf value) { store(to + pixel * step, value); }
  void end(Sums&, long) {}
};

// and they and their squares are added up,
template <class T>
struct StoreAndSum {
  T* to;
  long step;
  vf sum = {}, squares = {};
  void operator()(long pixel, vf value) {
    value = stored(to + pixel * step, value);
    sum += value;
    squares += value * value;
  }
  void end(Sums& sums, long c) { sums.add(c, sum, squares); }
};

// or they are gradients, taken through the activation of x; those and their products with x minus the mean are added
// up.
template <class T>
struct ThroughActivation {
  T* to;
  long step;
  const T* x;
  long x_step;
  const float* slope;
  long slope_step;
  vf mean, sum = {}, moments = {};
  void operator()(long pixel, vf gradient) {
    vf dz = gradient * load(slope + pixel * slope_step);
    store(to + pixel * step, dz);
    sum += dz;
    moments += dz * (load(x + pixel * x_step) - mean);
  }
  void end(Sums& sums, long c) { sums.add(c, sum, moments); }
};

}  // namespace
