// 1x1 convolutions in bfloat16 with what stands around them in a network: forwards the sums that the batch normalisation
// after them needs, backwards that normalisation's second pass, so that neither reads memory once more. The input may be what
// a convolution before left, to be normalised and activated on the way: that activation never exists.
#include "panels.h"

#ifdef __AVX512BF16__
namespace {

constexpr long PANELS = 16;  // panels of 32 pixels whose share in the weights' gradient is added up at once
constexpr long GROUP = 4;    // of them are multiplied one after the other: the matrix unit takes long to wake up

struct Shape {
  long pixels, inputs, outputs;
  long panels() const { return panels_of(pixels); }
  long rows(long panel) const { return std::min(SIDE, pixels - panel * SIDE); }
};

// The input, and what each of its places still has to go through.
struct Input {
  Places<const bf16> x;
  long channels;
  Pending pending[2];
  Input(const Places<const bf16>& places, const Norm* norms, long count)
      : x(places), channels(count), pending{Pending(norms[0], x.split), Pending(norms[1], count - x.split)} {}
  bool any() const { return pending[0].any || pending[1].any; }
  const Pending& of(long channel) const { return pending[channel >= x.split]; }
  const float* mean(long channel) const { return of(channel).mean + (channel < x.split ? channel : channel - x.split); }
};

inline void gather(const bf16* from, long stride, long channels, const Pending& pending, bf16* to, float* slope) {
  fetch(from + AHEAD * stride, channels);
  if (pending.any) {
    activate(from, channels, pending.affine, to, slope);
  } else {
    std::memcpy(to, from, channels * sizeof(bf16));
  }
}

// Copies a panel to `rows` from the row `to` on, through what is pending; with `slopes` the activation's slope, too.
inline void gather(const Input& in, long first, long count, const Rows<bf16>& rows, long to, const Rows<float>* slopes) {
  const long split = in.x.split, rest = in.channels - split;
  for (long r = 0; r < count; ++r) {  // in the order of memory
    float* slope = slopes ? slopes->at(r, 0) : nullptr;
    gather(in.x.at(first + r, 0), in.x.first_stride, split, in.pending[0], rows.at(to + r, 0), slope);
    if (rest)
      gather(in.x.at(first + r, split), in.x.second_stride, rest, in.pending[1], rows.at(to + r, split),
             slope ? slope + split : nullptr);
  }
  rows.clear(to + count, to + SIDE);
}

// `sums` becomes those of y and of its squares.
void forward(const Input& in, Shape d, const float* weight, const float* bias, Places<bf16> y, double* sums) {
  Packed packed(weight, d.outputs, d.inputs, true);
  std::vector<Sums> found(omp_get_max_threads(), Sums(d.outputs));
  const bool as_it_is = !in.any() && in.x.split == d.inputs && d.inputs % SIDE == 0 && d.pixels % SIDE == 0;
#pragma omp parallel
  {
    Tiles tiles;
    Sums& mine = found[omp_get_thread_num()];
    Rows<bf16> rows(d.inputs, GROUP);
    Rows<float> product(d.outputs);
    Range panels = my_share(d.panels());
    for (long group = panels.first; group < panels.last; group += GROUP) {
      const long num = std::min(GROUP, panels.last - group);
      for (long i = 0; i < num && !as_it_is; ++i) gather(in, (group + i) * SIDE, d.rows(group + i), rows, i * SIDE, nullptr);
      for (long i = 0; i < num; ++i) {
        const long first = (group + i) * SIDE;
        Left left = as_it_is ? Left{in.x.at(first, 0), in.x.at(first + 16, 0), in.x.first_stride, SIDE} : left_of(rows, i);
        for (long n = 0; n < product.width; n += SIDE)
          multiply(left, packed.at(n), packed.steps(), product.at(0, n), product.width, false);
        keep(product, bias, first, d.rows(group + i), y, d.outputs, mine);
      }
    }
  }
  add_up(found, d.outputs, sums);
}

// The gradient of the output before the activation that follows, the output, and the normalisations of its places; or the
// gradient itself, and nothing else.
struct Output {
  Places<const bf16> dz, y;
  Centred centred[2];
};

// What one thread does backwards.
struct Backward {
  const Output& out;
  const Input& in;
  Places<const bf16> more;
  Places<bf16> dx;
  Shape d;
  Sums& sums;
  float* dweight;  // padded
  Rows<bf16> x, dy;
  Rows<float> slopes, product;
  Aligned<bf16> left, right;  // tiles of all panels of a block, by columns

  Backward(const Output& output, const Input& input, Places<const bf16> others, Places<bf16> gradient, Shape shape,
           Sums& own, float* weights)
      : out(output), in(input), more(others), dx(gradient), d(shape), sums(own), dweight(weights), x(d.inputs),
        dy(d.outputs), slopes(in.any() ? d.inputs : 0), product(d.inputs), left(PANELS * SIDE * dy.width, false),
        right(PANELS * SIDE * x.width, false) {}

  void normalisation(long first, long count) {
    const long split = out.dz.split;
    for (long r = 0; r < count; ++r)  // in the order of memory
      for (long c = 0; c < d.outputs; c = c ? d.outputs : split) {
        const long channels = c ? d.outputs - split : split;
        const bf16* gradient = out.dz.at(first + r, c);
        if (out.y.first) {
          centre(gradient, out.y.at(first + r, c), channels, AHEAD * out.y.step(c), out.centred[c > 0], dy.at(r, c));
        } else {
          fetch(gradient + AHEAD * out.dz.step(c), channels);
          std::memcpy(dy.at(r, c), gradient, channels * sizeof(bf16));
        }
      }
    dy.clear(count, SIDE);
  }

  void pack(long step) {
    for (long c = 0; c < dy.width; c += 16) pack_left(dy.at(0, c), dy.width, &left[(c / 16 * PANELS + step) * TILE]);
    for (long c = 0; c < x.width; c += 16) pack_right(x.at(0, c), x.width, &right[(c / 16 * PANELS + step) * TILE]);
  }

  void of_input(const Packed& packed, long first, long count) {
    for (long n = 0; n < product.width; n += SIDE)
      multiply(left_of(dy, 0), packed.at(n), packed.steps(), product.at(0, n), product.width, false);
    for (long c = 0; c < d.inputs; c += V) {
      if (more.first)
        for (long r = 0; r < count; ++r)
          store(product.at(r, c), load(product.at(r, c)) + load(more.at(first + r, c)));
      auto each = [this, c, count, value = product.at(0, c), width = product.width](auto done) {
        for (long r = 0; r < count; ++r) done(r, load(value + r * width));
        done.end(sums, c);
      };
      bf16* to = dx.at(first, c);
      if (in.of(c).any) {
        each(ThroughActivation<bf16>{to, dx.step(c), in.x.at(first, c), in.x.step(c), slopes.at(0, c), slopes.width,
                                     load(in.mean(c))});
      } else {
        each(Store<bf16>{to, dx.step(c)});
      }
    }
  }

  void of_weights(long steps) {
    constexpr long COLUMN = PANELS * TILE;
    for (long n = 0; n < dy.width; n += SIDE)
      for (long k = 0; k < x.width; k += SIDE) {
        Left a{&left[n / 16 * COLUMN], n + 16 < d.outputs ? &left[(n / 16 + 1) * COLUMN] : nullptr, SIDE, TILE};
        Right b{&right[k / 16 * COLUMN], k + 16 < d.inputs ? &right[(k / 16 + 1) * COLUMN] : nullptr, TILE};
        multiply(a, b, steps, dweight + n * x.width + k, x.width, true);
      }
  }
};

// `dx` becomes the gradient of the input with `more` added; where something is pending, the one before that activation,
// whose sums go to `sums`: its own, and of its product with the input minus the mean. It has no place (null) where nobody
// wants it, and `more` has none where there is nothing to add.
void backward(const Output& out, const Input& in, Places<const bf16> more, Places<bf16> dx, Shape d, const float* weight,
              float* dweight, double* sums) {
  Packed packed(weight, d.outputs, d.inputs, false);
  const long threads = omp_get_max_threads(), size = padded(d.outputs) * padded(d.inputs);
  std::vector<Sums> found(threads, Sums(in.any() ? d.inputs : 0));
  Aligned<float> dweights(threads * size);
#pragma omp parallel
  {
    Tiles tiles;
    const long me = omp_get_thread_num();
    Backward work(out, in, more, dx, d, found[me], &dweights[me * size]);
    Range panels = my_share(d.panels());
    for (long block = panels.first; block < panels.last; block += PANELS) {
      const long steps = std::min(PANELS, panels.last - block);
      for (long step = 0; step < steps; ++step) {
        const long first = (block + step) * SIDE, count = d.rows(block + step);
        work.normalisation(first, count);
        gather(in, first, count, work.x, 0, in.any() ? &work.slopes : nullptr);
        work.pack(step);
        if (dx.first) work.of_input(packed, first, count);
      }
      work.of_weights(steps);
    }
  }
  if (in.any()) add_up(found, d.inputs, sums);
  add_up(dweights, threads, d.outputs, d.inputs, dweight);
}

}  // namespace

struct Following {  // normalisations of the places of an output, and what backwards has to know of each
  Norm norm[2];
  const double* sums[2];
  double count[2];
};

extern "C" void pointwise_forward_bfloat16(Places<const bf16> x, const Norm* pending, Shape d, const float* weight,
                                           const float* bias, Places<bf16> y, double* sums) {
  forward(Input(x, pending, d.inputs), d, weight, bias, y, sums);
}

// Without a normalisation `y` has no place.
extern "C" void pointwise_backward_bfloat16(Places<const bf16> dz, Places<const bf16> y, const Following* next,
                                            Places<const bf16> x, const Norm* pending, Places<const bf16> more,
                                            Places<bf16> dx, Shape d, const float* weight, float* dweight, double* sums) {
  const long split = y.split, rest = y.first ? d.outputs - split : 0;
  Output out{dz, y, {Centred(next->norm[0], next->sums[0], next->count[0], split),
                     Centred(next->norm[1], next->sums[1], next->count[1], rest)}};
  backward(out, Input(x, pending, d.inputs), more, dx, d, weight, dweight, sums);
}
#endif
