// One product of tiles as the model of the int8 tests computes it.
#define thread_local  // there is one thread, and no memory of its own
#include "tile_model.h"

extern "C" void model_product(const void* shapes, void* sums, const void* left, const void* right) {
  _tile_loadconfig(shapes);
  _tile_loadd(0, sums, 64);
  _tile_loadd(1, left, 64);
  _tile_loadd(2, right, 64);
  _tile_dpbusd(0, 1, 2);
  _tile_stored(0, sums, 64);
}
