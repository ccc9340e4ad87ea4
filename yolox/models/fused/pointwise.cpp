// 1x1 convolutions in bfloat16 with what stands around them in a network: forwards the sums that the batch normalisation
// after them needs, backwards that normalisation's second pass, so that neither reads memory once more. The input may be what
// a convolution before left, to be normalised and activated on the way: that activation never exists.
#include "normalisation.h"
#include "tiles.h"

#ifdef __AVX512BF16__
namespace {

constexpr long PANELS = 16;       // panels of 32 pixels whose share in the weights' gradient is added up at once
constexpr long AHEAD = 4 * SIDE;  // pixels that are asked for before they are needed

struct Shape {
  long pixels, inputs, outputs;
  long panels() const { return (pixels + SIDE - 1) / SIDE; }
  long rows(long panel) const { return std::min(SIDE, pixels - panel * SIDE); }
};

// The input, and the normalisation and activation it still has to go through; none where there is no weight.
struct Input {
  Places<const bf16> x;
  long channels;
  bool pending;
  Affine affine;
  const float* mean;
  Input(const Places<const bf16>& places, const Norm& norm, long count)
      : x(places), channels(count), pending(norm.weight), affine(norm, pending ? count : 0), mean(norm.mean) {}
};

// 32 rows of numbers that a thread keeps in its cache; columns beyond the channels, and rows beyond the pixels, are 0.
template <class T>
struct Rows {
  long width;
  Aligned<T> numbers;
  explicit Rows(long channels) : width(padded(channels)), numbers(SIDE * width) {}
  T* at(long row, long column) const { return &numbers[row * width + column]; }
  void clear_from(long row) const { std::fill(at(row, 0), numbers.end(), T{}); }
};

inline Left left_of(const Rows<bf16>& rows) { return {rows.at(0, 0), rows.at(16, 0), rows.width, SIDE}; }

// Asks for numbers that will be read some microseconds later, while there are others to compute: the processor's own guesses
// end at each page.
inline void fetch(const bf16* from, long count) {
  for (long i = 0; i < count; i += 32) __builtin_prefetch(from + i, 0, 2);
}

// Copies a panel to `rows`, through what is pending; then with `slopes` the activation's slope, too.
inline void gather(const Input& in, long first, long count, const Rows<bf16>& rows, const Rows<float>* slopes) {
  const float *scale = in.affine.scale.data(), *offset = in.affine.offset.data();
  const long channels = in.channels, split = in.x.split;
  for (long r = 0; r < count; ++r) {  // in the order of memory
    const bf16 *one = in.x.at(first + r, 0), *two = split < channels ? in.x.at(first + r, split) : one;
    bf16* to = rows.at(r, 0);
    fetch(one + AHEAD * in.x.first_stride, split);
    fetch(two + AHEAD * in.x.second_stride, channels - split);
    if (!in.pending) {
      std::memcpy(to, one, split * sizeof(bf16));
      std::memcpy(to + split, two, (channels - split) * sizeof(bf16));
      continue;
    }
    float* slope = slopes ? slopes->at(r, 0) : nullptr;
    for (long c = 0; c < channels; c += V) {
      vf z = load(c < split ? one + c : two + c - split) * load(scale + c) + load(offset + c), s = sigmoid<bf16>(z);
      store(to + c, z * s);
      if (slope) store(slope + c, silu_slope(z, s));
    }
  }
  if (count < SIDE) rows.clear_from(count);
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

inline vf rounded(vf value, bf16* to) {
  __m256i half = (__m256i)_mm512_cvtneps_pbh((__m512)value);
  _mm256_storeu_si256((__m256i*)to, half);
  return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16);
}

// `sums` becomes those of y and of its squares.
void forward(const Input& in, Shape d, const float* weight, bf16* y, double* sums) {
  Packed packed(weight, d.outputs, d.inputs, true);
  std::vector<Sums> found(omp_get_max_threads(), Sums(d.outputs));
  const bool as_it_is = !in.pending && in.x.split == d.inputs && d.inputs % SIDE == 0;
#pragma omp parallel
  {
    Tiles tiles;
    Sums& mine = found[omp_get_thread_num()];
    Rows<bf16> rows(d.inputs);
    Rows<float> product(d.outputs);
    Range panels = my_share(d.panels());
    for (long panel = panels.first; panel < panels.last; ++panel) {
      const long first = panel * SIDE, count = d.rows(panel), outputs = d.outputs;
      Left left = left_of(rows);
      if (as_it_is && count == SIDE) {
        left = {in.x.at(first, 0), in.x.at(first + 16, 0), in.x.first_stride, SIDE};
      } else {
        gather(in, first, count, rows, nullptr);
      }
      for (long n = 0; n < product.width; n += SIDE)
        multiply(left, packed.at(n), packed.steps(), product.at(0, n), product.width, false);
      for (long c = 0; c < outputs; c += V) {
        vf sum = {}, squares = {};
        for (long r = 0; r < count; ++r) {
          vf value = rounded(load(product.at(r, c)), y + (first + r) * outputs + c);
          sum += value;
          squares += value * value;
        }
        mine.add(c, sum, squares);
      }
    }
  }
  add_up(found, d.outputs, sums);
}

// What one thread does backwards.
struct Backward {
  const Input& in;
  Places<bf16> dx;
  Shape d;
  Sums& sums;
  float* dweight;  // padded
  Rows<bf16> x, dy;
  Rows<float> slopes, product;
  Aligned<bf16> left, right;  // tiles of all panels of a block, by columns

  Backward(const Input& input, Places<bf16> gradient, Shape shape, Sums& own, float* weights)
      : in(input), dx(gradient), d(shape), sums(own), dweight(weights), x(d.inputs), dy(d.outputs),
        slopes(in.pending ? d.inputs : 0), product(d.inputs), left(PANELS * SIDE * dy.width, false),
        right(PANELS * SIDE * x.width, false) {}

  void normalisation(const Centred& centred, const bf16* dz, const bf16* y, long first, long count) {
    const float *scale = centred.scale.data(), *slope = centred.slope.data(), *constant = centred.constant.data();
    const long outputs = d.outputs;
    for (long r = 0; r < count; ++r) {
      const bf16 *gradient = dz + (first + r) * outputs, *value = y + (first + r) * outputs;
      bf16* to = dy.at(r, 0);
      fetch(gradient + AHEAD * outputs, outputs);
      fetch(value + AHEAD * outputs, outputs);
      for (long c = 0; c < outputs; c += V)
        store(to + c, load(scale + c) * load(gradient + c) + (load(slope + c) * load(value + c) + load(constant + c)));
    }
    if (count < SIDE) dy.clear_from(count);
  }

  void pack(long step) {
    for (long c = 0; c < dy.width; c += 16) pack_left(dy.at(0, c), dy.width, &left[(c / 16 * PANELS + step) * TILE]);
    for (long c = 0; c < x.width; c += 16) pack_right(x.at(0, c), x.width, &right[(c / 16 * PANELS + step) * TILE]);
  }

  void of_input(const Packed& packed, long first, long count) {
    for (long n = 0; n < product.width; n += SIDE)
      multiply(left_of(dy), packed.at(n), packed.steps(), product.at(0, n), product.width, false);
    for (long c = 0; c < d.inputs; c += V) {
      bf16* to = dx.at(first, c);
      const float* value = product.at(0, c);
      const long step = dx.step(c), width = product.width;
      if (!in.pending) {
        for (long r = 0; r < count; ++r) store(to + r * step, load(value + r * width));
        continue;
      }
      vf sum = {}, moments = {}, mean = load(in.mean + c);
      const float* slope = slopes.at(0, c);
      const bf16* from = in.x.at(first, c);
      const long stride = in.x.step(c);
      for (long r = 0; r < count; ++r) {
        vf dz = load(value + r * width) * load(slope + r * width);
        store(to + r * step, dz);
        sum += dz;
        moments += dz * (load(from + r * stride) - mean);
      }
      sums.add(c, sum, moments);
    }
  }

  void of_weights(long steps) {
    constexpr long COLUMN = PANELS * TILE;
    for (long n = 0; n < dy.width; n += SIDE)
      for (long k = 0; k < x.width; k += SIDE) {
        Left a{&left[n / 16 * COLUMN], &left[(n / 16 + 1) * COLUMN], SIDE, TILE};
        Right b{&right[k / 16 * COLUMN], &right[(k / 16 + 1) * COLUMN], TILE};
        multiply(a, b, steps, dweight + n * x.width + k, x.width, true);
      }
  }
};

// From the gradient `dz` before the activation that follows; y is the output. `dx` becomes the gradient of the input, or where
// something is pending the one before that activation, whose sums go to `sums`: its own, and of its product with the input
// minus the mean. It has no place (null) where nobody wants it.
void backward(const bf16* dz, const bf16* y, const Centred& centred, const Input& in, Places<bf16> dx, Shape d,
              const float* weight, float* dweight, double* sums) {
  Packed packed(weight, d.outputs, d.inputs, false);
  const long threads = omp_get_max_threads(), wide = padded(d.inputs), size = padded(d.outputs) * wide;
  std::vector<Sums> found(threads, Sums(in.pending ? d.inputs : 0));
  Aligned<float> dweights(threads * size);
#pragma omp parallel
  {
    Tiles tiles;
    const long me = omp_get_thread_num();
    Backward work(in, dx, d, found[me], &dweights[me * size]);
    Range panels = my_share(d.panels());
    for (long block = panels.first; block < panels.last; block += PANELS) {
      const long steps = std::min(PANELS, panels.last - block);
      for (long step = 0; step < steps; ++step) {
        const long first = (block + step) * SIDE, count = d.rows(block + step);
        work.normalisation(centred, dz, y, first, count);
        gather(in, first, count, work.x, in.pending ? &work.slopes : nullptr);
        work.pack(step);
        if (dx.first) work.of_input(packed, first, count);
      }
      work.of_weights(steps);
    }
  }
  if (in.pending) add_up(found, d.inputs, sums);
#pragma omp parallel for
  for (long n = 0; n < d.outputs; ++n) {
    float* row = dweight + n * d.inputs;
    std::fill(row, row + d.inputs, 0);
    for (long t = 0; t < threads; ++t)
      for (long k = 0; k < d.inputs; ++k) row[k] += dweights[t * size + n * wide + k];
  }
}

}  // namespace

extern "C" void pointwise_forward_bfloat16(Places<const bf16> x, Norm pending, Shape d, const float* weight, bf16* y,
                                           double* sums) {
  forward(Input(x, pending, d.inputs), d, weight, y, sums);
}

// `norm`, `norm_sums` and `count` belong to the normalisation that follows.
extern "C" void pointwise_backward_bfloat16(const bf16* dz, const bf16* y, Norm norm, const double* norm_sums,
                                            double count, Places<const bf16> x, Norm pending, Places<bf16> dx, Shape d,
                                            const float* weight, float* dweight, double* sums) {
  backward(dz, y, Centred(norm, norm_sums, count, d.outputs), Input(x, pending, d.inputs), dx, d, weight, dweight, sums);
}
#endif
