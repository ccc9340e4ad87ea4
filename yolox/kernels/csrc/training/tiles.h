// Products of bfloat16 matrices, 32 rows by 32 columns at a time, in float32. Intel's matrix unit (AMX) multiplies
// tiles of 16 rows of 64 bytes; without it, the dot products of pairs of AVX512-BF16 do, on the same layout in memory.
// The portable kernels compute number by number; they are there so that all of this is tested on any processor.
//
// The left matrix lies in rows. The right one lies in tiles in which row r holds, side by side for each of 16 columns,
// the two numbers 2r and 2r + 1 of that column.
#pragma once
#include "panels.h"

#ifdef __AMX_BF16__
#define MATRIX_UNIT
#endif

#if defined(__AVX512BF16__) || !defined(__AVX2__)
#define PRODUCTS_OF_BF16
#ifdef MATRIX_UNIT
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

constexpr long TILE = 16 * 32;  // numbers in a tile, 16 rows of 32

#ifdef MATRIX_UNIT
// Linux gives a process the unit's registers when it asks for them (arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA).
inline bool matrix_unit() {
  static const bool granted = syscall(SYS_arch_prctl, 0x1023, 18) == 0;
  return granted;
}

// Eight full tiles for a thread, and afterwards what it had before: oneDNN keeps its own shapes between calls.
class Tiles {
  struct alignas(64) Shapes {
    uint8_t palette = 0, first_row = 0, none[14] = {};
    uint16_t bytes[16] = {};
    uint8_t rows[16] = {};
  } before;

 public:
  Tiles() {
    if (!matrix_unit()) return;
    Shapes full;
    full.palette = 1;
    for (int i = 0; i < 8; ++i) full.bytes[i] = 64, full.rows[i] = 16;
    asm volatile("" ::"r"(&before), "r"(&full) : "memory");  // GCC thinks that the next two use eight bytes of each
    _tile_storeconfig(&before);
    _tile_loadconfig(&full);
  }
  ~Tiles() {
    if (matrix_unit()) _tile_loadconfig(&before);
  }
};
#else
inline bool matrix_unit() { return false; }
struct Tiles {
  Tiles() {}
};
#endif

struct Left {
  const bf16 *top, *bottom;  // 16 rows each; bottom is null where there are no more
  long row, step;            // from row to row, and to the next 32 columns
};

struct Right {
  const bf16 *left, *right;  // a tile of 16 columns each; right is null where there are no more
  long step;                 // to the next 32 rows
};

#ifdef MATRIX_UNIT
template <bool BOTTOM, bool RIGHT>
inline void multiply_tiles(const Left& a, const Right& b, long steps, float* out, long out_row, bool add) {
  asm volatile("" ::: "memory");  // the compiler does not see that the instructions below read and write memory
  const long wide = out_row * 4, row = a.row * 2;
  float *low = out + 16 * out_row;
  if (add) {
    _tile_loadd(0, out, wide);
    if (RIGHT) _tile_loadd(1, out + 16, wide);
    if (BOTTOM) _tile_loadd(2, low, wide);
    if (BOTTOM && RIGHT) _tile_loadd(3, low + 16, wide);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (long s = 0; s < steps; ++s) {
    _tile_loadd(4, a.top + s * a.step, row);
    _tile_loadd(6, b.left + s * b.step, 64);
    _tile_dpbf16ps(0, 4, 6);
    if (RIGHT) {
      _tile_loadd(7, b.right + s * b.step, 64);
      _tile_dpbf16ps(1, 4, 7);
    }
    if (BOTTOM) {
      _tile_loadd(5, a.bottom + s * a.step, row);
      _tile_dpbf16ps(2, 5, 6);
      if (RIGHT) _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, out, wide);
  if (RIGHT) _tile_stored(1, out + 16, wide);
  if (BOTTOM) _tile_stored(2, low, wide);
  if (BOTTOM && RIGHT) _tile_stored(3, low + 16, wide);
  asm volatile("" ::: "memory");
}
#endif

// Of each 32 numbers of depth only the first `pairs` pairs are multiplied: the others are zeros.
#ifdef __AVX512BF16__
template <bool RIGHT>
inline void multiply_pairs(const Left& a, const Right& b, long steps, long pairs, float* out, long out_row, bool add) {
  constexpr long ROWS = RIGHT ? 8 : 16;  // 16 sums, so that none waits for the one before
  for (long first = 0; first < (a.bottom ? SIDE : 16); first += ROWS) {
    const bf16* rows = first < 16 ? a.top + first * a.row : a.bottom + (first - 16) * a.row;
    float* to = out + first * out_row;
    __m512 left[ROWS], right[ROWS];
#pragma GCC unroll 16
    for (long r = 0; r < ROWS; ++r) {
      left[r] = add ? _mm512_loadu_ps(to + r * out_row) : _mm512_setzero_ps();
      if (RIGHT) right[r] = add ? _mm512_loadu_ps(to + r * out_row + 16) : _mm512_setzero_ps();
    }
    for (long s = 0; s < steps; ++s)
      for (long k = 0; k < pairs; ++k) {
        __m512bh columns = (__m512bh)_mm512_loadu_si512(b.left + s * b.step + k * 32), others = columns;
        if (RIGHT) others = (__m512bh)_mm512_loadu_si512(b.right + s * b.step + k * 32);
#pragma GCC unroll 16
        for (long r = 0; r < ROWS; ++r) {
          int32_t pair;
          std::memcpy(&pair, rows + r * a.row + s * a.step + 2 * k, sizeof pair);
          __m512bh both = (__m512bh)_mm512_set1_epi32(pair);
          left[r] = _mm512_dpbf16_ps(left[r], both, columns);
          if (RIGHT) right[r] = _mm512_dpbf16_ps(right[r], both, others);
        }
      }
#pragma GCC unroll 16
    for (long r = 0; r < ROWS; ++r) {
      _mm512_storeu_ps(to + r * out_row, left[r]);
      if (RIGHT) _mm512_storeu_ps(to + r * out_row + 16, right[r]);
    }
  }
}
#else
template <bool RIGHT>
inline void multiply_pairs(const Left& a, const Right& b, long steps, long pairs, float* out, long out_row, bool add) {
  for (long r = 0; r < (a.bottom ? SIDE : 16); ++r)
    for (long c = 0; c < (RIGHT ? SIDE : 16); ++c) {
      const bf16* row = r < 16 ? a.top + r * a.row : a.bottom + (r - 16) * a.row;
      const bf16* column = (c < 16 ? b.left : b.right) + c % 16 * 2;
      float sum = add ? out[r * out_row + c] : 0;
      for (long s = 0; s < steps; ++s)
        for (long k = 0; k < 2 * pairs; ++k)
          sum += get(row + s * a.step + k) * get(column + s * b.step + k / 2 * 32 + k % 2);
      out[r * out_row + c] = sum;
    }
}
#endif

// `out`, 32 by 32 with `out_row` numbers from row to row, becomes the product over 32 * `steps`, or has it added.
// Beyond the first `pairs` pairs of each 32 one operand at least must be zeros: the matrix unit multiplies those, too.
inline void multiply(const Left& a, const Right& b, long steps, float* out, long out_row, bool add, long pairs = 16) {
#ifdef MATRIX_UNIT
  if (matrix_unit()) {
    auto* all = b.right ? multiply_tiles<true, true> : multiply_tiles<true, false>;
    auto* top = b.right ? multiply_tiles<false, true> : multiply_tiles<false, false>;
    return (a.bottom ? all : top)(a, b, steps, out, out_row, add);
  }
#endif
  (b.right ? multiply_pairs<true> : multiply_pairs<false>)(a, b, steps, pairs, out, out_row, add);
}

#ifdef __AVX512BF16__
// 16 numbers of two rows as 16 pairs.
inline __m512i paired(__m256i even, __m256i odd) {
  return _mm512_or_si512(_mm512_cvtepu16_epi32(even), _mm512_slli_epi32(_mm512_cvtepu16_epi32(odd), 16));
}

// Rows 2r and 2r + 1 of 16 columns side by side.
inline __m512i interleaved(const bf16* rows, long row, long r) {
  const bf16* even = rows + 2 * r * row;
  return paired(_mm256_loadu_si256((const __m256i*)even), _mm256_loadu_si256((const __m256i*)(even + row)));
}

// 32 rows of 16 columns as a tile of a right matrix.
inline void pack_right(const bf16* rows, long row, bf16* tile) {
#pragma GCC unroll 16
  for (long r = 0; r < 16; ++r) _mm512_storeu_si512(tile + r * 32, interleaved(rows, row, r));
}

// The same 32 rows of 16 columns as a tile of a left matrix, transposed: 16 rows of 32 columns.
inline void pack_left(const bf16* rows, long row, bf16* tile) {
  __m512i v[16], w[16];
#pragma GCC unroll 16
  for (long r = 0; r < 16; ++r) v[r] = interleaved(rows, row, r);
#pragma GCC unroll 8
  for (long r = 0; r < 16; r += 2) {  // pairs of rows, then fours, within lanes of four numbers
    w[r] = _mm512_unpacklo_epi32(v[r], v[r + 1]);
    w[r + 1] = _mm512_unpackhi_epi32(v[r], v[r + 1]);
  }
#pragma GCC unroll 4
  for (long r = 0; r < 16; r += 4) {
    v[r] = _mm512_unpacklo_epi64(w[r], w[r + 2]);
    v[r + 1] = _mm512_unpackhi_epi64(w[r], w[r + 2]);
    v[r + 2] = _mm512_unpacklo_epi64(w[r + 1], w[r + 3]);
    v[r + 3] = _mm512_unpackhi_epi64(w[r + 1], w[r + 3]);
  }
#pragma GCC unroll 4
  for (long i = 0; i < 4; ++i) {  // then the lanes themselves
    __m512i a = _mm512_shuffle_i32x4(v[i], v[i + 4], 0x88), b = _mm512_shuffle_i32x4(v[i], v[i + 4], 0xdd);
    __m512i c = _mm512_shuffle_i32x4(v[i + 8], v[i + 12], 0x88), d = _mm512_shuffle_i32x4(v[i + 8], v[i + 12], 0xdd);
    _mm512_storeu_si512(tile + i * 32, _mm512_shuffle_i32x4(a, c, 0x88));
    _mm512_storeu_si512(tile + (i + 4) * 32, _mm512_shuffle_i32x4(b, d, 0x88));
    _mm512_storeu_si512(tile + (i + 8) * 32, _mm512_shuffle_i32x4(a, c, 0xdd));
    _mm512_storeu_si512(tile + (i + 12) * 32, _mm512_shuffle_i32x4(b, d, 0xdd));
  }
}
#else
inline void pack_right(const bf16* rows, long row, bf16* tile) {
  for (long r = 0; r < 32; ++r)
    for (long c = 0; c < 16; ++c) tile[r / 2 * 32 + c * 2 + r % 2] = rows[r * row + c];
}

inline void pack_left(const bf16* rows, long row, bf16* tile) {
  for (long r = 0; r < 32; ++r)
    for (long c = 0; c < 16; ++c) tile[c * 32 + r] = rows[r * row + c];
}
#endif

// A right matrix of `depth` rows and `columns` columns, both padded with zeros to whole tiles, rounded to bfloat16.
class Packed {
  long deep, depth, columns, used;  // rows that are used, and padded
  Aligned<bf16> tiles;
  bf16* tile(long row, long column) const { return &tiles[(column / 16 * (depth / 32) + row / 32) * TILE]; }

 public:
  // From a matrix in memory, or from its transpose: `weight` has `rows` rows of `wide` numbers, each a multiple of 16.
  Packed(const float* weight, long rows, long wide, bool transposed)
      : deep(transposed ? wide : rows), depth(padded(deep)), columns(padded(transposed ? rows : wide)),
        used(transposed ? rows : wide), tiles(depth * columns) {
#ifdef __AVX512BF16__
    if (transposed) {
      for (long n = 0; n < rows; ++n)
        for (long k = 0; k < wide; k += 16) {
          alignas(32) int32_t pairs[8];
          _mm256_store_si256((__m256i*)pairs, (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(weight + n * wide + k)));
          bf16* to = tile(k, n) + k % 32 / 2 * 32 + n % 16 * 2;
          for (long i = 0; i < 8; ++i) std::memcpy(to + i * 32, &pairs[i], sizeof pairs[i]);
        }
      return;
    }
    for (long k = 0; k < rows; k += 2)
      for (long n = 0; n < wide; n += 16) {
        __m256i even = (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(weight + k * wide + n));
        __m256i odd = (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(weight + (k + 1) * wide + n));
        _mm512_storeu_si512(tile(k, n) + k % 32 / 2 * 32, paired(even, odd));
      }
#else
    for (long i = 0; i < rows * wide; ++i) {
      const long k = transposed ? i % wide : i / wide, n = transposed ? i / wide : i % wide;
      put(tile(k, n) + k % 32 / 2 * 32 + n % 16 * 2 + k % 2, weight[i]);
    }
#endif
  }
  Right at(long column) const {
    return {tile(0, column), column + 16 < used ? tile(0, column + 16) : nullptr, TILE};
  }
  long steps() const { return depth / 32; }
  long pairs() const { return depth == 32 ? deep / 2 : 16; }
};

inline Left left_of(const Rows<bf16>& rows, long panel) {
  return {rows.at(panel * SIDE, 0), rows.at(panel * SIDE + 16, 0), rows.width, SIDE};
}

// What `pointwise.cpp` does with matrices of bfloat16.
template <>
struct Products<bf16> {
  using Session = Tiles;
  using Weights = Packed;

  // The product of a panel of rows, `stride` numbers apart, with the 32 columns from `column` on.
  static void multiply_panel(const bf16* rows, long stride, const Packed& weights, long column, float* product) {
    multiply({rows, rows + 16 * stride, stride, SIDE}, weights.at(column), weights.steps(), product, SIDE, false,
             weights.pairs());
  }

  // Panels of inputs and of the output's gradients, until their share in the weights' gradient is added up at once.
  class Operands {
    static constexpr long COLUMN = 16 * TILE;
    long inputs, outputs;
    Aligned<bf16> left, right;  // tiles of all panels, by columns

   public:
    static constexpr long PANELS = 16;
    Rows<bf16> x, dy;
    Operands(long num_inputs, long num_outputs)
        : inputs(num_inputs), outputs(num_outputs), left(PANELS * SIDE * padded(num_outputs), false),
          right(PANELS * SIDE * padded(num_inputs), false), x(num_inputs), dy(num_outputs) {}
    long row(long) const { return 0; }
    void keep(long step) {
      for (long c = 0; c < dy.width; c += 16) pack_left(dy.at(0, c), dy.width, &left[(c / 16 * PANELS + step) * TILE]);
      for (long c = 0; c < x.width; c += 16) pack_right(x.at(0, c), x.width, &right[(c / 16 * PANELS + step) * TILE]);
    }
    void add_products(long steps, float* dweight) const {
      for (long n = 0; n < dy.width; n += SIDE)
        for (long k = 0; k < x.width; k += SIDE) {
          Left a{&left[n / 16 * COLUMN], n + 16 < outputs ? &left[(n / 16 + 1) * COLUMN] : nullptr, SIDE, TILE};
          Right b{&right[k / 16 * COLUMN], k + 16 < inputs ? &right[(k / 16 + 1) * COLUMN] : nullptr, TILE};
          multiply(a, b, steps, dweight + n * x.width + k, x.width, true);
        }
    }
  };
};

}  // namespace
#endif
