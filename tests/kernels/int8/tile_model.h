// What Intel's tile instructions (AMX-TILE and AMX-INT8) do, after the Architecture Instruction Set Extensions
// Programming Reference, for processors without them: included before a source, it takes the place of their intrinsics.
// Where the processor would raise an exception, the process is aborted. TILE_MODEL is defined by who compiles.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif
#undef __AMX_BF16__
#undef __AMX_TILE__
#undef __AMX_INT8__
#define __AMX_TILE__ 1
#define __AMX_INT8__ 1

namespace tile_model {

struct Configuration {
  uint8_t palette, start_row, reserved[14];
  uint16_t bytes[16];
  uint8_t rows[16];
};
static_assert(sizeof(Configuration) == 64, "the operand of ldtilecfg");

struct Registers {
  Configuration shape;
  uint8_t tile[8][16][64];
};

inline thread_local Registers registers{};

inline void must(bool fits) {
  if (!fits) std::abort();
}

inline void load_configuration(const void* from) {
  Configuration shape;
  std::memcpy(&shape, from, sizeof shape);
  must(shape.palette <= 1);
  if (shape.palette == 0) shape = {};
  for (int i = 0; i < 14; ++i) must(shape.reserved[i] == 0);
  for (int i = 0; i < 16; ++i) {
    must(shape.bytes[i] <= (i < 8 ? 64 : 0) && shape.rows[i] <= (i < 8 ? 16 : 0));
    must((shape.bytes[i] == 0) == (shape.rows[i] == 0));
  }
  registers = {};
  registers.shape = shape;
}

inline void store_configuration(void* to) { std::memcpy(to, &registers.shape, sizeof registers.shape); }

inline bool is_configured(int i) { return registers.shape.palette == 1 && registers.shape.rows[i] > 0; }

inline void zero(int i) {
  must(is_configured(i));
  std::memset(registers.tile[i], 0, sizeof registers.tile[i]);
}

inline void load(int i, const void* from, int64_t stride) {
  zero(i);
  for (int row = 0; row < registers.shape.rows[i]; ++row)
    std::memcpy(registers.tile[i][row], (const char*)from + row * stride, registers.shape.bytes[i]);
}

inline void store(int i, void* to, int64_t stride) {
  must(is_configured(i));
  for (int row = 0; row < registers.shape.rows[i]; ++row)
    std::memcpy((char*)to + row * stride, registers.tile[i][row], registers.shape.bytes[i]);
}

// Adds to each 32-bit sum of a row and a column four products of unsigned bytes by signed ones, for each four bytes.
inline void add_products(int sums, int left, int right) {
  const Configuration& shape = registers.shape;
  must(is_configured(sums) && is_configured(left) && is_configured(right));
  must(sums != left && sums != right && left != right);
  must(shape.bytes[sums] % 4 == 0 && shape.bytes[left] % 4 == 0 && shape.bytes[right] % 4 == 0);
  must(shape.rows[sums] == shape.rows[left] && shape.bytes[sums] == shape.bytes[right]);
  must(shape.bytes[left] == 4 * shape.rows[right]);
  for (int m = 0; m < shape.rows[sums]; ++m)
    for (int n = 0; n < shape.bytes[sums]; n += 4) {
      uint32_t sum;
      std::memcpy(&sum, registers.tile[sums][m] + n, sizeof sum);
      for (int k = 0; k < shape.bytes[left]; ++k)
        sum += uint32_t(registers.tile[left][m][k] * int8_t(registers.tile[right][k / 4][n + k % 4]));
      std::memcpy(registers.tile[sums][m] + n, &sum, sizeof sum);
    }
}

}  // namespace tile_model

#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbusd
#define _tile_loadconfig tile_model::load_configuration
#define _tile_storeconfig tile_model::store_configuration
#define _tile_zero tile_model::zero
#define _tile_loadd tile_model::load
#define _tile_stored tile_model::store
#define _tile_dpbusd tile_model::add_products
