// What the kernels around batch normalisation and SiLU share.
#pragma once
#include "vectors.h"

namespace {

// A tensor whose channels lie in one or two places, each perhaps some of the channels of a wider tensor: `stride` numbers
// from pixel to pixel, the first `split` channels in the first place. Unless all is side by side, vectors must not cross
// pixels or places: the numbers of channels are multiples of V.
template <class T>
struct Places {
  T* first;
  long first_stride;
  T* second;
  long second_stride, split;
  long step(long channel) const { return channel < split ? first_stride : second_stride; }
  T* at(long pixel, long channel) const {
    return channel < split ? first + pixel * first_stride + channel : second + pixel * second_stride + channel - split;
  }
};

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

inline vf silu_slope(vf z, vf sigmoid_of_z) { return sigmoid_of_z * (1.0f + z * (1.0f - sigmoid_of_z)); }

template <class T>
inline vf silu_slope(vf z) {
  return silu_slope(z, sigmoid<T>(z));
}

}  // namespace
