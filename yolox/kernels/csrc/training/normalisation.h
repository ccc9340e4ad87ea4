// What the kernels around batch normalisation and SiLU share.
#pragma once
#include "../cores.h"
#include "vectors.h"
#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <exception>
#include <memory>
#include <new>
#include <sched.h>

// Size and offsets of a structure that Python builds, for bindings.py to compare with its own.
#define LAYOUT(NAME, TYPE, ...)                                      \
  extern "C" {                                                       \
  extern const long layout_##NAME[];                                 \
  const long layout_##NAME[] = {(long)sizeof(TYPE), __VA_ARGS__};    \
  }
#define AT(TYPE, FIELD) (long)offsetof(TYPE, FIELD)

namespace {

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

// What an activation computes of R vectors at once: f(z, y), with f(z, y, slope) its slope, too.
template <class T>
struct Silu {
  explicit Silu(const Activation&) {}
  template <long R>
  INLINE void operator()(const vf (&z)[R], vf (&y)[R]) const {
    vf s[R];
    sigmoids<T>(z, s);
    EACH y[r] = z[r] * s[r];
  }
  template <long R>
  INLINE void operator()(const vf (&z)[R], vf (&y)[R], vf (&slope)[R]) const {
    vf s[R], rest[R];
    sigmoids<T>(z, s);
    EACH rest[r] = 1.0f - s[r];
    EACH rest[r] = 1.0f + z[r] * rest[r];
    EACH y[r] = z[r] * s[r];
    EACH slope[r] = s[r] * rest[r];
  }
};

struct Pieces {
  vf below, most;
  explicit Pieces(const Activation& activation) : below(vf{} + activation.below), most(vf{} + activation.most) {}
  template <long R>
  INLINE void operator()(const vf (&z)[R], vf (&y)[R]) const {
    EACH y[r] = smaller(most, z[r] > 0.0f ? z[r] : below * z[r]);  // NaN stays
  }
  template <long R>
  INLINE void operator()(const vf (&z)[R], vf (&y)[R], vf (&slope)[R]) const {
    EACH slope[r] = z[r] > 0.0f ? (z[r] < most ? vf{} + 1.0f : vf{}) : below;
    (*this)(z, y);
  }
};

// The same of one vector.
template <class F>
inline vf activated(const F& f, vf z) {
  vf all[1] = {z}, y[1];
  f(all, y);
  return y[0];
}

template <class F>
inline vf slope_of(const F& f, vf z) {
  vf all[1] = {z}, y[1], slope[1];
  f(all, y, slope);
  return slope[0];
}

// Calls use(f), where f is the activation: a loop of its own for each kind.
template <class T, class F>
inline void with_activation(const Activation& activation, F use) {
  if (activation.silu) {
    use(Silu<T>(activation));
  } else {
    use(Pieces(activation));
  }
}

// Calls use(first, number), of U rows at once as long as there are so many: `number` is a constant.
template <class F>
INLINE inline void by_rows(long count, F use) {
  long row = 0;
  for (; row + U <= count; row += U) use(row, std::integral_constant<long, U>());
  for (; row < count; ++row) use(row, std::integral_constant<long, 1>());
}

template <class T>
struct Pixels {  // channels of one pixel after the other, `step` numbers apart
  T* first;
  long step;
  T* at(long pixel) const { return first + pixel * step; }
};

// Asks for the line of the cache that begins at a channel and will be read some microseconds later: the processor's own
// guesses end at each page.
template <class T>
INLINE inline void fetch(const T* from, long channel) {
  if (channel % long(64 / sizeof(T)) == 0) __builtin_prefetch(from + channel);
}

// Pixels, normalised and activated; slopes(c) says where the activation's slopes of the channels from c on go, null
// where nobody wants them. Asks for those `ahead` pixels further on.
template <class T, class F>
inline void activate(Pixels<const T> from, long count, long channels, long ahead, const Affine& affine, Pixels<T> to,
                     F slopes) {
  const float *scale = affine.scale.data(), *offset = affine.offset.data();
  with_activation<T>(affine.activation, [=](auto f) {
    by_rows(count, [=](long pixel, auto number) {  // in the order of memory
      constexpr long R = number.value;
      for (long c = 0; c < channels; c += V) {
        const vf times = load(scale + c), plus = load(offset + c);
        const Pixels<float> slope = slopes(c);
        vf z[R], y[R], rise[R];
        EACH fetch(from.at(pixel + r + ahead), c);
        EACH z[r] = load(from.at(pixel + r) + c) * times + plus;
        if (slope.first) {
          f(z, y, rise);
          EACH store(slope.at(pixel + r), rise[r]);
        } else {
          f(z, y);
        }
        EACH store(to.at(pixel + r) + c, y[r]);
      }
    });
  });
}

// The gradient of what was normalised, from that of pixels before the activation. Asks for those `ahead` pixels further
// on.
template <class T>
inline void centre(Pixels<const T> dz, Pixels<const T> value, long count, long channels, long ahead,
                   const Centred& centred, Pixels<T> to) {
  const float *scale = centred.scale.data(), *slope = centred.slope.data(), *constant = centred.constant.data();
  by_rows(count, [=](long pixel, auto number) {  // in the order of memory
    constexpr long R = number.value;
    for (long c = 0; c < channels; c += V) {
      const vf times = load(scale + c), rise = load(slope + c), plus = load(constant + c);
      EACH fetch(dz.at(pixel + r + ahead), c);
      EACH fetch(value.at(pixel + r + ahead), c);
      EACH store(to.at(pixel + r) + c,
                 times * load(dz.at(pixel + r) + c) + (load(value.at(pixel + r) + c) * rise + plus));
    }
  });
}

// Two sums of each channel, of one thread.
struct Sums {
  std::vector<double> first, second;
  explicit Sums(long channels) : first(channels), second(channels) {}
  void add(long c, vf one, vf two) { add_to(&first[c], one), add_to(&second[c], two); }

 private:
  static void add_to(double* sums, vf values) {
    typedef float half __attribute__((vector_size(V * 2)));
    typedef double doubles __attribute__((vector_size(V * 4)));
    for (long i = 0; i < V; i += V / 2) {
      half from;
      doubles to;
      std::memcpy(&from, (const float*)&values + i, sizeof from);
      std::memcpy(&to, sums + i, sizeof to);
      to += __builtin_convertvector(from, doubles);
      std::memcpy(sums + i, &to, sizeof to);
    }
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
  Pixels<T> to;
  void operator()(long pixel, vf value, long) { store(to.at(pixel), value); }
  void end(Sums&, long) {}
};

// and they and their squares are added up, in LANES sums that do not wait for each other,
constexpr long LANES = 2;

template <class T>
struct StoreAndSum {
  Pixels<T> to;
  vf sum[LANES] = {}, squares[LANES] = {};
  void operator()(long pixel, vf value, long lane) {
    value = stored(to.at(pixel), value);
    sum[lane] += value;
    squares[lane] += value * value;
  }
  void end(Sums& sums, long c) { sums.add(c, sum[0] + sum[1], squares[0] + squares[1]); }
};

// or they are gradients, taken through the activation of x; those and their products with x minus the mean are added
// up.
template <class T>
struct ThroughActivation {
  Pixels<T> to;
  Pixels<const T> x;
  Pixels<const float> slope;
  vf mean, sum[LANES] = {}, moments[LANES] = {};
  void operator()(long pixel, vf gradient, long lane) {
    vf dz = gradient * load(slope.at(pixel));
    store(to.at(pixel), dz);
    sum[lane] += dz;
    moments[lane] += dz * (load(x.at(pixel)) - mean);
  }
  void end(Sums& sums, long c) { sums.add(c, sum[0] + sum[1], moments[0] + moments[1]); }
};

}  // namespace
