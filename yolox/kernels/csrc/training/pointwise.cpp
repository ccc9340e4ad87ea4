// 1x1 convolutions with what stands around them in a network: forwards the sums that the batch normalisation
// after them needs, backwards that normalisation's second pass, so that neither reads memory once more. The input may
// be what a convolution before left, to be normalised and activated on the way: that activation never exists.
#include "float_products.h"
#include "program.h"
#include "tiles.h"

namespace {

constexpr long GROUP = 4;  // panels are multiplied one after the other: the matrix unit takes long to wake up

struct Shape {
  long pixels, inputs, outputs;
  long panels() const { return panels_of(pixels); }
  long rows(long panel) const { return std::min(SIDE, pixels - panel * SIDE); }
};

// The input, and what each of its places still has to go through.
template <class T>
struct Input {
  SplitTensor<const T> x;
  long channels;
  Deferred deferred[2];
  Input(const SplitTensor<const T>& tensor, const Norm* norms, long count)
      : x(tensor), channels(count), deferred{Deferred(norms[0], x.split), Deferred(norms[1], count - x.split)} {}
  bool any() const { return deferred[0].any || deferred[1].any; }
  const Deferred& of(long channel) const { return deferred[channel >= x.split]; }
  const float* mean(long channel) const { return of(channel).mean + (channel < x.split ? channel : channel - x.split); }
};

template <class T>
inline void copy(Pixels<const T> from, long count, long channels, Pixels<T> to) {
  for (long r = 0; r < count; ++r) {
    for (long c = 0; c < channels; c += V) fetch(from.at(r + AHEAD), c);
    std::memcpy(to.at(r), from.at(r), channels * sizeof(T));
  }
}

template <class T, class F>
inline void gather(Pixels<const T> from, long count, long channels, const Deferred& deferred, Pixels<T> to, F slopes) {
  if (deferred.any) return activate(from, count, channels, AHEAD, deferred.affine, to, slopes);
  copy(from, count, channels, to);
}

// Copies a panel to `rows` from the row `to` on, through what is deferred; with `slopes` the activation's slope, too.
template <class T>
inline void gather(const Input<T>& in, long first, long count, const Rows<T>& rows, long to, const Blocks* slopes) {
  const long split = in.x.split, rest = in.channels - split;
  auto place = [&](long channel, long channels) {
    gather<T>(in.x.pixels(first, channel), count, channels, in.deferred[channel > 0], rows.pixels(to, channel),
              [=](long c) { return slopes ? slopes->pixels(channel + c) : Pixels<float>{}; });
  };
  place(0, split);
  if (rest) place(split, rest);
  rows.clear(to + count, to + SIDE);
}

// `sums` becomes those of y and of its squares.
template <class T>
void forward(const Input<T>& in, Shape d, const float* weight, const float* bias, SplitTensor<T> y, double* sums) {
  const typename Products<T>::Weights weights(weight, d.outputs, d.inputs, true);
  std::vector<Sums> found(omp_get_max_threads(), Sums(d.outputs));
  const bool as_it_is = !in.any() && in.x.split == d.inputs && d.inputs % SIDE == 0 && d.pixels % SIDE == 0;
  on_all_threads([&] {
    typename Products<T>::Session session;
    Sums& mine = found[omp_get_thread_num()];
    Rows<T> rows(d.inputs, GROUP);
    Aligned<float> product(SIDE * SIDE);
    Range panels = my_share(d.panels());
    for (long group = panels.first; group < panels.last; group += GROUP) {
      const long num = std::min(GROUP, panels.last - group);
      for (long i = 0; i < num && !as_it_is; ++i)
        gather<T>(in, (group + i) * SIDE, d.rows(group + i), rows, i * SIDE, nullptr);
      for (long i = 0; i < num; ++i) {
        const long first = (group + i) * SIDE;
        const T* from = as_it_is ? in.x.at(first, 0) : rows.at(i * SIDE, 0);
        for (long n = 0; n < d.outputs; n += SIDE) {
          Products<T>::multiply_panel(from, as_it_is ? in.x.first_stride : rows.width, weights, n, product.begin());
          keep(product.begin(), bias, first, d.rows(group + i), y, n, d.outputs, mine);
        }
      }
    }
  });
  add_up(found, d.outputs, sums);
}

// The gradient of the output before the activation that follows, the output, and the normalisations of its places; or
// the gradient itself, and nothing else.
template <class T>
struct Output {
  SplitTensor<const T> dz, y;
  Centred centred[2];
};

// What one thread does backwards.
template <class T>
struct Backward {
  const Output<T>& out;
  const Input<T>& in;
  SplitTensor<const T> more;
  SplitTensor<T> dx;
  Shape d;
  Sums& sums;
  typename Products<T>::Operands operands;
  Blocks slopes;
  Aligned<float> product;

  Backward(const Output<T>& output, const Input<T>& input, SplitTensor<const T> others, SplitTensor<T> gradient,
           Shape shape, Sums& own)
      : out(output), in(input), more(others), dx(gradient), d(shape), sums(own), operands(d.inputs, d.outputs),
        slopes(in.any() ? d.inputs : 0), product(SIDE * SIDE) {}

  void normalisation(long first, long count, long row) {
    const long split = out.dz.split;
    Rows<T>& dy = operands.dy;
    for (long c = 0; c < d.outputs; c = c ? d.outputs : split) {
      const long channels = c ? d.outputs - split : split;
      const Pixels<const T> gradient = out.dz.pixels(first, c);
      const Pixels<T> to = dy.pixels(row, c);
      if (out.y.first) {
        centre(gradient, out.y.pixels(first, c), count, channels, AHEAD, out.centred[c > 0], to);
      } else {
        copy(gradient, count, channels, to);
      }
    }
    dy.clear(row + count, row + SIDE);
  }

  void of_input(const typename Products<T>::Weights& weights, long panel, long row) {
    for (long n = 0; n < d.inputs; n += SIDE) {
      Products<T>::multiply_panel(operands.dy.at(row, 0), operands.dy.width, weights, n, product.begin());
      for (long c = n; c < std::min(n + SIDE, d.inputs); c += V)
        of_input(c, &product[c - n], panel * SIDE, d.rows(panel));
    }
  }

  void of_input(long c, const float* found, long first, long count) {
    const Pixels<const T> others = more.first ? more.pixels(first, c) : Pixels<const T>{};
    auto each = [&](auto done) {
      by_rows(count, [&](long pixel, auto number) {
        constexpr long R = number.value;
        vf value[R];
        EACH value[r] = load(found + (pixel + r) * SIDE);
        if (others.first) EACH value[r] += load(others.at(pixel + r));
        EACH done(pixel + r, value[r], r % LANES);
      });
      done.end(sums, c);
    };
    const Pixels<T> to = dx.pixels(first, c);
    if (!in.of(c).any) return each(Store<T>{to});
    const Pixels<float> slope = slopes.pixels(c);
    each(ThroughActivation<T>{to, in.x.pixels(first, c), {slope.first, slope.step}, load(in.mean(c))});
  }
};

// `dx` becomes the gradient of the input with `more` added; where something is deferred, the one before that
// activation, whose sums go to `sums`: its own, and of its product with the input minus the mean. It has no place
// (null) where nobody wants it, and `more` has none where there is nothing to add.
template <class T>
void backward(const Output<T>& out, const Input<T>& in, SplitTensor<const T> more, SplitTensor<T> dx, Shape d,
              const float* weight,
              float* dweight, double* sums) {
  const typename Products<T>::Weights weights(weight, d.outputs, d.inputs, false);
  const long threads = omp_get_max_threads(), size = padded(d.outputs) * padded(d.inputs);
  constexpr long PANELS = Products<T>::Operands::PANELS;  // whose share in the weights' gradient is added up at once
  std::vector<Sums> found(threads, Sums(in.any() ? d.inputs : 0));
  Aligned<float> dweights(threads * size);
  on_all_threads([&] {
    typename Products<T>::Session session;
    const long me = omp_get_thread_num();
    Backward<T> work(out, in, more, dx, d, found[me]);
    Range panels = my_share(d.panels());
    for (long block = panels.first; block < panels.last; block += PANELS) {
      const long steps = std::min(PANELS, panels.last - block);
      for (long step = 0; step < steps; ++step) {
        const long first = (block + step) * SIDE, count = d.rows(block + step), row = work.operands.row(step);
        work.normalisation(first, count, row);
        gather<T>(in, first, count, work.operands.x, row, in.any() ? &work.slopes : nullptr);
        work.operands.keep(step);
        if (dx.first) work.of_input(weights, block + step, row);
      }
      work.operands.add_products(steps, &dweights[me * size]);
    }
  });
  if (in.any()) add_up(found, d.inputs, sums);
  add_up(dweights, threads, d.outputs, d.inputs, dweight);
}

}  // namespace

struct NextNorm {  // normalisations of the places of an output, and what backwards has to know of each
  Norm norm[2];
  const double* sums[2];
  double count[2];
};

using Split = SplitTensor<float>;
LAYOUT(SplitTensor, Split, AT(Split, first), AT(Split, first_stride), AT(Split, second), AT(Split, second_stride),
       AT(Split, split))
LAYOUT(Shape, Shape, AT(Shape, pixels), AT(Shape, inputs), AT(Shape, outputs))
LAYOUT(NextNorm, NextNorm, AT(NextNorm, norm), AT(NextNorm, sums), AT(NextNorm, count))

// Without a normalisation the backward pass's `y` has no place.
#define EXPORT(NAME, T)                                                                                               \
  extern "C" int pointwise_forward_##NAME(SplitTensor<const T> x, const Norm* deferred, Shape d, const float* weight, \
                                          const float* bias, SplitTensor<T> y, double* sums) {                        \
    return enough_memory([=] { forward(Input<T>(x, deferred, d.inputs), d, weight, bias, y, sums); });                \
  }                                                                                                                   \
  extern "C" int pointwise_backward_##NAME(SplitTensor<const T> dz, SplitTensor<const T> y, const NextNorm* next,     \
                                           SplitTensor<const T> x, const Norm* deferred, SplitTensor<const T> more,   \
                                           SplitTensor<T> dx, Shape d, const float* weight, float* dweight,           \
                                           double* sums) {                                                            \
    return enough_memory([=] {                                                                                        \
      const long split = y.split, rest = y.first ? d.outputs - split : 0;                                             \
      Output<T> out{dz, y, {Centred(next->norm[0], next->sums[0], next->count[0], split),                             \
                            Centred(next->norm[1], next->sums[1], next->count[1], rest)}};                            \
      backward(out, Input<T>(x, deferred, d.inputs), more, dx, d, weight, dweight, sums);                             \
    });                                                                                                               \
  }                                                                                                                   \
  INVOKED(pointwise_forward_##NAME)                                                                                   \
  INVOKED(pointwise_backward_##NAME)
EXPORT(float32, float)
#ifdef PRODUCTS_OF_BF16
EXPORT(bfloat16, bf16)
#endif
