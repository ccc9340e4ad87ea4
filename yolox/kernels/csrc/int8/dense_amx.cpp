// Convolutions that sum over all channels, with Intel's matrix unit (AMX). A tile of 16 pixels by up to 64 bytes of
// their windows is loaded from where they lie and multiplied by a tile of weights of 16 channels; sums of 32 pixels by
// 32 channels stay in four tiles until all products are added. packing.py says how weights lie and what `Step::tiles`
// is.
#include "avx512.h"
#include "portable.h"
#ifdef NATIVE_TILES
#ifndef TILE_MODEL
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace native {

bool may_use_tiles() {
#ifdef TILE_MODEL  // a test computes what the instructions do
  return true;
#else  // Linux gives a process the unit's registers when it asks for them: ARCH_REQ_XCOMP_PERM, XTILEDATA
  static const bool granted = syscall(SYS_arch_prctl, 0x1023, 18) == 0;
  return granted;
#endif
}

namespace {

constexpr long ROWS = 16;        // pixels of a tile
constexpr long KEPT = 1 << 20;   // bytes of weights that stay in the second cache while pixels pass

#ifndef NATIVE_AVX512  // with a model of the tile instructions on other processors
struct OneByOne {
  template <int N> void take_ordered(const Step&, long) {}
};
#endif

// The shapes of a thread's tiles, and afterwards those it had before: other libraries keep theirs between calls.
class Shapes {
  struct alignas(64) Configuration {
    uint8_t palette = 0, first_row = 0, none[14] = {};
    uint16_t bytes[16] = {};
    uint8_t rows[16] = {};
    void set(int tile, long height, long width) { rows[tile] = uint8_t(height), bytes[tile] = uint16_t(width); }
  } before;

 public:
  Shapes(long pixels, long depth) {
    Configuration mine;
    mine.palette = 1;
    for (int i = 0; i < 4; ++i) mine.set(i, pixels, 64);       // sums
    for (int i = 4; i < 6; ++i) mine.set(i, pixels, 4 * depth);  // windows
    for (int i = 6; i < 8; ++i) mine.set(i, depth, 64);        // weights
    asm volatile("" ::"r"(&before), "r"(&mine) : "memory");  // GCC thinks that the next two use eight bytes of each
    _tile_storeconfig(&before);
    _tile_loadconfig(&mine);
  }
  ~Shapes() { _tile_loadconfig(&before); }
};

// How pixels and windows are walked through. A span is a run of pixels at the same distance from each other in memory:
// a row of the output, or all rows with what lies between them, where that takes fewer tiles.
struct Walk {
  long distance, spans, pixels, pitch;  // bytes between pixels; pixels of a span, and from one of its rows to the next
  long height, columns, chunks;         // runs of bytes in a window, down and across; tiles in a run
  long tile;                            // pixels of a tile
  long bytes;                           // of the window of one channel of the output

  Walk(const Step& s, Range rows) : distance(s.stride * s.in.pixel), pitch(s.in.row / s.in.pixel), height(s.height) {
    const long count = rows.last - rows.first, channels = (s.in.channels + 15) / 16 * 16;
    const bool one = s.in.row % s.in.pixel == 0 && pitch <= (s.out.width + ROWS - 1) / ROWS * ROWS;
    if (!one) pitch = s.out.width;
    spans = one ? 1 : count;
    pixels = one ? (count - 1) * pitch + s.out.width : s.out.width;
    tile = std::min(ROWS, pixels);
    const bool joined = s.dilation == 1 && s.in.pixel == channels;  // a window's row is one run
    columns = joined ? 1 : s.width;
    chunks = (joined ? s.width : 1) * channels / (4 * s.tiles);
    bytes = s.height * s.width * channels;
  }
};

// Two tiles of pixels from a span's pixel `at` on: where their windows begin, and the row and column of each pixel. The
// last tile of a span begins early enough to be full.
struct Pixels {
  const uint8_t *top, *bottom;       // bottom: null where one tile is all
  int32_t y[2 * ROWS], x[2 * ROWS];  // -1 where there is nothing to be written

  void take(const Step& s, const Image& image, const Walk& w, long row, long at) {
    const uint8_t* in = first_window(s, image) + row * s.stride * s.in.row;
    auto tile = [&](int half) {
      const long wanted = at + half * ROWS, first = std::min(wanted, w.pixels - w.tile);
      long line = row + first / w.pitch, column = first % w.pitch;
      for (long i = 0; i < ROWS; ++i) {
        const bool mine = i < w.tile && first + i >= wanted && column < s.out.width;
        y[half * ROWS + i] = int32_t(line), x[half * ROWS + i] = mine ? int32_t(column) : -1;
        if (++column == w.pitch) column = 0, ++line;
      }
      return in + first * w.distance;
    };
    top = tile(0);
    bottom = at + ROWS < w.pixels ? tile(1) : nullptr;
  }
};

// The sums of two tiles of pixels by R vectors of channels from c on.
template <class Finish> struct Block {
  alignas(64) int32_t sum[2 * ROWS * 2 * V] = {};
  const Pixels* pixels = nullptr;
  Finish finished;
  long c = 0, R = 2, next = 0, last = 0;  // groups of four vectors that are to be finished

  template <int N> INLINE inline void four(const Step& s, const Image& image, long i) const {
    const int32_t* from = sum + 4 * V * i;
    if constexpr (std::is_same<Finish, OneByOne>::value) {
      for (long q = 0; q < 4; ++q) {
        const long pixel = (4 * i + q) / N;
        vi one;
        std::memcpy(&one, from + q * V, sizeof one);
        if (pixels->x[pixel] >= 0) finish(s, image, one, pixels->y[pixel], pixels->x[pixel], c + q % N * V);
      }
    } else {
#ifdef NATIVE_AVX512
      auto vector = [&](long q) { return _mm512_load_si512(from + q * V); };
      const __m512i bytes = finished.ordered_bytes(vector(0), vector(1), vector(2), vector(3));
      auto store = [&](long pixel, auto part) {
        const long y = pixels->y[pixel], x = pixels->x[pixel];
        if (x >= 0) put(image.out + s.out.at + y * s.out.row + x * s.out.pixel + c, part, s.out.room - c);
      };
      if constexpr (N == 2) {
        store(2 * i, _mm512_castsi512_si256(bytes));
        store(2 * i + 1, _mm512_extracti64x4_epi64(bytes, 1));
      } else {
        store(4 * i, _mm512_castsi512_si128(bytes));
        store(4 * i + 1, _mm512_extracti32x4_epi32(bytes, 1));
        store(4 * i + 2, _mm512_extracti32x4_epi32(bytes, 2));
        store(4 * i + 3, _mm512_extracti32x4_epi32(bytes, 3));
      }
#endif
    }
  }

  // Finishes some more, so that the vector units work while the matrix unit does.
  void finish_some(const Step& s, const Image& image, long count) {
    for (count = std::min(count, last - next); count > 0; --count, ++next)
      R == 2 ? four<2>(s, image, next) : four<1>(s, image, next);
  }

  // Adds up all products, while sums of the block `before` are finished.
  template <bool RIGHT> void multiply(const Step& s, const Image& image, const Walk& w, Block& before) {
    const uint8_t *top = pixels->top, *bottom = pixels->bottom;
    const int8_t* weight = s.weight + c * w.bytes;
    finished.template take_ordered<RIGHT ? 2 : 1>(s, c);
    constexpr long wide = RIGHT ? 128 : 64;  // bytes of a row of sums, and of weights
    const long all = w.height * w.columns * w.chunks, each = (before.last - before.next + all - 1) / all;
    asm volatile("" ::: "memory");  // the compiler does not see that the instructions below read and write memory
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (long down = 0; down < w.height; ++down)
      for (long across = 0; across < w.columns; ++across) {
        long at = s.dilation * (down * s.in.row + across * s.in.pixel);
        for (long chunk = 0; chunk < w.chunks; ++chunk, at += 4 * s.tiles, weight += s.tiles * wide) {
          _tile_loadd(4, top + at, w.distance);
          _tile_loadd(6, weight, wide);
          _tile_dpbusd(0, 4, 6);
          if (RIGHT) {
            _tile_loadd(7, weight + 64, wide);
            _tile_dpbusd(1, 4, 7);
          }
          if (bottom) {
            _tile_loadd(5, bottom + at, w.distance);
            _tile_dpbusd(2, 5, 6);
            if (RIGHT) _tile_dpbusd(3, 5, 7);
          }
          before.finish_some(s, image, each);
        }
      }
    asm volatile("" ::: "memory");
    int32_t* low = sum + ROWS * wide / 4;
    _tile_stored(0, sum, wide);
    if (RIGHT) _tile_stored(1, sum + V, wide);
    if (bottom) _tile_stored(2, low, wide);
    if (bottom && RIGHT) _tile_stored(3, low + V, wide);
    asm volatile("" ::: "memory");
    next = 0, last = (bottom ? 2 : 1) * ROWS * R / 4;
  }
};

// Pixels pass by as many weights as the second cache keeps, 32 of them at a time, which the first cache keeps.
template <class Finish> void blocks(const Step& s, const Image& image, Range rows) {
  const Walk w(s, rows);
  const Shapes shapes(w.tile, s.tiles);
  const long part = std::max(64L, KEPT / w.bytes / 64 * 64);
  Block<Finish> two[2];
  Pixels places[2];  // those of a block that is not finished yet stay
  Block<Finish>*mine = two, *before = two + 1;
  Pixels *here = places, *there = places + 1;
  for (long first = 0; first < s.out.channels; first += part)
    for (long span = 0; span < w.spans; ++span)
      for (long at = 0; at < w.pixels; at += 2 * ROWS, std::swap(here, there)) {
        here->take(s, image, w, rows.first + span, at);
        const long end = std::min(first + part, s.out.channels);
        for (long c = first; c < end; c += before->R * V) {
          mine->pixels = here, mine->c = c, mine->R = c + V < s.out.channels ? 2 : 1;
          mine->R == 2 ? mine->template multiply<true>(s, image, w, *before)
                       : mine->template multiply<false>(s, image, w, *before);
          std::swap(mine, before);
        }
      }
  before->finish_some(s, image, before->last);
}

}  // namespace

void dense_with_tiles(const Step& s, const Image& image, Range rows) {
  if (rows.first >= rows.last) return;
#ifdef NATIVE_AVX512
  if (s.linear) return blocks<Linear>(s, image, rows);
  if (s.activation_table) return blocks<ActivationTables>(s, image, rows);
#endif
  blocks<OneByOne>(s, image, rows);
}

}  // namespace native
#endif
