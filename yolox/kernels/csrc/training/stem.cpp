// The first convolution, 6x6 with stride 2 and padding 2 on images of three channels, in bfloat16: forwards with the
// sums for the batch normalisation after it, backwards with that normalisation's second pass. Nobody wants the gradient
// of an image.
//
// Six pixels of a row are 18 numbers side by side, and those of the next output begin 6 numbers later. So rows of a
// left matrix lie in memory as the image does, 12 bytes apart, each 32 numbers of which the last 14 meet weights of
// zero.
#include "program.h"
#include "tiles.h"

#ifdef PRODUCTS_OF_BF16
namespace {

constexpr long SIZE = 6, CHANNELS = 3, PADDING = 2, TAPS = SIZE * CHANNELS, STEP = 2 * CHANNELS;

struct StemInput {
  const void* pixels;  // bytes, or float32
  long floats, count, height, width, outputs;
  long out_height() const { return height / 2; }
  long out_width() const { return width / 2; }
  long panels() const { return panels_of(out_width()); }  // of a row
};

#ifdef __AVX512BF16__
inline __m256i as_bf16(const uint8_t* from) {
  return (__m256i)_mm512_cvtneps_pbh(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)from))));
}

inline __m256i as_bf16(const float* from) { return (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(from)); }
#endif

template <class P>
inline void row_as_bf16(const P* from, long count, bf16* to) {
  long i = 0;
#ifdef __AVX512BF16__
  for (; i + 16 <= count; i += 16) _mm256_storeu_si256((__m256i*)(to + i), as_bf16(from + i));
#endif
  for (; i < count; ++i) put(to + i, from[i]);
}

// The last rows of images a thread has asked for, each made by make(row, place) for as many numbers as `length` says.
// Those of a window of six lie one after the other: the first ones are kept twice. Rows outside of an image are zeros.
class Window {
  static constexpr long KEPT = 8, TWICE = SIZE - 1;
  Aligned<bf16> memory;
  long length, held[KEPT];

 public:
  explicit Window(long numbers) : memory((KEPT + TWICE) * numbers), length(numbers) {
    std::fill(held, held + KEPT, -1);
  }
  long step() const { return length; }
  // The six rows that row `row` of the output reads.
  template <class F>
  const bf16* at(const StemInput& d, long image, long row, F& make) {
    for (long k = 0; k < SIZE; ++k) {
      const long with_padding = 2 * row + k, source = with_padding - PADDING, slot = with_padding % KEPT;
      const long name = image * (d.height + 2 * PADDING) + with_padding;
      if (held[slot] == name) continue;
      held[slot] = name;
      bf16* to = &memory[slot * length];
      if (source >= 0 && source < d.height) {
        make(image * d.height + source, to);
      } else {
        std::fill(to, to + length, bf16{});
      }
      if (slot < TWICE) std::copy(to, to + length, &memory[(KEPT + slot) * length]);
    }
    return &memory[2 * row % KEPT * length];
  }
};

// A row of an image in bfloat16, with its padding, and zeros up to where the last panel reads.
class Row {
  const StemInput& d;

 public:
  explicit Row(const StemInput& images) : d(images) {}
  long length() const { return padded(d.panels() * SIDE * STEP + SIDE); }
  void operator()(long row, bf16* to) const {
    const long numbers = d.width * CHANNELS, at = row * numbers, start = PADDING * CHANNELS;
    if (d.floats) {
      row_as_bf16((const float*)d.pixels + at, numbers, to + start);
    } else {
      row_as_bf16((const uint8_t*)d.pixels + at, numbers, to + start);
    }
    std::fill(to, to + start, bf16{});
    std::fill(to + start + numbers, to + length(), bf16{});
  }
};

// From [outputs][6][18] to [outputs][6][32].
std::vector<float> spread(const float* weight, long outputs) {
  std::vector<float> out(outputs * SIZE * SIDE);
  for (long i = 0; i < outputs * SIZE; ++i) std::copy(weight + i * TAPS, weight + (i + 1) * TAPS, &out[i * SIDE]);
  return out;
}

void forward(const StemInput& d, const float* weight, bf16* y, double* sums) {
  const long outputs = d.outputs, width = d.out_width();
  Packed packed(spread(weight, outputs).data(), outputs, SIZE * SIDE, true);
  std::vector<Sums> found(omp_get_max_threads(), Sums(outputs));
  const SplitTensor<bf16> whole{y, outputs, y, outputs, outputs};
  on_all_threads([&] {
    Tiles tiles;
    const Row row(d);
    Window window(row.length());
    Aligned<float> product(SIDE * SIDE);
    Sums& own = found[omp_get_thread_num()];
    Range mine = my_share(d.count * d.out_height());
    for (long r = mine.first; r < mine.last; ++r) {
      const bf16* rows = window.at(d, r / d.out_height(), r % d.out_height(), row);
      for (long first = 0; first < width; first += SIDE) {
        const bf16* at = rows + first * STEP;
        for (long n = 0; n < outputs; n += SIDE) {
          multiply({at, at + 16 * STEP, STEP, window.step()}, packed.at(n), SIZE, product.begin(), SIDE, false,
                   TAPS / 2);
          keep(product.begin(), nullptr, r * width + first, std::min(SIDE, width - first), whole, n, outputs, own);
        }
      }
    }
  });
  add_up(found, outputs, sums);
}

constexpr long REST = TAPS - 16;  // taps of a row beyond its first tile; those of all rows share another one

// The same row as a tile of a right matrix for each panel, of the first 16 taps; and after these tiles the pairs of the
// others.
class PackedRow {
  const StemInput& d;
  Row row;
  Aligned<bf16> numbers;

 public:
  static constexpr long PAIRS = 2 * REST;  // numbers of two pixels
  explicit PackedRow(const StemInput& images) : d(images), row(images), numbers(row.length()) {}
  long length() const { return d.panels() * (TILE + 16 * PAIRS); }
  void operator()(long source, bf16* to) {
    row(source, numbers.begin());
    bf16* rest = to + d.panels() * TILE;
    for (long p = 0; p < d.panels(); ++p) {
      const bf16* panel = &numbers[p * SIDE * STEP];
      pack_right(panel, STEP, to + p * TILE);
      for (long pixel = 0; pixel < SIDE; ++pixel)
        for (long i = 0; i < REST; ++i)
          rest[(p * SIDE + pixel) / 2 * PAIRS + 2 * i + pixel % 2] = panel[pixel * STEP + 16 + i];
    }
  }
};

// The tiles that hold the other taps of all rows, from those rows, one `step` after the other.
void gather_rest(const bf16* rows, long step, long panels, bf16* tiles) {
  constexpr long PAIRS = PackedRow::PAIRS;
  for (long r = 0; r < 16 * panels; ++r)
    for (long k = 0; k < SIZE; ++k)
      std::memcpy(tiles + r * 32 + k * PAIRS, rows + k * step + panels * TILE + r * PAIRS, PAIRS * sizeof(bf16));
}

// From [outputs][wide], as the tiles have the taps, to [outputs][6][18].
void in_order(const float* found, long outputs, long wide, float* dweight) {
  for (long n = 0; n < outputs; ++n)
    for (long k = 0; k < SIZE; ++k) {
      const float* own = found + n * wide;
      dweight = std::copy(own + k * 16, own + k * 16 + 16, dweight);
      dweight = std::copy(own + SIZE * 16 + k * REST, own + SIZE * 16 + (k + 1) * REST, dweight);
    }
}

void backward(const bf16* dz, const bf16* y, const Centred& centred, const StemInput& d, float* dweight) {
  const long outputs = d.outputs, width = d.out_width(), panels = d.panels(), wide = padded((SIZE + 1) * 16);
  const long threads = omp_get_max_threads(), size = padded(outputs) * wide;
  Aligned<float> dweights(threads * size);
  on_all_threads([&] {
    Tiles tiles;
    PackedRow row(d);
    Window window(row.length());
    Rows<bf16> dy(outputs);
    Aligned<bf16> left(dy.width * panels * SIDE), rest(panels * TILE);
    float* own = &dweights[omp_get_thread_num() * size];
    Range mine = my_share(d.count * d.out_height());
    for (long r = mine.first; r < mine.last; ++r) {
      const bf16* rows = window.at(d, r / d.out_height(), r % d.out_height(), row);
      gather_rest(rows, window.step(), panels, rest.begin());
      for (long p = 0; p < panels; ++p) {
        const long count = std::min(SIDE, width - p * SIDE), at = (r * width + p * SIDE) * outputs;
        centre<bf16>({dz + at, outputs}, {y + at, outputs}, count, outputs, AHEAD, centred, dy.pixels(0, 0));
        dy.clear(count, SIDE);
        for (long c = 0; c < outputs; c += 16) pack_left(dy.at(0, c), dy.width, &left[(c / 16 * panels + p) * TILE]);
      }
      for (long n = 0; n < outputs; n += SIDE) {
        const bf16* a = &left[n / 16 * panels * TILE];
        const Left gradients{a, n + 16 < outputs ? a + panels * TILE : nullptr, SIDE, TILE};
        float* to = own + n * wide;
        for (long k = 0; k < SIZE; k += 2)
          multiply(gradients, {rows + k * window.step(), rows + (k + 1) * window.step(), TILE}, panels, to + k * 16,
                   wide, true);
        multiply(gradients, {rest.begin(), nullptr, TILE}, panels, to + SIZE * 16, wide, true);
      }
    }
  });
  std::vector<float> whole(outputs * wide);
  add_up(dweights, threads, outputs, wide, whole.data());
  in_order(whole.data(), outputs, wide, dweight);
}

}  // namespace

LAYOUT(StemInput, StemInput, AT(StemInput, pixels), AT(StemInput, floats), AT(StemInput, count), AT(StemInput, height),
       AT(StemInput, width), AT(StemInput, outputs))

// `weight` and `dweight` are [outputs][6][6][3].
extern "C" int stem_forward_bfloat16(StemInput images, const float* weight, bf16* y, double* sums) {
  return enough_memory([=] { forward(images, weight, y, sums); });
}

extern "C" int stem_backward_bfloat16(const bf16* dz, const bf16* y, Norm norm, const double* norm_sums, double count,
                                      StemInput images, float* dweight) {
  return enough_memory([=] { backward(dz, y, Centred(norm, norm_sums, count, images.outputs), images, dweight); });
}
INVOKED(stem_forward_bfloat16)
INVOKED(stem_backward_bfloat16)
#endif
