// The float32 end of a network: functions and operations of matrices.
#include "finish.h"

namespace native {

static vf exponential(vf x) {
  alignas(64) float v[V];
  store(v, x);
  for (float& one : v) one = std::exp(one);
  return load(v);
}

void unary(const Step& s, const Image& image, Range rows) {
  const float* in = floats(s.left, image);
  float* out = image.result;
  Range part{rows.first * s.left.columns, rows.last * s.left.columns};
  for (long i = part.first; i < part.last; i += V) {
    vf x = {};
    long count = std::min(V, part.last - i);
    std::memcpy(&x, in + i, count * sizeof(float));
    put(out + i, s.choice == 0 ? sigmoid<float>(x) : exponential(x), count);
  }
}

template <class F> static void each(const Step& s, const Image& image, Range rows, F operation) {
  const float *left = floats(s.left, image) + s.left_column, *right = floats(s.right, image) + s.right_column;
  float* out = image.result + s.first_column;
  long left_row = s.left.rows > 1 ? s.left.columns : 0, right_row = s.right.rows > 1 ? s.right.columns : 0;
  for (long y = rows.first; y < rows.last; ++y) {
    const float *a = left + y * left_row, *b = right + y * right_row;
    float* to = out + y * s.result.columns;
    if (s.wide == 3)
      for (long x = 0; x < s.columns; ++x) to[x] = operation(a[x], b[x]);
    else if (s.wide == 2)
      for (long x = 0; x < s.columns; ++x) to[x] = operation(a[0], b[x]);
    else if (s.wide == 1)
      for (long x = 0; x < s.columns; ++x) to[x] = operation(a[x], b[0]);
    else
      for (long x = 0; x < s.columns; ++x) to[x] = operation(a[0], b[0]);
  }
}

void arithmetic(const Step& s, const Image& image, Range rows) {
  switch (s.choice) {
    case 0: return each(s, image, rows, [](float a, float b) { return a + b; });
    case 1: return each(s, image, rows, [](float a, float b) { return a - b; });
    case 2: return each(s, image, rows, [](float a, float b) { return a * b; });
    default: return each(s, image, rows, [](float a, float b) { return a / b; });
  }
}

void copy(const Step& s, const Image& image, Range rows) {
  for (long y = rows.first; y < rows.last; ++y)
    std::memcpy(image.result + (s.first_row + y) * s.result.columns + s.first_column,
                floats(s.left, image) + y * s.left.columns, s.left.columns * sizeof(float));
}

}  // namespace native
