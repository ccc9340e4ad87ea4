// What Python hands over: a network for one image as a list of steps, and where its bytes lie. See int8_ir.py for the
// meaning of each step and bindings.py for the same structures in Python.
#pragma once
#include <cstdint>
#include <utility>
#define VECTORS_OF_16
#include "vectors.h"

// Which kernels this variant of the library has; neither: the portable ones.
#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#define NATIVE_AVX512 1
#elif defined(__AVX2__) && defined(__FMA__)
#define NATIVE_AVX2 1
#elif defined(__ARM_FEATURE_DOTPROD)
#define NATIVE_NEON 1
#endif
#if defined(__AMX_TILE__) && defined(__AMX_INT8__)
#define NATIVE_TILES 1
#endif

namespace native {

template <class F, int... I> INLINE inline void each_of(F f, std::integer_sequence<int, I...>) {
  (f(std::integral_constant<int, I>()), ...);
}

// Calls f(0) ... f(N - 1) with constants, so that arrays indexed by them become registers.
template <int N, class F> INLINE inline void unrolled(F f) { each_of(f, std::make_integer_sequence<int, N>()); }

enum Kind : int64_t {
  BORDER, PACK, DENSE, DEPTHWISE, POOL, UPSAMPLE, ADD, UNARY, ARITHMETIC, COPY, AVERAGE, MULTIPLY, RESIZE
};
enum Activation : int64_t { NONE, RELU, LEAKY_RELU, SILU, SIGMOID, CLIP, HARD_SWISH, TANH, GELU };
enum Place : int64_t { ARENA, CONSTANT, OUTPUT };

// Bytes [height, width, channels]; `at` is where pixel (0, 0) lies in the arena, `row` and `pixel` the bytes to the
// next, `room` the bytes of a pixel that may be written: whole vectors, unless they hold other features' channels too.
struct Feature {
  int64_t at, row, pixel, height, width, channels, room;
};

// Floats [rows, columns]; `at`: bytes from the arena's beginning, an address, or the index of an output.
struct Matrix {
  int64_t place, at, rows, columns;
};

// A smooth activation in integers of 16 bits: the larger of the argument and zero, less a dent that depends on the
// argument's size, made of straight lines. The size's bits above the lowest `bits` choose the line, the last one for
// all larger sizes. `cubic` describes the same dent by cubic polynomials: constant, linear, square and cubic
// coefficients of 8 pieces. The result times `factor`, of `shift` bits after the point, plus `zero`, which holds half
// of the last place for rounding, is the byte.
struct ActivationTable {
  int16_t start[64], rise[64], cubic[4][8];
  int64_t bits, shift;
  const float *multiplier, *offset;
  const int16_t *factor, *zero;
};

struct Step {
  Kind kind;
  Feature in, other, out;
  Matrix left, right, result;
  int64_t size, padding;                       // of a block or factor; of a border
  int64_t height, width, stride, dilation;     // of a window, whose first one begins `above` rows above and `before`
  int64_t above, before;                       // columns before the first pixel
  double alpha;                                // the activation's parameter
  int64_t choice;                              // an activation, a function or an operation
  int64_t index;                               // of the program's input
  int64_t linear;                              // bytes are rounded from multiplier * sum + offset, and nothing else
  int64_t tiles;                               // fours of bytes in a tile of the matrix unit; 0: computed without it
  int64_t to_matrix, first_row, first_column, left_column, right_column, columns;
  int64_t wide;                           // bits: the left, the right operand has all columns, not one for all
  int64_t joined;                         // each row needs, of what the steps before wrote, but the same row: stages.py
  // Per channel of the output, padded with zeros to whole vectors: what an integer is multiplied by, what is added to
  // the product, what the real value is divided by (as a factor), the byte of zero (as a float).
  const float *multiplier, *offset, *inverse, *zero;
  const float* other_multiplier;
  const int8_t* weight;
  const ActivationTable* activation_table;  // null, or what computes the activation instead of `multiplier` ... `zero`
  const int32_t* order;
};

struct Range {
  long first, last;
};

// One image being computed. `out` and `result` are what is written, as the arena's and the result's first byte: rows
// may be written to another place, see team.h.
struct Image {
  uint8_t* arena;
  const void* const* inputs;
  const int64_t* is_byte;  // of each input: uint8, not float32
  float* const* outputs;
  uint8_t* out;
  float* result;
};

// Computes some rows: of the output, or of the matrix that is read if that is one.
typedef void Work(const Step&, const Image&, Range rows);
Work border, pack, dense, depthwise, pool, upsample, add, unary, arithmetic, copy, average, multiply, resize;

#ifdef NATIVE_TILES
Work dense_with_tiles;
bool may_use_tiles();
#endif

inline float* floats(const Matrix& m, const Image& image) {
  if (m.place == CONSTANT) return (float*)m.at;
  return m.place == OUTPUT ? image.outputs[m.at] : (float*)(image.arena + m.at);
}

}  // namespace native
