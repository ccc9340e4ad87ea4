// Products of float32 matrices for `pointwise.cpp`: outputs stay in registers, one operand is spread number by number
// over the vectors of the other, which lies in memory row by row.
#pragma once
#include "panels.h"

namespace {

constexpr long ROWS = V == 16 ? 12 : 6;  // with two vectors each they fill the registers

// `out` becomes, or has added, the product of ROWS_ rows and VECTORS vectors of columns over `depth`. Number k of row r
// of the left matrix is at a[r * a_row + k * a_step].
template <long ROWS_, long VECTORS>
inline void multiply_block(const float* a, long a_row, long a_step, long depth, const float* b, long b_row, float* out,
                           long out_row, bool add) {
  vf sum[ROWS_][VECTORS];
#pragma GCC unroll 12
  for (long r = 0; r < ROWS_; ++r)
#pragma GCC unroll 2
    for (long v = 0; v < VECTORS; ++v) sum[r][v] = add ? load(out + r * out_row + v * V) : vf{};
  for (long k = 0; k < depth; ++k) {
    vf column[VECTORS];
#pragma GCC unroll 2
    for (long v = 0; v < VECTORS; ++v) column[v] = load(b + k * b_row + v * V);
#pragma GCC unroll 12
    for (long r = 0; r < ROWS_; ++r) {
      const vf number = a[r * a_row + k * a_step] - vf{};  // in all places; a sum with 0 would be computed
#pragma GCC unroll 2
      for (long v = 0; v < VECTORS; ++v) sum[r][v] += number * column[v];
    }
  }
#pragma GCC unroll 12
  for (long r = 0; r < ROWS_; ++r)
#pragma GCC unroll 2
    for (long v = 0; v < VECTORS; ++v) store(out + r * out_row + v * V, sum[r][v]);
}

template <long VECTORS>
inline void multiply_rows(long rows, const float* a, long a_row, long a_step, long depth, const float* b, long b_row,
                          float* out, long out_row, bool add) {
  long r = 0;
  for (; r + ROWS <= rows; r += ROWS)
    multiply_block<ROWS, VECTORS>(a + r * a_row, a_row, a_step, depth, b, b_row, out + r * out_row, out_row, add);
  for (; r + 8 <= rows && ROWS > 8; r += 8)
    multiply_block<8, VECTORS>(a + r * a_row, a_row, a_step, depth, b, b_row, out + r * out_row, out_row, add);
  for (; r + 4 <= rows; r += 4)
    multiply_block<4, VECTORS>(a + r * a_row, a_row, a_step, depth, b, b_row, out + r * out_row, out_row, add);
  for (; r + 2 <= rows; r += 2)
    multiply_block<2, VECTORS>(a + r * a_row, a_row, a_step, depth, b, b_row, out + r * out_row, out_row, add);
  for (; r < rows; ++r)
    multiply_block<1, VECTORS>(a + r * a_row, a_row, a_step, depth, b, b_row, out + r * out_row, out_row, add);
}

// The same for any number of rows, and of columns that is a multiple of V.
inline void multiply_all(long rows, const float* a, long a_row, long a_step, long depth, const float* b, long b_row,
                         long columns, float* out, long out_row, bool add) {
  for (long c = 0; c < columns; c += 2 * V) {
    auto run = c + V < columns ? multiply_rows<2> : multiply_rows<1>;
    run(rows, a, a_row, a_step, depth, b + c, b_row, out + c, out_row, add);
  }
}

template <>
struct Products<float> {
  struct Session {
    Session() {}
  };

  // A right matrix row by row: that of `weight`, which has `rows` rows of `wide` numbers, or its transpose.
  class Weights {
   public:
    long depth, columns;
    Aligned<float> numbers;
    Weights(const float* weight, long rows, long wide, bool transposed)
        : depth(transposed ? wide : rows), columns(transposed ? rows : wide), numbers(rows * wide, false) {
      if (!transposed) {
        std::copy(weight, weight + rows * wide, numbers.begin());
        return;
      }
      for (long n = 0; n < rows; ++n)
        for (long k = 0; k < wide; ++k) numbers[k * rows + n] = weight[n * wide + k];
    }
  };

  static void multiply_panel(const float* rows, long stride, const Weights& weights, long column, float* product) {
    multiply_all(SIDE, rows, stride, 1, weights.depth, &weights.numbers[column], weights.columns,
                 std::min(SIDE, weights.columns - column), product, SIDE, false);
  }

  class Operands {
    long inputs, outputs;

   public:
    static constexpr long PANELS = 4;
    Rows<float> x, dy;
    Operands(long num_inputs, long num_outputs)
        : inputs(num_inputs), outputs(num_outputs), x(num_inputs, PANELS), dy(num_outputs, PANELS) {}
    long row(long step) const { return step * SIDE; }
    void keep(long) {}
    void add_products(long steps, float* dweight) const {
      multiply_all(outputs, dy.at(0, 0), 1, dy.width, steps * SIDE, x.at(0, 0), x.width, inputs, dweight, x.width,
                   true);
    }
  };
};

}  // namespace
