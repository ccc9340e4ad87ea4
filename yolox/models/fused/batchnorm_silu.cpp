// Batch normalisation followed by SiLU, forwards and backwards, over rows of channels (N, H and W are rows).
// Forwards reads x twice and writes y; nothing but x is kept, and backwards computes the rest again while it reads x.
// Each direction is two passes over memory, because the sums over all pixels of the first are needed in the second.
#include "vectors.h"

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

// A tensor that may be some of the channels of a wider one, `stride` numbers from pixel to pixel: slots are then not side
// by side, but each vector of them is, where the number of channels is a multiple of V.
template <class T>
struct Strided {
  const T* data;
  long stride, channels, step;
  std::vector<long> offset;
  Strided(const T* data, long stride, long channels, const Slots& s)
      : data(data), stride(stride), channels(channels), step(s.width / channels * stride), offset(s.width / V) {
    for (long k = 0; k < s.width / V; ++k) offset[k] = stride == channels ? k * V : index(k * V);
  }
  long index(long i) const { return i / channels * stride + i % channels; }
  vf at(long row, long slot) const { return load(data + row * step + offset[slot / V]); }
  float single(long i) const { return get(data + index(i)); }
};

struct Statistics {
  double count = 0, mean = 0, squares = 0;
  void merge(double n, double other_mean, double other_squares) {
    if (n == 0) return;
    double delta = other_mean - mean, total = count + n;
    mean += delta * n / total;
    squares += other_squares + delta * delta * count * n / total;
    count = total;
  }
};

// Adds up two values that `terms` gives for each row and slot; returns both sums of each thread and slot.
template <class F>
std::vector<double> two_sums(const Slots& s, long threads, F terms) {
  std::vector<double> sums(2 * threads * s.width);
#pragma omp parallel
  {
    Range mine = my_share(s.rows);
    double *first = &sums[2 * omp_get_thread_num() * s.width], *second = first + s.width;
    for (long block = mine.first; block < mine.last; block += BLOCK)
      for (long j = 0; j < s.width; j += U * V) {
        vf one[U] = {}, two[U] = {};
        for (long i = block; i < std::min(mine.last, block + BLOCK); ++i)
          UNROLL terms(i, j + u * V, one[u], two[u]);
        for (long l = 0; l < U * V; ++l) first[j + l] += one[l / V][l % V], second[j + l] += two[l / V][l % V];
      }
  }
  return sums;
}

// Sums are of differences to a first guess of the mean, so that a mean far from 0 costs no digits.
template <class T>
std::vector<Statistics> statistics(const T* x, long pixels, long channels) {
  Slots s(pixels, channels);
  long threads = omp_get_max_threads(), sample = std::min(pixels, BLOCK);
  std::vector<float> guess(channels);
  for (long i = 0; i < sample; ++i)  // spread over all pixels
    for (long c = 0; c < channels; ++c) guess[c] += get(x + pixels * i / sample * channels + c) / sample;
  std::vector<float> centre = s.repeat(guess);
  std::vector<double> sums = two_sums(s, threads, [&](long row, long slot, vf& sum, vf& squares) {
    vf d = load(x + row * s.width + slot) - load(&centre[slot]);
    sum += d;
    squares += d * d;
  });
  std::vector<double> first(channels), second(channels);
  for (long t = 0; t < threads; ++t)
    for (long j = 0; j < s.width; ++j) {
      first[j % channels] += sums[2 * t * s.width + j];
      second[j % channels] += sums[(2 * t + 1) * s.width + j];
    }
  std::vector<Statistics> out(channels);
  double n = s.done / channels;
  for (long c = 0; n > 0 && c < channels; ++c)
    out[c].merge(n, guess[c] + first[c] / n, second[c] - first[c] * first[c] / n);
  for (long i = s.done; i < pixels * channels; ++i) out[i % channels].merge(1, get(x + i), 0);
  return out;
}

struct Norm {  // of each channel: parameters, and what forwards hands to backwards
  const float *weight, *bias;
  float *mean, *rstd;
};

struct Affine {  // normalisation with its parameters is x * scale + offset
  std::vector<float> scale, offset;
  Affine(const Norm& norm, long channels) : scale(channels), offset(channels) {
    for (long c = 0; c < channels; ++c) {
      scale[c] = norm.weight[c] * norm.rstd[c];
      offset[c] = norm.bias[c] - norm.mean[c] * scale[c];
    }
  }
};

template <class T>
void forward(const T* x, T* y, long pixels, long channels, Norm norm, double eps, double momentum, float* running_mean,
             float* running_var) {
  std::vector<Statistics> found = statistics(x, pixels, channels);
  for (long c = 0; c < channels; ++c) {
    double mean = found[c].mean, var = found[c].squares / pixels;
    norm.mean[c] = mean;
    norm.rstd[c] = 1 / std::sqrt(var + eps);
    running_mean[c] += momentum * (mean - running_mean[c]);
    running_var[c] += momentum * (found[c].squares / (pixels - 1) - running_var[c]);
  }
  Slots s(pixels, channels);
  Affine affine(norm, channels);
  std::vector<float> scale = s.repeat(affine.scale), offset = s.repeat(affine.offset);
#pragma omp parallel
  {
    Range mine = my_share(s.rows);
    for (long i = mine.first; i < mine.last; ++i)
      for (long j = 0; j < s.width; j += V) {
        vf z = load(x + i * s.width + j) * load(&scale[j]) + load(&offset[j]);
        store(y + i * s.width + j, z * sigmoid<T>(z));
      }
  }
  for (long i = s.done; i < pixels * channels; ++i) {
    vf z = vf{} + (get(x + i) * affine.scale[i % channels] + affine.offset[i % channels]);
    put(y + i, (z * sigmoid<T>(z))[0]);
  }
}

template <class T>
inline vf silu_slope(vf z) {
  vf s = sigmoid<T>(z);
  return s * (1.0f + z * (1.0f - s));
}

template <class T>
void backward(const T* gradient, long stride, const T* x, T* dx, long pixels, long channels, Norm norm, float* dweight,
              float* dbias) {
  Slots s(pixels, channels);
  Strided<T> dy(gradient, stride, channels, s);
  Affine affine(norm, channels);
  std::vector<float> centre(norm.mean, norm.mean + channels), means = s.repeat(centre);
  std::vector<float> scale = s.repeat(affine.scale), offset = s.repeat(affine.offset);
  long threads = omp_get_max_threads();
  std::vector<double> sums = two_sums(s, threads, [&](long row, long slot, vf& sum, vf& product) {
    vf value = load(x + row * s.width + slot);
    vf dz = dy.at(row, slot) * silu_slope<T>(value * load(&scale[slot]) + load(&offset[slot]));
    store(dx + row * s.width + slot, dz);  // for the second pass, which so needs neither dy nor a sigmoid
    sum += dz;
    product += dz * (value - load(&means[slot]));
  });
  auto single = [&](long i) {
    vf z = vf{} + (get(x + i) * affine.scale[i % channels] + affine.offset[i % channels]);
    return dy.single(i) * silu_slope<T>(z)[0];
  };
  std::vector<double> sum(channels), product(channels);
  for (long t = 0; t < threads; ++t)
    for (long j = 0; j < s.width; ++j) {
      sum[j % channels] += sums[2 * t * s.width + j];
      product[j % channels] += sums[(2 * t + 1) * s.width + j];
    }
  for (long i = s.done; i < pixels * channels; ++i) {
    sum[i % channels] += single(i);
    product[i % channels] += single(i) * (get(x + i) - centre[i % channels]);
  }
  std::vector<float> one(channels), zero(channels);  // dx = scale * dz + one * x + zero
  for (long c = 0; c < channels; ++c) {
    dbias[c] = sum[c];
    dweight[c] = product[c] * norm.rstd[c];
    one[c] = -affine.scale[c] * dweight[c] * norm.rstd[c] / pixels;
    zero[c] = -affine.scale[c] * sum[c] / pixels - double(one[c]) * centre[c];
  }
  std::vector<float> slope = s.repeat(one), constant = s.repeat(zero);
#pragma omp parallel
  {
    Range mine = my_share(s.rows);
    for (long i = mine.first; i < mine.last; ++i)
      for (long j = 0; j < s.width; j += V) {
        long at = i * s.width + j;
        store(dx + at, load(&scale[j]) * load(dx + at) + (load(x + at) * load(&slope[j]) + load(&constant[j])));
      }
  }
  for (long i = s.done; i < pixels * channels; ++i) {
    long c = i % channels;
    put(dx + i, affine.scale[c] * single(i) + (get(x + i) * one[c] + zero[c]));
  }
}

}  // namespace

#define EXPORT(NAME, T)                                                                                               \
  extern "C" void batchnorm_silu_forward_##NAME(const T* x, T* y, long pixels, long channels, Norm norm, double eps,  \
                                                double momentum, float* running_mean, float* running_var) {           \
    forward(x, y, pixels, channels, norm, eps, momentum, running_mean, running_var);                                  \
  }                                                                                                                   \
  extern "C" void batchnorm_silu_backward_##NAME(const T* dy, long stride, const T* x, T* dx, long pixels,            \
                                                 long channels, Norm norm, float* dweight, float* dbias) {            \
    backward(dy, stride, x, dx, pixels, channels, norm, dweight, dbias);                                              \
  }
EXPORT(float32, float)
EXPORT(bfloat16, bf16)
